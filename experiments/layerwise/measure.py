"""Statistics of every layer, and what is massive by every definition, in one pass."""

from functools import partial
from typing import Any

from experiments.layerwise.results import Results
from experiments.layerwise.rules import Massive, masked
from experiments.layerwise.variants import Variants
from lib.core.data import Windows
from lib.core.massive import DEFINITION
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.run import processes


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    statistics, massive = Variants(lm.arch, lm.tokenizer), []
    with processes.progress(len(windows.ids), options.batch_size, "layerwise") as progress:
        for rows, ids in windows.batches(options.batch_size):
            statistics.run(ids, partial(hooks.forward, lm, ids))
            massive += [
                Massive(rows.start + one.sequence, one.layer, one.position, one.dim, one.value)
                for one in statistics.batch_massive
            ]
            progress.update(len(ids))
    statistics.gather()
    return Results(
        definition=DEFINITION,
        layers=statistics.layers(windows.draws(options.seed)),
        massive=statistics.massive(),
        compared=statistics.compared(),
        hidden_size=lm.arch.hidden_size,
        masked=masked(windows.ids.numpy(), processes.gather(massive), partial(text_of, lm.tokenizer)),
    )
