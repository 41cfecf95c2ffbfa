"""Experiment 5's verdict, and that of a single intervention."""

from typing import Any

from lib.core.definitions import COLLAPSES, COST, SINK_EPSILON
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Test, conclusion, every, reasons, within

COST_RULE = (
    f"a change costs if it raises the mean loss by more than {COST} nats a token with all of its 95 % interval, is "
    f"free if all of it lies below (gains, in the table, where all of it is below 0), else {CANNOT_TELL}"
)
RULE = (
    f"{COST_RULE}. Counterfactual: the neurons that write the value off at its positions, or, where no neurons are "
    "told, the MLP's whole write there; it speaks for the value only if it leaves between "
    f"{COLLAPSES[0]:g} and {COLLAPSES[1]:g} of it in the layer's output. Not needed: it is free, and no more is "
    "left at the end of the plateau. Needed: it costs, and the mean put back, with the writer still off, lowers the "
    f"loss by more than {COST} (else what is missed may be what else is written with the value); then a constant is "
    "enough if the mean from the layer on is free, needed as it is if that costs. What setting the value to zero, "
    "or to a multiple of itself, costs is no part of this: such a vector the model may never meet. "
    f"{NONE_FOUND.capitalize()}: there is no site to change"
)
SINGLE_RULE = f"{COST_RULE}; {NONE_FOUND} if there is no site to change"
WORDS = {True: "costs", False: "free", None: CANNOT_TELL}
COUNTERFACTUALS = ("neurons_off_there", "mlp_off_there")
HELD = ("zero", "mean", "ordinary", "resampled")


def judge(results: dict[str, Any]) -> dict[str, Any]:
    """values: the counterfactual that the verdict rests on, the loss changes of what is set at the layer and onward,
    and what every condition costs; why: the reason if the verdict is CANNOT_TELL."""
    changed = _changed(results)
    if not changed:
        return conclusion(NONE_FOUND, RULE, {})
    costs = _costs(changed)
    name = next(name for name in COUNTERFACTUALS if name in changed)
    verdict, why, tests = _verdict(changed[name], changed["put_back"], costs[name], costs["mean_onward"])
    values = {
        "counterfactual": _counterfactual(name, changed[name], costs[name], nearest_epsilon(results)),
        **{where: {of: changed[f"{of}_{where}"]["loss_change"] for of in HELD} for where in ("layer", "onward")},
        "costs": {of: WORDS[test.answer] for of, test in costs.items()},
        "why": why,
    }
    return conclusion(verdict, RULE, values, tests)


def judge_single(results: dict[str, Any]) -> dict[str, Any]:
    """The verdict where one change alone is looked at: what it costs."""
    changed = _changed(results)
    if not changed:
        return conclusion(NONE_FOUND, SINGLE_RULE, {})
    costs = _costs(changed)
    ((name, test),) = costs.items()
    values = {"loss_change": changed[name]["loss_change"], "costs": {name: WORDS[test.answer]}}
    return conclusion(WORDS[test.answer], SINGLE_RULE, values, [test])


def nearest_epsilon(results: dict[str, Any]) -> str:
    """The key of the epsilon that is nearest to the usual one."""
    return str(min(results["epsilons"], key=lambda epsilon: abs(epsilon - SINK_EPSILON)))


def _changed(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: condition for name, condition in results["conditions"].items() if "set_to" in condition}


def _costs(changed: dict[str, dict[str, Any]]) -> dict[str, Test]:
    return {
        name: Test(f"loss, {condition['label']}", condition["loss_change"], "above", COST)
        for name, condition in changed.items()
    }


def _counterfactual(name: str, condition: dict[str, Any], cost: Test, epsilon: str) -> dict[str, Any]:
    back = condition["comes_back"]
    return {
        "condition": name,
        "cost": WORDS[cost.answer],
        "loss_change": condition["loss_change"],
        "sink_rate_change": condition["sink_rate_changes"][epsilon],
        "epsilon": float(epsilon),
        "left": condition["left"],
        "comes_back": back and back["share"],
    }


def _verdict(
    counterfactual: dict[str, Any], put_back: dict[str, Any], costs: Test, constant: Test
) -> tuple[str, str | None, list[Test]]:
    """(verdict, why it cannot be told or None, the Tests that it rests on)."""
    if counterfactual["left"] is None:
        return CANNOT_TELL, "the followed place is massive at this layer in no measured window", [costs]
    gone = within("share of the value left at the layer", counterfactual["left"], COLLAPSES)
    if every(gone) is not True:
        why = "the counterfactual does not take the value away: what this layer's MLP writes there is not it"
        return CANNOT_TELL, reasons(gone) or why, [*gone, costs]
    if costs.answer is None:
        return CANNOT_TELL, costs.reason, [*gone, costs]
    if not costs.answer:
        back = counterfactual["comes_back"]
        away = within("share of the value at the end of the plateau", back["share"], COLLAPSES) if back else []
        why = "the value comes back in later layers: the model does not go without it"
        tests = [*gone, costs, *away]
        return ("not needed", None, tests) if every(away) else (CANNOT_TELL, reasons(away) or why, tests)
    missed = Test(f"loss recovered, {put_back['label']}", put_back["recovered"], "above", COST)
    tests = [*gone, costs, missed, constant]
    if not missed.answer:
        why = "the value put back does not recover the loss: what is missed is what else is written with it"
        return CANNOT_TELL, reasons([missed]) or why, tests
    verdict = {True: "needed as it is", False: "needed, a constant is enough", None: CANNOT_TELL}[constant.answer]
    return verdict, reasons([constant]) or None, tests
