"""Statistics of every layer in one pass."""

from functools import partial
from typing import Any

from experiments.layerwise.results import Results
from lib.core.data import Windows
from lib.core.massive import DEFINITION, LayerStatistics
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.run import processes


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    statistics = LayerStatistics(lm.arch, lm.tokenizer)
    with processes.progress(len(windows.ids), options.batch_size, "layerwise") as progress:
        for _rows, ids in windows.batches(options.batch_size):
            statistics.run(ids, partial(hooks.forward, lm, ids))
            progress.update(len(ids))
    statistics.gather()
    return Results(DEFINITION, statistics.layers(windows.draws(options.seed)), statistics.massive())
