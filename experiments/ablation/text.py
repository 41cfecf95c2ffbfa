"""The TXT of an ablation: what is left of the massive activations, place by place."""

from collections.abc import Sequence
from typing import Any

from lib.core import definitions
from lib.report import tables


def summary(payload: dict[str, Any], title: str, question: str) -> str:
    """The short part of an ablation's TXT: what is massive, what is left of it, every condition, the conclusion."""
    r = payload["results"]
    parts = [tables.header(payload, title), question, "", tables.massive_table(r["massive"], r["definition"])]
    if r["places"]:
        parts.append(places_table(r["places"], r["conclusion"]["values"]["places"]) + tables.first_tokens_text(r))
    return "\n".join([*parts, conditions_table(r["conditions"]), tables.conclusion_text(r["conclusion"])])


def places_table(places: list[dict[str, Any]], words: list[list[Any]], at_most: int = 12) -> str:
    """What is left of each place of results.places; words: [[position, dim, word], ...] of its conclusion."""
    rows = [
        [
            "0" if place["position"] == "first" else "later",
            repr(place["token"]),
            place["dim"],
            place["windows"],
            place["layer"],
            tables.mean(place["value"], True),
            tables.mean(place["ablated"], True),
            tables.interval(place["retained"]),
            tables.interval(place["absolute_change"]),
            f"{place['massive']['mean']:.0%} -> {place['still_massive']['mean']:.0%}",
            word,
        ]
        for place, (_position, _dim, word) in list(zip(places, words, strict=True))[:at_most]
    ]
    heads = ["position", "most frequent token", "dim", "windows", "after layer", "value", "ablated", "retained"]
    more = f"and {len(places) - at_most} more places, in the JSON\n" if len(places) > at_most else ""
    return (
        "What is left of each place (position 0 or the later ones, and a dim), largest first, after the end of its "
        "plateau, in the windows that have it:\n"
        + tables.table([*heads, "|change| / |value|", "massive there", "so it"], rows)
        + more
    )


def details(payload: dict[str, Any], names: Sequence[str] | None = None) -> str:
    """Every layer of the named conditions (default: of all): top-1 and the followed dims."""
    r = payload["results"]
    baseline = r["conditions"]["baseline"]
    parts = []
    for name in names or r["changes"]:
        changes = r["changes"][name]
        condition = r["conditions"][name]
        parts.append(f"{condition['label']}: every layer, mean over windows, before -> after")
        parts.append("change: paired difference with its 95 % interval\n")
        parts.append(_layers_table(baseline, condition, changes, "top1", "top 1"))
        for dim in r["dims"]:
            parts.append(f"dim {dim}, signed, at the position where it peaks in the baseline (the same in both runs)")
            parts.append(_layers_table(baseline, condition, changes, str(dim), f"dim {dim}"))
    return "\n".join(parts)


def conditions_table(conditions: dict[str, Any]) -> str:
    rows = []
    for condition in conditions.values():
        perplexity = condition["perplexity"]
        rows.append(
            [
                condition["label"],
                tables.interval({"mean": perplexity["value"], "ci95": perplexity["ci95"]}),
                tables.interval(condition["sink_rate"]),
                tables.interval(condition["sink_rate_change"], True) if condition["sink_rate_change"] else "-",
                tables.interval(condition["massive_positions"]),
            ]
        )
    heads = ["condition", "perplexity", "sink rate", "its change", "positions with a massive activation"]
    return tables.table(heads, rows) + (
        f"sink rate: share of all heads, off or on, with more than {definitions.SINK_EPSILON} of their attention on "
        f"the first token in windows of {definitions.SINK_WINDOW} tokens (a head that is off writes nothing and still "
        "looks somewhere); "
        "change: paired\n"
    )


def _layers_table(
    baseline: dict[str, Any], condition: dict[str, Any], changes: list[dict[str, Any]], key: str, label: str
) -> str:
    rows = []
    for before, after, change in zip(baseline["layers"], condition["layers"], changes, strict=True):
        b, a = tables.cell(before, key), tables.cell(after, key)
        rows.append(
            [
                before["layer"],
                tables.mean(b),
                tables.mean(a),
                tables.interval(tables.cell(change, key), True),
                tables.percent(b["mean"], a["mean"]),
            ]
        )
    return tables.table(["layer", f"{label} before", "after", "change", "per cent"], rows)
