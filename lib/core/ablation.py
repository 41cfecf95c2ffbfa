"""Run a model with parts off beside the baseline, sequence by sequence, and compare like with like:
the same layer, position and dim, signed."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from lib.core import first_tokens
from lib.core.data import Windows
from lib.core.evidence import Stored
from lib.core.massive import DEFINITION
from lib.core.measurements import Measurements, Rows, Sites, by_sequence, dim_rows, sites_of, spikes, values_at
from lib.core.stats import Draws
from lib.model import hooks
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.run import processes

BASELINE = "baseline"


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
    """What is off: (layer, head) pairs, layers whose MLP is off, layers whose attention is off."""

    name: str
    label: str
    heads: tuple[tuple[int, int], ...] = ()
    mlps: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()

    @property
    def first_layer(self) -> int:
        """The first layer that is changed."""
        return min(layer for layer in (*(layer for layer, _head in self.heads), *self.mlps, *self.attention))

    def hooks(self, arch: Architecture, _rows: slice | None = None) -> ExitStack:
        stack = ExitStack()
        if self.heads:
            stack.enter_context(hooks.heads_off(arch, self.heads))
        if self.mlps:
            stack.enter_context(hooks.mlps_off(arch, self.mlps))
        if self.attention:
            stack.enter_context(hooks.attention_off(arch, self.attention))
        return stack


@dataclass(frozen=True)
class Comparison:
    """Every condition beside the baseline.

    conditions: {name: label, heads_off, mlps_off, layers (as in the layerwise results, plus `dims`), perplexity,
    sink_rate (of all heads: one that is off writes nothing and still looks somewhere), sink_rate_change (paired; None
    of the baseline), massive_positions (per sequence)}.
    changes: {name: [per layer, ablated - baseline of top1, top2, top3, median and each of `dims`]}.
    places: {name: [one entry a place, see `Spike.compared`]}, largest first: a place is position 0 ("first") or all
    others ("later"), and one dim. massive: the baseline's. dims: those followed.
    """

    conditions: dict[str, Stored]
    changes: dict[str, list[Stored]]
    places: dict[str, list[Stored]]
    massive: list[Stored]
    dims: list[int]


@dataclass(frozen=True)
class Feasibility:
    """One ablation beside the baseline; the fields of Comparison, with the one condition's `places`.

    first_tokens: of the largest place, if that is the first position, over all first tokens that the text could give;
    see lib.core.first_tokens.
    """

    definition: str
    conditions: dict[str, Stored]
    changes: dict[str, list[Stored]]
    places: list[Stored]
    first_tokens: Stored | None
    massive: list[Stored]
    dims: list[int]


def feasibility(lm: LanguageModel, windows: Windows, condition: Condition, options: OptionsWithDims) -> Feasibility:
    """Compare one Condition with the baseline, following `options.dims` or the baseline's massive dims."""
    result = compare(lm, windows, [condition], options, options.dims)
    places = result.places[condition.name]
    found = None
    if places and places[0]["position"] == "first":
        medians = {name: [layer["median"]["mean"] for layer in of["layers"]] for name, of in result.conditions.items()}
        dim, layer = places[0]["dim"], places[0]["layer"]
        found = first_tokens.measure(lm, windows, dim, layer, [condition], medians)
    exact = found and found[condition.name]
    return Feasibility(DEFINITION, result.conditions, result.changes, places, exact, result.massive, result.dims)


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
    every = [Condition(BASELINE, "baseline"), *conditions]
    measured = {condition.name: Measurements(lm) for condition in every}
    sites: list[Sites] = []
    with processes.progress(len(windows.ids), options.batch_size, "ablation", len(every)) as progress:
        for _rows, ids in windows.batches(options.batch_size):
            kept: dict[int, Any] = {}
            seen: dict[int, torch.Tensor] = {}
            baseline = measured[BASELINE]
            with hooks.keep_block_outputs(lm.arch, kept):
                baseline.run(lm, ids, every[0], seen.__setitem__)
            batch_sites = sites_of(baseline.layers.batch_massive, seen, len(ids), dims)
            index = torch.tensor([(s, *site) for s, of in enumerate(batch_sites) for site in of], dtype=torch.long)
            index = index.view(-1, 3).T
            gathered = {layer: values_at(hidden, index) for layer, hidden in seen.items()}
            sites.extend(batch_sites)
            baseline.tracked.extend(by_sequence(gathered, batch_sites))
            progress.update(len(ids))
            for condition in every[1:]:
                gathered = {}

                def gather(
                    layer: int,
                    hidden: torch.Tensor,
                    gathered: dict[int, torch.Tensor] = gathered,
                    index: torch.Tensor = index,
                ) -> None:
                    gathered[layer] = values_at(hidden, index)

                first = condition.first_layer
                with hooks.resume_at(lm.arch, first, kept):
                    measured[condition.name].run(lm, ids, condition, gather, first, baseline)
                measured[condition.name].tracked.extend(by_sequence(gathered, batch_sites))
                progress.update(len(ids))
    for of in measured.values():
        of.gather()
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
    conditions: dict[str, Stored] = {}
    changes: dict[str, list[Stored]] = {}
    compared: dict[str, list[Stored]] = {}
    for condition in every:
        here = measured[condition.name]
        layers = here.layers.layers(draws)
        values = {dim: np.stack([here.tracked[s][i] for s, i in rows[dim]]) for dim in followed}
        for layer in layers:
            layer["dims"] = {
                str(d): draws.of([s for s, _i in rows[d]]).averages(values[d][:, layer["layer"]]) for d in followed
            }
        rates = here.heads.sink_rates()
        rate_changes = rates - baseline.heads.sink_rates()
        conditions[condition.name] = {
            "label": condition.label,
            "heads_off": [list(head) for head in condition.heads],
            "mlps_off": list(condition.mlps),
            "layers": layers,
            "perplexity": draws.perplexity(here.losses.array),
            "sink_rate": draws.averages(rates),
            "sink_rate_change": None if condition.name == BASELINE else draws.averages(rate_changes),
            "massive_positions": draws.averages(here.layers.massive_positions.array),
        }
        if condition.name == BASELINE:
            continue
        changes[condition.name] = _changes(baseline, here, rows, followed, draws)
        compared[condition.name] = [place.compared(baseline, here, draws) for place in places]
    return Comparison(conditions, changes, compared, massive, followed)


def _dims_by_size(massive: list[Stored]) -> list[int]:
    largest: dict[int, float] = {}
    for entry in massive:
        largest[entry["dim"]] = max(largest.get(entry["dim"], 0), abs(entry["value"]))
    return sorted(largest, key=largest.__getitem__, reverse=True)


def _changes(baseline: Measurements, here: Measurements, rows: Rows, dims: list[int], draws: Draws) -> list[Stored]:
    """results.changes.<name>: per layer, the paired differences (ablated - baseline) of each statistic and dim."""
    difference = here.layers.rows.array - baseline.layers.rows.array
    table = draws.averages(difference)
    changes = []
    for layer, cells in enumerate(table):
        change: Stored = {
            "layer": layer,
            **dict(zip(("top1", "top2", "top3", "median"), cells, strict=True)),
            "dims": {},
        }
        for dim in dims:
            pairs = [(baseline.tracked[s][i][layer], here.tracked[s][i][layer]) for s, i in rows[dim]]
            there = draws.of([s for s, _i in rows[dim]])
            change["dims"][str(dim)] = there.averages([after - before for before, after in pairs])
        changes.append(change)
    return changes
