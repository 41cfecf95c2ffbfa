"""What one layer's attention logits are stored as."""

from dataclasses import dataclass

from lib.core.results import FirstTokenLogits
from lib.report.result_files import Result


@dataclass(frozen=True)
class Results:
    """logits: of each head, mean: over heads; per query the keys up to it, None where a sliding window hides one.
    first_token: of each head."""

    layer: int
    tokens: list[str]
    logits: list[list[list[float | None]]]
    mean: list[list[float | None]]
    first_token: list[FirstTokenLogits]


Stored = Result[Results, None]
