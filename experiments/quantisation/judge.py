"""Experiment 13: what the massive activations cost where activations are quantised, and what brings it back."""

from experiments.quantisation.results import (
    AS_IT_IS,
    INT8,
    KEPT,
    PER_TENSOR,
    REMEDIES,
    SCHEMES,
    Condition,
    Results,
    Values,
    Verdict,
)
from lib.core.definitions import COST
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Test, conclusion

COSTS, NOTHING = "the spike costs", "the spike costs nothing"
OVERFLOWS = "overflows"
RULE = (
    f"a condition costs if it raises the mean loss by more than {COST} nats a token with all of its 95 % interval, is "
    f"free if all of it lies below, else {CANNOT_TELL}; it {OVERFLOWS} if the loss of a window is not finite. "
    f"{COSTS.capitalize()}: with the massive places kept, the loss is more than {COST} below that of all quantised, in "
    "int8 with one scale per tensor, static or dynamic (paired, with all of the interval of all remedies and schemes "
    f"together); {NOTHING}: in none of these; {NONE_FOUND}: nothing is massive in the measured windows"
)
WORDS = {True: "costs", False: "free", None: CANNOT_TELL}


def judge(results: Results) -> Verdict:
    costs = {name: _cost(name, cell) for name, cell in results.conditions.items()}
    tests = [
        Test(f"loss that the spike costs, {where}, {scheme.label}", cell.regained, "above", COST, "family95")
        for where in results.where
        for scheme in SCHEMES
        if scheme.format == INT8 and scheme.scaling in PER_TENSOR  # in int4 too little is left to tell
        if (cell := results.of(where, scheme, KEPT)) is not None and cell.regained is not None
    ]
    answers = [test.answer for test in tests]
    if not any(cell.remedy == KEPT for cell in results.conditions.values()):
        verdict = NONE_FOUND
    elif True in answers:
        verdict = COSTS
    else:
        verdict = CANNOT_TELL if None in answers or not answers else NOTHING
    values = Values(
        costs=costs,
        best={name: _best(results, cell) for name, cell in results.conditions.items() if _has_best(cell, costs[name])},
    )
    return conclusion(verdict, RULE, values, tests)


def _cost(name: str, cell: Condition) -> str:
    if cell.loss_change is None:
        return OVERFLOWS
    return WORDS[Test(name, cell.loss_change, "above", COST).answer]


def _has_best(cell: Condition, cost: str) -> bool:
    return cell.remedy == AS_IT_IS and cost == WORDS[True]


def _best(results: Results, bare: Condition) -> str | None:
    """As in Values."""
    gains = {
        remedy: cell.regained
        for remedy in REMEDIES
        if (cell := results.of(bare.where, bare.scheme, remedy)) is not None and cell.regained is not None
    }
    sure = {remedy: gain.mean for remedy, gain in gains.items() if Test(remedy, gain, "above", 0.0, "family95").answer}
    return max(sure, key=sure.__getitem__) if sure else None
