"""The TXT of the activations of one layer in one text."""

from typing import Any

from lib.report import tables


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    largest = sorted(((abs(v), v, t, d) for t, row in enumerate(r["values"]) for d, v in enumerate(row)), reverse=True)
    rows = [
        [k, t, repr(r["tokens"][t]), d, tables.number(v, signed=True), f"{size / r['median']:,.0f}"]
        for k, (size, v, t, d) in enumerate(largest[:5], 1)
    ]
    return "\n".join(
        [
            tables.header(payload, f"Activations of layer {r['layer']} in one text"),
            f"text: {payload['config']['text']!r}",
            f"median |activation|: {tables.number(r['median'])}",
            "",
            tables.table(["rank", "position", "token", "dim", "value", "x median"], rows),
            f"Massive here ({r['definition']}): {len(r['massive'])}",
            "",
        ]
    )
