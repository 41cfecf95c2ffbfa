"""One text before and after a head is off, at its layer and downstream."""

from typing import Any

import numpy as np
import torch

from experiments.before_after.results import ComparedLayer, ComparedPerplexity, ComparedValue, Results
from lib.core import data, sinks
from lib.core.data import Windows
from lib.core.massive import DEFINITION, LayerStatistics
from lib.core.on_device import OnDevice
from lib.model import edits, hooks, next_token
from lib.model.models import LanguageModel
from lib.model.tokens import text_of


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    lm.arch.check_layer(options.layer_id)
    lm.arch.module(options.layer_id, "head_projection")
    if options.head is not None:
        lm.arch.check_head(options.layer_id, options.head)
    head, chosen = (options.head, "--head") if options.head is not None else highest_head(lm, options)
    kept = OnDevice()
    statistics = LayerStatistics(lm.arch, lm.tokenizer, kept)

    def see(layer: int, hidden: torch.Tensor) -> None:
        kept.keep(layer, hidden[0].float())

    def forward() -> None:
        with hooks.watch_outputs(lm.arch, "block", see):
            kept.keep("perplexity", next_token.losses(lm, windows.ids).mean().exp())

    before = statistics.run(windows.ids, forward)
    with edits.heads_off(lm.arch, [(options.layer_id, head)]):
        forward()
    after = kept.take()
    tokens = [text_of(lm.tokenizer, token) for token in windows.ids[0].tolist()]
    return Results(
        definition=DEFINITION,
        layer=options.layer_id,
        head=head,
        chosen=chosen,
        tokens=tokens,
        before=before[options.layer_id].tolist(),
        after=after[options.layer_id].tolist(),
        massive=statistics.massive(),
        downstream=[
            ComparedLayer(
                layer=layer,
                median=statistics.medians[0, layer],
                largest=_value(abs(before[layer]), before[layer], after[layer], tokens),
                most_changed=_value(abs(after[layer] - before[layer]), before[layer], after[layer], tokens),
            )
            for layer in range(lm.arch.n_layers)
        ],
        perplexity=ComparedPerplexity(*(float(passed["perplexity"]) for passed in (before, after))),
    )


def _value(size: np.ndarray, before: np.ndarray, after: np.ndarray, tokens: list[str]) -> ComparedValue:
    """Where `size`, (seq, hidden_size), is largest, with the signed values before and after."""
    position, dim = divmod(int(size.argmax()), size.shape[1])
    values = before[position, dim].item(), after[position, dim].item()
    return ComparedValue(position, tokens[position], dim, *values)


def highest_head(lm: LanguageModel, options: Any) -> tuple[int, str]:
    windows = data.load(options, lm)
    scores = sinks.measure(lm, windows, options.batch_size, options.layer_id).scores.mean(0)[options.layer_id]
    head = int(scores.argmax())
    return head, (
        f"the layer's highest attention to the first token, {scores[head]:.4f} over {options.nsamples} windows of "
        f"{windows.ids.shape[1]} tokens of {windows.text}"
    )
