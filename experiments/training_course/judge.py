"""Experiment 14: at which step something massive came, and at which sinks."""

from collections.abc import Callable, Sequence

from experiments.training_course import fit
from experiments.training_course.results import Birth, Results, Step, Values, Verdict
from lib.core.births import birth as born_of
from lib.core.definitions import MOST, SINKS
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Test, conclusion

FROM_THE_FIRST, GONE = "from the first step on", "gone again"
RULE = (
    f"there are massive activations at a step if more than {MOST:.0%} of the windows hold one, sinks if the sink rate "
    f"is above {SINKS:.0%}; not, if below; {CANNOT_TELL}: that step's own interval holds the threshold. Born: the "
    "first step at which they are there, after the last at which they are not; they came between the two. "
    f"{FROM_THE_FIRST}: they are surely there at all steps; {GONE}: at some, but not at the last; {NONE_FOUND}: at "
    f"none. Of whether they stayed, which the last step tells, it may be {CANNOT_TELL}, too"
)


def judge(results: Results) -> Verdict:
    steps = results.steps
    massive, of_massive = birth(steps, "windows with massive activations", lambda step: step.massive, MOST)
    sinks, of_sinks = birth(steps, "sink rate", lambda step: step.sink_rate, SINKS)
    last = steps[-1].followed
    n_layers = len(steps[-1].layers)
    values = Values(
        massive=massive,
        sinks=sinks,
        writer=born_of(last.writers, last.peak_layer).verdict,
        fits=[fitted for layer in range(n_layers) if (fitted := _fit(steps, layer)) is not None],
    )
    verdict = f"massive activations: {massive.verdict}; sinks: {sinks.verdict}"
    return conclusion(verdict, RULE, values, of_massive + of_sinks)


def birth(
    steps: Sequence[Step], what: str, cell: Callable[[Step], object], threshold: float
) -> tuple[Birth, list[Test]]:
    """By RULE; the tests are those that it hangs on."""
    tests = [Test(f"{what}, step {step.step}", cell(step), "above", threshold) for step in steps]  # type: ignore[arg-type]
    answers = [test.answer for test in tests]
    numbers = [step.step for step in steps]
    absent = max((i for i, answer in enumerate(answers) if answer is False), default=-1)
    at = next((i for i, answer in enumerate(answers) if answer and i > absent), None)
    had = [numbers[i] for i, answer in enumerate(answers) if answer and i < absent]
    unclear = [numbers[i] for i, answer in enumerate(answers) if answer is None]
    after = numbers[absent] if absent >= 0 else None
    if at is not None and answers[-1]:
        told = f"between steps {after} and {numbers[at]}" if absent >= 0 else f"by step {numbers[at]}"
        verdict = FROM_THE_FIRST if all(answers) else told
        return Birth(verdict, numbers[at], after, had, unclear), tests[max(absent, 0) : at + 1]
    if answers[-1] is None:
        verdict = CANNOT_TELL
    elif had:
        verdict = GONE
    else:
        verdict = CANNOT_TELL if unclear else NONE_FOUND
    decisive = [test for test in tests if test.answer is not False] or [
        max(reversed(tests), key=lambda test: test.cell.mean)
    ]
    return Birth(verdict, None, after, had, unclear), decisive[-8:]


def _fit(steps: Sequence[Step], layer: int) -> fit.Fit | None:
    """None where a ratio is missing: its median is 0."""
    ratios = [cell.mean for step in steps if (cell := step.layers[layer].ratio) is not None]
    return fit.fit(layer, [step.step for step in steps], ratios) if len(ratios) == len(steps) else None
