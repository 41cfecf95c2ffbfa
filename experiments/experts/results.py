"""What experiment 8 stores: every expert of every mixture, and what is left of the place with some of them off."""

from dataclasses import dataclass
from typing import Literal, TypeVar

from msgspec import UNSET, UnsetType

from lib.core.definitions import CANDIDATE
from lib.core.evidence import Average, Conclusion
from lib.core.results import Expert, FollowedPlace
from lib.report.result_files import Result

Tried = Literal["candidate", "backup", "random"]
Word = Literal[
    "one expert",
    "the shared expert",
    "several experts, each is enough",
    "several experts, others in other windows",
    "several experts together",
    "in part the experts",
    "not the experts",
]
Present = TypeVar("Present")


@dataclass(frozen=True)
class MeasuredWindows:
    """How many there are, the share of them that has the spike, and how many are run whole."""

    all: int
    spiking: Average
    whole: int


@dataclass(frozen=True)
class Mixture:
    """top_k: to how many experts a token is sent. shared: whether one stands beside them, to which every token goes."""

    layer: int
    experts: int
    top_k: int
    shared: bool


@dataclass(frozen=True)
class Baseline:
    """The model as it is. value: at the place, at the end of the plateau. loss: nats a token."""

    value: Average
    sink_rate: Average
    loss: Average


@dataclass(frozen=True)
class Run(Baseline):
    """A model with experts off. retained: None where the baseline's values are all 0. Changes are paired."""

    retained: Average | None
    sink_rate_change: Average
    loss_change: Average


@dataclass(frozen=True, kw_only=True)
class MeasuredExpert:
    """One expert; expert: None for the shared one.

    share_of_tokens: of all tokens, those that are sent to it. largest_output: of its |output|, without routing weight,
    over dims and these tokens; None where there are none. super: by SUPER of lib.core.definitions.

    Of the windows that have the spike (of all, if none has), at the place: write, the mean of what it adds to the dim,
    with its routing weight; routed, the share whose token is sent to it; weight, its mean routing weight there. These
    two are absent where none is sent, and of shared experts.

    tried: why it is off in a run, "candidate", "backup" (it writes where the candidates are off) or "random". off: it
    alone, the other weights as they were; off_renormalised: their sum as it was; alone: all candidates and backups are
    off but this one.
    """

    layer: int
    expert: int | None
    share_of_tokens: float
    largest_output: float | None
    super: bool
    write: Average
    routed: Average | UnsetType = UNSET
    weight: Average | UnsetType = UNSET
    tried: Tried | UnsetType = UNSET
    off: Run | UnsetType = UNSET
    off_renormalised: Run | UnsetType = UNSET
    alone: Run | UnsetType = UNSET

    @property
    def name(self) -> Expert:
        return Expert(self.layer, self.expert)

    @property
    def is_candidate(self) -> bool:
        """Or a backup."""
        return self.tried in ("candidate", "backup")

    @property
    def left(self) -> float:
        """What is retained with it off; 1 where that is not measured."""
        run = given(self.off)
        return run.retained.mean if run and run.retained else 1.0


@dataclass(frozen=True)
class Results:
    """peak: |mean value| at the place and its peak layer, over the windows that have the spike (over all, if none has).
    percentile: of largest_output over all experts that a token is sent to. together: with all candidates and backups
    off. most_needed: what is retained where of each window's candidates that one is off without which least is left."""

    place: FollowedPlace
    windows: MeasuredWindows
    mixtures: list[Mixture]
    baseline: Baseline
    peak: float
    percentile: float
    experts: list[MeasuredExpert]
    together: Run | UnsetType = UNSET
    most_needed: Average | UnsetType | None = UNSET

    @property
    def candidates(self) -> list[MeasuredExpert]:
        """And backups."""
        return [expert for expert in self.experts if expert.is_candidate]

    def writes_much(self, row: MeasuredExpert) -> bool:
        """Whether it writes CANDIDATE of the peak at the place."""
        return abs(row.write.mean) >= CANDIDATE * self.peak

    @property
    def random(self) -> list[MeasuredExpert]:
        return [expert for expert in self.experts if expert.tried == "random"]


@dataclass(frozen=True)
class Values:
    """experts: that the verdict names. necessary: without which the spike is gone; enough: which keep it with all other
    candidates off; cannot_tell: of which one of both is open. super: all super experts. together: what is retained with
    all candidates off."""

    experts: list[Expert]
    necessary: list[Expert]
    enough: list[Expert]
    cannot_tell: list[Expert]
    super: list[Expert]
    together: Average | None


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]


def given(value: Present | UnsetType | None) -> Present | None:
    """None where it is absent."""
    return None if isinstance(value, UnsetType) else value
