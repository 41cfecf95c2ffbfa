"""What is stored of a course of training."""

from dataclasses import dataclass
from typing import Any

from lib.core.evidence import Average, Conclusion
from lib.core.results import LedgerWrite
from lib.report.result_files import Result

FORMULA = "ln(ratio) = A exp(-lambda x) ln(x) + K, x = gamma t + t0"
NAMES = ("A", "lambda", "gamma", "t0", "K")
FITTED, TOO_FEW, DIVERGES = "fitted", "too few steps", "does not converge"


@dataclass(frozen=True)
class Layer:
    """Of |block output|, over windows, as in layerwise. ratio: of top1 to median; None where a median is 0."""

    top1: Average
    median: Average
    ratio: Average | None


@dataclass(frozen=True)
class Followed:
    """The place of this checkpoint: what is massive, or else largest, and who writes it.

    position: the most frequent, `token` there. massive: whether it is in any window. value: signed, after `peak_layer`,
    where it is largest. writers: of the components up to that layer those that give `measure.LISTED` of it or more, or
    may give enough to be its birth, in the order of the layers.
    """

    dim: int
    position: int
    token: str
    massive: bool
    peak_layer: int
    value: Average
    writers: list[LedgerWrite]


@dataclass(frozen=True)
class Step:
    """One checkpoint. name, source: what was loaded (None of a model that is no part of a series).

    loss: in nats a token. massive: share of the windows in which anything is. sink_rate: share of all heads over
    SINK_EPSILON in windows of SINK_WINDOW tokens. scores: [layer][head] mean attention to the first token.
    """

    step: int
    name: str | None
    source: dict[str, Any] | None
    loss: Average
    massive: Average
    sink_rate: Average
    layers: list[Layer]
    scores: list[list[float]]
    followed: Followed


@dataclass(frozen=True)
class Results:
    """steps: in their order. definition: of massive; place: the rule by which each step's place is found."""

    definition: str
    place: str
    steps: list[Step]


@dataclass(frozen=True)
class Birth:
    """When something came to stay: `at` this step, and `after` the last measured one at which it was surely not yet
    there (None: there is none). had: earlier steps at which it was there, too. unclear: steps that cannot be told."""

    verdict: str
    at: int | None
    after: int | None
    had: list[int]
    unclear: list[int]


@dataclass(frozen=True)
class Parameter:
    """error: standard error; None where the steps do not determine it."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Fit:
    """Of one layer, by FORMULA. outcome: FITTED, or why there is none. residual: root mean square, in units of
    ln(ratio); explained: share of its variance over steps."""

    layer: int
    outcome: str
    parameters: dict[str, Parameter]
    residual: float | None
    explained: float | None


@dataclass(frozen=True)
class Values:
    """writer: verdict of births.birth at the last step, of the place followed there."""

    massive: Birth
    sinks: Birth
    writer: str
    fits: list[Fit]


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
