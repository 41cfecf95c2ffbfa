"""The model with the massive activations of one layer set to something else, or not written, beside itself as it is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from msgspec import UNSET

from experiments.interventions import changes
from experiments.interventions.changes import PutBack, Wanted
from experiments.interventions.results import (
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
    ChangedPair,
    ChangedSites,
    ComesBack,
    Condition,
    Results,
    Writers,
)
from experiments.interventions.sites import FIRST, MASK_RULE, SITES_RULE, Sites, find_massive, find_sites, pair_of
from experiments.interventions.writers import find_writers
from lib.core import provenance, sweep
from lib.core.data import Windows
from lib.core.definitions import SINK_EPSILON
from lib.core.evidence import Average
from lib.core.massive import DEFINITION, is_massive
from lib.core.place import Place, find
from lib.core.stats import SHARE, Draws
from lib.core.sweep import Measured
from lib.model.models import LanguageModel
from lib.report import masks, tables
from lib.report.masks import Mask
from lib.run import storage
from lib.run.errors import UserError

RESET = {"set_zero": ZERO, "set_mean": MEAN}  # of main_llm.py


def compare(
    lm: LanguageModel,
    windows: Windows,
    place: Place,
    layer: int,
    wanted: Sequence[Wanted],
    epsilons: Sequence[float],
    options: Any,
    mask: Mask | None = None,
) -> Results:
    """Each of `wanted` beside the model as it is; sites are where it is massive, or where `mask` says.

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
    found = mask.named(layer, windows.ids.numpy()) if mask else massive
    pairs = {pair_of(position, dim) for window, position, dim in found.tolist() if window % 2 == 0}
    known = np.array([pair_of(position, dim) in pairs for _window, position, dim in found.tolist()], dtype=bool)
    changed = found[known]
    spiking = np.isin(np.arange(n), changed[:, 0])
    if not mask:
        first = [(window, 0, dim) for window in range(n) for where, dim in pairs if where == FIRST]
        changed = np.unique(np.concatenate([changed, np.array(first, dtype=int).reshape(-1, 3)]), axis=0)
    alone = {*map(tuple, massive.tolist())} - {*map(tuple, changed.tolist())}
    odd = np.arange(n) % 2 == 1
    rows = np.flatnonzero(spiking & odd)
    applied: list[changes.Change] = []
    mlp: Writers | None = None
    dims: list[ChangedPair] = []
    medians: list[float] | None = None
    if len(rows):
        before = np.flatnonzero(spiking & ~odd)
        estimation, sites = (
            find_sites(lm, windows, chosen, massive, changed, layer, options.batch_size) for chosen in (before, rows)
        )
        sizes = place.of(before).medians[:, layer:].mean(0)
        if any(set_to == NEURONS_OFF for set_to, _where in wanted):
            mlp = find_writers(lm, windows, place, before, layer, options.batch_size)
        shape = tuple(windows.ids[rows].shape)
        applied = changes.changes_of(wanted, sites, estimation, sizes, mlp, shape, options.seed)
        dims, medians = _dims(sites, estimation), sizes.tolist()
    there = place.of(rows if len(rows) else np.flatnonzero(odd))
    measured_windows = replace(windows, ids=windows.ids[rows if len(rows) else odd])
    measured = sweep.measure(lm, measured_windows, there, applied, options.batch_size)
    return Results(
        place=place.described(),
        layer=layer,
        epsilons=list(epsilons),
        sites=ChangedSites(
            rule=MASK_RULE if mask else SITES_RULE,
            definition=DEFINITION,
            estimation_windows=int((spiking & ~odd).sum()),
            windows=len(there.positions),
            spiking=place.of(odd).draws.share(spiking[odd]),
            left_alone=sum(window % 2 for window, _position, _dim in alone),
            dims=dims,
            medians=medians,
            mask_sha256=storage.sha256(options.mask) if mask else UNSET,
        ),
        mlp=mlp,
        conditions=_conditions(measured, applied, there, layer, place.plateau[1], epsilons),
    )


def _dims(sites: Sites, estimation: Sites) -> list[ChangedPair]:
    """results.sites.dims."""
    means, values = estimation.means(), sites.means()
    changed, estimated = sites.by_pair(), estimation.by_pair()
    pairs = []
    for pair in sorted(values, key=lambda pair: -abs(values[pair][0])):
        position, dim = pair
        here = changed[pair]
        pairs.append(
            ChangedPair(
                position=position,
                dim=dim,
                value=float(values[pair][0]),
                means=means[pair].tolist(),
                ordinary=estimation.ordinary[dim].tolist(),
                sites=len(here),
                massive=int(sites.massive[here].sum()),
                estimation_sites=len(estimated[pair]),
                positions=dict(Counter(sites.index[here, 1].tolist()).most_common()),
            )
        )
    return pairs


def _conditions(
    measured: dict[str, Measured],
    applied: Sequence[changes.Change],
    there: Place,
    layer: int,
    end: int,
    epsilons: Sequence[float],
) -> dict[str, Condition]:
    """results.conditions. there: the Place in the measured windows; end: the last layer of its plateau."""
    baseline, draws = measured[sweep.BASELINE], there.draws
    massive = is_massive(there.values[:, layer], there.medians[:, layer])
    conditions = {sweep.BASELINE: Condition(label=sweep.BASELINE, **_described(baseline, epsilons, draws))}

    def kept(here: Measured, layer: int) -> Average:
        before, after = (version.values[massive, layer] for version in (baseline, here))
        return draws.of(massive).ratios(np.sign(before) * after, np.abs(before))

    for change in applied:
        here = measured[change.name]
        comes_back = massive.any() and change.where != ONWARD and end > layer
        without = measured[change.off.name].losses if isinstance(change, PutBack) else None
        conditions[change.name] = Change(
            label=change.label,
            question=change.question,
            set_to=change.set_to,
            factor=change.factor,
            where=change.where,
            **_described(here, epsilons, draws),
            loss_change=draws.averages(here.losses - baseline.losses),
            sink_rate_changes={e: draws.averages(here.sink_rates(e) - baseline.sink_rates(e)) for e in epsilons},
            left=kept(here, layer) if massive.any() else None,
            comes_back=ComesBack(end, kept(here, end)) if comes_back else None,
            recovered=None if without is None else draws.averages(without - here.losses),
        )
    return conditions


def _described(measured: Measured, epsilons: Sequence[float], draws: Draws) -> dict[str, Any]:
    """The fields of every Condition."""
    return {
        "perplexity": draws.perplexity(measured.losses),
        "sink_rates": {e: draws.averages(measured.sink_rates(e), within=SHARE) for e in epsilons},
        "values": draws.averages(measured.values),
    }


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    mask = read_mask(lm, options) if options.mask else None
    lm.arch.require_attention()
    if options.layer_id is not None:
        lm.arch.check_layer(options.layer_id)
        lm.arch.module(options.layer_id, "mlp_write")
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    layer = place.plateau[0] if options.layer_id is None else options.layer_id
    if mask and layer not in mask.ruled:
        named = tables.spans(mask.ruled)
        raise UserError(f"{options.mask} names no positions at layer {layer}; choose --layer_id among {named}")
    lm.arch.module(layer, "mlp_write")
    off, held = (NEURONS_OFF, MLP_OFF), (LAYER, ONWARD)
    wanted = [
        *product(off, (THERE, EVERYWHERE)),
        (PUT_BACK, THERE),
        *product((RESAMPLED, MEAN, ORDINARY, ZERO, MEDIAN, *options.factors), held),
    ]
    return compare(lm, windows, place, layer, wanted, options.epsilons, options, mask)


def read_mask(lm: LanguageModel, options: Any) -> Mask:
    """Raises UserError if --mask cannot be applied to this model."""
    mask = masks.read(options.mask)
    masks.require_of(mask, options.mask, provenance.of_model(options, lm))
    if (mask.layers, mask.hidden_size) != (lm.arch.n_layers, lm.arch.hidden_size):
        raise UserError(f"{options.mask} is of {mask.layers} layers of {mask.hidden_size} dims, not of this model")
    return mask


def run_single(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    lm.arch.require_attention()
    lm.arch.check_layer(options.layer_id)
    place = find(lm, windows, options.batch_size, seed=options.seed)
    wanted = [(RESET[options.reset_type], LAYER)]
    return compare(lm, windows, place, options.layer_id, wanted, (SINK_EPSILON,), options)
