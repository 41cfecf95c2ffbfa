"""The TXT of head pruning: what is left of each place, beside random heads of the same layers."""

from typing import Any

from experiments.ablation import text
from experiments.head_pruning.judge import SETS
from lib.report import tables


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    words = ", ".join(_said(name, r["conclusion"]["values"][name]) for name in SETS)
    return "\n".join(
        [
            tables.header(payload, "Removing single heads"),
            f"TOP and BOTTOM heads: {r['sets']['source']}",
            "",
            tables.massive_table(r["massive"], r["definition"]),
            *(_places(r, name) for name in SETS if r["places"][name]),
            text.conditions_table(r["conditions"]),
            tables.place_text(r["place"]),
            f"Absolute change after layer {r['place']['plateau'][1]}, relative to its size (windows with the spike),",
            "beside random heads of the same layers; p: the share of draws, the set among them, that change it as much",
            tables.table(
                ["set", "heads", "change", "random, lowest to highest", "draws", "at least as large", "p"],
                [_null_row(r, name) for name in SETS],
            ),
            f"{words}\n",
            tables.conclusion_text(r["conclusion"]),
            "Heads of later layers cannot change earlier ones, and no attention score can change position 0, which",
            "sees only itself: a set is fairly compared only with the random heads of its own layers.",
            "",
        ]
    )


def details(payload: dict[str, Any]) -> str:
    """Every layer without the TOP heads, and without the BOTTOM heads."""
    return text.details(payload, SETS)


def _said(name: str, values: dict[str, Any]) -> str:
    return f"{name.upper()} {values['verdict']}" + (f" ({values['note']})" if values.get("note") else "")


def _places(r: dict[str, Any], name: str) -> str:
    """What is left of each place without one set of heads."""
    places = r["places"][name]
    exact = {"places": places, "first_tokens": r["first_tokens"][name]}
    table = text.places_table(places, r["conclusion"]["values"][name]["places"])
    return f"{name.upper()} heads off. {table}{tables.first_tokens_text(exact)}"


def _null_row(r: dict[str, Any], name: str) -> list[str]:
    null = r["null"][name]
    heads = " ".join(f"{layer}.{head}" for layer, head in r["sets"][name])
    draws = f"{'all ' if null['enumerated'] else ''}{len(null['draws'])} of {null['possible']:,}"
    row = [name.upper(), heads, tables.number(null["of_set"])]
    if null["impossible"]:
        return [*row, null["impossible"], draws, "-", "-"]
    changes = null["absolute_change"]
    spread = f"{tables.number(min(changes))} to {tables.number(max(changes))}" if changes else "-"
    larger = "-" if null["p"] is None else str(null["at_least_as_large"])
    return [*row, spread, draws, larger, tables.number(null["p"])]
