"""Experiment 4: whether the smallest set of neurons carries the massive activation, and no random set does."""

from typing import Any

from lib.core.definitions import CARRIED, COLLAPSES, PERSISTS, WRITTEN
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Test, conclusion, every, reasons, within

NAMED = 50
GIVE = f"they give at least {CARRIED:.0%} of the MLP's output"
RULE = (
    "the smallest number of neurons, largest contributions along the output's sign first, that give at least "
    f"{CARRIED:.0%} of the output of the down projection at the place, by means over the windows where it is massive. "
    "Confirmed if, of the massive value, sums over these windows along its sign, the set alone keeps "
    f"{PERSISTS[0]} to {PERSISTS[1]}, {COLLAPSES[0]} to {COLLAPSES[1]} is left without it, and of the random sets none "
    f"keeps {PERSISTS[0]} and none leaves {COLLAPSES[1]} or less (simultaneous intervals of all random sets): 'N of M "
    "neurons'; 'not confirmed' if one of this is refuted with all of its interval. "
    f"{NONE_FOUND!r}: the block output there is massive in no window; 'not written by this MLP': it adds less than "
    f"{WRITTEN:.0%} of it; 'no set of neurons': all without the bias give less than {CARRIED:.0%}; {CANNOT_TELL!r}: an "
    "interval holds its threshold"
)


def judge(results: dict[str, Any]) -> dict[str, Any]:
    verdict, tests = _verdict(results)
    chosen = [row["neuron"] for row in results["minimal_set"]]
    values = {
        "share": CARRIED,
        "layer": results["layer"],
        "neurons": chosen[:NAMED],
        "written_share": results["written"]["share"],
        "note": GIVE if verdict.startswith(_named(results)) else None,
        "why": reasons(tests) if verdict == CANNOT_TELL else None,
    }
    return conclusion(verdict, RULE, values, tests)


def _verdict(results: dict[str, Any]) -> tuple[str, list[Test]]:
    n, kept, left = len(results["minimal_set"]), results["keep_only_share"], results["remove_share"]
    if kept is None:
        return NONE_FOUND, []
    written = Test("the MLP's part of the block output", results["written"]["share"], "above", WRITTEN)
    if not written.answer:
        return CANNOT_TELL if written.answer is None else "not written by this MLP", [written]
    if not n:
        return "no set of neurons", [written]
    tests = [*within("kept by the set alone", kept, PERSISTS), *within("left without the set", left, COLLAPSES)]
    draws = results["null"]["draws"]
    if draws:
        most = max((draw["keep_only"]["share"] for draw in draws), key=_mean)
        least = min((draw["remove_only"]["share"] for draw in draws), key=_mean)
        tests += [
            Test("kept by the random set that keeps most", most, "below", PERSISTS[0], "family95"),
            Test("left without the random set that leaves least", least, "above", COLLAPSES[1], "family95"),
        ]
    confirmed, named = every(tests), _named(results)
    return {True: named, False: f"{named}, not confirmed", None: CANNOT_TELL}[confirmed], [written, *tests]


def _named(results: dict[str, Any]) -> str:
    return f"{len(results['minimal_set'])} of {results['width']} neurons"


def _mean(cell: dict[str, Any]) -> float:
    return cell["mean"]
