"""Single attention heads: where they look, what they write at a place, and what the model does without them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from lib.model import edits
from lib.model.arch import Architecture


@dataclass(frozen=True)
class HeadsSet:
    """Constants in the place of heads' outputs. outputs: as in edits.heads_set."""

    name: str
    outputs: Mapping[tuple[int, int], torch.Tensor | float]

    @property
    def first_layer(self) -> int:
        return min(layer for layer, _head in self.outputs)

    def hooks(self, arch: Architecture, _rows: slice | None = None) -> AbstractContextManager[None]:
        return edits.heads_set(arch, self.outputs)

    def hooks_beside(
        self, arch: Architecture, others: "Sequence[HeadsSet]", _rows: slice
    ) -> AbstractContextManager[None]:
        return edits.heads_set(arch, self.outputs, *(other.outputs for other in others))


def label(heads: Iterable[tuple[int, int]]) -> str:
    """`4.1 11.8` of (layer, head) pairs."""
    return " ".join(f"{layer}.{head}" for layer, head in sorted(heads))
