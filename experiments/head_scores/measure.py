"""Attention of every head to the first token."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.core import definitions, sinks
from lib.core.data import Windows
from lib.model.models import LanguageModel

NEIGHBOURS = 10


@dataclass(frozen=True)
class HeadAnalysis:
    """scores, scores_without_first_query: [layer][head] averages; ranking: highest first, ties in layer order.

    uniform: the score of a head that attends evenly to all it can see; floor: the lowest possible score.
    neighbours: of the NEIGHBOURS highest heads, paired differences of each to the next.
    sink_rate: share of heads over `sink_epsilon` in windows of `sink_window` tokens.
    """

    scores: list[list[dict[str, Any]]]
    scores_without_first_query: list[list[dict[str, Any]]]
    ranking: list[dict[str, Any]]
    uniform: float
    floor: float
    neighbours: list[dict[str, Any]]
    sink_rate: dict[str, Any]
    sink_epsilon: float
    sink_window: int


def run(lm: LanguageModel, windows: Windows, options: Any) -> HeadAnalysis:
    heads = sinks.measure(lm, windows, options.batch_size)
    seqlen, draws = windows.ids.shape[1], windows.draws(options.seed)
    ranking = sinks.rank(heads.scores.mean(0))
    highest = np.stack([heads.scores[:, of["layer"], of["head"]] for of in ranking[:NEIGHBOURS]], axis=1)
    return HeadAnalysis(
        scores=draws.averages(heads.scores),
        scores_without_first_query=draws.averages(heads.later),
        ranking=ranking,
        uniform=sum(1 / seen for seen in range(1, seqlen + 1)) / seqlen,
        floor=1 / seqlen,
        neighbours=draws.averages(highest[:, :-1] - highest[:, 1:], family=True),
        sink_rate=draws.averages(heads.sink_rates()),
        sink_epsilon=definitions.SINK_EPSILON,
        sink_window=min(definitions.SINK_WINDOW, seqlen),
    )
