"""Claims about what massive activations cost where activations are quantised."""

from experiments.quantisation.judge import COSTS
from experiments.quantisation.results import AS_IT_IS, INT8, KEPT, PREFIX, PROJECTIONS, STATIC, Scheme, Stored
from experiments.quantisation.text import NAMES
from lib.claims.judging import Judged, Said, claim
from lib.claims.measured import CannotTellError, Measured
from lib.core.definitions import COST
from lib.core.evidence import NONE_FOUND, Cell, Test

ONE_SCALE = Scheme(INT8, STATIC)


@claim(
    "int8",
    "With activations in int8, one scale per tensor, massive activations cost the model loss",
    "experiment 13's verdict: with the massive places kept in full precision the loss is lower, in what projections "
    "read or in what blocks give",
)
def spike_costs(measured: Measured) -> Judged:
    conclusion = _something(measured).conclusion
    costs = {test.what: Cell(test.mean, test.interval) for test in conclusion.tests if test.mean is not None}
    return [Said("exp13", conclusion, COSTS)], costs


@claim(
    "first token kept",
    "With the first tokens kept out of it, one static scale per tensor is enough (PrefixQuant, arXiv 2410.05265)",
    "experiment 13, int8 of what projections read, one static scale per tensor, the first position not quantised: the "
    f"loss rises by less than {COST} nats a token",
)
def one_scale_is_enough(measured: Measured) -> Judged:
    results = _something(measured).results
    cells = {remedy: results.of(PROJECTIONS, ONE_SCALE, remedy) for remedy in (AS_IT_IS, KEPT, PREFIX)}
    changes = {NAMES[remedy]: cell.loss_change for remedy, cell in cells.items() if cell and cell.loss_change}
    if NAMES[PREFIX] not in changes:
        raise CannotTellError("what projections read overflows with the first token kept")
    return [Test("loss with the first token kept", changes[NAMES[PREFIX]], "below", COST)], changes


def _something(measured: Measured) -> Stored:
    if measured.quantisation.conclusion.verdict == NONE_FOUND:
        raise CannotTellError("nothing is massive in this model")
    return measured.quantisation
