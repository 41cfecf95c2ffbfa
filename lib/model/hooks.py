"""Capture what a forward pass shows, end it early or start it late.

Every context manager here restores the model, also after an error.

A watcher is called as `see(layer, value)`; a tensor that it returns takes the value's place.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lib.model.arch import Architecture
from lib.model.experts import Chosen, called_with, chosen
from lib.model.skipping import forward_replaced
from lib.model.trace import first_key

if TYPE_CHECKING:
    from lib.model.models import LanguageModel

See = Callable[[int, Tensor], Tensor | None]  # a watcher


class _Stop(Exception):  # noqa: N818 (not an error)
    pass


def forward(lm: "LanguageModel", ids: Tensor) -> None:
    """Run the blocks (no LM head) on (batch, seq) token ids; watchers do the measuring."""
    with torch.inference_mode(), suppress(_Stop):
        lm.model.base_model(input_ids=ids.to(lm.device), use_cache=False)


def input_of(lm: "LanguageModel", module: torch.nn.Module, ids: Tensor) -> Tensor:
    """What a module takes in a pass over (batch, seq) token ids; the pass ends there."""
    taken: list[Tensor] = []

    def take(value: Tensor) -> NoReturn:
        taken.append(value)
        raise _Stop

    handle = input_watched(module, take)
    try:
        with torch.inference_mode(), suppress(_Stop):
            lm.model(input_ids=ids.to(lm.device), use_cache=False)
    finally:
        handle.remove()
    return taken[0]


@contextmanager
def around_calls(
    arch: Architecture,
    role: str,
    manager: Callable[[int], AbstractContextManager[object]],
    layers: Iterable[int] | None = None,
) -> Iterator[None]:
    """Run each layer's `role` module inside `manager(layer)`."""
    entered: list[AbstractContextManager[object]] = []

    def register(layer: int, module: torch.nn.Module) -> RemovableHandle:
        def enter(*_: Any) -> None:
            entered.append(manager(layer))
            entered[-1].__enter__()

        return module.register_forward_pre_hook(enter)

    def leave(*_: Any) -> None:
        if entered:  # an error before `enter` comes here, too
            entered.pop().__exit__(None, None, None)

    with (
        _registered(arch, role, layers, register),
        _registered(arch, role, layers, lambda _layer, module: module.register_forward_hook(leave, always_call=True)),
    ):
        yield


@contextmanager
def watch_inputs(arch: Architecture, role: str, see: See, layers: Iterable[int] | None = None) -> Iterator[None]:
    """Call `see` with the tensor that each layer's `role` module takes."""
    with _registered(arch, role, layers, lambda layer, module: input_watched(module, partial(see, layer))):
        yield


def input_watched(module: torch.nn.Module, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `see` with the tensor that a module takes."""

    def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = first_key(args, kwargs)
        if isinstance(key, int):
            new = see(args[key])
            return None if new is None else ((*args[:key], new, *args[key + 1 :]), kwargs)
        assert key is not None, "every watched module takes a tensor"
        new = see(kwargs[key])
        return None if new is None else (args, kwargs | {key: new})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


@contextmanager
def watch_outputs(arch: Architecture, role: str, see: See, layers: Iterable[int] | None = None) -> Iterator[None]:
    """Call `see` with `role`'s part of each layer's module output (of the first, where it returns several)."""

    def register(layer: int, module: torch.nn.Module) -> RemovableHandle:
        def hook(_module: torch.nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                new = see(layer, output[0])
                return None if new is None else (new, *output[1:])
            return see(layer, arch.part(layer, role, output))

        return module.register_forward_hook(hook)

    with _registered(arch, role, layers, register):
        yield


@contextmanager
def watch_experts(
    arch: Architecture, see: Callable[[int, Chosen], Tensor | None], layers: Iterable[int] | None = None
) -> Iterator[None]:
    """Call `see` with what each layer's experts are called with; what it returns takes the place of the routing
    weights."""

    def register(layer: int, module: torch.nn.Module) -> RemovableHandle:
        def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            weights = see(layer, chosen(args, kwargs))
            return None if weights is None else called_with(weights, args, kwargs)

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    with _registered(arch, "experts", layers, register):
        yield


@contextmanager
def _registered(
    arch: Architecture,
    role: str,
    layers: Iterable[int] | None,
    register: Callable[[int, torch.nn.Module], RemovableHandle],
) -> Iterator[None]:
    handles = []
    try:
        for layer in arch.with_role(role) if layers is None else layers:
            handles.append(register(layer, arch.module(layer, role)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stop(_layer: int, _hidden: Tensor) -> NoReturn:
    raise _Stop


def stop_before(arch: Architecture, layer: int) -> AbstractContextManager[None]:
    """End `forward` once block `layer` has its input; enter it last."""
    return watch_inputs(arch, "block", _stop, [layer])


def stop_after(arch: Architecture, layer: int) -> AbstractContextManager[None]:
    """End `forward` once block `layer` has its output; enter it last, so that watchers see that output first."""
    return watch_outputs(arch, "block", _stop, [layer])


@contextmanager
def keep_block_outputs(arch: Architecture, kept: MutableMapping[int, Any]) -> Iterator[None]:
    """Put what each block returns, as it is, into `kept`."""
    with ExitStack() as stack:
        for layer, block in enumerate(arch.blocks):
            handle = block.register_forward_hook(lambda _m, _args, out, layer=layer: kept.update({layer: out}))
            stack.callback(handle.remove)
        yield


@contextmanager
def resume_at(arch: Architecture, layer: int, kept: Mapping[int, Any]) -> Iterator[None]:
    """Start at block `layer`: the blocks before it do not run, and return what they have in `kept`."""
    with ExitStack() as stack:
        for before in range(layer):
            output = kept[before]
            stack.enter_context(forward_replaced(arch.blocks[before], lambda *_args, _o=output, **_kwargs: _o))
        yield


@contextmanager
def blocks_until(
    arch: Architecture, role: str, layers: Collection[int], taken: Sequence[Tensor], returned: Sequence[Any]
) -> Iterator[None]:
    """Run each of these layers' blocks by itself, on what it has in `taken`, until its `role` has its output; enter it
    last, so that watchers see that first. Every block, also one that does not run, returns what it has in `returned`.
    """

    def run(forward: Callable[..., Any] | None, output: Any, *args: Any, **kwargs: Any) -> Any:
        if forward is not None:
            with suppress(_Stop):
                forward(*args, **kwargs)
        return output

    with ExitStack() as stack:
        for layer, block in enumerate(arch.blocks):
            forward = block.forward if layer in layers else None
            stack.enter_context(forward_replaced(block, partial(run, forward, returned[layer])))
        stack.enter_context(watch_inputs(arch, "block", lambda layer, _value: taken[layer].clone(), layers))
        stack.enter_context(watch_outputs(arch, role, _stop, layers))
        yield
