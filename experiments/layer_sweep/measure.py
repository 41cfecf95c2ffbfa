"""Every layer's MLP and attention block off, kept, and off from either end: what becomes of the value at the place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lib.core import attribution, first_tokens, sweep
from lib.core.ablation import Condition
from lib.core.attribution import Write
from lib.core.data import Windows
from lib.core.definitions import WRITES
from lib.core.massive import LayerStatistics
from lib.core.place import Place, find
from lib.core.stats import Draws
from lib.core.sweep import Measured
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.run import processes
from lib.run.errors import UserError

KINDS = ("mlp", "attention")


def off_sets(kind: str, n_layers: int) -> dict[str, dict[int, tuple[int, ...]]]:
    """{run: {layer: the layers that are off}}; what would leave nothing off is left out.

    only_with_first, of MLPs alone: MLP 0, without which a trained model's residual stream is hardly its own, stays.
    """
    every = range(n_layers)
    runs: dict[str, dict[int, tuple[int, ...]]] = {
        "alone": {layer: (layer,) for layer in every},
        "only": {layer: tuple(i for i in every if i != layer) for layer in every},
        "only_with_first": {layer: tuple(i for i in every if i not in (0, layer)) for layer in every},
        "from_front": {layer: tuple(every[: layer + 1]) for layer in every},
        "from_back": {layer: tuple(every[layer:]) for layer in every},
    }
    if kind != "mlp":
        del runs["only_with_first"]
    return {run: {layer: off for layer, off in of.items() if off} for run, of in runs.items()}


def _without(name: str, kind: str, layers: tuple[int, ...]) -> Condition:
    return Condition(name, "", mlps=layers) if kind == "mlp" else Condition(name, "", attention=layers)


def sweep_layers(
    lm: LanguageModel, windows: Windows, place: Place, n_whole: int, batch_size: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """(windows, baseline, kinds) of exp2b's results.

    The place is measured in all windows, cut after it; losses and sink rates in `n_whole` of them. What is said of the
    value is of the windows that have the spike (of all, if none has): elsewhere there is nothing to lose.
    """
    n_layers = lm.arch.n_layers
    sets = {kind: off_sets(kind, n_layers) for kind in KINDS}
    changes = {
        (kind, off): _without(f"{kind} {off}", kind, off)
        for kind in KINDS
        for of in sets[kind].values()
        for off in of.values()
    }
    values = sweep.at_place(lm, windows, place, list(changes.values()), batch_size)
    rows = windows.spread(n_whole)
    some, there = replace(windows, ids=windows.ids[rows]), place.of(rows)
    whole = _Whole(sweep.measure(lm, some, there, list(changes.values()), batch_size), there.draws)
    at = _AtPlace(values, place)
    kinds = {}
    for kind, runs in sets.items():
        layers: list[dict[str, Any]] = [{"layer": layer} for layer in range(n_layers)]
        for run, of in runs.items():
            names = [changes[kind, off].name for off in of.values()]
            for layer, described in zip(of, at.described(names, whole), strict=True):
                layers[layer][run] = described
        kinds[kind] = layers
    writes = attribution.measure(lm, windows, place, Condition("baseline", "baseline"), batch_size).writes
    able = {}  # condition: the row whose write it removes
    for kind, layers in kinds.items():
        each = [_write(writes, kind, layer) for layer in range(n_layers)]
        alone = [changes[kind, (layer,)] for layer in range(n_layers)]
        repairs = at.repairs(each, [change.name for change in alone])
        for row, write, repair, change in zip(layers, each, repairs, alone, strict=True):
            row["write"], row["repair"] = at.draws.averages(write[at.rows]), repair
            if repair:
                able[change] = row
    for change, found in elsewhere(lm, some, there, list(able), batch_size).items():
        able[change]["repair"]["elsewhere"] = found
    counted = {"all": len(windows.ids), "spiking": place.draws.share(place.spiking), "whole": len(some.ids)}
    (baseline,) = at.described([sweep.BASELINE], whole)
    return counted, {key: baseline[key] for key in ("value", "values", "perplexity", "sink_rate")}, kinds


def _write(writes: Sequence[Write], kind: str, layer: int) -> np.ndarray:
    """(windows,) what a layer's MLP, or its attention with all heads and bias, adds to the place."""
    return np.sum([of.values for of in writes if of.layer == layer and (of.component == "mlp") == (kind == "mlp")], 0)


class _Whole:
    """What windows run whole show. measured: of sweep.measure; draws: of these windows."""

    def __init__(self, measured: Mapping[str, Measured], draws: Draws) -> None:
        self.measured, self.draws = measured, draws
        self.before = measured[sweep.BASELINE]

    def described(self, name: str) -> dict[str, Any]:
        of, rates = self.measured[name], self.measured[name].sink_rates()
        return {
            "perplexity": self.draws.perplexity(of.losses),
            "loss_change": self.draws.averages(of.losses - self.before.losses),
            "sink_rate": self.draws.averages(rates),
            "sink_rate_change": self.draws.averages(rates - self.before.sink_rates()),
        }


class _AtPlace:
    """The place at the end of its plateau, in the windows `rows` that have the spike (in all, if none has).

    sign: (windows,) of the value there in each window, along which ratios of sums are formed; before: what is there.
    """

    def __init__(self, values: Mapping[str, np.ndarray], place: Place) -> None:
        self.rows = place.spiking if place.massive else np.ones(len(place.positions), dtype=bool)
        self.values = {name: of[self.rows] for name, of in values.items()}
        self.draws, self.end = place.draws.of(self.rows), place.plateau[1]
        self.before = self.values[sweep.BASELINE][:, self.end]
        self.sign = np.sign(self.before)
        self.peak = np.abs(place.values[self.rows]).mean(0)[place.peak]

    def _along(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """(windows, arrays), signed so that the baseline's values are positive."""
        return self.sign[:, None] * np.stack(arrays, axis=1)

    def described(self, names: Sequence[str], whole: _Whole) -> list[dict[str, Any]]:
        """[value, retained and so on] of the versions of one run, whose `retained` are one family."""
        after = [self.values[name][:, self.end] for name in names]
        retained = self.draws.ratios(self._along(after), np.abs(self.before), family=True)
        values = self.draws.averages(np.stack(after, axis=1))
        return [
            {
                "value": value,
                "retained": share,
                "values": self.values[name].mean(0),
                **whole.described(name),
            }
            for name, value, share in zip(names, values, retained, strict=True)
        ]

    def repairs(self, writes: Sequence[np.ndarray], names: Sequence[str]) -> list[dict[str, Any] | None]:
        """[self-repair of each removed write, or None: too small, or after the plateau]; names: without each."""
        along = self._along([write[self.rows] for write in writes])
        able = np.flatnonzero(np.abs(along.mean(0)) >= WRITES * self.peak)
        able = able[able <= self.end].tolist()
        repairs: list[dict[str, Any] | None] = [None] * len(writes)
        if able:
            free = np.stack([self.values[names[i]][:, self.end] for i in able], axis=1)
            frozen = self.before[:, None] - np.stack([writes[i][self.rows] for i in able], axis=1)
            made_good = self.sign[:, None] * (free - frozen)
            cells = (
                self.draws.averages(frozen),
                self.draws.averages(free),
                self.draws.ratios(made_good, along[:, able], family=True),
            )
            for i, of in zip(able, zip(*cells, strict=True), strict=True):
                repairs[i] = dict(zip(("frozen", "free", "ratio"), of, strict=True))
        return repairs


def elsewhere(
    lm: LanguageModel, windows: Windows, place: Place, conditions: Sequence[Condition], batch_size: int
) -> dict[Condition, dict[str, Any] | None]:
    """{condition: {"share", "largest"}, or None where no window has the spike} of what is massive with it alone.

    share: of the windows that have the spike, those with a massive activation off the place, at a (position, dim) where
    the baseline has none in that layer. largest: {layer, position, token, dim, value}, or None. One pass a condition.
    """
    found: dict[Condition, list[dict[str, Any] | None]] = {condition: [] for condition in conditions}
    if not conditions:
        return {}
    with processes.progress(len(windows.ids), batch_size, "elsewhere", 1 + len(conditions)) as progress:
        for rows, ids in windows.batches(batch_size):
            kept: dict[int, Any] = {}
            with hooks.keep_block_outputs(lm.arch, kept):
                before = _massive(lm, ids)
            progress.update(len(ids))
            here = {(i, position, place.dim) for i, position in enumerate(place.positions[rows].tolist())}
            for condition in conditions:
                with hooks.resume_at(lm.arch, condition.first_layer, kept), condition.hooks(lm.arch):
                    after = _massive(lm, ids)
                new: list[list[dict[str, Any]]] = [[] for _ in ids]
                for (i, layer, position, dim), value in after.items():
                    if (i, layer, position, dim) not in before and (i, position, dim) not in here:
                        token = text_of(lm.tokenizer, ids[i, position].item())
                        new[i].append(
                            {"layer": layer, "position": position, "token": token, "dim": dim, "value": value}
                        )
                found[condition] += [max(of, key=lambda e: abs(e["value"]), default=None) for of in new]
                progress.update(len(ids))
    return {condition: _told(processes.gather(of), place) for condition, of in found.items()}


def _told(largest: list[dict[str, Any] | None], place: Place) -> dict[str, Any] | None:
    spiking = place.spiking
    if not spiking.any():
        return None
    largest = [of for of, has in zip(largest, spiking, strict=True) if has]
    return {
        "share": place.draws.of(spiking).share([of is not None for of in largest]),
        "largest": max(filter(None, largest), key=lambda e: abs(e["value"]), default=None),
    }


def _massive(lm: LanguageModel, ids: torch.Tensor) -> dict[tuple[int, int, int, int], float]:
    """The values of one pass by sequence, layer, position and dim."""
    statistics = LayerStatistics(lm.arch, lm.tokenizer)
    statistics.begin_batch(ids)
    with hooks.watch_outputs(lm.arch, "block", statistics.update):
        hooks.forward(lm, ids)
    return {
        (sequence, layer, position, dim): value
        for sequence, layer, position, dim, value, _ratio in statistics.batch_massive
    }


@dataclass(frozen=True)
class LayerSweep:
    """place: see lib.core.place. windows: {all, spiking: the share that has the spike, whole: how many are run whole}.
    baseline: value, values, perplexity and sink rate of the model as it is.

    kinds: {"mlp", "attention": [per layer {layer, write, alone, only, only_with_first (MLPs), from_front, from_back:
    {value, retained, values (mean at every layer), perplexity, loss_change, sink_rate, sink_rate_change}, repair: None
    or {frozen, free, ratio, elsewhere: {share, largest}}}]}. first_tokens: {kind: of lib.core.first_tokens, with all of
    its kind off}, or None where the place is not position 0.
    """

    place: dict[str, Any]
    windows: dict[str, Any]
    baseline: dict[str, Any]
    kinds: dict[str, list[dict[str, Any]]]
    first_tokens: dict[str, Any] | None


def run(lm: LanguageModel, windows: Windows, options: Any) -> LayerSweep:
    if options.n_whole < 1:
        raise UserError("--n_whole: at least 1")
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    every = tuple(range(lm.arch.n_layers))
    all_off = [_without(kind, kind, every) for kind in KINDS]
    return LayerSweep(
        place.described(),
        *sweep_layers(lm, windows, place, options.n_whole, options.batch_size),
        first_tokens=first_tokens.at_plateau(lm, windows, place, all_off),
    )
