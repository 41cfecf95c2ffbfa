"""Experiment 5's verdict, and that of a single intervention."""

from experiments.interventions.results import (
    LAYER,
    MEAN,
    MLP_OFF,
    NEURONS_OFF,
    ONWARD,
    ORDINARY,
    PUT_BACK,
    RESAMPLED,
    SAME,
    THERE,
    ZERO,
    Change,
    Counterfactual,
    HeldLosses,
    Results,
    SingleValues,
    SingleVerdict,
    Values,
    Verdict,
)
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
CONSTANT = "needed, a constant is enough"
HELD = (ZERO, MEAN, ORDINARY, RESAMPLED)


def judge(results: Results) -> Verdict:
    changes = results.changes
    if not changes:
        return conclusion(NONE_FOUND, RULE, None)
    costs = _costs(changes)
    names = {(change.set_to, change.where): name for name, change in changes.items()}
    name = names.get((NEURONS_OFF, THERE)) or names[MLP_OFF, THERE]
    put_back = changes[names[PUT_BACK, THERE]]
    verdict, why, tests = _verdict(changes[name], put_back, costs[name], costs[names[MEAN, ONWARD]])
    if verdict == CONSTANT and _is_constant(results):
        why = SAME
    layer, onward = (
        HeldLosses(*(changes[names[set_to, where]].loss_change for set_to in HELD)) for where in (LAYER, ONWARD)
    )
    values = Values(
        counterfactual=_counterfactual(name, changes[name], costs[name], nearest_epsilon(results)),
        layer=layer,
        onward=onward,
        costs={name: WORDS[test.answer] for name, test in costs.items()},
        why=why,
    )
    return conclusion(verdict, RULE, values, tests)


def judge_single(results: Results) -> SingleVerdict:
    """The verdict where one change alone is looked at: what it costs."""
    changes = results.changes
    if not changes:
        return conclusion(NONE_FOUND, SINGLE_RULE, None)
    ((name, test),) = _costs(changes).items()
    word = WORDS[test.answer]
    return conclusion(word, SINGLE_RULE, SingleValues(changes[name].loss_change, {name: word}), [test])


def _is_constant(results: Results) -> bool:
    """Whether causality makes the changed values the same in all windows."""
    return results.place.first_tokens == 1 and all(pair.position == "first" for pair in results.sites.dims)


def nearest_epsilon(results: Results) -> float:
    """The epsilon that is nearest to the usual one."""
    return min(results.baseline.sink_rates, key=lambda epsilon: abs(epsilon - SINK_EPSILON))


def _costs(changes: dict[str, Change]) -> dict[str, Test]:
    return {name: Test(f"loss, {change.label}", change.loss_change, "above", COST) for name, change in changes.items()}


def _counterfactual(name: str, change: Change, cost: Test, epsilon: float) -> Counterfactual:
    return Counterfactual(
        condition=name,
        cost=WORDS[cost.answer],
        loss_change=change.loss_change,
        sink_rate_change=change.sink_rate_changes[epsilon],
        epsilon=epsilon,
        left=change.left,
        comes_back=change.comes_back.share if change.comes_back else None,
    )


def _verdict(
    counterfactual: Change, put_back: Change, costs: Test, constant: Test
) -> tuple[str, str | None, list[Test]]:
    """(verdict, why it cannot be told or None, the Tests that it rests on)."""
    if counterfactual.left is None:
        return CANNOT_TELL, "the followed place is massive at this layer in no measured window", [costs]
    gone = within("share of the value left at the layer", counterfactual.left, COLLAPSES)
    if every(gone) is not True:
        why = "the counterfactual does not take the value away: what is off does not write all of it"
        return CANNOT_TELL, reasons(gone) or why, [*gone, costs]
    if costs.answer is None:
        return CANNOT_TELL, costs.reason, [*gone, costs]
    if not costs.answer:
        back = counterfactual.comes_back
        away = within("share of the value at the end of the plateau", back.share, COLLAPSES) if back else []
        why = "the value comes back in later layers: the model does not go without it"
        tests = [*gone, costs, *away]
        return ("not needed", None, tests) if every(away) else (CANNOT_TELL, reasons(away) or why, tests)
    assert put_back.recovered is not None
    missed = Test(f"loss recovered, {put_back.label}", put_back.recovered, "above", COST)
    tests = [*gone, costs, missed, constant]
    if not missed.answer:
        why = "the value put back does not recover the loss: what is missed is what else is written with it"
        return CANNOT_TELL, reasons([missed]) or why, tests
    verdict = {True: "needed as it is", False: CONSTANT, None: CANNOT_TELL}[constant.answer]
    return verdict, reasons([constant]) or None, tests
