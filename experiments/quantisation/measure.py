"""The model as it is, then with its activations quantised, one pass each, on the same windows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from experiments.quantisation.changes import Known, Quantised
from experiments.quantisation.results import (
    AS_IT_IS,
    BLOCK,
    CALIBRATES,
    REMEDIES,
    RULES,
    SCHEMES,
    WHERE,
    Condition,
    Range,
    Results,
    name_of,
)
from experiments.quantisation.schemes import TINY, group_of
from experiments.quantisation.sites import find, left_out
from experiments.quantisation.survey import Seen, calibrate, look, massive_places, within
from lib.core.changes import Change
from lib.core.data import Windows
from lib.core.definitions import FLOAT16_MAX
from lib.core.evidence import Average
from lib.core.on_device import OnDevice, exact
from lib.core.stats import SIZE, Draws
from lib.core.versions import BASELINE, each_batch
from lib.model import hooks, next_token
from lib.model.models import LanguageModel
from lib.run import processes
from lib.run.errors import UserError

MEASURED = LOSS, ERROR, ELSEWHERE, FINAL = range(4)  # columns of a version; of the model as it is the first alone


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    """Raises UserError for a single window and for non-finite values of the model as it is."""
    n = len(windows.ids)
    if n < 2:
        raise UserError(f"--nsamples must be at least 2: one window of {CALIBRATES} calibrates, others are measured")
    calibrates = np.arange(n) % CALIBRATES == 0
    chosen, measured = np.flatnonzero(calibrates), np.flatnonzero(~calibrates)
    sites = find(lm, windows.ids[:1, :2])
    seen = look(lm, windows, sites, options.batch_size)
    massive = massive_places(sites, seen)
    calibrated = calibrate(lm, windows, chosen, sites, seen, massive, options.batch_size)
    here = [within(index, measured) for index in massive]
    known = [
        Known(number, site, of, index, of.constants(index))
        for number, (site, of, index) in enumerate(zip(sites, calibrated, here, strict=True))
    ]
    kept = OnDevice()
    changes = quantisations(known, any(of.largest.max() > FLOAT16_MAX for of in seen), kept)
    versions = _measure(lm, replace(windows, ids=windows.ids[measured]), changes, kept, options.batch_size)
    draws = windows.draws(options.seed).of(measured)
    spiking = {window for one in known if one.site.kind == BLOCK for window in one.massive[:, 0].tolist()}
    return Results(
        rules=RULES,
        calibration=len(chosen),
        measured=len(measured),
        loss=draws.averages(versions[BASELINE][:, LOSS], within=SIZE),
        spiking=draws.share(np.isin(np.arange(len(measured)), [*spiking])),
        ranges=_ranges(known, seen, measured, draws),
        left_out=left_out(lm.arch),
        conditions=_conditions(changes, versions, draws),
    )


def quantisations(known: Sequence[Known], beyond: bool, kept: OnDevice) -> list[Quantised]:
    """Every scheme, with every remedy where something is massive. beyond: whether some value is beyond float16, which
    else has nothing to remedy."""
    changes = []
    for where in WHERE:
        own = [one for one in known if one.site.where == where]
        found = any(len(one.massive) for one in own)
        for scheme in SCHEMES if own else ():
            remedies = REMEDIES if found and (beyond or scheme.scaling is not None) else (AS_IT_IS,)
            changes += [Quantised(where, scheme, remedy, own, kept) for remedy in remedies]
    return changes


def _measure(
    lm: LanguageModel, windows: Windows, changes: Sequence[Quantised], kept: OnDevice, batch_size: int
) -> dict[str, np.ndarray]:
    """{name: (windows, MEASURED)} of the model as it is and of each change."""
    n, last = len(windows.ids), lm.arch.n_layers - 1
    versions = {name: np.full((n, len(MEASURED)), np.nan) for name in (BASELINE, *(change.name for change in changes))}
    sites_of = {change.name: [one.number for one in change.sites] for change in changes}
    as_it_is: list[torch.Tensor] = []

    def one_pass(together: Sequence[Change], ids: torch.Tensor, rows: slice) -> None:
        def see(_layer: int, hidden: torch.Tensor) -> None:
            if not together:
                as_it_is[:] = [hidden.clone()]
                return
            before = as_it_is[0].to(hidden.device).float()
            changed = hidden.float().unflatten(0, (len(together), -1))
            squares = (changed - before).square().sum(3) / before.square().sum(2).clamp(min=TINY)
            kept.keep("final", squares.mean(2))

        with hooks.watch_outputs(lm.arch, "block", see, [last]):
            kept.keep("losses", exact(next_token.losses(lm, ids)).mean(1))
        taken = kept.take()
        if not together:
            versions[BASELINE][rows, LOSS] = taken["losses"]
            return
        losses = np.split(taken["losses"], len(together))
        for one, version_losses, final in zip(together, losses, taken["final"], strict=True):
            error = np.mean([taken[one.name, number] for number in sites_of[one.name]], axis=0)
            versions[one.name][rows] = np.column_stack([version_losses, error, final])

    for _rows in each_batch(lm, windows, changes, batch_size, "quantised", one_pass, share=True):
        pass
    mine = processes.own(n, batch_size)
    return {name: np.concatenate(processes.gather([version[mine]])) for name, version in versions.items()}


def _ranges(known: Sequence[Known], seen: Sequence[Seen], measured: np.ndarray, draws: Draws) -> list[Range]:
    medians, zeros = (
        draws.averages(np.stack([getattr(of, name)[measured] for of in seen], axis=1)) for name in ("median", "zero")
    )
    return [
        Range(
            layer=one.site.layer,
            kind=one.site.kind,
            modules=[*one.site.modules],
            width=one.site.width,
            group=group_of(one.site.width),
            largest=float(of.largest[measured].max()),
            median=median,
            zero=zero,
            massive=len(one.massive) / len(measured),
            limit=one.calibrated.limit,
        )
        for one, of, median, zero in zip(known, seen, medians, zeros, strict=True)
    ]


def _conditions(changes: Sequence[Quantised], versions: dict[str, np.ndarray], draws: Draws) -> dict[str, Condition]:
    losses = {name: version[:, LOSS] for name, version in versions.items()}
    changed = {change.name: losses[change.name] - losses[BASELINE] for change in changes}
    regained = {
        change.name: losses[name_of(change.where, change.scheme, AS_IT_IS)] - losses[change.name]
        for change in changes
        if change.remedy != AS_IT_IS
    }
    loss_changes, gains = _averages(draws, changed), _averages(draws, regained, family=True)
    errors = {
        column: _averages(draws, {change.name: versions[change.name][:, column] for change in changes})
        for column in (ERROR, ELSEWHERE, FINAL)
    }
    conditions = {}
    for change in changes:
        own, loss_change = losses[change.name], loss_changes.get(change.name)
        conditions[change.name] = Condition(
            where=change.where,
            scheme=change.scheme,
            remedy=change.remedy,
            overflowing=int((~np.isfinite(own)).sum()),
            loss_change=loss_change,
            perplexity=None if loss_change is None else draws.perplexity(own),
            error=errors[ERROR].get(change.name),
            elsewhere=errors[ELSEWHERE].get(change.name),
            final=errors[FINAL].get(change.name),
            regained=gains.get(change.name),
        )
    return conditions


def _averages(draws: Draws, values: dict[str, np.ndarray], family: bool = False) -> dict[str, Average]:
    """By name, of the (windows,) values that are finite in all windows."""
    finite = {name: of_windows for name, of_windows in values.items() if np.isfinite(of_windows).all()}
    if not finite:
        return {}
    return dict(zip(finite, draws.averages(np.stack([*finite.values()], axis=1), family), strict=True))
