"""The TXT of the largest activations of every layer."""

from typing import Any

from lib.report import tables


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    rows = []
    for layer in r["layers"]:
        at = layer["at"][0]
        rows.append(
            [layer["layer"]]
            + [tables.interval(layer[key]) for key in ("top1", "top2", "top3", "median", "ratio")]
            + [f"{at['sign']}dim {at['dim']}, position {at['position']}", f"{at['sequences']}/{layer['top1']['n']}"]
        )
    return "\n".join(
        [
            tables.header(payload, "Largest activations of every layer"),
            "Means over windows of top-1, top-2, top-3 and median of |block output|, with 95 % intervals.",
            "ratio: mean of each window's top-1 / median. The last layer is the block's output, before the final norm.",
            "",
            tables.table(
                ["layer", "top 1", "top 2", "top 3", "median", "ratio", "top 1 most often at", "windows"], rows
            ),
            tables.massive_table(r["massive"], r["definition"]),
        ]
    )
