"""Change attention while a model runs: edges off, by its mask or by its scores, and values set.

Attention is found as in lib/model/attention.py. A change is made in the call itself, so that whoever watches attention
from outside of these hooks (that is, began to watch before) sees attention as it is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from lib.model import hooks
from lib.model.attention import Arguments, Softmax, intercepted
from lib.model.attention_rows import Attended, causal, computed, sliced
from lib.run.errors import UserError

if TYPE_CHECKING:
    from lib.model.models import LanguageModel

Off = Callable[[int, Attended], Tensor]
Values = Callable[[int, Tensor], Tensor]
SOFTMAX_ALONE = "this model computes attention with softmax alone, where values cannot be set"
Seen = tuple[()]


@contextmanager
def edges_off(lm: LanguageModel, off: Off, layers: Iterable[int]) -> Iterator[None]:
    """Mask the edges that `off(layer, attended)` says, of attention as it would be without: (batch or 1, heads or 1,
    queries, keys) bool. Each query must keep a key that it sees. Learned sinks stay."""

    def attention(layer: int, given: Arguments) -> tuple[Tensor, Seen]:
        with torch._C.DisableTorchFunction():  # who watches is to see the changed call alone
            without = _masked(given, off(layer, computed(given)))
        return scaled_dot_product_attention(**without._asdict()), ()

    def attention_map(layer: int, softmax: Softmax, scores: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Seen]:
        with torch._C.DisableTorchFunction():
            attended = sliced(scores, softmax(scores, *args, **kwargs), lm.arch.layers[layer].n_heads, None)
            batch, n_heads, n = attended.shape
            removed = pad(off(layer, attended), (0, scores.shape[-1] - n))  # beside a learned sink
            removed = removed.expand(batch, n_heads, n, -1).reshape(scores.shape)
            scores = scores.masked_fill(removed, -torch.inf)
        return softmax(scores, *args, **kwargs), ()

    with _in_each(lm, layers, attention, attention_map):
        yield


@contextmanager
def values_set(lm: LanguageModel, new: Values, layers: Iterable[int], after: int | None = None) -> Iterator[None]:
    """Give attention `new(layer, value)` instead of each layer's (batch, heads, keys, width) value, for all queries or
    those after that one; keys that share a value have it once. Probabilities stay.

    Raises UserError where attention is computed with softmax alone.
    """

    def attention(layer: int, given: Arguments) -> tuple[Tensor, Seen]:
        with torch._C.DisableTorchFunction():
            changed = given._replace(value=new(layer, given.value))
        output = scaled_dot_product_attention(**changed._asdict())
        if after is not None:
            with torch._C.DisableTorchFunction():
                before = scaled_dot_product_attention(**given._asdict())
                output = torch.cat([before[:, :, : after + 1], output[:, :, after + 1 :]], dim=2)
        return output, ()

    def attention_map(_layer: int, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Seen]:
        raise UserError(SOFTMAX_ALONE)

    with _in_each(lm, layers, attention, attention_map):
        yield


def values_can_be_set(lm: LanguageModel, ids: Tensor) -> bool:
    """Whether `values_set` can; ids: (batch, seq), of which one token is run."""
    try:
        with values_set(lm, lambda _layer, value: value, lm.arch.with_role("attention_module")):
            hooks.forward(lm, ids[:1, :1])
    except UserError as error:
        if str(error) != SOFTMAX_ALONE:
            raise
        return False
    return True


@contextmanager
def _in_each(
    lm: LanguageModel,
    layers: Iterable[int],
    attention: Callable[..., tuple[Tensor, Seen]],
    attention_map: Callable[..., tuple[Tensor, Seen]],
) -> Iterator[None]:
    with ExitStack() as stack:
        for layer in layers:
            instead = partial(attention, layer), partial(attention_map, layer)
            stack.enter_context(intercepted(lm, lambda _layer: None, [layer], *instead))
        yield


def _masked(given: Arguments, removed: Tensor) -> Arguments:
    mask = given.attn_mask
    if mask is None:
        mask = causal(0, given.query.shape[2], given.query.device)
    mask = mask & ~removed if mask.dtype == torch.bool else mask.masked_fill(removed, -torch.inf)
    return given._replace(attn_mask=mask, is_causal=False)
