"""Claims about attention sinks that experiment 10 can decide, by taking away edges and values."""

from experiments.sink_knockout.results import EQUAL_MASS, SINK, VALUE_ZERO, Condition
from lib.claims.judging import Judged, claim
from lib.claims.measured import CannotTellError, Measured
from lib.core.definitions import COST, SAME_MASS
from lib.core.evidence import NONE_FOUND, Test


@claim(
    "edge",
    "The edge to the sink is needed more than as much attention elsewhere",
    f"masking the sink's key for all later queries raises the loss by more than {COST} nats a token, and by more than "
    "masking random other keys of the same attention (paired); it cannot be told where these had less than "
    f"{SAME_MASS:.0%} of it and cost less",
)
def edge(measured: Measured) -> Judged:
    conditions = _conditions(measured)
    sink, other = conditions[SINK], conditions[EQUAL_MASS]
    assert other.beyond is not None, "a control"
    beyond = Test("costs more than random keys of its attention, nats a token", other.beyond, "above", 0.0)
    if beyond.answer and other.mass.mean < SAME_MASS * sink.mass.mean:
        raise CannotTellError("other keys have too little attention to compare")
    tests = [Test("loss without the edge, nats a token", sink.loss_change, "above", COST), beyond]
    return tests, {
        "loss without the edge": sink.loss_change,
        "without random keys": other.loss_change,
        "attention of the edge": sink.mass,
        "of random keys": other.mass,
    }


@claim(
    "no-op, taken away",
    "A sink is a no-op: nothing is lost without its value (Gu et al. 2025)",
    f"the sink's value zero for all later queries, its probability kept, raises the loss by less than {COST} nats a "
    "token",
)
def value_is_idle(measured: Measured) -> Judged:
    conditions = _conditions(measured)
    if VALUE_ZERO not in conditions:
        raise CannotTellError("no values can be set in this model")
    change = conditions[VALUE_ZERO].loss_change
    return [Test("loss without the sink's value, nats a token", change, "below", COST)], {"loss": change}


def _conditions(measured: Measured) -> dict[str, Condition]:
    stored = measured.sink_knockout
    if stored.conclusion.verdict == NONE_FOUND or not stored.conclusion.values.heads:
        raise CannotTellError("no head is sure to have a sink at this key")
    return stored.results.conditions
