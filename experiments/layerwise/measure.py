"""Statistics of every layer in one pass."""

from dataclasses import dataclass
from typing import Any

from lib.core.data import Windows
from lib.core.massive import DEFINITION, LayerStatistics
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.run import processes


@dataclass(frozen=True)
class Layerwise:
    """layers: averages of top-1..3, median and ratio; massive: every (layer, position, dim) that passes the test."""

    definition: str
    layers: list[dict[str, Any]]
    massive: list[dict[str, Any]]


def run(lm: LanguageModel, windows: Windows, options: Any) -> Layerwise:
    statistics = LayerStatistics(lm.arch, lm.tokenizer)
    with (
        processes.progress(len(windows.ids), options.batch_size, "layerwise") as progress,
        hooks.watch_outputs(lm.arch, "block", statistics.update),
    ):
        for _rows, ids in windows.batches(options.batch_size):
            statistics.begin_batch(ids)
            hooks.forward(lm, ids)
            statistics.end_batch()
            progress.update(len(ids))
    statistics.gather()
    return Layerwise(DEFINITION, statistics.layers(windows.draws(options.seed)), statistics.massive())
