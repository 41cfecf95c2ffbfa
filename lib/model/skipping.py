"""Leave out the computation of what is off: attention and MLPs whose output is replaced anyway need not run.

What a hook still sees has to be computed, so this asks a module for its hooks. PyTorch keeps them in private dicts and
has no public way to ask; `input_is_seen` and `output_is_seen` alone read these. tests/model/test_skipping.py fails
where a version of PyTorch keeps them elsewhere. Hooks of all modules at once are not asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lib.model.arch import Architecture
from lib.model.trace import first_tensor


def input_is_seen(module: torch.nn.Module, besides: int = 0) -> bool:
    """Whether it is, by more hooks than `besides`."""
    return len(module._forward_pre_hooks) > besides


def output_is_seen(module: torch.nn.Module) -> bool:
    return bool(module._forward_hooks)


@contextmanager
def forward_replaced(module: torch.nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    own = vars(module).get("forward")  # accelerate puts one there
    module.forward = function
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def attention_skipped(arch: Architecture, layer: int, off: str) -> Iterator[None]:
    """One layer's attention does not run, where it is known what it returns, and its projection gives its bias.

    off: what one hook of the caller's zeroes, "heads" (the projection's input) or "attention_write". All runs as ever
    that a hook still sees before that, and attention itself if it has a hook; the projection, too, if another hook than
    that of the heads sees its input, which it may change.
    """
    returns = arch.layers[layer].attention_returns
    if returns is None or arch.layers[layer].head_projection is None:
        yield
        return
    roles = ("attention_module", "head_projection", "attention_write")
    attention, projection, write = (arch.module(layer, role) for role in roles)
    run, project = attention.forward, projection.forward
    seen_before = input_is_seen(projection) if off == "heads" else output_is_seen(write)

    def is_seen() -> bool:
        if off == "heads" or seen_before:
            return seen_before
        return input_is_seen(projection) or (write is not projection and output_is_seen(projection))

    def attend(*args: Any, **kwargs: Any) -> Any:
        if input_is_seen(attention) or is_seen():
            return run(*args, **kwargs)
        hidden = first_tensor(args, kwargs)
        assert hidden is not None
        output = projection(hidden.new_zeros(*hidden.shape[:-1], arch.layers[layer].n_heads * arch.head_dims[layer]))
        if returns.adds:
            output = args[1] + output
        return output if returns.others is None else (output, *[None] * returns.others)

    def bias_alone(value: Tensor) -> Tensor:
        if is_seen() or (off == "heads" and input_is_seen(projection, besides=1)):
            return project(value)
        bias = arch.bias(layer, "head_projection")
        zeros = value.new_zeros(*value.shape[:-1], arch.hidden_size)
        return zeros if bias is None else zeros + bias

    with forward_replaced(attention, attend), forward_replaced(projection, bias_alone):
        yield


@contextmanager
def mlp_skipped(arch: Architecture, layer: int, off: Sequence[bool]) -> Iterator[None]:
    """One layer's MLP runs for those copies of a batch that do not have it off, and gives zeros for the others: its
    first projections leave these out, and the last one puts the zeros in.

    It runs as ever if a hook sees anything of it before what it writes is zeroed, where its projections are not known
    and where it is a mixture of experts.
    """
    if arch.layers[layer].inner is not None or arch.layers[layer].experts is not None:
        yield
        return
    first = {arch.module(layer, role) for role in ("up", *["gate"] * arch.is_gated(layer))}
    down, write = (arch.module(layer, role) for role in ("down", "mlp_write"))
    inside = [*first, *([arch.module(layer, "activation")] if arch.layers[layer].activation else [])]
    project = down.forward
    seen_before = output_is_seen(write)
    n_on = len(off) - sum(off)

    def is_seen() -> bool:
        return (
            seen_before
            or input_is_seen(down)
            or (write is not down and output_is_seen(down))
            or any(input_is_seen(module) or output_is_seen(module) for module in inside)
        )

    def of_those_on(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def projected(value: Tensor) -> Tensor:
            if is_seen():
                return run(value)
            if not n_on:
                return value.new_empty(*value.shape[:-1], 0)
            copies = value.chunk(len(off))
            return run(torch.cat([copy for copy, is_off in zip(copies, off, strict=True) if not is_off]))

        return projected

    def with_zeros(value: Tensor) -> Tensor:
        if is_seen():
            return project(value)
        if not n_on:
            return value.new_zeros(*value.shape[:-1], arch.hidden_size)
        on = iter(project(value).chunk(n_on))
        zeros = value.new_zeros(value.shape[0] // n_on, *value.shape[1:-1], arch.hidden_size)
        return torch.cat([zeros if is_off else next(on) for is_off in off])

    with ExitStack() as stack:
        for module in first:
            stack.enter_context(forward_replaced(module, of_those_on(module.forward)))
        stack.enter_context(forward_replaced(down, with_zeros))
        yield
