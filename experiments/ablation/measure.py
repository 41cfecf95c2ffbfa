"""One ablation beside the baseline."""

from experiments.ablation.results import Results
from lib.core import first_tokens
from lib.core.ablation import Condition, OptionsWithDims, compare
from lib.core.data import Windows
from lib.core.massive import DEFINITION
from lib.model.models import LanguageModel


def run(lm: LanguageModel, windows: Windows, condition: Condition, options: OptionsWithDims) -> Results:
    """Compare one Condition with the baseline, following `options.dims` or the baseline's massive dims."""
    result = compare(lm, windows, [condition], options, options.dims)
    places = result.places[condition.name]
    found = None
    if places and places[0].position == "first":
        medians = {name: [layer.median.mean for layer in here.layers] for name, here in result.conditions.items()}
        found = first_tokens.measure(lm, windows, places[0].dim, places[0].layer, [condition], medians)
    exact = None if found is None else found[condition.name]
    return Results(DEFINITION, result.conditions, result.changes, places, exact, result.massive, result.dims)
