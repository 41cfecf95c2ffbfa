"""The TXT of the largest activations of every layer."""

from collections.abc import Sequence

from experiments.layerwise.results import DEFINITIONS, FoundBy, Stored
from lib.report import tables
from lib.report.masks import HOLDS, MaskedPlace

SHOWN = 8  # of a list, in a table


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
            *(_definitions(results.compared) if results.compared else ()),
            *(_rules(results.masked) if results.masked else ()),
        ]
    )


def _definitions(compared: list[FoundBy]) -> list[str]:
    rows = [
        [
            found.name,
            found.places,
            tables.spans(found.layers) or "-",
            _listed(found.dims) or "-",
            found.shared,
            tables.number(found.jaccard),
        ]
        for found in compared
    ]
    heads = ["definition", "places", "layers", "dims", "shared", "Jaccard"]
    return [
        "The same by other definitions. Places: (layer, position, dim) that pass in some window; shared: with the",
        "first, and as a share of what either finds (Jaccard)",
        tables.table(heads, rows),
        *(f"{name}: {what}" for name, what in DEFINITIONS.items()),
        "",
    ]


def _rules(masked: list[MaskedPlace]) -> list[str]:
    """What is massive by its dim and the rule that its positions follow, whatever the layer."""
    alike: dict[tuple[int, str, str], list[MaskedPlace]] = {}
    for place in masked:
        alike.setdefault((place.dim, place.rule, _listed([*map(repr, place.tokens)])), []).append(place)
    rows = []
    for (dim, rule, tokens), places in sorted(alike.items(), key=lambda pair: -max(abs(p.value) for p in pair[1])):
        largest = max(places, key=lambda place: abs(place.value))
        held, checked = (sum(getattr(place, name) for place in places) for name in ("held", "checked"))
        rows.append(
            [
                dim,
                tables.spans(place.layer for place in places),
                f"{rule}: {tokens}" if tokens else rule,
                sum(place.massive for place in places),
                f"{held}/{checked}" if checked else "-",
                largest.layer,
                tables.number(largest.value, True),
            ]
        )
    more = [f"and {len(rows) - 20} more, in the JSON"] if len(rows) > 20 else []
    heads = ["dim", "layers", "where", "massive", "held", "largest at", "mean value"]
    return [
        "Where they are: what --export writes as a mask. massive: how many are there, in all layers and windows;",
        "held: of the positions that the rule names in the windows that check it, how many are massive",
        tables.table(heads, rows[:20]),
        *more,
        f"Rules, {HOLDS}",
        "",
    ]


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:SHOWN])) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
