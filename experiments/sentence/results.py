"""What one layer's output in one text is stored as."""

from dataclasses import dataclass

from lib.core.results import MassiveActivation
from lib.report.result_files import Result


@dataclass(frozen=True)
class Results:
    """tokens: (seq,) texts; values: (seq, hidden_size), signed; median: of |value|."""

    definition: str
    layer: int
    tokens: list[str]
    values: list[list[float]]
    median: float
    massive: list[MassiveActivation]


Stored = Result[Results, None]
