"""Run a model with parts off beside the baseline, sequence by sequence, and compare like with like:
the same layer, position and dim, signed."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from lib import first_tokens, hooks, ranks, sinks
from lib.definitions import PLATEAU
from lib.massive import DEFINITION, LayerStatistics, is_massive
from lib.stats import Samples
from lib.tokens import text_of

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
    sink_rate (of all heads: one that is off writes nothing and still looks somewhere), sink_rate_change (paired; None
    of the baseline), massive_positions (per sequence)}.
    changes: {name: [per layer, ablated - baseline of top1, top2, top3, median and each of `dims`]}.
    places: {name: [one entry a place, see `_Place.compared`]}, largest first: a place is position 0 ("first") or all
    others ("later"), and one dim. massive: the baseline's. dims: those followed.
    """

    conditions: dict
    changes: dict
    places: dict
    massive: list
    dims: list


@dataclass(frozen=True)
class Feasibility:
    """One ablation beside the baseline; the fields of Comparison, with the one condition's `places`.

    first_tokens: of the largest place, if that is the first position, over all first tokens that the text could give;
    see lib.first_tokens.
    """

    definition: str
    conditions: dict
    changes: dict
    places: list
    first_tokens: dict | None
    massive: list
    dims: list


def feasibility(lm, windows, condition, options):
    """Compare one Condition with the baseline, following `options.dims` or the baseline's massive dims."""
    result = compare(lm, windows, [condition], options, options.dims)
    places, found = result.places[condition.name], None
    if places and places[0]["position"] == "first":
        medians = {name: [layer["median"]["mean"] for layer in of["layers"]] for name, of in result.conditions.items()}
        dim, layer = places[0]["dim"], places[0]["layer"]
        found = first_tokens.measure(lm, windows, dim, layer, [condition], medians)
    exact = found and found[condition.name]
    return Feasibility(DEFINITION, result.conditions, result.changes, places, exact, result.massive, result.dims)


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
            sinks.watch(lm, self.heads.update, range(first, lm.arch.n_layers)),
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
    return _summarise(every, measured, ranks.gather(sites), lm, windows, options.seed, dims)


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


def _summarise(every, measured, sites, lm, windows, seed, dims):
    baseline, draws = measured[BASELINE], windows.draws(seed)
    massive = baseline.layers.massive()
    places = _places(sites, baseline.tracked, windows, lm.tokenizer)
    rows = _dim_rows(sites, baseline.tracked)
    followed = list(dims) or _dims_by_size(massive)
    conditions, changes, compared = {}, {}, {}
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


@dataclass(frozen=True)
class _Place:
    """Where one dim is massive in the baseline, at position 0 ("first") or at others ("later").

    sites: {window that has it: indices of its sites}; a window may have it at several positions. token: the most
    frequent text there. layer: the end of its plateau, the last with at least PLATEAU of its largest mean |baseline|.
    """

    position: str
    dim: int
    token: str
    sites: dict
    layer: int

    def compared(self, baseline, here, draws):
        """One entry of results.places: what is left of it in `here`, after `layer`.

        It votes once, whatever the number of layers in which it is massive. share: of the windows that have it, and of
        these: value, ablated (signed), size_baseline, size_ablated (along the baseline's sign): means over positions;
        retained, absolute_change: sums of size_ablated and of |ablated - value| over the sum of |value|; massive,
        still_massive: the share of its positions (mean over windows) that passes the test in this layer.
        """
        windows = list(self.sites)
        before, after = ([run.tracked[s][of, self.layer] for s, of in self.sites.items()] for run in (baseline, here))
        still = []
        for run, values in ((baseline, before), (here, after)):
            medians = [run.layers.rows.rows[s][self.layer, 3] for s in windows]
            still.append([is_massive(v, median).mean() for v, median in zip(values, medians, strict=True)])
        sums = np.array(
            [
                (b.sum(), a.sum(), np.abs(b).sum(), (np.sign(b) * a).sum(), np.abs(a - b).sum())
                for b, a in zip(before, after, strict=True)
            ]
        )
        there = draws.of(windows)
        value, ablated, size, size_ablated = there.ratios(sums[:, :4], [len(b) for b in before])
        retained, change = there.ratios(sums[:, 3:], sums[:, 2])
        return {
            "position": self.position,
            "dim": self.dim,
            "token": self.token,
            "windows": len(windows),
            "share": draws.share(np.isin(np.arange(len(draws.groups)), windows)),
            "layer": self.layer,
            "value": value,
            "ablated": ablated,
            "size_baseline": size,
            "size_ablated": size_ablated,
            "retained": retained,
            "absolute_change": change,
            "massive": there.share(still[0]),
            "still_massive": there.share(still[1]),
        }


def _places(sites, tracked, windows, tokenizer):
    """The _Places of the baseline, by the sum over windows of their largest |value|, largest first."""
    found = {}
    for s, of in enumerate(sites):
        for i, ((position, dim), layers) in enumerate(of.items()):
            if layers:
                where = "later" if position else "first"
                found.setdefault((where, dim), {}).setdefault(s, []).append((i, position))
    places, largest = [], {}
    for (where, dim), at in found.items():
        rows = {s: [i for i, _position in of] for s, of in at.items()}
        tokens = Counter(int(windows.ids[s, position]) for s, of in at.items() for _i, position in of)
        sizes = [np.abs(tracked[s][of]) for s, of in rows.items()]
        by_layer = sum(of.sum(0) for of in sizes)
        layer = int(np.flatnonzero(by_layer >= PLATEAU * by_layer.max())[-1])
        largest[where, dim] = sum(of.max() for of in sizes)
        places.append(_Place(where, dim, text_of(tokenizer, tokens.most_common(1)[0][0]), rows, layer))
    return sorted(places, key=lambda place: -largest[place.position, place.dim])
