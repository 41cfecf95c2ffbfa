"""How much each head attends to the first token, without attention maps.

Values get one more column that is 1 at the first token and 0 elsewhere, so the attention kernel returns
softmax(QK)[:, first] in that column, beside the usual output and from the same call.
"""

from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from tqdm import tqdm
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lib import hooks
from lib.stats import Samples

NAME = "first_token_probability"
EXTRA_COLUMNS = 8  # kernels want head sizes that are multiples of 8

SINK_WINDOW = 64
SINK_EPSILON = 0.3


@contextmanager
def watch(lm, see):
    """Call `see(layer, probability, visible)` for each layer's attention.

    probability: (batch, heads, seq), of each query on the first token.
    visible: (seq,) bool, whether a query can see the first token (sliding windows: the later ones cannot).
    """

    def attention(module, query, key, value, attention_mask, scaling=None, **_kwargs):
        head_dim = query.shape[-1]
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        query, key, value = (pad(x, (0, EXTRA_COLUMNS)) for x in (query, key, value))
        value[:, :, 0, head_dim] = 1
        output = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=attention_mask is None and query.shape[2] > 1,
            scale=head_dim**-0.5 if scaling is None else scaling,
        )
        see(module.layer_idx, output[..., head_dim], _sees_first(attention_mask, query))
        return output[..., :head_dim].transpose(1, 2).contiguous(), None

    before = lm.model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[NAME] = attention
    ALL_MASK_ATTENTION_FUNCTIONS[NAME] = sdpa_mask
    try:
        lm.model.set_attn_implementation(NAME)
        yield
    finally:
        lm.model.set_attn_implementation(before)
        del ALL_ATTENTION_FUNCTIONS[NAME], ALL_MASK_ATTENTION_FUNCTIONS[NAME]


def _sees_first(attention_mask, query):
    if attention_mask is None:
        return torch.ones(query.shape[2], dtype=torch.bool, device=query.device)
    first = attention_mask[0, 0, :, 0]
    return first if first.dtype == torch.bool else first > torch.finfo(first.dtype).min / 2


class HeadScores:
    """Per-sequence means of the probability on the first token; feed `update` to `watch`.

    Three arrays of (sequences, layers, heads), each a mean over the queries that can see the first token:
    `scores` over all queries, the first (always 1) included; `later` without it; `window` over the first
    SINK_WINDOW queries, which by causality is what a window of SINK_WINDOW tokens would give.
    """

    def __init__(self, arch):
        self.shape = (arch.n_layers, arch.n_heads)
        self.rows = {name: Samples() for name in ("scores", "later", "window")}
        self.batch = {}

    def update(self, layer, probability, visible):
        hooks.require_finite(layer, probability)
        p = probability[:, :, visible].double()
        means = {"scores": p.mean(2), "later": p[:, :, 1:].mean(2), "window": p[:, :, :SINK_WINDOW].mean(2)}
        for name, value in means.items():
            self.batch.setdefault(name, np.full((len(p), *self.shape), np.nan))[:, layer] = value.cpu().numpy()

    def end_batch(self):
        """Take the batch's rows in; call it after each forward pass."""
        for name, rows in self.batch.items():
            self.rows[name].extend(rows)
        self.batch = {}

    def __getattr__(self, name):
        if name not in ("scores", "later", "window"):
            raise AttributeError(name)
        return self.rows[name].array

    def sink_rates(self, keep=None):
        """(sequences,) share of heads over SINK_EPSILON in `window` (Gu et al. 2025, arXiv 2410.10781).

        keep: (layers, heads) bool, the heads to count (default: all). None if that leaves no head.
        """
        keep = np.ones(self.shape, dtype=bool) if keep is None else keep
        return (self.window[:, keep] > SINK_EPSILON).mean(1) if keep.any() else None


def rank(scores):
    """Heads as {"layer", "head", "score"}, highest first, of (layers, heads) mean scores; ties in layer order."""
    cells = [
        {"layer": layer, "head": head, "score": float(score)}
        for layer, row in enumerate(scores)
        for head, score in enumerate(row)
    ]
    return sorted(cells, key=lambda cell: -cell["score"])


def measure(lm, windows, batch_size, last_layer=None):
    """HeadScores of all windows; with `last_layer` no later layer is run (their scores are nan)."""
    scores = HeadScores(lm.arch)
    stop = nullcontext() if last_layer is None else hooks.stop_after(lm.arch, last_layer)
    with (
        tqdm(total=len(windows.ids), unit="window", desc="attention", disable=None) as progress,
        watch(lm, scores.update),
        stop,
    ):
        for ids in windows.batches(batch_size):
            hooks.forward(lm, ids)
            scores.end_batch()
            progress.update(len(ids))
    return scores
