"""Run a model on a few tokens and keep what its modules take and give, block by block, and where attention is called.

Zeros cannot be told from other zeros, so where a module gives nothing else, noise is put: it shows where that goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softmax
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

SOFTMAX = (softmax, torch.softmax, Tensor.softmax)
ATTENTION = (scaled_dot_product_attention, *SOFTMAX)


@dataclass(eq=False)
class Call:
    """One module's run: the tensor it took, and the one it gave."""

    path: str
    module: torch.nn.Module
    taken: Tensor | None
    given: Tensor | None = None
    raw: Any = None
    arguments: tuple[Any, dict[str, Any]] = ((), {})
    replaced: bool = False
    """It gave zeros, for which noise was put."""


@dataclass
class Attention:
    """One call of attention: the innermost module around it, its heads, and how many modules had ended before."""

    path: str
    n_heads: int
    before: int


@dataclass
class Block:
    """One run of a block."""

    module: torch.nn.Module
    calls: list[Call] = field(default_factory=list)  # in the order of their ends
    attention: list[Attention] = field(default_factory=list)
    taken: Tensor | None = None
    given: Tensor | None = None
    raw: Any = None  # what it returned, as it is


def first_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str | None:
    """Where among a module's arguments is what it takes: the first tensor of numbers."""
    named = (*(["hidden_states"] if "hidden_states" in kwargs else []), *kwargs)
    values: list[tuple[int | str, Any]] = [*enumerate(args), *((name, kwargs[name]) for name in named)]
    return next((key for key, value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a module takes."""
    key = first_key(args, kwargs)
    return args[key] if isinstance(key, int) else None if key is None else kwargs[key]


def first_output(output: Any) -> Tensor | None:
    """What a module gives: of several values the first."""
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


def is_attention(args: tuple[Any, ...], kwargs: dict[str, Any], n_heads: int) -> bool:
    """Whether a softmax is that of attention with so many heads, and not of what chooses experts."""
    scores = args[0] if args else kwargs["input"]
    return scores.ndim == 4 or (scores.ndim == 3 and scores.shape[0] % n_heads == 0)


class Recorder(TorchFunctionMode):
    """Keeps what the modules of blocks take and give, and where attention is called; `done` gets each block's run."""

    def __init__(self, shape: tuple[int, int], done: Callable[[tuple[str, int], Block], None]) -> None:
        super().__init__()
        self.shape, self.done = shape, done
        self.noise = torch.Generator().manual_seed(0)
        self.open: list[tuple[Block, str]] = []  # modules that run, the innermost last

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if self.open and function in ATTENTION:
            n_heads = self._heads(args[0] if args else next(iter(kwargs.values())))
            if n_heads:
                block, path = self.open[-1]
                block.attention.append(Attention(path, n_heads, len(block.calls)))
        return output

    def _heads(self, first: Tensor) -> int:
        """Of attention's first argument, a query or logits; 0 of another softmax."""
        n, length = self.shape
        if first.ndim == 4 and first.shape[2] == length:
            return first.shape[1]
        if first.ndim == 3 and first.shape[1] == length <= first.shape[2]:
            return first.shape[0] // n
        return 0

    @contextmanager
    def watching(self, blocks: dict[tuple[str, int], torch.nn.Module]) -> Iterator[None]:
        with ExitStack() as stack:
            for key, module in blocks.items():
                for path, part in module.named_modules():
                    for handle in self._watched(key, module, path, part):
                        stack.callback(handle.remove)
            yield

    def _watched(
        self, key: tuple[str, int], block: torch.nn.Module, path: str, part: torch.nn.Module
    ) -> tuple[RemovableHandle, RemovableHandle]:
        started: list[Call] = []
        is_leaf = not any(True for _child in part.children())

        def enter(_module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            taken = first_tensor(args, kwargs)
            started.append(Call(path, part, None if taken is None else taken.clone(), arguments=(args, kwargs)))
            run = self.open[-1][0] if self.open and path else Block(block)
            self.open.append((run, path))
            if not path:
                self.__enter__()

        def leave(_module: torch.nn.Module, _args: Any, output: Any) -> Tensor | None:
            if not started:
                return None
            call, (run, _path) = started.pop(), self.open.pop()
            given = first_output(output)
            new = None
            if is_leaf and given is output and given is not None and given.ndim == 3 and not given.any():
                new = given = torch.randn(given.shape[1:], generator=self.noise).to(given).expand(given.shape).clone()
                call.replaced = True
            call.given, call.raw = None if given is None else given.clone(), output
            if path:
                run.calls.append(call)
            else:
                self.__exit__(None, None, None)
                run.taken, run.given, run.raw = call.taken, call.given, call.raw
                self.done(key, run)
            return new

        return (
            part.register_forward_pre_hook(enter, with_kwargs=True),
            part.register_forward_hook(leave, always_call=True),
        )


@contextmanager
def outside(
    base: torch.nn.Module, lists: Iterable[str], tokens: torch.nn.Module, given: dict[str, Tensor]
) -> Iterator[None]:
    """Keep what the modules give that are neither a list of blocks, nor in one, nor around one.

    tokens: their embedding.
    """

    def keep(path: str) -> Callable[..., Any]:
        def see(module: torch.nn.Module, _args: Any, output: Any) -> Any:
            value = first_output(output)
            if value is None or path in given:
                return None
            if value is output and value.ndim == 3 and not value.any():
                shape = value.shape if module is tokens else value.shape[1:]
                output = value = torch.randn(shape, generator=noise).to(value).expand(value.shape).clone()
                value[:, 0] = value[0, 0].clone()  # the same first token
            given[path] = value.clone()
            return output

        return see

    noise = torch.Generator().manual_seed(1)

    with ExitStack() as stack:
        for path, module in base.named_modules():
            if not any(f"{of}.".startswith(f"{path}.") or f"{path}.".startswith(f"{of}.") for of in lists) and path:
                stack.callback(module.register_forward_hook(keep(path)).remove)
        yield
