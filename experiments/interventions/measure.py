"""The model with the massive activations of one layer set to something else, or not written, beside itself as it is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from experiments.interventions.changes import (
    EVERYWHERE,
    LAYER,
    MEAN,
    MEDIAN,
    MLP_OFF,
    NEURONS_OFF,
    ONWARD,
    ORDINARY,
    PUT_BACK,
    RESAMPLED,
    THERE,
    ZERO,
    Change,
    PutBack,
    Wanted,
    changes_of,
)
from experiments.interventions.sites import SITES_RULE, Sites, find_massive, find_sites, pair_of
from experiments.interventions.writers import find_writers
from lib.core import sweep
from lib.core.data import Windows
from lib.core.definitions import SINK_EPSILON
from lib.core.massive import DEFINITION, is_massive
from lib.core.place import Place, find
from lib.core.stats import Draws
from lib.core.sweep import Measured
from lib.model.models import LanguageModel
from lib.run.errors import UserError


@dataclass(frozen=True)
class Interventions:
    """place: of lib.core.place, on all windows. sites: what is changed, by position and dim, and what takes its place.

    mlp: share of the block output at the place that the layer's MLP adds, the neurons that give it (rows of
    mlp.contributions), left_out: why there are none; None where no neurons are asked for.
    conditions: {"baseline" or name: label, perplexity, sink_rates by epsilon, values (signed, at the place, by layer)},
    and for a change question, set_to, where, loss_change and sink_rate_changes (paired, changed - baseline, of all
    heads), left (the share of the baseline's value at the place in the output of the layer: ratio of sums over the
    windows in which it is massive there; None if there is none) and comes_back (the same at the end of the plateau;
    None if that is not later, or if the layers up to it are held). recovered, of "put_back": by how much its loss is
    below that of the same writer off alone, paired. All of them on the measured windows.
    """

    place: dict[str, Any]
    layer: int
    epsilons: tuple[float, ...]
    sites: dict[str, Any]
    mlp: dict[str, Any] | None
    conditions: dict[str, dict[str, Any]]


def compare(
    lm: LanguageModel,
    windows: Windows,
    place: Place,
    layer: int,
    wanted: Sequence[Wanted],
    epsilons: Sequence[float],
    options: Any,
) -> Interventions:
    """Each of `wanted` beside the model as it is.

    wanted: pairs of what the sites of `layer` are set to (ZERO, MEAN, MEDIAN, ORDINARY, RESAMPLED, or a factor of what
    the model has) and LAYER or ONWARD; or of what is off (NEURONS_OFF, MLP_OFF) and THERE or EVERYWHERE; (PUT_BACK,
    THERE) is the mean at that layer with the neurons, or where there are none the MLP, off there.

    Raises UserError for a single window, epsilons beyond 0 to 1 and non-finite values.
    """
    if not all(0 <= epsilon <= 1 for epsilon in epsilons):
        raise UserError("--epsilons must be between 0 and 1")
    n = len(windows.ids)
    if n < 2:
        raise UserError(
            "--nsamples must be at least 2: every second window estimates the means, the others are measured"
        )
    massive = find_massive(lm, windows, layer, options.batch_size)
    pairs = {pair_of(position, dim) for window, position, dim in massive.tolist() if window % 2 == 0}
    known = np.array([pair_of(position, dim) in pairs for _window, position, dim in massive.tolist()], dtype=bool)
    spiking = np.isin(np.arange(n), massive[known, 0])
    odd = np.arange(n) % 2 == 1
    rows = np.flatnonzero(spiking & odd)
    changes: list[Change] = []
    mlp: dict[str, Any] | None = None
    described: dict[str, Any] = {"dims": [], "medians": None}
    if len(rows):
        before = np.flatnonzero(spiking & ~odd)
        estimation, sites = (
            find_sites(lm, windows, of, massive, pairs, layer, options.batch_size) for of in (before, rows)
        )
        sizes = place.of(before).medians[:, layer:].mean(0)
        if any(set_to == NEURONS_OFF for set_to, _where in wanted):
            mlp = find_writers(lm, windows, place, before, layer, options.batch_size)
        changes = changes_of(wanted, sites, estimation, sizes, mlp, windows.ids[rows].shape, options.seed)
        described = {"dims": _dims(sites, estimation), "medians": sizes}
    there = place.of(rows if len(rows) else np.flatnonzero(odd))
    measured_windows = replace(windows, ids=windows.ids[rows if len(rows) else odd])
    measured = sweep.measure(lm, measured_windows, there, changes, options.batch_size)
    return Interventions(
        place=place.described(),
        layer=layer,
        epsilons=tuple(epsilons),
        sites={
            "rule": SITES_RULE,
            "definition": DEFINITION,
            "estimation_windows": int((spiking & ~odd).sum()),
            "windows": len(there.positions),
            "spiking": place.of(odd).draws.share(spiking[odd]),
            "left_alone": int((~known & odd[massive[:, 0]]).sum()),
            **described,
        },
        mlp=mlp,
        conditions=_conditions(measured, changes, there, layer, place.plateau[1], epsilons),
    )


def _dims(sites: Sites, estimation: Sites) -> list[dict[str, Any]]:
    """results.sites.dims, largest first: each pair's value (mean at the layer, measured windows), means and ordinary
    (what MEAN and ORDINARY put, by layer), and at how many measured sites it is changed, and massive."""
    means, values, of_pair = estimation.means(), sites.means(), sites.by_pair()
    estimated = estimation.by_pair()
    return [
        {
            "position": at,
            "dim": dim,
            "value": values[at, dim][0],
            "means": means[at, dim],
            "ordinary": estimation.ordinary[dim],
            "sites": len(of_pair[at, dim]),
            "massive": int(sites.massive[of_pair[at, dim]].sum()),
            "estimation_sites": len(estimated[at, dim]),
            "positions": dict(Counter(sites.index[of_pair[at, dim], 1].tolist()).most_common()),
        }
        for at, dim in sorted(values, key=lambda pair: -abs(values[pair][0]))
    ]


def _conditions(
    measured: dict[str, Measured],
    changes: Sequence[Change],
    there: Place,
    layer: int,
    end: int,
    epsilons: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """results.conditions. there: the Place in the measured windows; end: the last layer of its plateau."""
    baseline, draws = measured[sweep.BASELINE], there.draws
    massive = is_massive(there.values[:, layer], there.medians[:, layer])
    conditions: dict[str, dict[str, Any]] = {
        sweep.BASELINE: {"label": sweep.BASELINE, **_described(baseline, epsilons, draws)}
    }

    def kept(here: Measured, at: int) -> dict[str, Any]:
        before, after = (of.values[massive, at] for of in (baseline, here))
        return draws.of(massive).ratios(np.sign(before) * after, np.abs(before))

    for change in changes:
        here = measured[change.name]
        rates = {str(e): draws.averages(here.sink_rates(e) - baseline.sink_rates(e)) for e in epsilons}
        free = massive.any() and change.where != ONWARD and end > layer
        conditions[change.name] = {
            "label": change.label,
            "question": change.question,
            "set_to": change.set_to,
            "where": change.where,
            **_described(here, epsilons, draws),
            "loss_change": draws.averages(here.losses - baseline.losses),
            "sink_rate_changes": rates,
            "left": kept(here, layer) if massive.any() else None,
            "comes_back": {"layer": end, "share": kept(here, end)} if free else None,
        }
        if isinstance(change, PutBack):
            without = measured[change.off.name].losses
            conditions[change.name]["recovered"] = draws.averages(without - here.losses)
    return conditions


def _described(measured: Measured, epsilons: Sequence[float], draws: Draws) -> dict[str, Any]:
    return {
        "perplexity": draws.perplexity(measured.losses),
        "sink_rates": {str(e): draws.averages(measured.sink_rates(e)) for e in epsilons},
        "values": draws.averages(measured.values),
    }


def run(lm: LanguageModel, windows: Windows, options: Any) -> Interventions:
    if options.layer_id is not None:
        lm.arch.check_layer(options.layer_id)
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    layer = place.plateau[0] if options.layer_id is None else options.layer_id
    off, held = (NEURONS_OFF, MLP_OFF), (LAYER, ONWARD)
    wanted = [
        *product(off, (THERE, EVERYWHERE)),
        (PUT_BACK, THERE),
        *product((RESAMPLED, MEAN, ORDINARY, ZERO, MEDIAN, *options.factors), held),
    ]
    return compare(lm, windows, place, layer, wanted, options.epsilons, options)


def run_single(lm: LanguageModel, windows: Windows, options: Any) -> Interventions:
    lm.arch.check_layer(options.layer_id)
    place = find(lm, windows, options.batch_size, seed=options.seed)
    wanted = [(options.reset_type.removeprefix("set_"), LAYER)]
    return compare(lm, windows, place, options.layer_id, wanted, (SINK_EPSILON,), options)
