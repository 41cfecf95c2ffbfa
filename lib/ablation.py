"""Run a model with parts off beside the baseline, sequence by sequence, and compare like with like:
the same layer, position and dim, signed."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from lib import hooks, ranks, sinks
from lib.definitions import COLLAPSES, PERSISTS
from lib.massive import DEFINITION, LayerStatistics, is_massive
from lib.stats import Samples

RULE = (
    "retained = sum of sign(baseline) x ablated over sum of |baseline|, at the baseline's massive (layer, position, "
    f"dim), mean over sequences; persists: >= {PERSISTS}, collapses: <= {COLLAPSES}, reduced: between, "
    "none found: the baseline has no massive activation"
)
BASELINE = "baseline"


@dataclass(frozen=True)
class Condition:
    """What is off: (layer, head) pairs, layers whose MLP is off, layers whose attention is off."""

    name: str
    label: str
    heads: tuple = ()
    mlps: tuple = ()
    attention: tuple = ()

    @property
    def first_layer(self):
        """The first layer that is changed."""
        return min(layer for layer in (*(layer for layer, _head in self.heads), *self.mlps, *self.attention))

    def layers_with_heads(self, arch):
        """Layers of which not every head is off."""
        off = Counter(layer for layer, _head in set(self.heads))
        return [layer for layer in range(arch.n_layers) if off[layer] < arch.n_heads]

    def hooks(self, arch, _rows=None):
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
    sink_rate (of the heads that are on; None if none is), massive_positions (per sequence)}.
    changes: {name: [per layer, ablated - baseline of top1, top2, top3, median and each of `dims`]}.
    verdicts: {name: verdict of RULE and its values}. massive: the baseline's. dims: those followed.
    """

    conditions: dict
    changes: dict
    verdicts: dict
    massive: list
    dims: list


@dataclass(frozen=True)
class Feasibility:
    """One ablation beside the baseline, with its conclusion; the fields of Comparison otherwise."""

    definition: str
    conditions: dict
    changes: dict
    massive: list
    dims: list
    conclusion: dict


def feasibility(lm, windows, condition, options):
    """Compare one Condition with the baseline, following `options.dims` or the baseline's massive dims."""
    result = compare(lm, windows, [condition], options, options.dims)
    values = dict(result.verdicts[condition.name])
    conclusion = {"verdict": values.pop("verdict"), "rule": RULE, "values": values}
    return Feasibility(DEFINITION, result.conditions, result.changes, result.massive, result.dims, conclusion)


class _Measurements:
    """All that is measured in one condition."""

    def __init__(self, lm):
        self.layers = LayerStatistics(lm.arch, lm.tokenizer)
        self.heads = sinks.HeadScores(lm.arch)
        self.losses = Samples()
        self.tracked = []

    def run(self, lm, ids, condition, see, first=0, baseline=None):
        """One forward pass from block `first` on; `see(layer, hidden)` gets each block output after the statistics
        have. What the heads before do is the baseline's last batch."""
        self.layers.begin_batch(ids)
        with (
            condition.hooks(lm.arch),
            sinks.watch(lm, self.heads.update, [i for i in condition.layers_with_heads(lm.arch) if i >= first]),
            hooks.watch_outputs(lm.arch, "block", self.layers.update),
            hooks.watch_outputs(lm.arch, "block", see),
        ):
            self.losses.extend(hooks.token_losses(lm, ids).double().mean(1).tolist())
        if first:
            self.heads.copy_before(first, baseline.heads)
        self.layers.end_batch()
        self.heads.end_batch()

    def gather(self):
        """Take in the windows of all processes; call it after the last batch."""
        self.layers.gather()
        self.heads.gather()
        self.losses = ranks.merged(self.losses)
        self.tracked = ranks.gather(self.tracked)


def compare(lm, windows, conditions, options, dims=()):
    """Measure the baseline and each Condition on the same windows.

    dims: the dims to follow; default: those of the baseline's massive activations. In each sequence a dim is
    followed at one place in every condition: the position where the baseline's |value| is largest over all layers.

    Returns a Comparison. Raises UserError for what is out of range and for non-finite values.
    """
    for dim in dims:
        lm.arch.check_dim(dim)
    every = [Condition(BASELINE, "baseline"), *conditions]
    measured = {condition.name: _Measurements(lm) for condition in every}
    sites = []
    with ranks.progress(len(windows.ids), options.batch_size, "ablation", len(every)) as progress:
        for _rows, ids in windows.batches(options.batch_size):
            kept, seen = {}, {}
            baseline = measured[BASELINE]
            with hooks.keep_block_outputs(lm.arch, kept):
                baseline.run(lm, ids, every[0], lambda layer, hidden, seen=seen: seen.update({layer: hidden}))
            batch_sites = _sites(baseline.layers.batch_massive, seen, len(ids), dims)
            index = torch.tensor([(s, *site) for s, of in enumerate(batch_sites) for site in of], dtype=torch.long)
            index = index.view(-1, 3).T
            gathered = {layer: _at(hidden, index) for layer, hidden in seen.items()}
            sites.extend(batch_sites)
            baseline.tracked.extend(_by_sequence(gathered, batch_sites))
            progress.update(len(ids))
            for condition in every[1:]:
                gathered = {}

                def gather(layer, hidden, gathered=gathered, index=index):
                    gathered[layer] = _at(hidden, index)

                first = condition.first_layer
                with hooks.resume_at(lm.arch, first, kept):
                    measured[condition.name].run(lm, ids, condition, gather, first, baseline)
                measured[condition.name].tracked.extend(_by_sequence(gathered, batch_sites))
                progress.update(len(ids))
    for of in measured.values():
        of.gather()
    return _summarise(every, measured, ranks.gather(sites), lm, windows.draws(options.seed), dims)


def _at(hidden, index):
    """(sites,) values of one layer; layers may be on different devices."""
    return hidden[tuple(index.to(hidden.device))].cpu()


def _sites(massive, kept, n_sequences, dims):
    """Per sequence {(position, dim): layers at which it is massive}; named dims are added at their peak."""
    sites = [{} for _ in range(n_sequences)]
    for sequence, layer, position, dim, _value, _ratio in massive:
        sites[sequence].setdefault((position, dim), []).append(layer)
    for dim in dims:
        peaks = torch.stack([hidden[:, :, dim].abs().cpu() for hidden in kept.values()]).amax(0).argmax(1)
        for sequence, position in enumerate(peaks.tolist()):
            sites[sequence].setdefault((position, dim), [])
    return sites


def _by_sequence(gathered, batch_sites):
    """Split {layer: (all sites of the batch,)} into one (sites, layers) array a sequence."""
    values = torch.stack([gathered[layer] for layer in sorted(gathered)], dim=1).double().numpy()
    return np.split(values, np.cumsum([len(of) for of in batch_sites])[:-1])


def _summarise(every, measured, sites, lm, draws, dims):
    baseline = measured[BASELINE]
    massive = baseline.layers.massive()
    rows = _dim_rows(sites, baseline.tracked)
    followed = list(dims) or _dims_by_size(massive)
    conditions, changes, verdicts = {}, {}, {}
    for condition in every:
        here = measured[condition.name]
        layers = here.layers.layers(draws)
        values = {dim: np.stack([here.tracked[s][i] for s, i in rows[dim]]) for dim in followed}
        for layer in layers:
            layer["dims"] = {
                str(d): draws.of([s for s, _i in rows[d]]).averages(values[d][:, layer["layer"]]) for d in followed
            }
        kept_heads = np.ones((lm.arch.n_layers, lm.arch.n_heads), dtype=bool)
        for layer, head in condition.heads:
            kept_heads[layer, head] = False
        rates = here.heads.sink_rates(kept_heads)
        conditions[condition.name] = {
            "label": condition.label,
            "heads_off": [list(head) for head in condition.heads],
            "mlps_off": list(condition.mlps),
            "layers": layers,
            "perplexity": draws.perplexity(here.losses.array),
            "sink_rate": None if rates is None else draws.averages(rates),
            "massive_positions": draws.averages(here.layers.massive_positions.array),
        }
        if condition.name == BASELINE:
            continue
        changes[condition.name] = _changes(baseline, here, rows, followed, draws)
        verdicts[condition.name] = _verdict(baseline, here, sites, draws)
    return Comparison(conditions, changes, verdicts, massive, followed)


def _dims_by_size(massive):
    largest = {}
    for entry in massive:
        largest[entry["dim"]] = max(largest.get(entry["dim"], 0), abs(entry["value"]))
    return sorted(largest, key=largest.get, reverse=True)


def _dim_rows(sites, tracked):
    """{dim: [(sequence, index of its site)]}, the site where the baseline's |value| peaks in that sequence."""
    rows = {}
    for sequence, of in enumerate(sites):
        best = {}
        for i, (_position, dim) in enumerate(of):
            peak = np.abs(tracked[sequence][i]).max()
            if dim not in best or peak > best[dim][0]:
                best[dim] = (peak, i)
        for dim, (_peak, i) in best.items():
            rows.setdefault(dim, []).append((sequence, i))
    return rows


def _changes(baseline, here, rows, dims, draws):
    """results.changes.<name>: per layer, the paired differences (ablated - baseline) of each statistic and dim."""
    difference = here.layers.rows.array - baseline.layers.rows.array
    table = draws.averages(difference)
    changes = []
    for layer, cells in enumerate(table):
        change = {"layer": layer, **dict(zip(("top1", "top2", "top3", "median"), cells, strict=True)), "dims": {}}
        for dim in dims:
            pairs = [(baseline.tracked[s][i][layer], here.tracked[s][i][layer]) for s, i in rows[dim]]
            there = draws.of([s for s, _i in rows[dim]])
            change["dims"][str(dim)] = there.averages([after - before for before, after in pairs])
        changes.append(change)
    return changes


def _verdict(baseline, here, sites, draws):
    """The verdict of RULE for one condition, with the values it rests on, all at the baseline's massive places.

    absolute_change: sum of |ablated - baseline| over sum of |baseline|; still_massive: share that passes the test.
    """
    retained, moved, still, size_before, size_after = [], [], [], [], []
    for s, of in enumerate(sites):
        at = [(i, layer) for i, layers in enumerate(of.values()) for layer in layers]
        if not at:
            continue
        before = np.array([baseline.tracked[s][i][layer] for i, layer in at])
        after = np.array([here.tracked[s][i][layer] for i, layer in at])
        medians = np.array([here.layers.rows.rows[s][layer, 3] for _i, layer in at])
        aligned = np.sign(before) * after
        retained.append(aligned.sum() / np.abs(before).sum())
        moved.append(np.abs(after - before).sum() / np.abs(before).sum())
        still.append(is_massive(after, medians).mean())
        size_before.append(np.abs(before).mean())
        size_after.append(aligned.mean())
    if not retained:
        return {"verdict": "none found"}
    draws = draws.of([s for s, of in enumerate(sites) if any(of.values())])
    share = draws.averages(retained)
    verdict = (
        "persists" if share["mean"] >= PERSISTS[0] else "collapses" if share["mean"] <= COLLAPSES[1] else "reduced"
    )
    return {
        "verdict": verdict,
        "retained": share,
        "absolute_change": draws.averages(moved),
        "still_massive": draws.averages(still),
        "size_baseline": draws.averages(size_before),
        "size_ablated": draws.averages(size_after),
    }
