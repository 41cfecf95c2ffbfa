"""Head pruning: is a massive activation still there without the heads that attend most, or least, to token 0?"""

from dataclasses import replace

from experiments.ablation import judge as ablation
from experiments.head_pruning.results import Results, SetValues, Values, Verdict
from lib.core.evidence import NONE_FOUND, Test, conclusion

CERTAIN = "certain beforehand"
RULE = (
    f"the verdict on the TOP heads. {CERTAIN}: all heads of the set run after the layer where the place is looked at, "
    f"which is no evidence; else, as in experiments 1 and 2A, {ablation.RULE}"
)


def judge(results: Results) -> Verdict:
    top, top_tests = _of_set(results, "top")
    bottom, bottom_tests = _of_set(results, "bottom")
    if top is None or bottom is None:
        return conclusion(NONE_FOUND, RULE, None)
    return conclusion(top.verdict, RULE, Values(top, bottom, top.note), top_tests + bottom_tests)


def _of_set(results: Results, name: str) -> tuple[SetValues | None, list[Test]]:
    """(None where nothing is massive, what decides) of one set."""
    places, heads = results.places[name], results.sets.named(name)
    word, values, tests = ablation.judged_places(places, results.first_tokens.named(name))
    if values is None:
        return None, []
    if min(head.layer for head in heads) > places[0].layer:
        word, values, tests = CERTAIN, replace(values, note=None), []
    told = [replace(test, what=f"{name.upper()}: {test.what}") for test in tests]
    return SetValues(**vars(values), verdict=word), told
