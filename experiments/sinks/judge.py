"""Experiment 9: where are sinks, and is attention to the first key a no-op?"""

from collections import Counter

from experiments.sinks.results import Head, Results, SinkHead, Values, Verdict
from lib.core import evidence
from lib.core.definitions import BROADCASTS, DRAINED, SINK_QUERIES, SINKS, evenly
from lib.core.evidence import CANNOT_TELL, Test

NO_OP, BROADCAST, BETWEEN = KINDS = "no-op", "broadcast", "between"
MIXED = "mixed"
FIRST, BOTH, ELSEWHERE, NONE = "first position", "elsewhere, too", "elsewhere only", "none"
UNTOLD = 8  # tests of heads that cannot be told are printed of so many
RULE = (
    f"{FIRST}: more than {SINKS:.0%} of all heads have their sink at key 0, by mean probability over the queries that "
    f"see it, and not so many list a later key (mean over later queries, {SINK_QUERIES} at least); {BOTH}: so many do; "
    f"{ELSEWHERE}, {NONE}: not so many have it at key 0. Of the heads that have it at key 0 (the whole simultaneous "
    f"interval of the probability above epsilon), a sink is a {NO_OP} if the norm of the first key's value is below "
    f"{DRAINED} of the other keys' mean; else it is a {BROADCAST} if the first key gives more than {BROADCASTS} of the "
    f"head's output, along it, and {BETWEEN} if less. The kind is that of more than half of these heads; {MIXED}: no "
    f"kind has so many; {CANNOT_TELL}: an interval holds a threshold, or those that cannot be told could decide, or "
    "windows are so short that attending evenly gives key 0 more than epsilon"
)


def judge(results: Results) -> Verdict:
    measured = results.inputs[results.first_input]
    at_first = Test("sink rate at key 0", measured.sink_rate[0], "above", SINKS)
    later = Test("heads that list a later key", measured.elsewhere, "above", SINKS)
    even = Test("attention to key 0 if even", evidence.exact(evenly(0, results.seqlen)), "below", results.epsilon)
    short = at_first.answer is True and not even.answer
    where = CANNOT_TELL if short else _where(at_first.answer, later.answer)
    sinks: list[SinkHead] = []
    untold: list[Test] = []
    unclear = 0
    for layer, of_layer in enumerate(results.heads):
        for number, head in enumerate(of_layer):
            name = f"{layer}.{number}"
            is_sink = _is_sink(name, head, results.epsilon)
            if is_sink.answer is None:
                unclear += 1
                untold.append(is_sink)
            elif is_sink.answer:
                kind, tests = _kind(name, head)
                sinks.append(SinkHead(layer, number, head.probability.mean, kind))
                untold += [test for test in tests if test.answer is None]
    counts = Counter(head.kind for head in sinks)
    kinds = {kind: counts[kind] for kind in (*KINDS, CANNOT_TELL)}
    most = _most(kinds) if sinks else None
    verdict = f"{where}; {most}" if most and where in (FIRST, BOTH) else where
    values = Values(where, most, sinks, unclear, kinds)
    return evidence.conclusion(verdict, RULE, values, [at_first, later, *([even] if short else []), *untold[:UNTOLD]])


def _where(at_first: bool | None, later: bool | None) -> str:
    if at_first is None or later is None:
        return CANNOT_TELL
    return {(True, False): FIRST, (True, True): BOTH, (False, True): ELSEWHERE, (False, False): NONE}[at_first, later]


def kind(head: Head, epsilon: float) -> str | None:
    """Of its sink at the first key; None if it has none there."""
    has_sink = _is_sink("", head, epsilon).answer
    return CANNOT_TELL if has_sink is None else _kind("", head)[0] if has_sink else None


def _is_sink(name: str, head: Head, epsilon: float) -> Test:
    return Test(f"{name}: probability", head.probability, "above", epsilon, "family95")


def _kind(name: str, head: Head) -> tuple[str, list[Test]]:
    """Of a head that has its sink at the first key, and the tests it hangs on."""
    if head.value_ratio is None or head.output_share is None:
        return CANNOT_TELL, []
    drained = Test(f"{name}: value ratio", head.value_ratio, "below", DRAINED, "family95")
    if drained.answer is not False:
        return CANNOT_TELL if drained.answer is None else NO_OP, [drained]
    broadcasts = Test(f"{name}: output share", head.output_share, "above", BROADCASTS, "family95")
    kind = CANNOT_TELL if broadcasts.answer is None else BROADCAST if broadcasts.answer else BETWEEN
    return kind, [drained, broadcasts]


def _most(kinds: dict[str, int]) -> str:
    half = sum(kinds.values()) / 2
    for kind in KINDS:
        if kinds[kind] > half:
            return kind
    return CANNOT_TELL if max(kinds[kind] for kind in KINDS) + kinds[CANNOT_TELL] > half else MIXED
