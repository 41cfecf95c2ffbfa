"""What experiments 1 and 2A store: one ablation beside the baseline."""

from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from lib.core.evidence import Average, Conclusion
from lib.core.results import AblatedCondition, AblatedPlace, FirstTokens, LayerChanges, MassiveActivation
from lib.report.result_files import Result


@dataclass(frozen=True)
class Left:
    """What is left of the places in one condition.

    first_tokens: of the largest place, if that is the first position, over all first tokens that the text could give;
    see lib.core.first_tokens.
    """

    places: list[AblatedPlace]
    first_tokens: FirstTokens | None


@dataclass(frozen=True)
class Results:
    """As lib.core.ablation.Comparison, with the places of the first condition; first_tokens: as of Left. experts_off:
    with all experts off, where something else of the MLPs stays on then.
    """

    definition: str
    conditions: dict[str, AblatedCondition]
    changes: dict[str, list[LayerChanges]]
    places: list[AblatedPlace]
    first_tokens: FirstTokens | None
    massive: list[MassiveActivation]
    dims: list[int]
    experts_off: Left | UnsetType = UNSET


class PlaceWord(NamedTuple):
    """word: what becomes of the place, one of definitions.FATES or "cannot tell"."""

    position: str
    dim: int
    word: str


@dataclass(frozen=True)
class Values:
    """Of the largest place, as in AblatedPlace; places: the word of every place. note: what the verdict alone
    would hide. experts_off: the word of the largest place with all experts off, by the same rule."""

    retained: Average
    absolute_change: Average
    still_massive: Average
    size_baseline: Average
    size_ablated: Average
    first_tokens: FirstTokens | None
    note: str | None
    places: list[PlaceWord]
    experts_off: str | UnsetType = field(default=UNSET, kw_only=True)


Verdict = Conclusion[Values | None]  # no values where nothing is massive
Stored = Result[Results, Verdict]
