"""The activations of one layer in one text, to be turned."""

from experiments.sentence.results import Stored
from lib.report.views import View, text_in_3d


def views(result: Stored) -> list[View]:
    results = result.results
    top = max(abs(value) for row in results.values for value in row)
    return [text_in_3d("_3d.png", f"output of layer {results.layer}", results.tokens, results.values, top)]
