"""What the softmax of one layer's attention takes in one text."""

from dataclasses import dataclass
from typing import Any

import torch

from lib.core import sinks
from lib.core.data import Windows
from lib.model.models import LanguageModel
from lib.model.tokens import text_of


@dataclass(frozen=True)
class AttentionLogits:
    """What the softmax of one layer's attention takes. logits: of each head, mean: over heads; per query the keys up
    to it, None where a sliding window hides one.

    first_token: of each head, means over all queries but the first: logit on the first token, mean logit on the other
    visible keys, and attention probability on the first token.
    """

    layer: int
    tokens: list[str]
    logits: list[list[list[float]]]
    mean: list[list[float]]
    first_token: list[dict[str, Any]]


def run(lm: LanguageModel, windows: Windows, options: Any) -> AttentionLogits:
    lm.arch.check_layer(options.layer_id)
    logits = sinks.logits(lm, windows.ids, options.layer_id)
    return AttentionLogits(
        layer=options.layer_id,
        tokens=[text_of(lm.tokenizer, token) for token in windows.ids[0].tolist()],
        logits=[_up_to_the_query(head) for head in logits],
        mean=_up_to_the_query(logits.mean(0)),
        first_token=[sinks.first_token_logits(head) for head in logits],
    )


def _up_to_the_query(logits: torch.Tensor) -> list[list[float]]:
    return [row[: query + 1].tolist() for query, row in enumerate(logits)]
