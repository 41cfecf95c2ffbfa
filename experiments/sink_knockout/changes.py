"""Which edges are masked, and which values are set, in each condition."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lib.core.keys import at_once
from lib.core.on_device import OnDevice
from lib.model.arch import Architecture
from lib.model.attention_edits import edges_off, values_set
from lib.model.attention_rows import Attended, Rows, wide
from lib.model.models import LanguageModel


class Edges(NamedTuple):
    """Of some queries, (batch or 1, heads or 1, queries, keys). probability: as it is. sees: (..., queries, 1) bool,
    the later queries that see the sink. others: bool, the keys that these see beside it. which: (batch,) windows;
    first: number of the first query."""

    layer: int
    which: np.ndarray
    first: int
    probability: Tensor
    sees: Tensor
    others: Tensor


Choose = Callable[[Edges, int], Tensor]  # of the sink's position: which are masked, bool


def sink(edges: Edges, position: int) -> Tensor:
    here = torch.zeros_like(edges.others)
    here[..., position : position + 1] = edges.sees
    return here


def recent(edges: Edges, _position: int) -> Tensor:
    """The last one before the query's own."""
    return _nth(edges, lambda n: (n - 1).clamp(min=1))


def middle(edges: Edges, _position: int) -> Tensor:
    return _nth(edges, lambda n: (n + 1) // 2)


@dataclass(frozen=True)
class Random:
    """queries: (windows, seq) float32 in [0, 1), which of its keys a query loses; the same in all layers and heads."""

    queries: np.ndarray

    def __call__(self, edges: Edges, _position: int) -> Tensor:
        n = edges.others.shape[2]
        drawn = torch.from_numpy(self.queries[edges.which, edges.first : edges.first + n]).to(edges.others.device)
        return _nth(edges, lambda count: (drawn[:, None, :, None] * count).long().clamp(max=count - 1) + 1)


def _nth(edges: Edges, number: Callable[[Tensor], Tensor]) -> Tensor:
    """The nth of the other keys that a query sees, counted from 1; `number` has how many these are."""
    nth = edges.others.cumsum(3)
    return edges.others & (nth == number(nth[..., -1:]))


@dataclass(frozen=True)
class EqualMass:
    """Other keys in random order, until about as much attention is gone as the sink has of that head and query.

    keys, queries: (windows, seq), heads: (layers, heads) float32 in [0, 1): the order of a window's keys, and where in
    it a query and a head begin.
    """

    keys: np.ndarray
    queries: np.ndarray
    heads: np.ndarray

    def __call__(self, edges: Edges, position: int) -> Tensor:
        n_heads, n, last = edges.probability.shape[1:]
        device = edges.probability.device
        keys, queries, heads = (
            torch.from_numpy(drawn).to(device)
            for drawn in (
                self.keys[edges.which, None, None, :last],
                self.queries[edges.which, None, edges.first : edges.first + n, None],
                self.heads[edges.layer, :n_heads, None, None],
            )
        )
        order = ((keys + queries + heads) % 1).argsort(dim=3, stable=True)
        others = edges.others.expand_as(edges.probability)
        mass = (edges.probability * others).gather(3, order)
        wanted = edges.probability[..., position : position + 1] * edges.sees
        gone = mass.cumsum(3) - mass / 2 < wanted
        return torch.zeros_like(others).scatter(3, order, gone) & others


@dataclass(frozen=True)
class OnlySink:
    """All others, in some of the heads. heads: (layers, heads) bool."""

    heads: np.ndarray

    def __call__(self, edges: Edges, _position: int) -> Tensor:
        here = torch.from_numpy(self.heads[edges.layer, : edges.probability.shape[1]]).to(edges.others.device)
        return edges.others & here[:, None, None]


@dataclass(frozen=True)
class EdgesOff:
    """A change for lib.core.versions. kept: gets of each layer ("removed", layer), (batch, 2): the edges that are
    masked, and the probability that they had, summed up over heads and queries."""

    name: str
    label: str
    lm: LanguageModel
    layers: Sequence[int]
    choose: Choose
    position: int
    kept: OnDevice

    @property
    def first_layer(self) -> int:
        return self.layers[0]

    def hooks(self, _arch: Architecture, rows: slice) -> AbstractContextManager[None]:
        which = np.arange(rows.start, rows.stop)

        def off(layer: int, attended: Attended) -> Tensor:
            n = attended.shape[2]
            chosen: list[Tensor] = []
            sums: list[Tensor] = []
            for some in attended.rows(at_once(attended.device)):
                masked = self._chosen(layer, which, some).expand_as(some.probability)
                sums.append(torch.stack([masked.sum((1, 2, 3)), (some.probability * masked).sum((1, 2, 3))], dim=1))
                chosen.append(pad(masked, (0, n - masked.shape[3])))
            self.kept.keep(("removed", layer), torch.stack(sums).sum(0))
            return torch.cat(chosen, dim=2)

        return edges_off(self.lm, off, self.layers)

    def _chosen(self, layer: int, which: np.ndarray, some: Rows) -> Tensor:
        n, last = some.probability.shape[2:]
        if last <= self.position + 1:  # no later query yet
            return torch.zeros_like(some.visible)
        queries = torch.arange(some.first, some.first + n, device=some.probability.device)
        sees = (some.visible[..., self.position] & (queries > self.position))[..., None]
        others = some.visible & sees
        others[..., self.position] = False
        return self.choose(Edges(layer, which, some.first, some.probability, sees, others), self.position)


@dataclass(frozen=True)
class ValueZero:
    """A change for lib.core.versions: the sink's value is zero for later queries, whose probabilities stay."""

    name: str
    label: str
    lm: LanguageModel
    layers: Sequence[int]
    position: int

    @property
    def first_layer(self) -> int:
        return self.layers[0]

    def hooks(self, _arch: Architecture, _rows: slice) -> AbstractContextManager[None]:
        def zero(_layer: int, value: Tensor) -> Tensor:
            value = value.clone()
            value[:, :, self.position] = 0
            return value

        return values_set(self.lm, zero, self.layers, after=self.position)


@dataclass(frozen=True)
class RandomValues:
    """A change for lib.core.versions: all values are random directions of their norm, drawn anew for each window."""

    name: str
    label: str
    lm: LanguageModel
    layers: Sequence[int]
    seed: int

    @property
    def first_layer(self) -> int:
        return self.layers[0]

    def hooks(self, _arch: Architecture, rows: slice) -> AbstractContextManager[None]:
        def drawn(layer: int, value: Tensor) -> Tensor:
            directions = [
                np.random.default_rng((self.seed, layer, row)).standard_normal(value.shape[1:], dtype=np.float32)
                for row in range(rows.start, rows.stop)
            ]
            noise = torch.from_numpy(np.stack(directions)).to(value.device)
            norms = wide(value).norm(dim=3, keepdim=True)
            return (noise * (norms / noise.norm(dim=3, keepdim=True))).to(value.dtype)

        return values_set(self.lm, drawn, self.layers)


Knockout = EdgesOff | ValueZero | RandomValues
