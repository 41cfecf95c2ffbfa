"""One text before and after a head is off, to be turned, on one scale."""

from experiments.before_after.results import Stored
from lib.report.views import View, text_in_3d


def views(result: Stored) -> list[View]:
    results = result.results
    top = max(abs(value) for values in (results.before, results.after) for row in values for value in row)
    titles = {"before": results.before, f"after removing head {results.head} of layer {results.layer}": results.after}
    return [text_in_3d("_3d_comparison.png", title, results.tokens, values, top) for title, values in titles.items()]
