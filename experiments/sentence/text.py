"""The TXT of the activations of one layer in one text."""

from experiments.sentence.results import Stored
from lib.report import tables


def summarise(result: Stored) -> str:
    results = result.results
    largest = sorted(
        ((abs(v), v, t, d) for t, row in enumerate(results.values) for d, v in enumerate(row)), reverse=True
    )
    median = results.median
    rows = [
        [k, t, repr(results.tokens[t]), d, tables.number(v, signed=True), f"{size / median:,.0f}" if median else "-"]
        for k, (size, v, t, d) in enumerate(largest[:5], 1)
    ]
    return "\n".join(
        [
            tables.header(result, f"Activations of layer {results.layer} in one text", intervals=False),
            f"text: {result.config['text']!r}",
            f"median |activation|: {tables.number(median)}",
            "",
            tables.table(["rank", "position", "token", "dim", "value", "x median"], rows),
            f"Massive here ({results.definition}): {len(results.massive)}",
            "",
        ]
    )
