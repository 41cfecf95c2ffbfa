"""The output of one layer in one text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lib.core.data import Windows
from lib.core.massive import DEFINITION, LayerStatistics
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.model.tokens import text_of


@dataclass(frozen=True)
class Sentence:
    """One block's output for one text. tokens: (seq,) texts; values: (seq, hidden_size), signed."""

    definition: str
    layer: int
    tokens: list[str]
    values: np.ndarray
    median: float
    massive: list[dict[str, Any]]


def run(lm: LanguageModel, windows: Windows, options: Any) -> Sentence:
    lm.arch.check_layer(options.layer_id)
    statistics = LayerStatistics(lm.arch, lm.tokenizer)
    values: dict[int, torch.Tensor] = {}
    statistics.begin_batch(windows.ids)
    with (
        hooks.watch_outputs(lm.arch, "block", statistics.update),
        hooks.watch_outputs(lm.arch, "block", values.__setitem__, [options.layer_id]),
        hooks.stop_after(lm.arch, options.layer_id),
    ):
        hooks.forward(lm, windows.ids)
    statistics.end_batch()
    return Sentence(
        definition=DEFINITION,
        layer=options.layer_id,
        tokens=[text_of(lm.tokenizer, token) for token in windows.ids[0].tolist()],
        values=values[options.layer_id][0].float().cpu().numpy(),
        median=statistics.rows.array[0, options.layer_id, 3],
        massive=[entry for entry in statistics.massive() if entry["layer"] == options.layer_id],
    )
