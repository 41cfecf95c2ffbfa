"""The TXT of one text before and after a head is off: the largest activation and the largest change, layer by layer."""

from experiments.before_after.results import ComparedValue, Stored
from lib.report import tables


def summarise(result: Stored) -> str:
    results = result.results
    rows = []
    for layer in results.downstream:
        changed = _row(layer.most_changed) if layer.most_changed.change else ["-"] * 4
        rows.append([layer.layer, tables.number(layer.median), *_row(layer.largest), *changed])
    heads = ["layer", "median", "largest before", "before", "after", "per cent", "most changed", "before", "after"]
    perplexity = results.perplexity
    title = f"Before and after removing head {results.head} of layer {results.layer}"
    return "\n".join(
        [
            tables.header(result, title, intervals=False),
            f"head: {results.chosen}",
            f"perplexity of the text: {tables.number(perplexity.before)} -> {tables.number(perplexity.after)}",
            "",
            tables.massive_table(results.massive, results.definition),
            "The same place before and after, signed: the largest activation of every layer, and the largest change",
            tables.table([*heads, "per cent"], rows),
            f"Layers before {results.layer} cannot change: a head acts on its own layer's output and on later ones.",
            "",
        ]
    )


def _row(value: ComparedValue) -> list[str]:
    return [
        f"position {value.position}, dim {value.dim}",
        tables.number(value.before, True),
        tables.number(value.after, True),
        tables.percent(value.before, value.after),
    ]
