"""The TXT of the attention logits of one layer: the first token beside all others, head by head."""

from experiments.attention_logits.results import Stored
from lib.report import tables


def summarise(result: Stored) -> str:
    results = result.results
    rows = []
    for head, row in enumerate(results.first_token):
        gap = None if row.first is None or row.others is None else row.first - row.others
        rows.append([head, *(tables.number(x, True) for x in (row.first, row.others, gap))])
        rows[-1].append(tables.number(row.probability))
    return "\n".join(
        [
            tables.header(result, f"Attention logits of layer {results.layer} in one text", intervals=False),
            f"text: {result.config['text']!r}",
            "",
            "Before softmax: scaled, capped, with position biases. Means over the queries that see the first token,",
            "without the first query; others: the mean over the other keys that a query sees.",
            tables.table(["head", "logit, first token", "logit, others", "difference", "probability, first"], rows),
        ]
    )
