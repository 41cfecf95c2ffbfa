"""Experiments 1 and 2A: is a massive activation still there with all heads, or all MLPs, off?"""

from bisect import bisect
from dataclasses import replace

from msgspec import UnsetType

from experiments.ablation.results import PlaceWord, Results, Values, Verdict
from lib.core import evidence
from lib.core.definitions import BOUNDS, COLLAPSES, FATES, IN_LAYERS, MOST, PERSISTS, PLATEAU
from lib.core.evidence import Cell, Test
from lib.core.results import AblatedPlace, FirstTokens

MIXED = "on average; mixed by token"
NO_LONGER = "of the value: in that layer it is massive in no window any more"
LASTING = FATES[FATES.index("reduced") :]
RULE = (
    "retained: sum of sign(baseline) x ablated over sum of |baseline|, at the largest place (position 0 or the later "
    "positions, and one dim), over the windows in which it is massive in some layer, after the last of "
    f"{IN_LAYERS} with at least {PLATEAU:.0%} of their largest mean |value|; where the place is position 0, whose "
    "value depends on the first token alone, over all first tokens that the text could give, if it is known; "
    f"persists: all of the interval within {PERSISTS[0]} and {PERSISTS[1]}, collapses: within {COLLAPSES[0]} and "
    f"{COLLAPSES[1]}, reduced: between these, grows: above, reverses: below; {evidence.CANNOT_TELL}: it holds one of "
    f"these bounds; {evidence.NONE_FOUND}: the baseline has no massive activation; "
    f"{MIXED!r}: over all first tokens none of these words is that of more than {MOST:.0%}; beside it stands where the "
    "value is massive in no window in that layer any more"
)


def judge(results: Results) -> Verdict:
    verdict, values, tests = judged_places(results.places, results.first_tokens)
    if values is not None and not isinstance(results.experts_off, UnsetType):
        of_experts = judged_places(results.experts_off.places, results.experts_off.first_tokens)
        values = replace(values, experts_off=of_experts[0])
        tests += [replace(test, what=f"{test.what}, all experts off") for test in of_experts[2]]
    return evidence.conclusion(verdict, RULE, values, tests)


def judged_places(
    places: list[AblatedPlace], first_tokens: FirstTokens | None
) -> tuple[str, Values | None, list[Test]]:
    """(verdict on the largest place, its values, its tests) of the places of one condition; first_tokens: the exact
    numbers of the largest place, or None."""
    if not places:
        return evidence.NONE_FOUND, None, []
    largest = places[0]
    cells: list[Cell] = [place.retained for place in places]
    if first_tokens is not None:
        cells[0] = evidence.exact(first_tokens.retained)
    every = [_tests(place, cell) for place, cell in zip(places, cells, strict=True)]
    words = [_word(cell, tests) for cell, tests in zip(cells, every, strict=True)]
    values = Values(
        retained=largest.retained,
        absolute_change=largest.absolute_change,
        still_massive=largest.still_massive,
        size_baseline=largest.size_baseline,
        size_ablated=largest.size_ablated,
        first_tokens=first_tokens,
        note="; ".join(_notes(largest, words[0], first_tokens)) or None,
        places=[PlaceWord(place.position, place.dim, word) for place, word in zip(places, words, strict=True)],
    )
    return words[0], values, every[0]


def _notes(largest: AblatedPlace, word: str, first_tokens: FirstTokens | None) -> list[str]:
    """What the word of the largest place alone would hide."""
    notes = [MIXED] if first_tokens is not None and max(first_tokens.shares.values()) <= MOST else []
    if largest.massive.mean and not largest.still_massive.mean and word in LASTING:
        notes.append(NO_LONGER)
    return notes


def _tests(place: AblatedPlace, cell: Cell) -> list[Test]:
    """Of the bounds on both sides of what is left."""
    where = "position 0" if place.position == "first" else "later positions"
    what = f"retained, dim {place.dim}, {where}"
    region = bisect(BOUNDS, cell.mean)
    low = [Test(what, cell, "above", bound) for bound in BOUNDS[region - 1 : region] if region]
    return low + [Test(what, cell, "below", bound) for bound in BOUNDS[region : region + 1]]


def _word(cell: Cell, tests: list[Test]) -> str:
    return FATES[bisect(BOUNDS, cell.mean)] if evidence.every(tests) else evidence.CANNOT_TELL
