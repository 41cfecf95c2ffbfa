"""What counts as massive, and the per-layer statistics of the residual stream."""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import torch

from lib import ranks
from lib.hooks import require_finite, watch_outputs
from lib.stats import Samples, averages

ABSOLUTE = 100.0
RELATIVE = 1000.0
NEAR_LIMIT = 0.5  # of float16's largest value
DEFINITION = f"|value| > {ABSOLUTE:,.0f} and > {RELATIVE:,.0f} x the layer's median (Sun et al. 2024, arXiv 2402.17762)"


def is_massive(value, median):
    """Elementwise test of DEFINITION; median is that of |value| in the same layer and sequence."""
    return (abs(value) > ABSOLUTE) & (abs(value) > RELATIVE * median)


class LayerStatistics:
    """Top-3, median and massive values of |block output|; feed `update` to `hooks.watch_outputs`.

    rows: per sequence (layers, 4), top-1, top-2, top-3 and median over positions x dims.
    batch_massive: of the last batch, (sequence in batch, layer, position, dim, signed value, ratio to the median).
    """

    def __init__(self, arch, tokenizer):
        self.n_layers = arch.n_layers
        self.tokenizer = tokenizer
        self.rows = Samples()
        self.massive_positions = Samples()
        self.where = [[Counter() for _ in range(3)] for _ in range(arch.n_layers)]
        self.found = {}

    def begin_batch(self, ids):
        self.ids = ids
        self.batch = np.full((len(ids), self.n_layers, 4), np.nan)
        self.batch_massive = []

    def update(self, layer, hidden):
        """hidden: (batch, seq, hidden_size) output of block `layer`. Raises UserError for inf or nan."""
        dims = hidden.shape[2]
        magnitude = hidden.abs().float().flatten(1)
        top = magnitude.topk(3, dim=1)
        median = magnitude.median(dim=1).values
        require_finite(layer, top.values)
        self.batch[:, layer, :3] = top.values.cpu()
        self.batch[:, layer, 3] = median.cpu()
        for sequence, indices in enumerate(top.indices.tolist()):
            for k, index in enumerate(indices):
                position, dim = divmod(index, dims)
                value = hidden[sequence, position, dim].item()
                self.where[layer][k][position, dim, value > 0] += 1
            if is_massive(top.values[sequence, 0], median[sequence]):
                self._list_massive(layer, sequence, hidden[sequence], median[sequence])

    def _list_massive(self, layer, sequence, hidden, median):
        for position, dim in torch.nonzero(is_massive(hidden.float(), median)).tolist():
            value = hidden[position, dim].item()
            ratio = abs(value) / median.item() if median else float("inf")
            self.batch_massive.append((sequence, layer, position, dim, value, ratio))
            new = {"values": ranks.Sum(), "ratios": ranks.Sum(), "tokens": Counter()}
            entry = self.found.setdefault((layer, position, dim), new)
            entry["values"] += value
            entry["ratios"] += ratio
            entry["tokens"][self.ids[sequence, position].item()] += 1

    def end_batch(self):
        self.rows.extend(self.batch)
        positions = [{m[2] for m in self.batch_massive if m[0] == s} for s in range(len(self.ids))]
        self.massive_positions.extend(len(p) for p in positions)

    def gather(self):
        """Take in the windows of all processes; call it after the last batch."""
        own = [self.rows, self.massive_positions, self.where, self.found]
        self.rows, self.massive_positions, self.where, self.found = ranks.merged(own)

    def layers(self, seed):
        """results.layers of the report: averages over sequences, and where each top value sits most often."""
        rows = self.rows.array
        table = averages(np.concatenate([rows, rows[:, :, :1] / rows[:, :, 3:]], axis=2), seed)
        names = ("top1", "top2", "top3", "median", "ratio")
        return [
            {"layer": layer, **dict(zip(names, cells, strict=True)), "at": [_most_common(c) for c in self.where[layer]]}
            for layer, cells in enumerate(table)
        ]

    def massive(self):
        """results.massive of the report: one entry a (layer, position, dim), largest first within a layer.

        value (signed) and ratio are means over the `sequences` in which it passes the test; token is the most
        frequent text at that position among them.
        """
        entries = []
        for (layer, position, dim), entry in self.found.items():
            n = entry["tokens"].total()
            token, _times = entry["tokens"].most_common(1)[0]
            entries.append(
                {
                    "layer": layer,
                    "position": position,
                    "token": self.tokenizer.decode([token]),
                    "dim": dim,
                    "value": entry["values"].total / n,
                    "ratio": entry["ratios"].total / n,
                    "sequences": n,
                }
            )
        return sorted(entries, key=lambda e: (e["layer"], -abs(e["value"])))


@contextmanager
def limit_watched(lm):
    """Yield a dict that comes to hold {layer: largest |block output|}; it stays empty but for float16, which alone
    ends near massive values."""
    largest = {}

    def see(layer, hidden):
        largest[layer] = max(largest.get(layer, 0.0), hidden.abs().max().item())

    with watch_outputs(lm.arch, "block", see, None if lm.model.dtype == torch.float16 else ()):
        yield largest


def limit_warning(lm, largest):
    """One line if the values of `limit_watched`, in any process, come close to the end of float16; else None."""
    limit = torch.finfo(torch.float16).max
    value, layer = max(((v, layer) for layer, v in ranks.gather([*largest.items()])), default=(0, None))
    if value <= limit * NEAR_LIMIT:
        return None
    return f"|value| up to {value:,.0f} at layer {layer}, where float16 ends at {limit:,.0f}: compare with float32"


def _most_common(counter):
    (position, dim, positive), n = counter.most_common(1)[0]
    return {"position": position, "dim": dim, "sign": "+" if positive else "-", "sequences": n}
