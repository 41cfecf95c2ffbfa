"""The TXT of the largest activations of every layer."""

from experiments.layerwise.results import Stored
from lib.report import tables


def summarise(result: Stored) -> str:
    results = result.results
    rows = []
    for layer in results.layers:
        place, *_others = layer.at
        rows.append(
            [
                layer.layer,
                *(tables.interval(average) for average in (layer.top1, layer.top2, layer.top3, layer.median)),
                tables.interval(layer.ratio),
                f"{place.sign}dim {place.dim}, position {place.position}",
                f"{place.sequences}/{layer.top1.n}",
            ]
        )
    return "\n".join(
        [
            tables.header(result, "Largest activations of every layer"),
            "Means over windows of top-1, top-2, top-3 and median of |block output|, with 95 % intervals.",
            "ratio: mean of each window's top-1 / median. The last layer is the block's output, before the final norm.",
            "",
            tables.table(
                ["layer", "top 1", "top 2", "top 3", "median", "ratio", "top 1 most often at", "windows"], rows
            ),
            tables.massive_table(results.massive, results.definition),
        ]
    )
