"""Look at maps of attention while a model runs, some queries at a time: who reduces them never holds a map.

Attention is found as in lib/model/attention.py. Beside scaled_dot_product_attention, which runs as it is, the rows are
computed once more from its arguments, as far as their queries can see. Softmax's map is the model's own: rows are
slices of it, and the products before and after it have queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from lib.model.attention import Arguments, around_attention
from lib.model.trace import SOFTMAX, is_attention

if TYPE_CHECKING:
    from lib.model.models import LanguageModel

PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.baddbmm, Tensor.baddbmm)


class Rows(NamedTuple):
    """Of the queries from `first` on, and of the keys up to the last of these queries, which sees no later one.

    probability: (batch, heads, queries, keys), in float32 at least; visible: (batch or 1, heads or 1, queries, keys)
    bool.
    """

    first: int
    probability: Tensor
    visible: Tensor


@dataclass(frozen=True)
class Parts:
    """What attention is computed from, and its output: (batch, heads, seq, width) each; keys and values have fewer
    heads where several share them."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


@dataclass(frozen=True)
class Attended:
    """One call of attention. shape: (batch, heads, seq). parts: None where the model computes with softmax, and not by
    products of matrices before and after it."""

    shape: tuple[int, int, int]
    device: torch.device
    parts: Parts | None
    rows_of: Callable[[int, int], Rows]
    """Of the queries from one to before another."""

    def rows(self, at_once: int) -> Iterator[Rows]:
        """Of all queries, with at most so many values at once."""
        batch, heads, n = self.shape
        step = max(1, at_once // (batch * heads * n))
        for first in range(0, n, step):
            yield self.rows_of(first, min(first + step, n))


@contextmanager
def watch_rows(
    lm: LanguageModel, see: Callable[[int, Attended], None], layers: Iterable[int] | None = None
) -> Iterator[None]:
    """Call `see(layer, attended)` for the attention of each layer (default: of all) that has attention.

    Raises UserError if it is computed by neither scaled_dot_product_attention nor softmax.
    """

    def watched(layer: int) -> _Watched:
        def seen(attended: Attended) -> None:
            waiting.remove(layer)
            see(layer, attended)

        return _Watched(lm.arch.layers[layer].n_heads, seen)

    waiting: set[int] = set()
    with around_attention(lm, watched, waiting, layers):
        yield


class _Watched(TorchFunctionMode):
    """Finds the first attention that is computed, and calls `see` with it."""

    def __init__(self, n_heads: int, see: Callable[[Attended], None]) -> None:
        super().__init__()
        self.n_heads, self.see, self.done = n_heads, see, False
        self.factors: tuple[Tensor, Tensor] | None = None  # of the last product before softmax
        self.map: tuple[Tensor, Tensor] | None = None  # what softmax took and gave

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if self.done:
            return output
        if function is scaled_dot_product_attention:
            self._found(computed(Arguments(*args, **kwargs), output))
        elif function in PRODUCTS:
            self._multiplied(*_factors(args, kwargs), output)
        elif self.map is None and function in SOFTMAX and is_attention(args, kwargs, self.n_heads):
            self.map = args[0] if args else kwargs["input"], output
        return output

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.map is not None and not self.done:
            self._found(sliced(*self.map, self.n_heads, None))

    def _multiplied(self, left: Tensor, right: Tensor, output: Tensor) -> None:
        if self.map is None:
            self.factors = left, right
        elif min(left.ndim, right.ndim) > 2 and left.shape[-2] == self.map[1].shape[-2] == right.shape[-2]:
            self._found(sliced(*self.map, self.n_heads, self._parts(right, output)))

    def _parts(self, value: Tensor, output: Tensor) -> Parts | None:
        if self.factors is None:
            return None
        left, right = self.factors
        every = [left, right.mT, value, output]
        n = value.shape[-2]
        if any(part.ndim not in (3, 4) or part.shape[-2] != n for part in every):
            return None
        query, key, value, output = (
            part if part.ndim == 4 else part.reshape(-1, self.n_heads, *part.shape[-2:]) for part in every
        )
        known = query.shape[1] == output.shape[1] == self.n_heads and key.shape[1] == value.shape[1]
        return Parts(query, key, value, output) if known and self.n_heads % key.shape[1] == 0 else None

    def _found(self, attended: Attended) -> None:
        self.done, self.factors, self.map = True, None, None
        with torch._C.DisableTorchFunction():  # others that watch softmax are not to see that of rows
            self.see(attended)


def _factors(args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The two matrices of a call of one of PRODUCTS."""
    left, right = [*args, *(value for value in kwargs.values() if isinstance(value, Tensor))][-2:]
    return left, right


def wide(value: Tensor) -> Tensor:
    """In float32 at least."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def is_visible(mask: Tensor) -> Tensor:
    """Where a mask, or scores with the mask added, let a query see a key."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def causal(first: int, last: int, device: torch.device) -> Tensor:
    """(1, 1, queries, keys) bool: no query sees what comes after it."""
    order = torch.arange(last, device=device)
    return (order[first:, None] >= order)[None, None]


def computed(given: Arguments, output: Tensor | None = None) -> Attended:
    """scaled_dot_product_attention's; parts only beside its output."""
    query, key, value, mask = given.query, given.key, given.value, given.attn_mask
    batch, n_heads, n, width = query.shape
    scaled = wide(query) * (width**-0.5 if given.scale is None else given.scale)
    grouped, keys = scaled.unflatten(1, (key.shape[1], -1)), wide(key).mT
    if mask is not None:
        mask = mask.expand(*(1,) * (4 - mask.ndim), *mask.shape)

    def rows_of(first: int, last: int) -> Rows:
        logits = grouped[:, :, :, first:last].flatten(2, 3) @ keys[..., :last]
        logits = logits.view(batch, n_heads, last - first, last)
        if mask is None:
            visible = causal(first, last, query.device)
            logits[..., first:].masked_fill_(~visible[..., first:], -torch.inf)
        else:
            here = mask[:, :, first:last, :last]
            visible = is_visible(here)
            if here.dtype == torch.bool:
                logits.masked_fill_(~here, -torch.inf)
            else:
                logits += here
        return Rows(first, logits.softmax(3), visible)

    parts = None if output is None else Parts(query, key, value, output)
    return Attended((batch, n_heads, n), query.device, parts, rows_of)


def sliced(scores: Tensor, weights: Tensor, n_heads: int, parts: Parts | None) -> Attended:
    """Of softmax's map, in which a learned sink may stand beside the keys."""
    n = weights.shape[-2]
    scores, weights = (x.reshape(-1, n_heads, n, x.shape[-1]) for x in (scores, weights))

    def rows_of(first: int, last: int) -> Rows:
        # some models divide what is masked, too
        visible = is_visible(scores[:, :1, first:last, :last]) & causal(first, last, scores.device)
        return Rows(first, wide(weights[:, :, first:last, :last]), visible)

    return Attended((len(weights), n_heads, n), weights.device, parts, rows_of)
