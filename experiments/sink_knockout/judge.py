"""Experiment 10: does the model need the edge to its sink, or what it carries?"""

from experiments.sink_knockout.results import SINK, VALUE_ZERO, Results, Values, Verdict
from lib.core.definitions import COST, evenly
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Test, conclusion, every, exact, reasons

EDGE, VALUE, BOTH = "needed as an edge", "needed as a value", "needed as an edge and as a value"
AS_OTHERS, NOT_NEEDED = "needed no more than other edges", "not needed"
WORDS = {True: "costs", False: "free", None: CANNOT_TELL}
RULE = (
    f"a condition costs if it raises the mean loss by more than {COST} nats a token with all of its 95 % interval, is "
    f"free if all of it lies below, else {CANNOT_TELL}. {EDGE.capitalize()}: masking the sink's key for all later "
    "queries costs, and costs more than each control: as many edges to a random, the previous or the middle key, and "
    "random keys of about the same attention, or all others where these have less (paired intervals above 0). "
    f"{VALUE.capitalize()}: the sink's value zero for these queries, its probability kept, costs. "
    f"{AS_OTHERS.capitalize()}: masking costs, and a control more. {NOT_NEEDED.capitalize()}: both are free. "
    f"{NONE_FOUND.capitalize()}: no head has a sink there (its whole simultaneous interval above epsilon); nothing can "
    "be told in windows so short that attending evenly gives it as much"
)
SHORT = "windows are too short: attending evenly gives the key as much as a sink gets"
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
    masked = costs[SINK]
    later = round(conditions[SINK].edges / len(heads))
    even = Test("attention to it if even", exact(evenly(results.position, later + 1)), "below", results.epsilon)
    edge = [
        masked,
        *(
            Test(f"loss beyond: {cell.label}", cell.beyond, "above", 0.0)
            for cell in conditions.values()
            if cell.beyond is not None
        ),
    ]
    value = [costs[name] for name in (VALUE_ZERO,) if name in costs]
    as_edge, as_value = every(edge), every(value) if value else False
    tests, why = [*edge, *value], None
    if True not in has_sink:
        verdict, tests = (CANNOT_TELL if unclear else NONE_FOUND), unclear[:SOME]
        why = reasons(tests) or None
    elif not even.answer:
        verdict, tests, why = CANNOT_TELL, [even], SHORT
    elif as_edge is None or as_value is None or (not as_value and masked.answer is None):
        verdict, why = CANNOT_TELL, reasons(tests)
    elif as_value:
        verdict = BOTH if as_edge else VALUE
    else:
        verdict = EDGE if as_edge else AS_OTHERS if masked.answer else NOT_NEEDED
        why = results.left_out
    values = Values(
        heads=has_sink.count(True),
        unclear=len(unclear),
        of_all=len(heads),
        costs={name: WORDS[test.answer] for name, test in costs.items()},
        moves_to=next(iter(conditions[SINK].moved_to), None),
        why=why,
    )
    return conclusion(verdict, RULE, values, tests)
