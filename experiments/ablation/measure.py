"""One ablation beside the baseline."""

from msgspec import UNSET

from experiments.ablation.results import Left, Results
from lib.core import first_tokens
from lib.core.ablation import Condition, OptionsWithDims, compare
from lib.core.data import Windows
from lib.core.massive import DEFINITION
from lib.model.models import LanguageModel


def run(
    lm: LanguageModel,
    windows: Windows,
    condition: Condition,
    options: OptionsWithDims,
    experts_off: Condition | None = None,
) -> Results:
    """Compare one Condition with the baseline, and that with all experts off, if there is one; following `options.dims`
    or the baseline's massive dims."""
    conditions = [condition, *([experts_off] if experts_off else [])]
    result = compare(lm, windows, conditions, options, options.dims)
    places = result.places[condition.name]
    found = None
    if places and places[0].position == "first":
        medians = {name: [layer.median.mean for layer in here.layers] for name, here in result.conditions.items()}
        found = first_tokens.measure(lm, windows, places[0].dim, places[0].layer, conditions, medians)
    left, *beside = (Left(result.places[one.name], found[one.name] if found else None) for one in conditions)
    return Results(
        DEFINITION,
        result.conditions,
        result.changes,
        left.places,
        left.first_tokens,
        result.massive,
        result.dims,
        beside[0] if beside else UNSET,
    )
