"""What the softmax of one layer's attention takes in one text."""

from typing import Any

import torch

from experiments.attention_logits.results import Results
from lib.core import sinks
from lib.core.data import Windows
from lib.model.models import LanguageModel
from lib.model.tokens import text_of


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    lm.arch.check_layer(options.layer_id)
    lm.arch.module(options.layer_id, "attention_module")
    logits = sinks.logits(lm, windows.ids, options.layer_id)
    return Results(
        layer=options.layer_id,
        tokens=[text_of(lm.tokenizer, token) for token in windows.ids[0].tolist()],
        logits=[_up_to_the_query(head) for head in logits],
        mean=_up_to_the_query(logits.mean(0)),
        first_token=[sinks.first_token_logits(head) for head in logits],
    )


def _up_to_the_query(logits: torch.Tensor) -> list[list[float | None]]:
    return [row[: query + 1].tolist() for query, row in enumerate(logits)]
