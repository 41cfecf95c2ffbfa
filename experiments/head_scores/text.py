"""The TXT of the heads' attention to the first token."""

from experiments.head_scores.results import Results, Stored
from lib.core.evidence import Average
from lib.core.results import HeadScore
from lib.report import tables


def summarise(result: Stored) -> str:
    results = result.results

    def rows(ranking):
        return [
            [
                rank,
                head.layer,
                head.head,
                _score(results.scores, head),
                _score(results.scores_without_first_query, head),
                *([_learned(results, head)] if results.learned_scores else []),
            ]
            for rank, head in ranking
        ]

    ranked = list(enumerate(results.ranking, 1))
    columns = ["rank", "layer", "head", "score", "without first query"]
    columns += ["learned sink"] if results.learned_scores else []
    rate = results.sink_rate
    return "\n".join(
        [
            tables.header(result, "Attention of every head to the first token"),
            "score: mean over windows and queries of the probability on the first token, the first query (always 1)",
            f"included. Uniform attention would score {results.uniform:.4f}; no head can score below "
            f"{results.floor:.4f}.",
            *_first_query(results),
            "Intervals: 95 %, as above.",
            "",
            f"The {min(10, len(ranked))} highest of {len(ranked)} heads",
            tables.table(columns, rows(ranked[:10])),
            f"The {min(10, len(ranked))} lowest",
            tables.table(columns, rows(ranked[-10:])),
            f"Sink rate: {tables.interval(rate)} of the heads give the first token more than {results.sink_epsilon} "
            f"on average in windows of {results.sink_window} tokens (Gu et al. 2025, arXiv 2410.10781).",
            *_learned_rate(results),
            "A low score says where a head looks, not that the model can do without it.",
            "",
        ]
    )


def _learned(results: Results, head: HeadScore) -> str:
    """The head's probability on its learned sink; "-" where its layer has none."""
    assert results.learned_scores
    return _score(results.learned_scores, head) if results.learned_scores[head.layer] else "-"


def _learned_rate(results: Results) -> list[str]:
    if not results.learned_sink_rate:
        return []
    return [
        f"Learned sinks: {tables.interval(results.learned_sink_rate)} of the heads that have one give it more than "
        f"{results.sink_epsilon}: a head that looks there needs no first token."
    ]


def _first_query(results: Results) -> list[str]:
    if not results.learned_scores:
        return []
    return ["But for a learned sink, as heads of this model have it: it takes a part of the first query, too."]


def _score(scores: list[list[Average]], head: HeadScore) -> str:
    average = scores[head.layer][head.head]
    if average.ci95 is None:
        return f"{average.mean:.4f}"
    return f"{average.mean:.4f} [{average.ci95[0]:.4f}, {average.ci95[1]:.4f}]"
