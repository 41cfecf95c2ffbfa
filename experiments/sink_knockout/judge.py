"""Experiment 10: does the model need the edge to its sink, or what it carries?"""

from experiments.sink_knockout.results import SINK, VALUE_ZERO, Results, Values, Verdict
from lib.core.definitions import COST, SAME_MASS
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Test, conclusion, every, reasons

EDGE, VALUE, BOTH = "needed as an edge", "needed as a value", "needed as an edge and as a value"
AS_OTHERS, NOT_NEEDED = "needed no more than other edges", "not needed"
WORDS = {True: "costs", False: "free", None: CANNOT_TELL}
RULE = (
    f"a condition costs if it raises the mean loss by more than {COST} nats a token with all of its 95 % interval, is "
    f"free if all of it lies below, else {CANNOT_TELL}. {EDGE.capitalize()}: masking the sink's key for all later "
    "queries costs, and costs more than each control, as many edges to a random, the previous or the middle key and "
    f"random keys of the same attention (paired interval above 0; the last counts for it where it has {SAME_MASS:.0%} "
    f"of the sink's attention, else {CANNOT_TELL}). {VALUE.capitalize()}: the sink's value zero for these queries, its "
    f"probability kept, costs. {AS_OTHERS.capitalize()}: masking costs, but a control costs as much. "
    f"{NOT_NEEDED.capitalize()}: masking is free. {NONE_FOUND.capitalize()}: no head has a sink there (its whole "
    "simultaneous interval above epsilon)"
)
UNMATCHED = "no random keys have as much attention as the sink: no control of equal mass"
SOME = 8  # heads of which it cannot be told are printed of so many


def judge(results: Results) -> Verdict:
    conditions = results.conditions
    costs = {name: Test(f"loss, {cell.label}", cell.loss_change, "above", COST) for name, cell in conditions.items()}
    heads = [
        Test(f"{layer}.{head}: probability", average, "above", results.epsilon, "family95")
        for layer, averages in enumerate(results.heads)
        for head, average in enumerate(averages)
    ]
    has_sink = [head.answer for head in heads]
    unclear = [head for head in heads if head.answer is None]
    edge, edge_tests = _edge(results, costs[SINK])
    zero = [costs[VALUE_ZERO]] if VALUE_ZERO in costs else []
    value = every(zero) if zero else False
    why = None
    tests: list[Test] = [*edge_tests, *zero]
    if True not in has_sink:
        verdict, tests = (CANNOT_TELL if unclear else NONE_FOUND), unclear[:SOME]
        why = reasons(tests) or None
    elif edge is None or value is None:
        verdict, why = CANNOT_TELL, reasons(tests) or UNMATCHED
    elif value:
        verdict = BOTH if edge == EDGE else VALUE
    else:
        verdict = edge
        why = results.left_out
    values = Values(
        heads=has_sink.count(True),
        unclear=len(unclear),
        of_all=len(heads),
        costs={name: WORDS[test.answer] for name, test in costs.items()},
        edge=edge,
        value=WORDS[value] if zero else None,
        why=why,
    )
    return conclusion(verdict, RULE, values, tests)


def _edge(results: Results, masked: Test) -> tuple[str | None, list[Test]]:
    """(EDGE, AS_OTHERS, NOT_NEEDED, or None: cannot tell; the tests that it rests on)."""
    if not masked.answer:
        return (None if masked.answer is None else NOT_NEEDED), [masked]
    beyond = {
        name: Test(f"loss beyond: {cell.label}", cell.beyond, "above", 0.0)
        for name, cell in results.conditions.items()
        if cell.beyond is not None
    }
    matched = Test("attention that random keys have, of the sink's", results.matched, "above", SAME_MASS)
    tests = [masked, *beyond.values(), matched]
    more = every(beyond.values())
    if more is False:
        return AS_OTHERS, tests
    return (EDGE if more and matched.answer else None), tests
