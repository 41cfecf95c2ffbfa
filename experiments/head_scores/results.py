"""What every head's attention to the first token is stored as."""

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from lib.core.evidence import Average
from lib.core.results import HeadScore
from lib.report.result_files import Result


@dataclass(frozen=True)
class Results:
    """scores, scores_without_first_query: [layer][head]; ranking: highest first, ties in layer order.

    uniform: the score of a head that attends evenly to all it can see; floor: the lowest possible score. neighbours: of
    the highest heads, paired differences of each to the next. sink_rate: share of heads over `sink_epsilon` in windows
    of `sink_window` tokens.

    learned_scores, learned_sink_rate: the same of the probability on a learned sink, in models that have one beside the
    keys of a layer (gpt-oss), which is not one on the first token.
    """

    scores: list[list[Average]]
    scores_without_first_query: list[list[Average]]
    ranking: list[HeadScore]
    uniform: float
    floor: float
    neighbours: list[Average]
    sink_rate: Average
    sink_epsilon: float
    sink_window: int
    learned_scores: list[list[Average]] | UnsetType = UNSET
    learned_sink_rate: Average | UnsetType = UNSET


Stored = Result[Results, None]
