"""The TXT of one text before and after a head is off: the largest activation and the largest change, layer by layer."""

from typing import Any

from lib.report import tables


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    rows = []
    for layer in r["downstream"]:
        row = [layer["layer"], tables.number(layer["median"])]
        for key in ("largest", "most_changed"):
            at = layer[key]
            if key == "most_changed" and at["before"] == at["after"]:
                row += ["-"] * 4
                continue
            row += [f"position {at['position']}, dim {at['dim']}"]
            row += [tables.number(at[when], True) for when in ("before", "after")]
            row += [tables.percent(at["before"], at["after"])]
        rows.append(row)
    heads = ["layer", "median", "largest before", "before", "after", "per cent", "most changed", "before", "after"]
    perplexity = r["perplexity"]
    return "\n".join(
        [
            tables.header(payload, f"Before and after removing head {r['head']} of layer {r['layer']}"),
            f"head: {r['chosen']}",
            f"perplexity of the text: {tables.number(perplexity['before'])} -> {tables.number(perplexity['after'])}",
            "",
            tables.massive_table(r["massive"], r["definition"]),
            "The same place before and after, signed: the largest activation of every layer, and the largest change",
            tables.table([*heads, "per cent"], rows),
            f"Layers before {r['layer']} cannot change: a head acts on its own layer's output and on later ones.",
            "",
        ]
    )
