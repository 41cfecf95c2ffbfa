"""Claims about what massive activations cost where activations are quantised."""

from experiments.quantisation.judge import COSTS
from experiments.quantisation.results import AS_IT_IS, INT8, KEPT, PREFIX, PROJECTIONS, STATIC, Scheme, Stored
from lib.claims.judging import Judged, Said, claim
from lib.claims.measured import CannotTellError, Measured
from lib.core.definitions import COST
from lib.core.evidence import NONE_FOUND, Cell, Test

ONE_SCALE = Scheme(INT8, STATIC)


@claim(
    "int8",
    "Massive activations are what activations lose in int8 with one scale per tensor",
    "experiment 13's verdict: with the massive places kept in full precision the loss is lower, in what projections "
    "read or in what blocks give",
)
def spike_costs(measured: Measured) -> Judged:
    return [Said("exp13", _something(measured).conclusion, COSTS)], _changes(measured)


@claim(
    "first token kept",
    "With the first tokens kept out of it, one static scale per tensor is enough (PrefixQuant, arXiv 2410.05265)",
    "experiment 13, int8 of what projections read, one static scale per tensor, the first position not quantised: the "
    f"loss rises by less than {COST} nats a token",
)
def one_scale_is_enough(measured: Measured) -> Judged:
    changes = _changes(measured)
    if PREFIX not in changes:
        raise CannotTellError("what projections read overflows with the first token kept")
    return [Test("loss with the first token kept", changes[PREFIX], "below", COST)], changes


def _something(measured: Measured) -> Stored:
    if measured.quantisation.conclusion.verdict == NONE_FOUND:
        raise CannotTellError("nothing is massive in this model")
    return measured.quantisation


def _changes(measured: Measured) -> dict[str, Cell]:
    """By remedy, of ONE_SCALE at projections, what the loss gains."""
    results = _something(measured).results
    cells = {remedy: results.of(PROJECTIONS, ONE_SCALE, remedy) for remedy in (AS_IT_IS, KEPT, PREFIX)}
    return {
        remedy: cell.loss_change for remedy, cell in cells.items() if cell is not None and cell.loss_change is not None
    }
