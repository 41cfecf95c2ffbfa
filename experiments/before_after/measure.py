"""One text before and after a head is off, at its layer and downstream."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lib.core import data, sinks
from lib.core.data import Windows
from lib.core.massive import DEFINITION, LayerStatistics
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.model.tokens import text_of


@dataclass(frozen=True)
class BeforeAfter:
    """before, after: (seq, hidden_size) output of `layer`, signed. downstream: for every layer, where the largest
    baseline activation and the largest change are, with both values. perplexity: of the text, before and after."""

    definition: str
    layer: int
    head: int
    chosen: str
    tokens: list[str]
    before: np.ndarray
    after: np.ndarray
    massive: list[dict[str, Any]]
    downstream: list[dict[str, Any]]
    perplexity: dict[str, float]


def run(lm: LanguageModel, windows: Windows, options: Any) -> BeforeAfter:
    lm.arch.check_layer(options.layer_id)
    head, chosen = (options.head, "--head") if options.head is not None else highest_head(lm, options)
    statistics = LayerStatistics(lm.arch, lm.tokenizer)
    statistics.begin_batch(windows.ids)
    before: dict[int, torch.Tensor] = {}
    after: dict[int, torch.Tensor] = {}
    with (
        hooks.watch_outputs(lm.arch, "block", statistics.update),
        hooks.watch_outputs(lm.arch, "block", before.__setitem__),
    ):
        loss_before = hooks.token_losses(lm, windows.ids).mean().exp().item()
    statistics.end_batch()
    with (
        hooks.heads_off(lm.arch, [(options.layer_id, head)]),
        hooks.watch_outputs(lm.arch, "block", after.__setitem__),
    ):
        loss_after = hooks.token_losses(lm, windows.ids).mean().exp().item()
    before, after = ({layer: h[0].float().cpu() for layer, h in run.items()} for run in (before, after))
    tokens = [text_of(lm.tokenizer, token) for token in windows.ids[0].tolist()]
    return BeforeAfter(
        definition=DEFINITION,
        layer=options.layer_id,
        head=head,
        chosen=chosen,
        tokens=tokens,
        before=before[options.layer_id].numpy(),
        after=after[options.layer_id].numpy(),
        massive=statistics.massive(),
        downstream=[
            {
                "layer": layer,
                "median": statistics.rows.array[0, layer, 3],
                "largest": _place(before[layer].abs(), before[layer], after[layer], tokens),
                "most_changed": _place((after[layer] - before[layer]).abs(), before[layer], after[layer], tokens),
            }
            for layer in range(lm.arch.n_layers)
        ],
        perplexity={"before": loss_before, "after": loss_after},
    )


def _place(size: torch.Tensor, before: torch.Tensor, after: torch.Tensor, tokens: list[str]) -> dict[str, Any]:
    """Where `size`, (seq, hidden_size), is largest, with the signed values before and after."""
    position, dim = divmod(int(size.argmax()), size.shape[1])
    values = {"before": before[position, dim].item(), "after": after[position, dim].item()}
    return {"position": position, "token": tokens[position], "dim": dim, **values}


def highest_head(lm: LanguageModel, options: Any) -> tuple[int, str]:
    windows = data.load(options, lm)
    scores = sinks.measure(lm, windows, options.batch_size, options.layer_id).scores.mean(0)[options.layer_id]
    head = int(scores.argmax())
    return head, (
        f"the layer's highest attention to the first token, {scores[head]:.4f} over {options.nsamples} windows of "
        f"{windows.ids.shape[1]} tokens of {windows.text}"
    )
