"""Experiments 1 and 2A: is a massive activation still there with all heads, or all MLPs, off?"""

from bisect import bisect
from typing import Any

from lib.core import evidence
from lib.core.definitions import BOUNDS, COLLAPSES, FATES, MOST, PERSISTS, PLATEAU

MIXED = "on average; mixed by token"
RULE = (
    "retained: sum of sign(baseline) x ablated over sum of |baseline|, at the largest place (position 0 or the later "
    "positions, and one dim), over the windows in which it is massive in some layer, after the last layer with at "
    f"least {PLATEAU:.0%} of its largest mean |value|; where that is position 0, whose value depends on the first "
    "token alone, over all first tokens that the text could give, if it is known; "
    f"persists: all of the interval within {PERSISTS[0]} and {PERSISTS[1]}, collapses: within {COLLAPSES[0]} and "
    f"{COLLAPSES[1]}, reduced: between these, grows: above, reverses: below; {evidence.CANNOT_TELL}: it holds one of "
    f"these bounds; {evidence.NONE_FOUND}: the baseline has no massive activation; "
    f"{MIXED!r}: over all first tokens none of these words is that of more than {MOST:.0%}"
)


def judge(results: dict[str, Any]) -> dict[str, Any]:
    return evidence.conclusion(*judged_places(results["places"], results["first_tokens"], RULE))


def judged_places(
    places: list[dict[str, Any]], first_tokens: dict[str, Any] | None, rule: str
) -> tuple[str, str, dict[str, Any], list[evidence.Test]]:
    """(verdict on the largest place, rule, values, tests) of one condition's results.places, as `conclusion` takes
    them; first_tokens: the exact numbers of the largest place, or None. values.places: the word of every place;
    values.note: MIXED where the verdict is an average of unlike fates."""
    if not places:
        return evidence.NONE_FOUND, rule, {}, []
    largest = places[0]
    cells = [place["retained"] for place in places]
    if first_tokens is not None:
        cells[0] = evidence.exact(first_tokens["retained"])
    every = [_tests(place, cell) for place, cell in zip(places, cells, strict=True)]
    words = [_word(cell, tests) for cell, tests in zip(cells, every, strict=True)]
    kept = ("retained", "absolute_change", "still_massive", "size_baseline", "size_ablated")
    values = {name: largest[name] for name in kept} | {
        "first_tokens": first_tokens,
        "note": MIXED if first_tokens is not None and max(first_tokens["shares"].values()) <= MOST else None,
        "places": [[place["position"], place["dim"], word] for place, word in zip(places, words, strict=True)],
    }
    return words[0], rule, values, every[0]


def _tests(place: dict[str, Any], cell: dict[str, Any]) -> list[evidence.Test]:
    """Of the bounds on both sides of what is left."""
    where = "position 0" if place["position"] == "first" else "later positions"
    what = f"retained, dim {place['dim']}, {where}"
    region = bisect(BOUNDS, cell["mean"])
    low = [evidence.Test(what, cell, "above", bound) for bound in BOUNDS[region - 1 : region] if region]
    return low + [evidence.Test(what, cell, "below", bound) for bound in BOUNDS[region : region + 1]]


def _word(cell: dict[str, Any], tests: list[evidence.Test]) -> str:
    return FATES[bisect(BOUNDS, cell["mean"])] if evidence.every(tests) else evidence.CANNOT_TELL
