"""The output of one layer in one text."""

from typing import Any

import torch

from experiments.sentence.results import Results
from lib.core.data import Windows
from lib.core.massive import DEFINITION, LayerStatistics
from lib.core.on_device import OnDevice
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.model.tokens import text_of


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    lm.arch.check_layer(options.layer_id)
    kept = OnDevice()
    statistics = LayerStatistics(lm.arch, lm.tokenizer, kept)

    def see(_layer: int, hidden: torch.Tensor) -> None:
        kept.keep("values", hidden[0].float())

    def forward() -> None:
        with hooks.stop_after(lm.arch, options.layer_id):
            hooks.forward(lm, windows.ids)

    with hooks.watch_outputs(lm.arch, "block", see, [options.layer_id]):
        taken = statistics.run(windows.ids, forward)
    return Results(
        definition=DEFINITION,
        layer=options.layer_id,
        tokens=[text_of(lm.tokenizer, token) for token in windows.ids[0].tolist()],
        values=taken["values"].tolist(),
        median=statistics.medians[0, options.layer_id],
        massive=[entry for entry in statistics.massive() if entry.layer == options.layer_id],
    )
