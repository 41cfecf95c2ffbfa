"""Attention of every head to the first token."""

from typing import Any

import numpy as np
from msgspec import UNSET

from experiments.head_scores.results import Results
from lib.core import definitions, sinks
from lib.core.data import Windows
from lib.core.stats import SHARE
from lib.model.models import LanguageModel

NEIGHBOURS = 10


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    learned = sinks.LearnedSinks(lm.arch)
    heads = sinks.measure(lm, windows, options.batch_size, learned=learned)
    seqlen, draws = windows.ids.shape[1], windows.draws(options.seed)
    ranking = sinks.rank(heads.scores.mean(0))
    highest = np.stack([heads.scores[:, head.layer, head.head] for head in ranking[:NEIGHBOURS]], axis=1)
    return Results(
        scores=sinks.by_head(heads.scores, draws),
        scores_without_first_query=sinks.by_head(heads.later, draws),
        ranking=ranking,
        uniform=sum(1 / seen for seen in range(1, seqlen + 1)) / seqlen,
        floor=1 / seqlen,
        neighbours=draws.averages(highest[:, :-1] - highest[:, 1:], family=True),
        sink_rate=draws.averages(heads.sink_rates(), within=SHARE),
        sink_epsilon=definitions.SINK_EPSILON,
        sink_window=min(definitions.SINK_WINDOW, seqlen),
        learned_scores=sinks.by_head(learned.scores, draws) if learned else UNSET,
        learned_sink_rate=draws.averages(sinks.rates(learned.window), within=SHARE) if learned else UNSET,
    )
