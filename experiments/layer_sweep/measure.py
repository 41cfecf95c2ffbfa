"""Every layer's MLP and attention block off, kept, and off from either end: what becomes of the value at the place."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from experiments.layer_sweep.results import (
    Baseline,
    Elsewhere,
    Kind,
    Rebuilt,
    Repair,
    Results,
    Run,
    Swept,
    SweptLayer,
    SweptWindows,
)
from lib.core import attribution, first_tokens, sweep
from lib.core.ablation import Condition
from lib.core.attribution import Write
from lib.core.changes import Change
from lib.core.data import Windows
from lib.core.definitions import WRITES
from lib.core.evidence import Average
from lib.core.massive import LayerStatistics
from lib.core.place import Place, find
from lib.core.results import OF_MLP
from lib.core.stats import SHARE, Draws
from lib.core.sweep import Measured
from lib.core.versions import each_batch
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.run import processes
from lib.run.errors import UserError

KINDS: tuple[Kind, ...] = ("mlp", "attention")

Spot = tuple[int, int, int, int]  # sequence, layer, position, dim


def off_sets(kind: Kind, n_layers: int) -> dict[Run, dict[int, tuple[int, ...]]]:
    """{run: {layer: the layers that are off}}; what would leave nothing off is left out.

    only_with_first, of MLPs alone: MLP 0, without which a trained model's residual stream is hardly its own, stays.
    """
    every = range(n_layers)
    runs: dict[Run, dict[int, tuple[int, ...]]] = {
        "alone": {layer: (layer,) for layer in every},
        "only": {layer: tuple(i for i in every if i != layer) for layer in every},
        "only_with_first": {layer: tuple(i for i in every if i not in (0, layer)) for layer in every},
        "from_front": {layer: tuple(every[: layer + 1]) for layer in every},
        "from_back": {layer: tuple(every[layer:]) for layer in every},
    }
    if kind != "mlp":
        del runs["only_with_first"]
    some = {run: {layer: off for layer, off in sets.items() if off} for run, sets in runs.items()}
    return {run: sets for run, sets in some.items() if sets}


def _without(name: str, kind: Kind, layers: tuple[int, ...]) -> Condition:
    return Condition(name, "", mlps=layers) if kind == "mlp" else Condition(name, "", attention=layers)


def sweep_layers(
    lm: LanguageModel, windows: Windows, place: Place, n_whole: int, batch_size: int
) -> tuple[SweptWindows, Baseline, dict[Kind, list[SweptLayer]]]:
    """The windows, the baseline and every layer of each kind.

    The place is measured in all windows, cut after it; losses and sink rates in `n_whole` of them. What is said of the
    value is of the windows that have the spike (of all, if none has): elsewhere there is nothing to lose.
    """
    n_layers = lm.arch.n_layers
    sets = {kind: off_sets(kind, n_layers) for kind in KINDS}
    changes = {
        (kind, off): _without(f"{kind} {off}", kind, off)
        for kind in KINDS
        for by_layer in sets[kind].values()
        for off in by_layer.values()
    }
    values = sweep.values_at_place(lm, windows, place, list(changes.values()), batch_size)
    rows = windows.spread(n_whole)
    some, there = replace(windows, ids=windows.ids[rows]), place.of(rows)
    whole = _Whole(sweep.measure(lm, some, there, list(changes.values()), batch_size), there.draws)
    at_place = _AtPlace(values, place)
    writes = attribution.measure(lm, windows, place, Condition("baseline", "baseline"), batch_size).writes
    each = {kind: [_write(writes, kind, layer) for layer in range(n_layers)] for kind in KINDS}
    alone = {kind: [changes[kind, (layer,)] for layer in range(n_layers)] for kind in KINDS}
    repairs = {change: repair for kind in KINDS for change, repair in at_place.repairs(each[kind], alone[kind]).items()}
    for change, rebuilt in elsewhere(lm, some, there, list(repairs), batch_size).items():
        repairs[change] = replace(repairs[change], elsewhere=rebuilt)
    kinds: dict[Kind, list[SweptLayer]] = {}
    for kind in KINDS:
        runs: list[dict[str, Any]] = [{} for _ in range(n_layers)]
        for run, by_layer in sets[kind].items():
            names = [changes[kind, off].name for off in by_layer.values()]
            for layer, swept in zip(by_layer, at_place.described(names, whole), strict=True):
                runs[layer][run] = swept
        kinds[kind] = [
            SweptLayer(
                layer=layer,
                **runs[layer],
                write=at_place.draws.averages(each[kind][layer][at_place.rows]),
                repair=repairs.get(alone[kind][layer]),
            )
            for layer in range(n_layers)
        ]
    counted = SweptWindows(len(windows.ids), place.draws.share(place.spiking), len(some.ids))
    (baseline,) = at_place.described([sweep.BASELINE], whole)
    return counted, Baseline(baseline.value, baseline.values, baseline.perplexity, baseline.sink_rate), kinds


def _write(writes: Sequence[Write], kind: Kind, layer: int) -> np.ndarray:
    """(windows,) what a layer's MLP, or its attention with all heads and bias (or what is in its place), adds to the
    place."""
    kinds = OF_MLP if kind == "mlp" else ("head", "attention bias", "attention", "mixer")
    return np.sum([write.values for write in writes if write.layer == layer and write.kind in kinds], 0)


class _Whole:
    """What windows run whole show. measured: of sweep.measure; draws: of these windows."""

    def __init__(self, measured: Mapping[str, Measured], draws: Draws) -> None:
        self.measured, self.draws = measured, draws
        self.before = measured[sweep.BASELINE]

    def described(self, name: str) -> dict[str, Any]:
        measured = self.measured[name]
        rates = measured.sink_rates()
        return {
            "perplexity": self.draws.perplexity(measured.losses),
            "loss_change": self.draws.averages(measured.losses - self.before.losses),
            "sink_rate": self.draws.averages(rates, within=SHARE),
            "sink_rate_change": self.draws.averages(rates - self.before.sink_rates()),
        }


class _AtPlace:
    """The place at the end of its plateau, in the windows `rows` that have the spike (in all, if none has).

    sign: (windows,) of the value there in each window, along which ratios of sums are formed; before: what is there.
    """

    def __init__(self, values: Mapping[str, np.ndarray], place: Place) -> None:
        self.rows = place.spiking if place.massive else np.ones(len(place.positions), dtype=bool)
        self.values = {name: array[self.rows] for name, array in values.items()}
        self.draws, self.end = place.draws.of(self.rows), place.plateau[1]
        self.before = self.values[sweep.BASELINE][:, self.end]
        self.sign = np.sign(self.before)
        self.peak = np.abs(place.values[self.rows]).mean(0)[place.peak]

    def _along(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """(windows, arrays), signed so that the baseline's values are positive."""
        return self.sign[:, None] * np.stack(arrays, axis=1)

    def described(self, names: Sequence[str], whole: _Whole) -> list[Swept]:
        """Of the versions of one run, whose `retained` are one family."""
        after = [self.values[name][:, self.end] for name in names]
        retained: Sequence[Average | None] = [None] * len(names)
        if self.before.any():
            retained = self.draws.ratios(self._along(after), np.abs(self.before), family=True)
        values = self.draws.averages(np.stack(after, axis=1))
        return [
            Swept(value=value, values=self.values[name].mean(0).tolist(), retained=share, **whole.described(name))
            for name, value, share in zip(names, values, retained, strict=True)
        ]

    def repairs(self, writes: Sequence[np.ndarray], changes: Sequence[Condition]) -> dict[Condition, Repair]:
        """Self-repair of each removed write that is large enough and not after the plateau; changes: without each.
        What stands elsewhere is not looked for."""
        along = self._along([write[self.rows] for write in writes])
        size = np.abs(along.mean(0))
        able = [i for i in range(self.end + 1) if size[i] and size[i] >= WRITES * self.peak]
        if not able:
            return {}
        free = np.stack([self.values[changes[i].name][:, self.end] for i in able], axis=1)
        frozen = self.before[:, None] - np.stack([writes[i][self.rows] for i in able], axis=1)
        made_good = self.sign[:, None] * (free - frozen)
        cells = zip(
            self.draws.averages(frozen),
            self.draws.averages(free),
            self.draws.ratios(made_good, along[:, able], family=True),
            strict=True,
        )
        return {changes[i]: Repair(*of_write, elsewhere=None) for i, of_write in zip(able, cells, strict=True)}


def elsewhere(
    lm: LanguageModel, windows: Windows, place: Place, conditions: Sequence[Condition], batch_size: int
) -> dict[Condition, Elsewhere | None]:
    """What is massive with each condition alone; None where no window has the spike. One pass a condition."""
    found: dict[str, list[Rebuilt | None]] = {condition.name: [] for condition in conditions}
    if not conditions:
        return {}
    before: dict[Spot, float] = {}

    def run(together: Sequence[Change], ids: torch.Tensor, rows: slice) -> None:
        nonlocal before
        massive = _massive(lm, ids)
        if not together:
            before = massive
            return
        (condition,) = together
        here = {(i, position, place.dim) for i, position in enumerate(place.positions[rows].tolist())}
        new: list[list[Rebuilt]] = [[] for _ in ids]
        for (i, layer, position, dim), value in massive.items():
            if (i, layer, position, dim) not in before and (i, position, dim) not in here:
                new[i].append(Rebuilt(layer, position, text_of(lm.tokenizer, int(ids[i, position])), dim, value))
        found[condition.name] += map(_largest, new)

    for _rows in each_batch(lm, windows, conditions, batch_size, "elsewhere", run):
        pass
    return {condition: _told(processes.gather(found[condition.name]), place) for condition in conditions}


def _largest(rebuilt: Iterable[Rebuilt]) -> Rebuilt | None:
    return max(rebuilt, key=lambda activation: abs(activation.value), default=None)


def _told(largest: list[Rebuilt | None], place: Place) -> Elsewhere | None:
    """largest: of each window."""
    spiking = place.spiking
    if not spiking.any():
        return None
    largest = [rebuilt for rebuilt, has in zip(largest, spiking, strict=True) if has]
    share = place.draws.of(spiking).share([rebuilt is not None for rebuilt in largest])
    return Elsewhere(share, _largest(filter(None, largest)))


def _massive(lm: LanguageModel, ids: torch.Tensor) -> dict[Spot, float]:
    """The values of one pass."""
    statistics = LayerStatistics(lm.arch, lm.tokenizer)
    statistics.run(ids, partial(hooks.forward, lm, ids))
    return {
        (sequence, layer, position, dim): value
        for sequence, layer, position, dim, value, _ratio in statistics.batch_massive
    }


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    if options.n_whole < 1:
        raise UserError("--n_whole: at least 1")
    lm.arch.require_attention()
    for role in ("mlp_write", "attention_write"):
        lm.arch.require_in_every_layer(role)
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    every = tuple(range(lm.arch.n_layers))
    exactly = first_tokens.at_plateau(lm, windows, place, [_without(kind, kind, every) for kind in KINDS])
    return Results(
        place.described(),
        *sweep_layers(lm, windows, place, options.n_whole, options.batch_size),
        first_tokens=None if exactly is None else {kind: exactly[kind] for kind in KINDS},
        mixers=[layer for layer, parts in enumerate(lm.arch.layers) if not parts.n_heads] or None,
        never_off=[*dict.fromkeys(path for parts in lm.arch.layers for path in parts.others)] or None,
    )
