"""Look at attention while a model runs: the probability on the first token, without keeping maps; or the logits.

Whatever the architecture, attention is one call of PyTorch's scaled_dot_product_attention, or of softmax where the
model has no other. The kernels behind the former also return log sum exp(QK), so softmax(QK)[:, first] is
exp(QK[:, first] - that). Where there is no such kernel, values get one more column that is 1 at the first token and 0
elsewhere, and the output's column is softmax(QK)[:, first]. Of softmax's map that one column is read, and the map is
not kept. The logits of a layer are those that softmax takes, or are computed beside the call from its arguments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from lib.model import hooks
from lib.model.trace import SOFTMAX, is_attention
from lib.run.errors import UserError

if TYPE_CHECKING:
    from lib.model.models import LanguageModel

INSTALLING = threading.Lock()
EXTRA_COLUMNS = 8  # kernels want head sizes that are multiples of 8
MASK_ROWS = 16


# (query, key, value, mask, is_causal, scale) -> output and (batch, heads, seq) log sum exp(QK)
Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, bool, float], tuple[torch.Tensor, torch.Tensor]
]


class Arguments(NamedTuple):
    """Of scaled_dot_product_attention."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_mask: torch.Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


class _ByThread(threading.local):
    def __init__(self) -> None:
        self.managers: list[AbstractContextManager[object]] = []


class UnseenError(UserError):
    """Attention is computed by neither of the functions that are watched."""


Softmax = Callable[..., torch.Tensor]
Instead = Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]  # a function's output, and what is seen of it


def watch_first_token(
    lm: LanguageModel,
    see: Callable[[int, torch.Tensor, torch.Tensor], None],
    layers: Iterable[int] | None = None,
) -> AbstractContextManager[None]:
    """Call `see(layer, probability, visible)` for the attention of each layer (default: of all).

    probability: (batch, heads, seq), of each query on the first token; visible: as in `watch_parts`.
    """
    return watch_parts(lm, lambda layer, visible, *parts: see(layer, probability(*parts), visible), layers)


def probability(log_sum: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
    """(..., batch, heads, seq) on the first token, of the `parts` of one layer, or of several stacked."""
    if not factors:
        return log_sum
    query, first, scale = factors
    first = first.to(scale.dtype) * scale[..., None, None, None, None]
    by_key = query.to(first.dtype).unflatten(-3, (first.shape[-3], -1))
    logit = torch.linalg.vecdot(by_key, first.unsqueeze(-3)).flatten(-3, -2)
    return logit.sub_(log_sum).exp_()


def watch_parts(
    lm: LanguageModel, see: Callable[..., None], layers: Iterable[int] | None = None
) -> AbstractContextManager[None]:
    """Call `see(layer, visible, *parts)` for the attention of each layer (default: of all).

    visible: (batch or 1, heads or 1, seq) bool, whether a query can see the first token (sliding windows: the later
    ones cannot; sparse attention: which can is the text's).
    parts: what `probability` takes, which is cheaper for several short layers at once: log sum exp(QK), the queries,
    the first token's keys and the scale; or only what it gives.
    """

    def attention(given: Arguments) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        query, key, value, attn_mask, dropout_p, is_causal, scale, _enable_gqa = given
        width = value.shape[-1]  # may be another than the query's
        visible = _not_masked(attn_mask, query)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        groups = query.shape[1] // key.shape[1]
        kernel = _kernel(query, key, value, attn_mask, dropout_p, is_causal)
        if kernel is None and groups > 1:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
            kernel = _kernel(query, key, value, attn_mask, dropout_p, is_causal)
        if kernel is not None:
            mask = _added(attn_mask, query)
            output, log_sum = kernel(query, key, value, mask, is_causal, scale)
            if mask is not None:
                log_sum = log_sum - mask[..., 0]
            return output, (visible, log_sum, query, key[:, :, :1], _number(scale, log_sum.dtype, query.device))
        query, key, value = (pad(x, (0, EXTRA_COLUMNS)) for x in (query, key, value))
        value[:, :, 0, width] = 1
        output = scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        return output[..., :width], (visible, output[..., width])

    def attention_map(
        softmax: Softmax, scores: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        weights = softmax(scores, *args, **kwargs)
        return weights, (_not_masked(scores, scores), weights[..., 0])

    def found(layer: int, visible: torch.Tensor, *parts: torch.Tensor) -> None:
        n_heads = lm.arch.layers[layer].n_heads
        if parts[0].shape[1:-1] != (n_heads,):
            given = probability(*parts)
            batch = len(given) // n_heads if given.ndim == 2 else len(given)  # (batch x heads, seq)
            given = given.reshape(batch, n_heads, -1)  # of a single token groups may stand where queries do
            each = visible.numel() == given.numel()
            visible, parts = visible.reshape(given.shape) if each else visible[..., : given.shape[2]], (given,)
        see(layer, visible, *parts)

    return intercepted(lm, found, layers, attention, attention_map)


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
) -> Kernel | None:
    """The kernel that scaled_dot_product_attention takes, if it gives log sum exp(QK), too."""
    if dropout_p or query.device.type not in ("cpu", "cuda"):
        return None
    grouped = key.shape[1] < query.shape[1]  # not every kernel takes that
    choice = torch._fused_sdp_choice(query, key, value, mask, 0.0, is_causal, enable_gqa=grouped)
    if choice == SDPBackend.FLASH_ATTENTION.value:
        return _flash_on_cpu if query.device.type == "cpu" else _flash
    return _efficient if choice == SDPBackend.EFFICIENT_ATTENTION.value else None


def _flash_on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale
    )


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of NVIDIA's and AMD's GPUs, where it takes no mask."""
    width = query.shape[-1]
    if width % EXTRA_COLUMNS:  # pad copies even where there is nothing to add
        query, key, value = (pad(x, (0, -width % EXTRA_COLUMNS)) for x in (query, key, value))
    output, log_sum, *_others = torch.ops.aten._scaled_dot_product_flash_attention.default(
        query, key, value, 0.0, is_causal, scale=scale
    )
    return output[..., :width], log_sum


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of GPUs. It wants rows of a mask to begin at multiples of MASK_ROWS."""
    if mask is not None:
        n = mask.shape[-1]
        mask = pad(mask, (0, -n % MASK_ROWS))[..., :n].expand(*query.shape[:3], n)
    output, log_sum, *_others = torch.ops.aten._scaled_dot_product_efficient_attention.default(
        query, key, value, mask, True, 0.0, is_causal, scale=scale
    )
    return output, log_sum[..., : query.shape[2]]


def _added(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """The mask as what is added to logits."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)


@contextmanager
def watch_learned_sinks(lm: LanguageModel, see: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Call `see(layer, probability)` for the attention of each layer in which softmax has a learned logit beside the
    keys, whose probability goes nowhere (gpt-oss). probability: (batch, heads, seq), of each query on it."""

    def watched(layer: int) -> _Replaced:
        n_heads = lm.arch.layers[layer].n_heads

        def instead(function: Softmax, args: Any, kwargs: Any) -> Any:
            output = function(*args, **kwargs)
            if function in SOFTMAX and is_attention(args, kwargs, n_heads):
                n_queries = output.shape[-2]
                if output.shape[-1] == n_queries + 1:
                    see(layer, output[..., -1].reshape(-1, n_heads, n_queries))
            return output

        return _Replaced(instead)

    with around_calls(lm, watched):
        yield


def watch_logits(
    lm: LanguageModel, see: Callable[[int, torch.Tensor], None], layers: Iterable[int] | None = None
) -> AbstractContextManager[None]:
    """Call `see(layer, logits)` for the attention of each layer (default: of all).

    logits: (batch, heads, queries, keys) float32, what softmax takes: scaled, capped, with the position biases of the
    model; -inf where a query cannot see a key.
    """

    def attention(given: Arguments) -> tuple[torch.Tensor, tuple[torch.Tensor]]:
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa = given
        output = scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).float()
        logits = query.float() @ keys.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(logits.shape[2:], dtype=torch.bool, device=logits.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            logits = _masked_to_inf(logits + attn_mask, attn_mask)
        return output, (logits,)

    def attention_map(
        softmax: Softmax, scores: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor]]:
        return softmax(scores, *args, **kwargs), (_masked_to_inf(scores.float(), scores),)

    def found(layer: int, logits: torch.Tensor) -> None:
        see(layer, logits.reshape(-1, lm.arch.layers[layer].n_heads, *logits.shape[-2:]))

    return intercepted(lm, found, layers, attention, attention_map)


def _masked_to_inf(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)


@contextmanager
def intercepted(
    lm: LanguageModel,
    see: Callable[..., None],
    layers: Iterable[int] | None,
    attention: Instead,
    attention_map: Instead,
) -> Iterator[None]:
    """Call `see(layer, *seen)` for the attention of each of these layers that has attention.

    attention, attention_map: called in the place of scaled_dot_product_attention and, after itself, of softmax.
    """

    def watched(layer: int) -> _Replaced:
        def instead(function: Softmax, args: Any, kwargs: Any) -> Any:
            if function is scaled_dot_product_attention:
                output, seen = attention(Arguments(*args, **kwargs))
            elif function in SOFTMAX and is_attention(args, kwargs, lm.arch.layers[layer].n_heads):
                output, seen = attention_map(function, *args, **kwargs)
            else:
                return function(*args, **kwargs)
            if layer in waiting:
                waiting.remove(layer)
                see(layer, *seen)
            return output

        return _Replaced(instead)

    waiting: set[int] = set()
    with around_attention(lm, watched, waiting, layers):
        yield


@contextmanager
def around_attention(
    lm: LanguageModel,
    watched: Callable[[int], AbstractContextManager[object]],
    waiting: set[int],
    layers: Iterable[int] | None,
) -> Iterator[None]:
    """Run the attention of each of these layers (None: of all) that has attention inside `watched(layer)`.

    waiting: comes to hold a layer whose attention is called; who sees it takes the layer out.

    Raises UnseenError if one was called and not seen.
    """

    def waited_for(layer: int) -> AbstractContextManager[object]:
        waiting.add(layer)
        return watched(layer)

    with around_calls(lm, waited_for, layers):
        yield
    if waiting:
        raise UnseenError(f"cannot watch '{lm.model.config._attn_implementation}' attention; use sdpa or eager")


@contextmanager
def around_calls(
    lm: LanguageModel, manager: Callable[[int], AbstractContextManager[object]], layers: Iterable[int] | None = None
) -> Iterator[None]:
    """Run the attention of each of these layers (None: of all) that has attention inside `manager(layer)`.

    That is the module, or, where it looks PyTorch's function up by name, the one call of it: a TorchFunctionMode sees
    each of some forty calls of a module, which is a tenth of the time of a pass over 16 tokens.
    """
    with_attention = lm.arch.with_role("attention_module")
    if layers is not None:
        with_attention = [layer for layer in layers if layer in with_attention]
    at_call = lm.arch.looks_up == lm.model.config._attn_implementation
    around = (lambda layer: _AtCall(manager(layer))) if at_call else manager
    with (
        _AtCall.installed(),
        hooks.around_calls(lm.arch, "attention_module", around, with_attention),
    ):
        yield


class _AtCall:
    """While this is entered, scaled_dot_product_attention runs inside of a manager, and of those that its thread
    entered before."""

    entered: ClassVar = _ByThread()
    installs: ClassVar = 0
    own: ClassVar[Callable[..., torch.Tensor]] = scaled_dot_product_attention  # before the first of these

    def __init__(self, manager: AbstractContextManager[object]) -> None:
        self.manager = manager

    def __enter__(self) -> None:
        self.entered.managers.append(self.manager)

    def __exit__(self, *_error: object) -> None:
        self.entered.managers.remove(self.manager)

    @classmethod
    @contextmanager
    def installed(cls) -> Iterator[None]:
        """Have PyTorch's function look for what is entered; the last of several to end puts it back."""
        with INSTALLING:
            if not cls.installs:
                cls.own = functional.scaled_dot_product_attention
                functional.scaled_dot_product_attention = _called_inside
            cls.installs += 1
        try:
            yield
        finally:
            with INSTALLING:
                cls.installs -= 1
                if not cls.installs:
                    functional.scaled_dot_product_attention = cls.own


def _called_inside(*args: Any, **kwargs: Any) -> torch.Tensor:
    managers = _AtCall.entered.managers
    if len(managers) == 1 and isinstance(managers[0], _Replaced):  # nobody else is to see it
        return managers[0].instead(scaled_dot_product_attention, args, kwargs)
    with ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        return scaled_dot_product_attention(*args, **kwargs)


class _Replaced(TorchFunctionMode):
    """Calls `instead(function, args, kwargs)` in the place of each of PyTorch's functions."""

    def __init__(self, instead: Callable[[Callable[..., Any], Any, Any], Any]) -> None:
        super().__init__()
        self.instead = instead

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.instead(function, args, kwargs or {})


def _not_masked(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor:
    """(batch or 1, heads or 1, seq) bool of a mask, or of scores with the mask added (or (1, batch x heads, seq)): True
    where the first key counts."""
    if mask is None:
        return _all(query.shape[2], query.device)
    first = mask[..., 0]
    first = first.expand(*(1,) * (3 - first.ndim), *first.shape)
    return first if first.dtype == torch.bool else first > torch.finfo(first.dtype).min / 2


@lru_cache(maxsize=1)
def _all(n: int, device: torch.device) -> torch.Tensor:
    return torch.ones(1, 1, n, dtype=torch.bool, device=device)


@lru_cache(maxsize=16)
def _number(value: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((), value, dtype=dtype, device=device)
