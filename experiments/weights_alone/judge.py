"""Experiment 12: whether the forecast from the weights alone is what was measured."""

from experiments.weights_alone.results import GENERATOR, Forecast, Named, Results, Values, Verdict
from lib.core.births import birth
from lib.core.definitions import OWN_DIM, WRITES
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, conclusion
from lib.core.results import OF_MLP, LedgerWrite

HIT, OTHER_DIM, MISS, NOTHING = "hit", "right layer, another dim", "miss", "nothing forecast"
RULE = (
    "forecast: the generator with the largest norm of all MLPs; an eraser is what has more than "
    f"{OWN_DIM:g} x an even share (1 / hidden) of its direction's squared length on the dim that it writes, a "
    "generator what has not. measured: the dim of the place, and the birth by experiment 3's rule (the largest "
    f"component that gives over {WRITES:.0%} of the peak, if its interval lies above that of the next). {HIT}: the "
    f"birth is the MLP of the forecast's layer, and the dim is the same; {OTHER_DIM}: it is the MLP of that layer; "
    f"{MISS}: it is something else, or no single component; {CANNOT_TELL}: which of several is the birth, that layer's "
    f"MLP among them; {NONE_FOUND}: nothing massive is measured; {NOTHING}: no MLP has a generator"
)


def judge(results: Results) -> Verdict:
    place, first = results.measured.place, first_generator(results.forecast)
    born = birth(results.measured.writes, place.peak_layer)
    forecast = None if first is None else Named(first.layer, first.dim, f"MLP {first.mlp}")
    if not place.massive:
        return conclusion(NONE_FOUND, RULE, Values(forecast, None, NONE_FOUND))
    measured = None if born.write is None else Named(born.write.layer, place.dim, born.write.name)
    values = Values(forecast, measured, born.verdict)
    possible = {_layer(write) for write in born.possible}
    tests = [test for test in born.tests if test.answer is not False]
    if first is None:
        verdict = NOTHING
    elif first.layer not in possible or (born.write and _layer(born.write) != first.layer):
        verdict = MISS
    elif born.write is None and not (born.generators and possible == {first.layer}):
        verdict = CANNOT_TELL
    else:
        verdict = HIT if first.dim == place.dim else OTHER_DIM
    return conclusion(verdict, RULE, values, tests)


def first_generator(forecast: list[Forecast]) -> Forecast | None:
    return next((one for one in forecast if one.role == GENERATOR), None)


def _layer(write: LedgerWrite) -> int | None:
    """Of the MLP that writes; None of anything else."""
    return write.layer if write.kind in OF_MLP else None
