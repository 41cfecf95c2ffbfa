"""The claim that a massive activation can be told before the model has run."""

from experiments.weights_alone.judge import HIT
from experiments.weights_alone.results import Named
from lib.claims.judging import Judged, Said, claim
from lib.claims.measured import Measured, of_something


@claim(
    "weights alone",
    "The weights alone name the layer that makes the largest massive activation, and its dim (the screen of arXiv "
    "2603.05498)",
    "experiment 12's verdict is a hit: the MLP that its rule forecasts is experiment 3's birth, and its dim that of "
    "the place",
)
def named_alone(measured: Measured) -> Judged:
    conclusion = measured.weights_alone.conclusion
    values = of_something(conclusion)
    named = {"forecast": _text(values.forecast, "nothing"), "measured": _text(values.measured, values.birth)}
    said = Said("exp12", conclusion, HIT, f"birth: {values.birth}")
    return [said], named


def _text(named: Named | None, otherwise: str) -> str:
    return otherwise if named is None else f"{named.what}, dim {named.dim}"
