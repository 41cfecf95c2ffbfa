"""Experiment 12: whether the forecast from the weights alone is what was measured."""

from experiments.weights_alone.results import GENERATOR, Forecast, Named, Results, Values, Verdict
from lib.core.births import birth
from lib.core.definitions import OWN_DIM, WRITES
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, conclusion
from lib.core.results import OF_MLP, LedgerWrite

HIT, MISS, NOTHING = "hit", "miss", "nothing forecast"
OTHER_DIM, OTHER_SOURCE = "right layer, another dim", "right dim, another source"
RULE = (
    "forecast: the generator whose norm is the most times the mean norm of its layer's dims; an eraser is what has "
    f"more than {OWN_DIM:g} x an even share (1 / hidden) of its direction's squared length on the dim that it writes, "
    "with the sign opposite to what some earlier layer is forecast to write there, a generator any other. measured: "
    "the dim of the place, and the birth by experiment 3's rule (the largest component that gives over "
    f"{WRITES:.0%} of the peak, if its interval lies above that of the next). {HIT}: the birth is the MLP of the "
    f"forecast's layer, and the dim is the same; {OTHER_DIM}: it is the MLP of that layer; {OTHER_SOURCE}: the dim is "
    f"the same, but the birth is something else, or no single component; {MISS}: neither; {CANNOT_TELL}: which of "
    f"several is the birth, that layer's MLP among them; {NONE_FOUND}: nothing massive is measured; {NOTHING}: no MLP "
    "has a generator"
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
        verdict = OTHER_SOURCE if first.dim == place.dim else MISS
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
