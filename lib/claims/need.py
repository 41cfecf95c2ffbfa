"""Claims about what the massive activations are for and what makes the first token special."""

from experiments.interventions.judge import CONSTANT
from experiments.interventions.results import SAME
from lib.claims.cells import in_parts_of
from lib.claims.judging import Judged, Said, claim
from lib.claims.measured import CannotTellError, Measured, of_something
from lib.core import evidence
from lib.core.definitions import COLLAPSES, DROPS
from lib.core.evidence import Cell, Test, within


@claim(
    "13b",
    "The model needs its massive activations, but only as a constant (Sun et al. 2024)",
    "experiment 5's verdict at the birth: without what writes them there the loss rises, and held at their mean from "
    "there on it does not; of a value that is a constant beforehand it cannot be told",
)
def as_a_constant(measured: Measured) -> Judged:
    conclusion = measured.interventions.conclusion
    told = of_something(conclusion)
    if told.why == SAME:
        raise CannotTellError(f"{conclusion.verdict}, but {SAME}")
    listed = {
        "verdict": conclusion.verdict,
        f"loss, {told.counterfactual.condition.replace('_', ' ')}": told.counterfactual.loss_change,
        "loss, mean": told.onward.mean,
    }
    return [Said("exp5", conclusion, CONSTANT, told.why)], listed


@claim(
    "13c",
    "Attention sinks hang on the massive activation",
    "without what writes the massive activations at the birth (experiment 5's counterfactual, which leaves "
    f"{COLLAPSES[0]} to {COLLAPSES[1]} of the value) more than {DROPS:.0%} of the sinks are gone, and with the mean "
    "put back, where that was run, they are not (paired); by every epsilon alike, else it cannot be told; sinks of "
    "layers before the birth are counted, too, and cannot change",
)
def sinks_hang_on_it(measured: Measured) -> Judged:
    removal = of_something(measured.interventions.conclusion).counterfactual
    gone = [] if removal.left is None else within("value left", removal.left, COLLAPSES)
    if not gone or not evidence.every(gone):
        raise CannotTellError(f"{removal.condition.replace('_', ' ')} is not sure to take the value away")
    baseline, changes = measured.interventions.results.baseline, measured.interventions.results.changes
    asked = {removal.condition: "below", "put_back": "above"}
    by_epsilon: dict[float, list[Test]] = {}
    values: dict[str, Cell] = {}
    for epsilon, before in baseline.sink_rates.items():
        if not before.mean:
            continue
        values[f"sink rate, epsilon {epsilon}"] = before
        for name in (name for name in asked if name in changes):
            change = in_parts_of(before.mean, changes[name].sink_rate_changes[epsilon])
            what = f"change of the sink rate, in parts of it, {name.replace('_', ' ')}, epsilon {epsilon}"
            by_epsilon.setdefault(epsilon, []).append(Test(what, change, asked[name], -DROPS))
            values[what] = change
    if not by_epsilon:
        raise CannotTellError("there are no sinks")
    answers = {epsilon: evidence.every(tests) for epsilon, tests in by_epsilon.items()}
    if False in answers.values() and len(set(answers.values())) > 1:
        told = {True: "holds", False: "does not hold", None: "cannot be told"}
        raise CannotTellError(
            "the epsilons do not agree: by "
            + ", ".join(f"{epsilon} it {told[answer]}" for epsilon, answer in answers.items())
        )
    return [test for tests in by_epsilon.values() for test in tests], values


@claim(
    "14",
    "The first token is special for its position, whatever it is",
    "experiment 6's verdict, the simplest cause that fits all of its manipulations, is position",
)
def position(measured: Measured) -> Judged:
    conclusion = measured.census.conclusion
    told = of_something(conclusion)
    shares = {"moved": told.moved, "repeated": told.repeated, "own": told.own}
    listed = {"verdict": conclusion.verdict, "tokens that spike first": told.first_token_share}
    listed |= {f"spike, {name}": share for name, share in shares.items() if share}
    return [Said("exp6", conclusion, "position", told.why)], listed
