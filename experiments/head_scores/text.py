"""The TXT of the heads' attention to the first token."""

from typing import Any

from lib.report import tables


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]

    def rows(ranking):
        return [
            [
                rank,
                cell["layer"],
                cell["head"],
                _score(r["scores"], cell),
                _score(r["scores_without_first_query"], cell),
            ]
            for rank, cell in ranking
        ]

    ranked = list(enumerate(r["ranking"], 1))
    columns = ["rank", "layer", "head", "score", "without first query"]
    rate = r["sink_rate"]
    return "\n".join(
        [
            tables.header(payload, "Attention of every head to the first token"),
            "score: mean over windows and queries of the probability on the first token, the first query (always 1)",
            f"included. Uniform attention would score {r['uniform']:.4f}; no head can score below {r['floor']:.4f}.",
            "Intervals: 95 %, as above.",
            "",
            f"The {min(10, len(ranked))} highest of {len(ranked)} heads",
            tables.table(columns, rows(ranked[:10])),
            f"The {min(10, len(ranked))} lowest",
            tables.table(columns, rows(ranked[-10:])),
            f"Sink rate: {tables.interval(rate)} of the heads give the first token more than {r['sink_epsilon']} "
            f"on average in windows of {r['sink_window']} tokens (Gu et al. 2025, arXiv 2410.10781).",
            "A low score says where a head looks, not that the model can do without it.",
            "",
        ]
    )


def _score(scores: list[list[dict[str, Any]]], cell: dict[str, Any]) -> str:
    average = scores[cell["layer"]][cell["head"]]
    if average["ci95"] is None:
        return f"{average['mean']:.4f}"
    return f"{average['mean']:.4f} [{average['ci95'][0]:.4f}, {average['ci95'][1]:.4f}]"
