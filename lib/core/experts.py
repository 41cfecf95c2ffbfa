"""Experts of a mixture that are off, as a change of the model."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lib.model import edits
from lib.model.arch import Architecture
from lib.model.experts import Off


@dataclass(frozen=True)
class ExpertsOff:
    """These experts give nothing, in every position."""

    name: str
    off: Off

    @property
    def first_layer(self) -> int:
        return min(layer for layer, _expert in self.off.experts)

    def hooks(self, arch: Architecture, _rows: slice | None = None) -> AbstractContextManager[None]:
        return edits.experts_off(arch, self.off)

    def hooks_beside(
        self, arch: Architecture, others: Sequence["ExpertsOff"], _rows: slice
    ) -> AbstractContextManager[None]:
        return edits.experts_off(arch, self.off, *(other.off for other in others))
