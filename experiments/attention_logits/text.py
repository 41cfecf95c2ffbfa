"""The TXT of the attention logits of one layer: the first token beside all others, head by head."""

from typing import Any

from lib.report import tables


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    rows = []
    for head, row in enumerate(r["first_token"]):
        gap = None if row["first"] is None else row["first"] - row["others"]
        rows.append([head, *(tables.number(x, True) for x in (row["first"], row["others"], gap))])
        rows[-1].append(tables.number(row["probability"]))
    return "\n".join(
        [
            tables.header(payload, f"Attention logits of layer {r['layer']} in one text"),
            f"text: {payload['config']['text']!r}",
            "",
            "Before softmax: scaled, capped, with position biases. Means over the queries that see the first token,",
            "without the first query; others: the mean over the other keys that a query sees.",
            tables.table(["head", "logit, first token", "logit, others", "difference", "probability, first"], rows),
        ]
    )
