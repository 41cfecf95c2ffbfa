"""Head pruning: is a massive activation still there without the heads that attend most, or least, to token 0?"""

from dataclasses import replace
from typing import Any

from experiments.ablation import judge as ablation_judge
from lib.core import evidence

SETS = ("top", "bottom")
CERTAIN = "certain beforehand"
RULE = (
    f"the verdict on the TOP heads. {CERTAIN}: all heads of the set run after the layer where the place is looked at, "
    f"which is no evidence; else, as in experiments 1 and 2A, {ablation_judge.RULE}"
)


def judge(results: dict[str, Any]) -> dict[str, Any]:
    """values: {"top", "bottom": those of ablation.judged_places, and the `verdict` on the set; "note": of TOP}."""
    values, tests = {}, []
    for name in SETS:
        places, heads = results["places"][name], results["sets"][name]
        word, _rule, of, asked = ablation_judge.judged_places(places, results["first_tokens"][name], RULE)
        if places and min(layer for layer, _head in heads) > places[0]["layer"]:
            word, asked, of = CERTAIN, [], of | {"note": None}
        values[name] = of | {"verdict": word}
        tests += [replace(test, what=f"{name.upper()}: {test.what}") for test in asked]
    return evidence.conclusion(values["top"]["verdict"], RULE, values | {"note": values["top"].get("note")}, tests)
