"""Claims about attention sinks that experiment 9 can decide: where they are, and what they give. Those on removed edges
and on query biases rest on other experiments and have modules of their own."""

from experiments.sinks.judge import NO_OP
from experiments.sinks.results import NATURAL, RANDOM, REPEATED, Input
from lib.claims.cells import counted, in_parts_of
from lib.claims.judging import Judged, claim
from lib.claims.measured import CannotTellError, Measured
from lib.core.definitions import MOST, SINKS
from lib.core.evidence import CANNOT_TELL, Test


@claim(
    "no-op",
    "A sink is a no-op: its value is next to nothing (Gu et al. 2025)",
    "more than half of the heads that have their sink at the first key are no-ops by experiment 9's rule; the interval "
    "reaches from those that are sure to those that are sure or open",
)
def no_op(measured: Measured) -> Judged:
    told = measured.sinks.conclusion.values
    if not told.sinks:
        raise CannotTellError("no head is sure to have its sink at the first key")
    sure, open_ = ([head for head in told.sinks if head.kind == kind] for kind in (NO_OP, CANNOT_TELL))
    share = in_parts_of(len(told.sinks), counted(sure, open_))
    what = "no-ops, in parts of the heads that have their sink at the first key"
    return [Test(what, share, "above", MOST)], {what: share, "of heads": len(told.sinks)} | told.kinds


@claim(
    "random",
    "Random text has sinks, too (Gu et al. 2025; GPT-2 XL: 70 % of the heads, 77 % in natural text)",
    f"more than {SINKS:.0%} of the heads have their sink at the first key in uniformly random tokens, and in the text",
)
def random_text(measured: Measured) -> Judged:
    return _at_first(measured, RANDOM, NATURAL)


@claim(
    "position",
    "The first position is the sink, whatever token stands there (Gu et al. 2025; GPT-2 XL, one token repeated: 62 % "
    "of the heads)",
    f"more than {SINKS:.0%} of the heads have their sink at the first key in uniformly random tokens, and where all "
    "tokens are alike, so that nothing but the position tells it; where every window begins with BOS, which is always "
    "the same token, it cannot be told",
)
def first_position(measured: Measured) -> Judged:
    if measured.sinks.provenance["data"]["bos"]:
        raise CannotTellError("every window begins with BOS")
    return _at_first(measured, RANDOM, REPEATED)


def _at_first(measured: Measured, *inputs: str) -> Judged:
    rates = {f"sink rate at the first key, {name}": _input(measured, name).sink_rate[0] for name in inputs}
    return [Test(what, rate, "above", SINKS) for what, rate in rates.items()], {**rates}


def _input(measured: Measured, name: str) -> Input:
    inputs = measured.sinks.results.inputs
    if name not in inputs:
        raise CannotTellError(f"experiment 9 was not run on {name} input")
    return inputs[name]


@claim(
    "secondary",
    "Later sinks take the first one's direction (secondary sinks, arXiv 2512.22213)",
    "of the sinks at later tokens of a window of the text, more are secondary sinks by experiment 9's rule, like the "
    "first token while a head looks at them, than are not (paired)",
)
def secondary(measured: Measured) -> Judged:
    text = _input(measured, NATURAL)
    if not text.majority or not text.later:
        raise CannotTellError("an older result of experiment 9, which tells secondary sinks by the cosine alone")
    if not text.later.mean:
        raise CannotTellError("no later token is a sink")
    what = "secondary sinks in a window, less other sinks at later tokens"
    values = {what: text.majority, "secondary": text.secondary, "sinks at later tokens": text.later}
    return [Test(what, text.majority, "above", 0.0)], values
