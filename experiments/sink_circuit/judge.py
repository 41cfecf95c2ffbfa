"""Experiment 11: which single part carries the sink at the first position?"""

from experiments.sink_circuit.results import (
    CANDIDATES,
    FIRST_POSITION,
    FIRST_TOKEN,
    QUERY_BIAS,
    Results,
    Values,
    Verdict,
)
from lib.core import evidence
from lib.core.definitions import ATTRACTS, CARRIES
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Test

NAMES = {
    QUERY_BIAS: "the query bias",
    FIRST_POSITION: "the first position's embedding",
    FIRST_TOKEN: "the first token's embedding",
}
NONE_ALONE = "carried by none of these alone"
RULE = (
    f"there is a sink if the mean attention to position 0 is more than {ATTRACTS:g} times what attending evenly gives, "
    f"else {NONE_FOUND}; a part carries it if without it less than {CARRIES} of that attention is left, and with its "
    f"control more than {CARRIES} is (simultaneous intervals over parts and controls): {', '.join(NAMES.values())} "
    f"(that there is one, not of which token). {CANNOT_TELL.capitalize()}: none is sure to, and of one it cannot be "
    f"told; {NONE_ALONE}: no part that is there does"
)


def judge(results: Results) -> Verdict:
    sink = sink_test(results)
    tests = {name: candidate_tests(results, name) for name in CANDIDATES}
    answers = {name: evidence.every(asked) for name, asked in tests.items() if asked}
    values = Values(
        carriers=[name for name, answer in answers.items() if answer],
        open=[name for name, answer in answers.items() if answer is None],
        absent=[name for name in CANDIDATES if name not in answers],
    )
    return evidence.conclusion(
        _verdict(sink.answer, values), RULE, values, [sink, *(test for asked in tests.values() for test in asked)]
    )


def sink_test(results: Results) -> Test:
    """Whether there is a sink at position 0."""
    return Test("attention to position 0", results.baseline.attention, "above", ATTRACTS * results.baseline.evenly)


def candidate_tests(results: Results, name: str) -> list[Test]:
    """Whether a part carries the sink; none where it is not there."""
    edit = results.edits[name]
    if edit.left is None or edit.control is None:
        return []
    return [
        Test(f"attention left, {edit.label}", edit.left, "below", CARRIES, "family95"),
        Test(f"attention left, control: {edit.control.label}", edit.control.left, "above", CARRIES, "family95"),
    ]


def _verdict(sink: bool | None, values: Values) -> str:
    if not sink:
        return CANNOT_TELL if sink is None else NONE_FOUND
    if values.carriers:
        return "carried by " + " and ".join(NAMES[name] for name in values.carriers)
    return CANNOT_TELL if values.open else NONE_ALONE
