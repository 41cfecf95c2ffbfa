"""Experiment 2B: which layers' MLPs and attention blocks the value at the place needs, and which make it."""

from typing import Literal

from experiments.layer_sweep.results import Kind, OpenPart, Part, Results, SweptLayer, Values, Verdict, Word
from lib.core.definitions import COLLAPSES, PERSISTS, REPAIRS, WRITES
from lib.core.evidence import NONE_FOUND, Cell, Test, conclusion, every, exact, within

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


def judge(results: Results) -> Verdict:
    values = Values([], [], [], [], [], [], _all_off(results))
    if not results.place.massive:
        return conclusion(NONE_FOUND, RULE, values)
    tests: dict[tuple[str, str], Test] = {}
    for kind, layers in results.kinds.items():
        judged = [layer for layer in layers if layer.layer <= results.place.plateau[1]]
        ways = [_ways(kind, layers[0], layer, values.all_off[kind]) for layer in judged]
        for layer, by_word in zip(judged, ways, strict=True):
            part = Part(kind, layer.layer)
            answers = {word: _any(by_word[word]) for word in by_word}
            answers["redundant"] = _both(answers["sufficient"], _not(answers["necessary"]))
            for word, answer in answers.items():
                if answer:
                    values.words[word].append(part)
                elif answer is None:
                    values.cannot_tell.append(OpenPart(word, *part))
            if answers["sufficient"] and not every(by_word["sufficient"][0]):
                values.with_first.append(part)
        for word in ways[0]:
            shown = _shown([by_word[word] for by_word in ways])
            tests |= {(test.what, test.wanted): test for way in shown for test in way}
    said = [f"{word}: {_named(word, values)}" for word in values.words]
    return conclusion("; ".join(said), RULE, values, tests.values())


def _all_off(results: Results) -> dict[Kind, Cell | None]:
    """What is retained with all of a kind off."""
    if results.first_tokens is not None:
        return {kind: exact(measured.retained) for kind, measured in results.first_tokens.items()}
    return {kind: layers[-1].from_front.retained for kind, layers in results.kinds.items()}


def _ways(kind: Kind, first: SweptLayer, layer: SweptLayer, all_off: Cell | None) -> dict[Word, list[list[Test]]]:
    """{word: [the Tests that together make it true, of each way in which it can be]}; first: layer 0 of the kind."""

    def retained(
        what: str, cell: Cell | None, bounds: tuple[float, float], interval: Literal["ci95", "family95"] = "family95"
    ) -> list[Test]:
        assert cell is not None  # what is massive is not 0
        return within(f"retained {what}", cell, bounds, interval)

    part = _name(Part(kind, layer.layer))
    ways: dict[Word, list[list[Test]]] = {
        "necessary": [retained(f"without {part}", layer.alone.retained, COLLAPSES)],
        "sufficient": [],
        "repaired": [],
    }
    if layer.only is not None:
        alone = retained(f"with {part} as the only one of its kind", layer.only.retained, PERSISTS)
        none = retained(f"without any {kind}", all_off, COLLAPSES, "ci95")
        ways["sufficient"].append(alone + none)
    if layer.layer and layer.only_with_first is not None and first.only is not None:
        both = retained(f"with {part} and mlp 0 as the only MLPs", layer.only_with_first.retained, PERSISTS)
        only_first = retained("with mlp 0 as the only MLP", first.only.retained, COLLAPSES, "ci95")
        ways["sufficient"].append(both + only_first)
    if layer.repair is not None:
        ratio = layer.repair.ratio
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
    shown: list[list[Test]] = []
    false: list[Test] = []
    for ways in layers:
        for answer in (True, None):
            carrying = [test for way in ways if every(way) is answer for test in way]
            if carrying:
                shown.append(carrying)
                break
        else:
            # false, and so is every way: each would have to pass the test that it fails by most
            false += [max(_failed(way), key=_distance) for way in ways]
    return shown + [[nearest] for nearest in sorted(false, key=_distance)[:1]]


def _failed(way: list[Test]) -> list[Test]:
    return [test for test in way if test.answer is False]


def _distance(test: Test) -> float:
    return abs(test.distance or 0)


def _named(word: Word, values: Values) -> str:
    by_first = values.with_first if word in ("sufficient", "redundant") else []
    named = [_name(part) + (" (with mlp 0 kept)" if part in by_first else "") for part in values.words[word]]
    open_ = [_name(unclear.part) for unclear in values.cannot_tell if unclear.word == word]
    return (", ".join(named) or "none") + (f" (cannot tell: {', '.join(open_)})" if open_ else "")


def _name(part: Part) -> str:
    return f"{part.kind} {part.layer}"
