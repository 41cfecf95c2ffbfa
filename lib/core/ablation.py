"""Run a model with parts off beside the baseline, sequence by sequence, and compare like with like:
the same layer, position and dim, signed."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from msgspec import UNSET

from lib.core.changes import Change
from lib.core.data import Windows
from lib.core.evidence import Average
from lib.core.measurements import (
    Measurements,
    Rows,
    Sites,
    by_sequence,
    dim_rows,
    index_of,
    sites_of,
    spikes,
    values_at,
)
from lib.core.results import (
    AblatedCondition,
    AblatedPlace,
    Head,
    LayerChanges,
    LayerOfCondition,
    MassiveActivation,
)
from lib.core.stats import SHARE, SIZE, Draws
from lib.core.versions import BASELINE, each_batch
from lib.model import edits
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.run import processes


class Options(Protocol):
    """What the comparison takes of the command line."""

    @property
    def batch_size(self) -> int: ...

    @property
    def seed(self) -> int: ...


class OptionsWithDims(Options, Protocol):
    @property
    def dims(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Condition:
    """What is off: (layer, head) pairs, layers whose MLP is off, whose attention is off, whose experts are all off (and
    the shared one is not)."""

    name: str
    label: str
    heads: tuple[tuple[int, int], ...] = ()
    mlps: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()

    @property
    def first_layer(self) -> int:
        """The first layer that is changed."""
        return min((*(layer for layer, _head in self.heads), *self.mlps, *self.attention, *self.experts))

    def hooks(self, arch: Architecture, rows: slice | None = None) -> ExitStack:
        return self.hooks_beside(arch, [], rows)

    def hooks_beside(self, arch: Architecture, others: "Sequence[Condition]", _rows: slice | None = None) -> ExitStack:
        together, stack = [self, *others], ExitStack()
        stack.enter_context(edits.heads_off(arch, *(condition.heads for condition in together)))
        stack.enter_context(edits.mlps_off(arch, *(condition.mlps for condition in together)))
        stack.enter_context(edits.attention_off(arch, *(condition.attention for condition in together)))
        stack.enter_context(edits.all_experts_off(arch, *(condition.experts for condition in together)))
        return stack


def all_heads_off(arch: Architecture) -> Condition:
    """Its label says what of other mixers stays on. Raises UserError if there are no heads, or unknown ones."""
    heads = tuple(arch.heads)
    others = dict.fromkeys(path for parts in arch.layers for path in parts.others)
    stays = _left_out(arch, [layer for layer, _head in heads]) + [f"{path} stays on" for path in others]
    return Condition("all_heads_off", _with("all heads off", stays), heads=heads)


def all_mlps_off(arch: Architecture) -> Condition:
    """Raises UserError if there are no MLPs, or one is not one module."""
    return Condition("all_mlps_off", _with("all MLPs off", _left_out(arch, arch.mlps)), mlps=tuple(arch.mlps))


def all_experts_off(arch: Architecture) -> Condition | None:
    """None where nothing else of the MLPs would stay on: without mixtures, or without shared experts and dense layers.

    Raises UserError as all_mlps_off does.
    """
    experts, mlps = arch.with_role("experts"), arch.mlps
    shared = [layer for layer in experts if layer in arch.with_role("shared_expert")]
    if not experts or (experts == mlps and not shared):
        return None
    dense = len(set(mlps) - set(experts))
    stays = [f"shared experts stay on in {len(shared)}"] if shared else []
    stays += [f"MLPs without experts in {dense}"] if dense else []
    label = f"all experts off ({' and '.join(stays)} of {arch.n_layers} layers{'' if shared else ' stay on'})"
    return Condition("all_experts_off", label, experts=tuple(experts))


def _left_out(arch: Architecture, layers: Sequence[int]) -> list[str]:
    n = arch.n_layers - len(set(layers))
    return [f"{n} of {arch.n_layers} layers have none"] if n else []


def _with(label: str, notes: list[str]) -> str:
    return f"{label} ({', '.join(notes)})" if notes else label


@dataclass(frozen=True)
class Comparison:
    """Every condition beside the baseline, by name.

    changes: per layer. places: largest first; a place is position 0 ("first") or all others ("later"), and one dim.
    massive: the baseline's. dims: those followed.
    """

    conditions: dict[str, AblatedCondition]
    changes: dict[str, list[LayerChanges]]
    places: dict[str, list[AblatedPlace]]
    massive: list[MassiveActivation]
    dims: list[int]


def compare(
    lm: LanguageModel,
    windows: Windows,
    conditions: Iterable[Condition],
    options: Options,
    dims: Sequence[int] = (),
) -> Comparison:
    """Measure the baseline and each Condition on the same windows.

    dims: the dims to follow; default: those of the baseline's massive activations. In each sequence a dim is
    followed at one place in every condition: the position where the baseline's |value| is largest over all layers.

    Raises UserError for what is out of range and for non-finite values.
    """
    for dim in dims:
        lm.arch.check_dim(dim)
    chosen = list(conditions)
    measured = {name: Measurements(lm) for name in (BASELINE, *(condition.name for condition in chosen))}
    sites: list[Sites] = []
    here: list[Sites] = []  # of the batch
    index = index_of(here)

    def run(together: Sequence[Change], ids: torch.Tensor, _rows: slice) -> None:
        nonlocal here, index
        condition = together[0] if together else None
        version = measured[BASELINE if condition is None else condition.name]

        def gather(layer: int, hidden: torch.Tensor) -> None:
            version.kept.keep(("sites", layer), values_at(hidden, index))

        if condition is None:
            seen: dict[int, torch.Tensor] = {}
            version.run(lm, ids, seen.__setitem__)
            here = sites_of(version.layers.batch_massive, seen, len(ids), dims)
            sites.extend(here)
            index = index_of(here).to(lm.device)
            for layer, hidden in seen.items():
                gather(layer, hidden)
            taken = version.kept.take()
        else:
            taken = version.run(lm, ids, gather, condition.first_layer, measured[BASELINE])
        version.tracked.extend(by_sequence(taken, lm.arch.n_layers, here))

    for _rows in each_batch(lm, windows, chosen, options.batch_size, "ablation", run):
        pass
    for version in measured.values():
        version.gather()
    every = [Condition(BASELINE, "baseline"), *chosen]
    return _summarise(every, measured, processes.gather(sites), lm, windows, options.seed, dims)


def _summarise(
    every: list[Condition],
    measured: dict[str, Measurements],
    sites: list[Sites],
    lm: LanguageModel,
    windows: Windows,
    seed: int,
    dims: Sequence[int],
) -> Comparison:
    baseline, draws = measured[BASELINE], windows.draws(seed)
    massive = baseline.layers.massive()
    places = spikes(sites, baseline.tracked, windows, lm.tokenizer)
    rows = dim_rows(sites, baseline.tracked)
    followed = list(dims) or _dims_by_size(massive)
    conditions: dict[str, AblatedCondition] = {}
    changes: dict[str, list[LayerChanges]] = {}
    compared: dict[str, list[AblatedPlace]] = {}
    for condition in every:
        here = measured[condition.name]
        averages: list[dict[int, Average]] = [{} for _ in range(lm.arch.n_layers)]  # of each layer, by dim
        for dim in followed:
            values = np.stack([here.tracked[s][i] for s, i in rows[dim]])
            there = draws.of([s for s, _i in rows[dim]])
            for layer, of_layer in enumerate(averages):
                of_layer[dim] = there.averages(values[:, layer])
        layers = [
            LayerOfCondition(**vars(of_all), dims=of_layer)
            for of_all, of_layer in zip(here.layers.layers(draws), averages, strict=True)
        ]
        rates = here.heads.sink_rates()
        rate_changes = rates - baseline.heads.sink_rates()
        conditions[condition.name] = AblatedCondition(
            label=condition.label,
            heads_off=[Head(*head) for head in condition.heads],
            mlps_off=list(condition.mlps),
            experts_off=list(condition.experts) or UNSET,
            layers=layers,
            perplexity=draws.perplexity(here.losses.array),
            sink_rate=draws.averages(rates, within=SHARE),
            sink_rate_change=None if condition.name == BASELINE else draws.averages(rate_changes),
            massive_positions=draws.averages(here.layers.massive_positions.array, within=SIZE),
        )
        if condition.name == BASELINE:
            continue
        changes[condition.name] = _changes(baseline, here, rows, followed, draws)
        compared[condition.name] = [place.compared(baseline, here, draws) for place in places]
    return Comparison(conditions, changes, compared, massive, followed)


def _dims_by_size(massive: list[MassiveActivation]) -> list[int]:
    largest: dict[int, float] = {}
    for entry in massive:
        largest[entry.dim] = max(largest.get(entry.dim, 0), abs(entry.value))
    return sorted(largest, key=largest.__getitem__, reverse=True)


def _changes(
    baseline: Measurements, here: Measurements, rows: Rows, dims: list[int], draws: Draws
) -> list[LayerChanges]:
    difference = here.layers.rows.array - baseline.layers.rows.array
    table = draws.averages(difference)
    changes = [
        LayerChanges(layer, top1, top2, top3, median, dims={}) for layer, (top1, top2, top3, median) in enumerate(table)
    ]
    for dim in dims:
        differences = np.stack([here.tracked[s][i] - baseline.tracked[s][i] for s, i in rows[dim]])
        there = draws.of([s for s, _i in rows[dim]])
        for layer, change in enumerate(changes):
            change.dims[dim] = there.averages(differences[:, layer])
    return changes
