"""What head pruning stores: two sets of heads off, beside random heads of the same layers."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from experiments.ablation.results import Values as AblationValues
from lib.core.evidence import Conclusion
from lib.core.pruning import Heads
from lib.core.results import (
    AblatedCondition,
    AblatedPlace,
    FirstTokens,
    FollowedPlace,
    LayerChanges,
    MassiveActivation,
)
from lib.report.result_files import Result

T = TypeVar("T")
SETS = ("top", "bottom")


@dataclass(frozen=True)
class OfSets(Generic[T]):
    """One thing of each set of heads."""

    top: T
    bottom: T

    def named(self, name: str) -> T:
        """Of the set "top" or "bottom"."""
        return {"top": self.top, "bottom": self.bottom}[name]


@dataclass(frozen=True)
class Sets(OfSets[Heads]):
    """source: where the heads come from, in words."""

    source: str


@dataclass(frozen=True)
class Null:
    """The absolute change without a set of heads at the followed place, beside that without random ones.

    possible: how many draws of as many other heads of the same layers there are; enumerated: whether `draws` are all of
    them. absolute_change (of each draw) and of_set: sum of |change| over sum of |baseline|, after the end of the
    plateau, over the windows that have the spike; where nothing is massive, nothing is compared. impossible: None, or
    why no head of these layers can change it, which leaves no p. at_least_as_large: how many draws; p:
    (that + 1) / (draws + 1). run_whole: names of the conditions of the first draws; perplexity: of each of these.

    Where the set was ranked on these windows, documents are drawn with replacement and heads are ranked anew.
    ranked_anew: the absolute change without what each draw ranks into the set; picked_again: the share of these draws
    that rank the same heads into it; else empty and None.
    """

    possible: int
    enumerated: bool
    draws: list[Heads]
    absolute_change: list[float]
    of_set: float | None
    impossible: str | None
    at_least_as_large: int | None
    p: float | None
    run_whole: list[str]
    perplexity: list[float]
    ranked_anew: list[float] = field(default_factory=list)
    picked_again: float | None = None


@dataclass(frozen=True)
class Results:
    """Conditions "top", "bottom" and random draws beside the baseline; see lib.core.ablation.Comparison.

    place: of the baseline. first_tokens: of the largest place, if that is the first position, over all first tokens
    that the text could give; see lib.core.first_tokens.
    """

    definition: str
    place: FollowedPlace
    sets: Sets
    conditions: dict[str, AblatedCondition]
    changes: dict[str, list[LayerChanges]]
    places: dict[str, list[AblatedPlace]]
    first_tokens: OfSets[FirstTokens | None]
    massive: list[MassiveActivation]
    dims: list[int]
    null: OfSets[Null]


@dataclass(frozen=True)
class SetValues(AblationValues):
    """As of an ablation; verdict: on this set."""

    verdict: str


@dataclass(frozen=True)
class Values(OfSets[SetValues]):
    """note: of TOP."""

    note: str | None


Verdict = Conclusion[Values | None]  # no values where nothing is massive
Stored = Result[Results, Verdict]
