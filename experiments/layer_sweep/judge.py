"""Experiment 2B: which layers' MLPs and attention blocks the value at the place needs, and which make it."""

from typing import Any

from lib.core.definitions import COLLAPSES, PERSISTS, REPAIRS, WRITES
from lib.core.evidence import NONE_FOUND, Test, conclusion, every, exact, within

WORDS = ("necessary", "sufficient", "redundant", "repaired")
RULE = (
    "retained = sum of the values at the place, at the end of the plateau, over the sum of the baseline's, each along "
    "the baseline's sign in its window, over the windows that have the spike; it persists between "
    f"{PERSISTS[0]} and {PERSISTS[1]} and collapses between {COLLAPSES[0]} and {COLLAPSES[1]}; necessary: it collapses "
    "with this one off; sufficient: it persists with all others of its kind off, where with all of its kind off it "
    "collapses; or, of MLPs, with all others but MLP 0 off, where with MLP 0 as the only MLP it collapses (MLP 0 kept: "
    "a trained model without it is hardly that model); redundant: sufficient and not necessary. Self-repair = sum of "
    f"(free - frozen) over sum of the write, for writes of at least {WRITES:.0%} of the peak: what is made good, at "
    "the end of the plateau, of a removed write; frozen: the baseline without the write, later writes as they were; "
    f"free: the ablated run; repaired: above {REPAIRS}. What runs after the end of the plateau cannot change it "
    "(causality) and is not judged. Where the place is position 0, whose value depends on the first token alone, all "
    "of a kind off is measured over all first tokens that the text could give. A threshold must lie outside the "
    "interval, which is simultaneous over the layers of a run (of repairs: over those measured); cannot tell: it does "
    "not"
)


def judge(results: dict[str, Any]) -> dict[str, Any]:
    """values: necessary, sufficient, redundant, repaired: [[kind, layer]]; with_first: those of `sufficient` that are
    so with MLP 0 kept alone; cannot_tell: [[word, kind, layer]]; all_off: {kind: retained}."""
    kinds = results["kinds"]
    values: dict[str, Any] = {word: [] for word in (*WORDS, "with_first", "cannot_tell")}
    values["all_off"] = _all_off(results)
    if not results["place"]["massive"]:
        return conclusion(NONE_FOUND, RULE, values)
    tests: dict[tuple[str, str], Test] = {}
    for kind, rows in kinds.items():
        ways = [
            _ways(kind, rows, row, values["all_off"][kind])
            for row in rows
            if row["layer"] <= results["place"]["plateau"][1]
        ]
        for layer, of in enumerate(ways):
            answers = {word: _any(of[word]) for word in of}
            answers["redundant"] = _both(answers["sufficient"], _not(answers["necessary"]))
            for word, answer in answers.items():
                if answer:
                    values[word].append([kind, layer])
                elif answer is None:
                    values["cannot_tell"].append([word, kind, layer])
            if answers["sufficient"] and not every(of["sufficient"][0]):
                values["with_first"].append([kind, layer])
        for word in ways[0]:
            tests |= {(test.what, test.wanted): test for of in _shown([of[word] for of in ways]) for test in of}
    said = [f"{word}: {_named(word, values)}" for word in WORDS]
    return conclusion("; ".join(said), RULE, values, tests.values())


def _all_off(results: dict[str, Any]) -> dict[str, Any]:
    """What is retained with all of a kind off."""
    exactly = results["first_tokens"]
    if exactly is not None:
        return {kind: exact(of["retained"]) for kind, of in exactly.items()}
    return {kind: rows[-1]["from_front"]["retained"] for kind, rows in results["kinds"].items()}


def _ways(
    kind: str, rows: list[dict[str, Any]], row: dict[str, Any], all_off: dict[str, Any]
) -> dict[str, list[list[Test]]]:
    """{word: [the Tests that together make it true, of each way in which it can be]}."""

    def retained(what, of, bounds, interval="family95"):
        return within(f"retained {what}", of["retained"], bounds, interval)

    part = f"{kind} {row['layer']}"
    ways = {"necessary": [retained(f"without {part}", row["alone"], COLLAPSES)], "sufficient": [], "repaired": []}
    if "only" in row:
        alone = retained(f"with {part} as the only one of its kind", row["only"], PERSISTS)
        none = within(f"retained without any {kind}", all_off, COLLAPSES)
        ways["sufficient"].append(alone + none)
    if row["layer"] and "only_with_first" in row:
        both = retained(f"with {part} and mlp 0 as the only MLPs", row["only_with_first"], PERSISTS)
        first = retained("with mlp 0 as the only MLP", rows[0]["only"], COLLAPSES, "ci95")
        ways["sufficient"].append(both + first)
    if row["repair"]:
        ratio = row["repair"]["ratio"]
        ways["repaired"].append([Test(f"self-repair without {part}", ratio, "above", REPAIRS, "family95")])
    return ways


def _any(ways: list[list[Test]]) -> bool | None:
    answers = [every(way) for way in ways]
    return True if True in answers else None if None in answers else False


def _not(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _both(one: bool | None, other: bool | None) -> bool | None:
    return False if False in (one, other) else None if None in (one, other) else True


def _shown(layers: list[list[list[Test]]]) -> list[list[Test]]:
    """Of each layer's ways: the tests that carry what is said, or leave it open; of those where the word is false, only
    the layer nearest to its threshold."""
    shown, false = [], []
    for ways in layers:
        for answer in (True, None):
            of = [test for way in ways if every(way) is answer for test in way]
            if of:
                shown.append(of)
                break
        else:
            # false, and so is every way: each would have to pass the test that it fails by most
            false += [[max(_failed(way), key=_distance)] for way in ways]
    nearest = min(false, key=lambda of: _distance(of[0]), default=None)
    return shown if nearest is None else [*shown, nearest]


def _failed(way: list[Test]) -> list[Test]:
    return [test for test in way if test.answer is False]


def _distance(test: Test) -> float:
    return abs(test.distance or 0)


def _named(word: str, values: dict[str, Any]) -> str:
    named = [_name(at) + (" (with mlp 0 kept)" if _by_first(word, at, values) else "") for at in values[word]]
    open_ = [_name(at) for of, *at in values["cannot_tell"] if of == word]
    return (", ".join(named) or "none") + (f" (cannot tell: {', '.join(open_)})" if open_ else "")


def _by_first(word: str, at: list[Any], values: dict[str, Any]) -> bool:
    return word in ("sufficient", "redundant") and at in values["with_first"]


def _name(at: list[Any]) -> str:
    kind, layer = at
    return f"{kind} {layer}"
