"""What one text before and after a head is off is stored as."""

from dataclasses import dataclass

from lib.core.results import MassiveActivation
from lib.report.result_files import Result


@dataclass(frozen=True)
class ComparedValue:
    """Signed, of one position and dim."""

    position: int
    token: str
    dim: int
    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class ComparedLayer:
    """median: of |activation|, before. largest: where |activation| is largest before; most_changed: where the change
    is."""

    layer: int
    median: float
    largest: ComparedValue
    most_changed: ComparedValue


@dataclass(frozen=True)
class ComparedPerplexity:
    """Of the text."""

    before: float
    after: float


@dataclass(frozen=True)
class Results:
    """chosen: how the head was. before, after: (seq, hidden_size) output of `layer`, signed. massive: before.
    downstream: every layer of the model."""

    definition: str
    layer: int
    head: int
    chosen: str
    tokens: list[str]
    before: list[list[float]]
    after: list[list[float]]
    massive: list[MassiveActivation]
    downstream: list[ComparedLayer]
    perplexity: ComparedPerplexity


Stored = Result[Results, None]
