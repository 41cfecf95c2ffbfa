"""The TXT of an ablation: what is left of the massive activations, place by place."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import UnsetType

from experiments.ablation.results import PlaceWord, Results, Stored, Values
from lib.core import definitions
from lib.core.evidence import Average, Cell, note_of
from lib.core.results import AblatedCondition, AblatedPlace, LayerChanges
from lib.report import tables
from lib.report.result_files import Result


def summary(result: Stored, title: str, question: str) -> str:
    """The short part of an ablation's TXT: what is massive, what is left of it, every condition, the conclusion."""
    results, values = result.results, result.conclusion.values
    parts = [tables.header(result, title), question, "", tables.massive_table(results.massive, results.definition)]
    if values is not None:
        first_tokens = tables.first_tokens_text(results.places[0], results.first_tokens)
        parts.append(places_table(results.places, values.places) + first_tokens)
        parts += _experts_off(results, values)
    conclusion = tables.conclusion_text(result.conclusion, note_of(result.conclusion))
    return "\n".join([*parts, conditions_table(result, results.conditions), conclusion])


def _experts_off(results: Results, values: Values) -> list[str]:
    """What is left of the largest place with all experts off, where that is measured."""
    left = results.experts_off
    if isinstance(left, UnsetType):
        return []
    place, label = left.places[0], results.conditions["all_experts_off"].label
    exact = tables.exact_text(left.first_tokens) if left.first_tokens else ""
    retained = f"retained {tables.interval(place.retained)} of dim {place.dim}"
    return [f"With {label}: {values.experts_off}, {retained}\n{exact}"]


def places_table(places: Sequence[AblatedPlace], words: Sequence[PlaceWord], at_most: int = 12) -> str:
    """What is left of each place, and the word for it."""
    rows = [
        [
            "0" if place.position == "first" else "later",
            repr(place.token),
            place.dim,
            place.windows,
            place.layer,
            tables.mean(place.value, True),
            tables.mean(place.ablated, True),
            tables.interval(place.retained),
            tables.interval(place.absolute_change),
            f"{place.massive.mean:.0%} -> {place.still_massive.mean:.0%}",
            judged.word,
        ]
        for place, judged in list(zip(places, words, strict=True))[:at_most]
    ]
    heads = ["position", "most frequent token", "dim", "windows", "after layer", "value", "ablated", "retained"]
    more = f"and {tables.counted(len(places) - at_most, 'more place')}, in the JSON\n" if len(places) > at_most else ""
    return (
        "What is left of each place (position 0 or the later ones, and a dim), largest first, after the end of its "
        "plateau, in the windows that have it:\n"
        + tables.table([*heads, "|change| / |value|", "massive there", "so it"], rows)
        + more
    )


def details(result: Stored) -> str:
    """Every layer of every condition: top-1 and the followed dims."""
    results = result.results
    return condition_details(results.conditions, results.changes, results.dims)


def condition_details(
    conditions: Mapping[str, AblatedCondition], changes: Mapping[str, list[LayerChanges]], dims: Iterable[int]
) -> str:
    """Every layer of the conditions that have `changes`: top-1 and the followed dims."""
    parts = []
    for name, differences in changes.items():
        parts.append(f"{conditions[name].label}: every layer, mean over windows, before -> after")
        parts.append("change: paired difference with its 95 % interval\n")
        layers = list(zip(conditions["baseline"].layers, conditions[name].layers, differences, strict=True))
        parts.append(_layers_table("top 1", [(b.layer, b.top1, a.top1, change.top1) for b, a, change in layers]))
        for dim in dims:
            parts.append(f"dim {dim}, signed, at the position where it peaks in the baseline (the same in both runs)")
            rows = [(b.layer, b.dims[dim], a.dims[dim], change.dims[dim]) for b, a, change in layers]
            parts.append(_layers_table(f"dim {dim}", rows))
    return "\n".join(parts)


def conditions_table(result: Result[Any, Any], conditions: Mapping[str, AblatedCondition]) -> str:
    rows = [
        [
            condition.label,
            tables.interval(Cell(condition.perplexity.value, condition.perplexity.ci95)),
            tables.interval(condition.sink_rate),
            tables.interval(condition.sink_rate_change, True),
            tables.interval(condition.massive_positions),
        ]
        for condition in conditions.values()
    ]
    heads = ["condition", "perplexity", "sink rate", "its change", "positions with a massive activation"]
    return tables.table(heads, rows) + (
        f"sink rate: share of all heads, off or on, with more than {definitions.SINK_EPSILON} of their attention on "
        f"the first token in windows of {tables.sink_window(result)} tokens (a head that is off writes nothing and "
        "still looks somewhere); change: paired\n"
    )


def _layers_table(label: str, layers: Iterable[tuple[int, Average, Average, Average]]) -> str:
    """layers: (layer, before, after, change)."""
    rows = [
        [
            layer,
            tables.mean(before),
            tables.mean(after),
            tables.interval(change, True),
            tables.percent(before.mean, after.mean),
        ]
        for layer, before, after, change in layers
    ]
    return tables.table(["layer", f"{label} before", "after", "change", "per cent"], rows)
