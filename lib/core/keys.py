"""Which keys attention goes to, what it finds at the first one, and which tokens become like the first: reduced on the
device, layer by layer, without maps."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lib.core.definitions import ALIKE, SINK_QUERIES, WRITES
from lib.core.on_device import OnDevice, Taken, exact
from lib.core.stats import Samples
from lib.model import hooks
from lib.model.arch import Architecture
from lib.model.attention_rows import Attended, Parts, wide
from lib.model.finite import require_finite
from lib.run import processes

AT_ONCE, ON_ACCELERATOR = 2**18, 2**25  # values of a map: on a CPU, more would leave its cache
ATTENDS = "probability", "elsewhere"
SPLIT = (
    *("value", "value_others", "key", "key_others"),  # norms at the first key, and their means over all others
    *("query", "cosine", "cosine_others"),  # means over the later queries that see the first key
    *("from_first", "output"),  # sums over them
)


class Reduced(NamedTuple):
    """Of a layer's map. on_keys: (batch, heads, keys) sums over queries; own: of each query on its own key; on_first:
    on the first. counts: (batch or 1, heads or 1, keys) how many queries see it, own_counts: whether its own does;
    sees_first: of each query. around: (batch, heads, queries, width) mean direction of the other keys that a query
    sees; with fewer heads where several share keys.
    """

    on_keys: Tensor
    own: Tensor
    on_first: Tensor
    counts: Tensor
    own_counts: Tensor
    sees_first: Tensor
    around: Tensor | None


def at_once(device: torch.device) -> int:
    """How many values of a map to look at together."""
    return AT_ONCE if device.type == "cpu" else ON_ACCELERATOR


def reduced(attended: Attended) -> Reduced:
    n, key = attended.shape[2], None if attended.parts is None else normalize(wide(attended.parts.key), dim=3)
    of_queries: list[list[Tensor]] = []
    for first, probability, visible in attended.rows(at_once(attended.device)):
        last = probability.shape[3]
        if first == 0:
            on_keys = probability.new_zeros(attended.shape)
            counts = torch.zeros((*visible.shape[:2], n), dtype=torch.int32, device=visible.device)
            if key is not None:
                if visible.shape[1] > 1:  # each head has a mask of its own
                    key = key.repeat_interleave(attended.shape[1] // key.shape[1], dim=1)
                around = torch.zeros_like(key)
        on_keys[..., :last] += probability.sum(2)
        counts[..., :last] += visible.sum(2, dtype=torch.int32)
        diagonals = [rows[..., first:].diagonal(dim1=2, dim2=3) for rows in (probability, visible)]
        to_first = [rows[..., 0] for rows in (probability, visible)]
        of_queries.append([part.clone() for part in (*diagonals, *to_first)])  # views would keep all rows
        if key is not None:
            others = visible[..., 1:].to(key.dtype)
            around[:, :, first:last] = others @ key[:, :, 1:last] / others.sum(3, keepdim=True).clamp(min=1)
    own, own_visible, on_first, sees_first = (torch.cat(parts, 2) for parts in zip(*of_queries, strict=True))
    own_counts = own_visible.to(counts.dtype)
    return Reduced(on_keys, own, on_first, counts, own_counts, sees_first, None if key is None else around)


def split(parts: Parts, seen: Reduced) -> list[Tensor]:
    """(batch, heads) of each of SPLIT."""
    n_heads = parts.query.shape[1]

    def by_head(of_keys: Tensor) -> Tensor:
        return of_keys.repeat_interleave(n_heads // of_keys.shape[1], dim=1)

    later = seen.sees_first.clone()
    later[..., 0] = False
    n_later = later.sum(2).clamp(min=1)

    def norms(of: Tensor) -> list[Tensor]:
        size = exact(wide(of).norm(dim=3))
        return [by_head(size[..., 0]), by_head(size[..., 1:].mean(2))]

    def mean(of_queries: Tensor) -> Tensor:
        return (exact(of_queries) * later).sum(2) / n_later

    query, output = wide(parts.query), wide(parts.output)
    direction = normalize(query, dim=3)
    first_key, first_value = (by_head(wide(of)[:, :, :1]) for of in (parts.key, parts.value))
    assert seen.around is not None
    return [
        *norms(parts.value),
        *norms(parts.key),
        mean(query.norm(dim=3)),
        mean((direction * normalize(first_key, dim=3)).sum(3)),
        mean((direction * by_head(seen.around)).sum(3)),
        (exact(seen.on_first * (output * first_value).sum(3)) * later).sum(2),
        (exact(output.square().sum(3)) * later).sum(2),
    ]


class KeyMeans:
    """Mean probabilities on every key, over the queries that can see it; feed `update` to attention_rows.watch_rows.

    Where a head's mean is above an epsilon it has a sink, by `rates`. One that is listed, wherever it is, takes as much
    on average over later queries alone, SINK_QUERIES at least.

    rates: (windows, epsilons, seq) share of all heads. by_layer: the same of each layer's heads, (layers, seq), at the
    first epsilon, summed over windows; NaN in layers without attention. heads: (windows, layers, heads, numbers), NaN
    where there is no head. The numbers are ATTENDS, the mean on the first key and whether (1) or not (0) a later key is
    listed; and SPLIT, NaN where attended.parts is None: of `output`, the sum of the output's squares, `from_first` is
    what the first key's value gives, along the output. listed: of the last batch, (windows, layers, seq), how many
    heads list a key.
    """

    def __init__(self, arch: Architecture, epsilons: Sequence[float], kept: OnDevice) -> None:
        """kept: whose `take` is given to `end_batch`."""
        arch.require_attention()
        self.arch, self.epsilons, self.kept = arch, epsilons, kept
        self.rates, self.heads = Samples(), Samples()
        self.by_layer: processes.Sum[Any] = processes.Sum()
        self.layers: dict[int, bool] = {}  # of the batch, and whether SPLIT is known

    def update(self, layer: int, attended: Attended) -> None:
        seen = reduced(attended)
        means = seen.on_keys / seen.counts.clamp(min=1)
        n_later = seen.counts - seen.own_counts
        later = (seen.on_keys - seen.own) / n_later.clamp(min=1)
        listed = (later > self.epsilons[0]) & (n_later >= SINK_QUERIES)
        self.layers[layer] = attended.parts is not None
        self.kept.keep(("over", layer), torch.stack([(means > epsilon).sum(1) for epsilon in self.epsilons]))
        self.kept.keep(("listed", layer), listed.sum(1))
        numbers = [means[..., 0], listed[..., 1:].any(2)]
        numbers += [] if attended.parts is None else split(attended.parts, seen)
        self.kept.keep(("heads", layer), torch.stack([exact(number) for number in numbers], dim=2))

    def end_batch(self, taken: Taken) -> None:
        """Take the batch in; call it after each pass. Raises UserError for inf or nan."""
        known, self.layers = self.layers, {}
        layers = [*known]
        over = np.stack([taken["over", layer] for layer in layers])  # (layers, epsilons, windows, seq)
        _layers, _epsilons, windows, n = over.shape
        heads = np.full((windows, self.arch.n_layers, self.arch.n_heads, len(ATTENDS + SPLIT)), np.nan)
        by_layer = np.full((self.arch.n_layers, n), np.nan)
        self.listed = np.zeros((windows, self.arch.n_layers, n), dtype=int)
        for layer, of_layer in zip(layers, over, strict=True):
            numbers = taken["heads", layer]
            require_finite(layer, numbers)
            heads[:, layer, : numbers.shape[1], : numbers.shape[2]] = numbers
            by_layer[layer] = of_layer[0].sum(0) / numbers.shape[1]
            self.listed[:, layer] = taken["listed", layer]
        self.rates.extend(over.sum(0).swapaxes(0, 1) / sum(self.arch.layers[layer].n_heads for layer in layers))
        self.heads.extend(heads)
        self.by_layer += by_layer

    def gather(self) -> None:
        """Take in the windows of all processes; call it after the last batch."""
        own: list[Any] = [self.rates, self.heads, self.by_layer]
        self.rates, self.heads, self.by_layer = processes.merged(own)


class LikeFirst:
    """Secondary sinks: later tokens whose hidden state is like the first token's, |cosine| above ALIKE, in some of the
    layers `between` the largest rise of the first token's norm and its largest fall after that, in each window, and
    which heads have as a sink meanwhile. A token like the first one that nobody looks at is none.

    found: {(token id, first layer, layers in a row): at which positions}, of each one's longest run of layers in which
    it is a sink. between: {(first layer, last layer): windows}. counts: (windows, 3) how many secondary sinks, tokens
    like the first one, and sinks of any kind at later tokens.
    """

    def __init__(self, arch: Architecture, kept: OnDevice) -> None:
        """kept: whose `take` is given to `end_batch`."""
        self.arch, self.kept = arch, kept
        self.found: dict[tuple[int, int, int], Counter[int]] = {}
        self.between: Counter[tuple[int, int]] = Counter()
        self.counts = Samples()

    @contextmanager
    def watching(self) -> Iterator[None]:
        with (
            hooks.watch_inputs(self.arch, "block", self._before, [0]),
            hooks.watch_outputs(self.arch, "block", self._after),
        ):
            yield

    def _before(self, _layer: int, hidden: Tensor) -> None:
        self.kept.keep("embedded", wide(hidden[:, 0]).norm(dim=1))

    def _after(self, layer: int, hidden: Tensor) -> None:
        hidden = wide(hidden)
        norms = hidden.norm(dim=2)
        cosine = (hidden * hidden[:, :1]).sum(2) / (norms * norms[:, :1])
        self.kept.keep(("norm", layer), norms[:, 0])
        self.kept.keep(("alike", layer), cosine.abs() > ALIKE)

    def end_batch(self, ids: Tensor, taken: Taken, listed: np.ndarray) -> None:
        """Take the batch in, of (windows, seq) ids; call it after each pass. listed: KeyMeans'."""
        layers = range(self.arch.n_layers)
        norms = np.stack([taken["embedded"], *(taken["norm", layer] for layer in layers)], axis=1)
        alike = np.stack([taken["alike", layer] for layer in layers], axis=1)  # (windows, layers, seq)
        for window, (changes, of_window) in enumerate(zip(np.diff(norms), alike, strict=True)):
            first, last = between(changes)
            self.between[first, last] += 1
            there = of_window[first : last + 1, 1:]
            sinks = listed[window, :, 1:] > 0
            n_found = 0
            for column in np.flatnonzero(there.any(0)).tolist():
                alive = [(first + start, n) for start, n in runs(there[:, column])]
                # what a block puts out, the next one's heads look at
                alive = [(start, n) for start, n in alive if sinks[start + 1 : start + 1 + n, column].any()]
                if alive:
                    n_found += 1
                    key = int(ids[window, 1 + column]), *max(alive, key=itemgetter(1))
                    self.found.setdefault(key, Counter())[1 + column] += 1
            self.counts.extend([[n_found, there.any(0).sum(), sinks.any(0).sum()]])

    def gather(self) -> None:
        """Take in the windows of all processes; call it after the last batch."""
        own: list[Any] = [self.found, self.between, self.counts]
        self.found, self.between, self.counts = processes.merged(own)


def between(changes: np.ndarray) -> tuple[int, int]:
    """(layer of the largest rise, last one before the largest fall after it) of (layers,) changes of a norm; the last
    layer, where no fall takes WRITES of the rise."""
    rise = int(changes.argmax())
    falls = changes[rise + 1 :]
    fell = len(falls) and falls.min() < -WRITES * changes[rise]
    return rise, rise + int(falls.argmin()) if fell else len(changes) - 1


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of each run of True."""
    each = [[*run] for is_true, run in groupby(range(len(flags)), flags.__getitem__) if is_true]
    return [(run[0], len(run)) for run in each]
