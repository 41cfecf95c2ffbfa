"""The TXT of head pruning: what is left of each place, beside random heads of the same layers."""

from experiments.ablation import text
from experiments.head_pruning.results import SETS, Stored
from lib.core.evidence import note_of
from lib.core.stats import percentile_interval
from lib.report import tables


def summarise(result: Stored) -> str:
    results = result.results
    return "\n".join(
        [
            tables.header(result, "Removing single heads"),
            f"TOP and BOTTOM heads: {results.sets.source}",
            "",
            tables.massive_table(results.massive, results.definition),
            *(_places(result, name) for name in SETS if results.places[name]),
            text.conditions_table(result, results.conditions),
            tables.place_text(results.place),
            f"Absolute change after layer {results.place.plateau[1]}, relative to its size (windows with the spike),",
            "beside random heads of the same layers; p: the share of draws, the set among them, that change it as much",
            tables.table(
                ["set", "heads", "change", "random, lowest to highest", "draws", "at least as large", "p"],
                [_null_row(result, name) for name in SETS],
            ),
            *(line for name in SETS if (line := _ranked_anew(result, name))),
            ", ".join(_said(result, name) for name in SETS) + "\n",
            tables.conclusion_text(result.conclusion, note_of(result.conclusion)),
            "Heads of later layers cannot change earlier ones, and no attention score can change position 0, which",
            "sees only itself (and a learned sink, where there is one): a set is fairly compared only with the random",
            "heads of its own layers.",
            "",
        ]
    )


def details(result: Stored) -> str:
    """Every layer without the TOP heads, and without the BOTTOM heads."""
    results = result.results
    return text.condition_details(results.conditions, {name: results.changes[name] for name in SETS}, results.dims)


def _said(result: Stored, name: str) -> str:
    if result.conclusion.values is None:
        return f"{name.upper()} {result.conclusion.verdict}"
    values = result.conclusion.values.named(name)
    return f"{name.upper()} {values.verdict}" + (f" ({values.note})" if values.note else "")


def _places(result: Stored, name: str) -> str:
    """What is left of each place without one set of heads."""
    assert result.conclusion.values is not None  # there are places
    places, words = result.results.places[name], result.conclusion.values.named(name).places
    exact = tables.first_tokens_text(places[0], result.results.first_tokens.named(name))
    return f"{name.upper()} heads off. {text.places_table(places, words)}{exact}"


def _ranked_anew(result: Stored, name: str) -> str:
    """How sure it is which heads are in a set that was ranked on these windows."""
    null = result.results.null.named(name)
    if null.picked_again is None:
        return ""
    said = f"{name.upper()}: {null.picked_again:.1%} of rankings by documents drawn anew pick the same heads"
    if null.ranked_anew:
        low, high = percentile_interval(null.ranked_anew)
        said += f"; 95% of what they pick changes it by {tables.number(low)} to {tables.number(high)}"
    return said


def _null_row(result: Stored, name: str) -> list[str]:
    null = result.results.null.named(name)
    heads = " ".join(f"{layer}.{head}" for layer, head in result.results.sets.named(name))
    draws = f"{'all ' if null.enumerated else ''}{len(null.draws)} of {null.possible:,}"
    row = [name.upper(), heads, tables.number(null.of_set)]
    if null.impossible:
        return [*row, null.impossible, draws, "-", "-"]
    changes = null.absolute_change
    spread = f"{tables.number(min(changes))} to {tables.number(max(changes))}" if changes else "-"
    larger = "-" if null.p is None else str(null.at_least_as_large)
    return [*row, spread, draws, larger, tables.number(null.p)]
