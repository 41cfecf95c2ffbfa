"""Claims about what training makes, and in which order."""

from collections.abc import Callable

from experiments.training_course.results import Step
from lib.claims.judging import Judged, claim
from lib.claims.measured import CannotTellError, Measured
from lib.core.definitions import MOST, SINKS
from lib.core.evidence import Average, Test


@claim(
    "born in training",
    "There are no massive activations at step 0: training makes them (arXiv 2508.03616, of Pythia)",
    f"not more than {MOST:.0%} of the windows hold one at step 0, more at the last step; it cannot be told if step 0 "
    "was not measured, nor if there are none at the last",
)
def makes_massive_activations(measured: Measured) -> Judged:
    return _made(measured, "windows with massive activations", lambda step: step.massive, MOST)


@claim(
    "sinks born in training",
    "There are no attention sinks at step 0: training makes them (Gu et al. 2025)",
    f"the sink rate is not above {SINKS:.0%} at step 0, above it at the last step; it cannot be told if step 0 was not "
    "measured, nor if there are none at the last",
)
def makes_sinks(measured: Measured) -> Judged:
    return _made(measured, "sink rate", lambda step: step.sink_rate, SINKS)


def _made(measured: Measured, what: str, cell: Callable[[Step], Average], threshold: float) -> Judged:
    steps = measured.training_course.results.steps
    first, last = steps[0], steps[-1]
    if first.step != 0:
        raise CannotTellError(f"the first step that was measured is {first.step:,}")
    if not Test(what, cell(last), "above", threshold).answer:
        raise CannotTellError(f"it is not sure that there are any at the last step, {last.step:,}")
    cells = {f"{what}, step {step.step:,}": cell(step) for step in (first, last)}
    return [Test(f"{what}, step 0", cell(first), "below", threshold)], cells


@claim(
    "sinks first",
    "Sinks are there before massive activations are",
    f"the sink rate is above {SINKS:.0%} at the last step without massive activations, before they come to stay by "
    "experiment 14's rule; it does not hold if it is still below at the first step with them; if both come between "
    "the two, it cannot be told",
)
def sinks_come_first(measured: Measured) -> Judged:
    course = measured.training_course
    born = course.conclusion.values.massive
    if born.at is None:
        raise CannotTellError("massive activations do not come to stay")
    if born.after is None:
        raise CannotTellError("there is no step that is sure to have no massive activations yet")
    steps = {step.step: step for step in course.results.steps}
    before, then = (
        Test(f"sink rate, step {step:,}", steps[step].sink_rate, "above", SINKS) for step in (born.after, born.at)
    )
    rates = {f"sink rate, step {step:,}": steps[step].sink_rate for step in (born.after, born.at)}
    if before.answer is not False:
        return [before], rates
    if then.answer is not False:
        raise CannotTellError(f"both may have come between steps {born.after:,} and {born.at:,}")
    return [then], rates
