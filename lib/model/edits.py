"""Change what a model computes while it runs: parts off, constants or other functions in their place.

Every context manager here restores the model, also after an error.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lib.model import experts, hooks
from lib.model.arch import SHARED, Architecture
from lib.model.experts import Chosen, Off, without
from lib.model.skipping import attention_skipped, forward_replaced, mlp_skipped
from lib.run.errors import UserError


def heads_off(arch: Architecture, *versions: Iterable[tuple[int, int]]) -> AbstractContextManager[None]:
    """Zero each (layer, head)'s slice of the input of the attention output projection; the bias stays.

    Where that is all of a layer's heads in all versions, its attention is not computed, unless something watches it.
    versions: with several, a batch is as many batches, one after the other, and each has its own heads off.
    """
    return heads_set(arch, *(dict.fromkeys(heads, 0.0) for heads in versions))


def heads_set(arch: Architecture, *versions: Mapping[tuple[int, int], Tensor | float]) -> AbstractContextManager[None]:
    """Put constants in the place of heads' outputs, before the attention output projection.

    versions: {(layer, head): (width of the head,) tensor, or a number}; with several, a batch is as many batches, one
    after the other, and each has its own.
    """
    found: dict[int, list[tuple[int, int, Tensor | float]]] = {}
    for version, outputs in enumerate(versions):
        for (layer, head), output in outputs.items():
            arch.check_head(layer, head)
            found.setdefault(layer, []).append((version, head, output))
    off: dict[int, Tensor] = {}
    instead: dict[int, Tensor] = {}
    for layer, of_layer in found.items():
        shape = len(versions), arch.layers[layer].n_heads, arch.head_dims[layer]
        off[layer], instead[layer] = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        off[layer][[version for version, _, _ in of_layer], [head for _, head, _ in of_layer]] = True
        for version, head, output in of_layer:
            if isinstance(output, Tensor) or output:
                instead[layer][version, head] = output

    @cache
    def there(layer: int, device: torch.device) -> list[Tensor]:
        return [x[layer].flatten(1)[:, None, None].to(device) for x in (off, instead)]

    def replace(layer: int, value: Tensor) -> Tensor:
        mask, new = there(layer, value.device)
        each = value.unflatten(0, (len(versions), -1))
        return torch.where(mask, new.to(value.dtype), each).flatten(0, 1)

    zeroed = [layer for layer, mask in off.items() if mask.numpy().all() and not instead[layer].numpy().any()]
    skipped = (attention_skipped(arch, layer, "heads") for layer in zeroed)
    return _together(*skipped, hooks.watch_inputs(arch, "head_projection", replace, off))


def neurons_off(
    arch: Architecture, layer: int, neurons: Iterable[int], where: Tensor | None = None
) -> AbstractContextManager[None]:
    """Zero these neurons of one layer's MLP: their activation, which is the input of the down projection.

    neurons: as Architecture.n_neurons counts them. where: (batch, seq) bool, at which positions; None: at all.
    """
    arch.check_layer(layer)
    off = torch.zeros(arch.n_neurons(layer), dtype=torch.bool)
    off[list(neurons)] = True
    if arch.layers[layer].experts is None:
        return _inputs_off(arch, layer, "down", off, where)
    module = arch.module(layer, "experts")
    of_experts, shared = off.split([len(off) - arch.n_shared(layer), arch.n_shared(layer)])
    managers: list[AbstractContextManager[None]] = []
    if of_experts.any():
        managers.append(_experts_off(module, of_experts.view(experts.sizes(module)), where))
    if shared.any():
        managers.append(_inputs_off(arch, layer, f"{SHARED}down", shared, where))
    return _together(*managers)


def _inputs_off(
    arch: Architecture, layer: int, role: str, off: Tensor, where: Tensor | None
) -> AbstractContextManager[None]:
    """Zero these inputs of one layer's `role`, (width,) bool."""

    def zero(_layer: int, value: Tensor) -> Tensor:
        mask = off if where is None else where.view(*value.shape[:-1], 1) & off
        return value.masked_fill(mask.to(value.device), 0)

    return hooks.watch_inputs(arch, role, zero, [layer])


@contextmanager
def _experts_off(module: torch.nn.Module, off: Tensor, where: Tensor | None) -> Iterator[None]:
    """Zero these neurons of experts, (experts, width) bool; where only some tokens are meant, all are run both ways."""
    if where is None:
        with experts.columns_off(module, off):
            yield
        return
    run = module.forward

    def both_ways(*args: Any, **kwargs: Any) -> Tensor:
        with_all = run(*args, **kwargs)
        with experts.columns_off(module, off):
            without = run(*args, **kwargs)
        return torch.where(where.view(-1, 1).to(with_all.device), without, with_all)

    with forward_replaced(module, both_ways):
        yield


def experts_off(arch: Architecture, *versions: Off) -> AbstractContextManager[None]:
    """Let experts give nothing, wherever a token is sent to them; with several versions, a batch is as many batches,
    one after the other, and each has its own."""
    off: dict[int, Tensor] = {}
    shared: dict[int, Tensor] = {}
    for version, these in enumerate(versions):
        for layer, expert in these.experts:
            arch.check_layer(layer)
            if expert is None:
                shared.setdefault(layer, torch.zeros(len(versions), dtype=torch.bool))[version] = True
            else:
                n_experts, _width = experts.sizes(arch.module(layer, "experts"))
                shape = len(versions), n_experts
                off.setdefault(layer, torch.zeros(shape, dtype=torch.bool))[version, expert] = True
    renormalised = torch.tensor([these.renormalised for these in versions])

    def reweigh(layer: int, value: Chosen) -> Tensor:
        return without(value, *(mask.to(value.weights.device) for mask in (off[layer], renormalised)))

    def zero(layer: int, value: Tensor) -> Tensor:
        return _zeroed(value, shared[layer].to(value.device))

    return _together(hooks.watch_experts(arch, reweigh, off), hooks.watch_outputs(arch, "shared_expert", zero, shared))


@contextmanager
def down_weight_scaled(arch: Architecture, layer: int, dim: int, neuron: int, factor: float) -> Iterator[None]:
    """Have one scalar of a dense MLP's down projection, from `neuron` to `dim`, count `factor` times.

    The weight stays: what it gives is added to the output (factor - 1) times.
    """
    arch.check_layer(layer)
    weight = arch.weight(layer, "down")[dim, neuron].detach().clone()
    activation: list[Tensor] = []

    def keep(_layer: int, value: Tensor) -> None:
        activation[:] = [value[..., neuron]]

    def add(_layer: int, value: Tensor) -> Tensor:
        changed = value.clone()
        changed[..., dim] += (factor - 1) * weight.to(value.device) * activation[0].view(value.shape[:-1])
        return changed

    with hooks.watch_inputs(arch, "down", keep, [layer]), hooks.watch_outputs(arch, "down", add, [layer]):
        yield


def all_experts_off(arch: Architecture, *versions: Collection[int]) -> AbstractContextManager[None]:
    """Zero what all of these layers' experts give together; shared experts stay. versions: as in heads_off."""
    return _outputs_off(arch, "experts", versions)


def attention_off(arch: Architecture, *versions: Collection[int]) -> AbstractContextManager[None]:
    """Zero everything that these layers' attention adds to the residual stream, bias included. versions: as in
    heads_off.

    It is not computed where no version has it on, unless something watches it.
    """
    nowhere = set.intersection(*map(set, versions))
    skipped = (attention_skipped(arch, layer, "attention_write") for layer in nowhere)
    return _outputs_off(arch, "attention_write", versions, skipped)


def mlps_off(arch: Architecture, *versions: Collection[int]) -> AbstractContextManager[None]:
    """Zero everything that these layers' MLPs add to the residual stream, bias included. versions: as in heads_off.

    It is computed for those versions alone that have it on, unless something watches it.
    """
    every = set[int]().union(*versions)
    skipped = (mlp_skipped(arch, layer, [layer in off for off in versions]) for layer in every)
    return _outputs_off(arch, "mlp_write", versions, skipped)


def mlp_off_at(arch: Architecture, layer: int, where: Tensor) -> AbstractContextManager[None]:
    """Zero everything that one layer's MLP adds to the residual stream at the positions `where`, (batch, seq) bool."""
    arch.check_layer(layer)
    return hooks.watch_outputs(
        arch,
        "mlp_write",
        lambda _layer, value: value.masked_fill(where.view(*value.shape[:-1], 1).to(value.device), 0),
        [layer],
    )


def _outputs_off(
    arch: Architecture,
    role: str,
    versions: Sequence[Collection[int]],
    skipped: Iterable[AbstractContextManager[None]] = (),
) -> AbstractContextManager[None]:
    """Zero what these layers' `role` gives, in each version its own layers'. skipped: what does not run, as it is off;
    the layers have been checked when the first of these is asked for."""
    layers = dict.fromkeys(layer for off in versions for layer in off)
    for layer in layers:
        arch.check_layer(layer)
        arch.module(layer, role)

    @cache
    def mask(layer: int, device: torch.device) -> Tensor:
        return torch.tensor([layer in off for off in versions], device=device)

    def zero(layer: int, value: Tensor) -> Tensor:
        return _zeroed(value, mask(layer, value.device))

    return _together(*skipped, hooks.watch_outputs(arch, role, zero, layers))


def _zeroed(value: Tensor, off: Tensor) -> Tensor:
    """(copies * batch, ...) with zeros in the copies that are `off`, (copies,) bool."""
    each = value.unflatten(0, (len(off), -1))
    return each.masked_fill(off.view(-1, *[1] * (each.ndim - 1)), 0).flatten(0, 1)


@contextmanager
def _together(*managers: AbstractContextManager[None]) -> Iterator[None]:
    with ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield


@contextmanager
def embeddings_changed(embedding: torch.nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Have `change` look at what an embedding gives, (1 or batch, seq, hidden); a tensor it returns takes the place."""
    handle = embedding.register_forward_hook(lambda _module, _args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def position_embeddings_changed(
    arch: Architecture, change: Callable[[Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """As embeddings_changed, of positions. Raises UserError if the model has no such embeddings."""
    if arch.position_embedding is None:
        raise UserError("this model has no learned position embeddings")
    return embeddings_changed(arch.position_embedding, change)


def position_embeddings_swapped(arch: Architecture, one: int, other: int) -> AbstractContextManager[None]:
    """Give position `one` the learned position embedding of `other`, and the other way round."""

    def swap(output: Tensor) -> Tensor:
        order = torch.arange(output.shape[1], device=output.device)
        order[[one, other]] = order[[other, one]]
        return output[:, order]

    return position_embeddings_changed(arch, swap)


@contextmanager
def _product_replaced(
    arch: Architecture, layer: int, function: Callable[[Tensor], Tensor], shared: str
) -> Iterator[None]:
    """As activation_replaced where the function is no module: what the down projection takes is made anew."""
    given: dict[str, Tensor] = {}
    roles = ["gate", "up"] if arch.is_gated(layer, shared) else ["up"]

    def keep(role: str) -> hooks.See:
        return lambda _layer, value: given.update({role: value})

    def product(_layer: int, _value: Tensor) -> Tensor:
        first = function(given[roles[0]])
        return first * given["up"] if len(roles) > 1 else first

    with ExitStack() as stack:
        for role in roles:
            stack.enter_context(hooks.watch_outputs(arch, f"{shared}{role}", keep(role), [layer]))
        stack.enter_context(hooks.watch_inputs(arch, f"{shared}down", product, [layer]))
        yield


def can_replace_activation(arch: Architecture, layer: int) -> bool:
    """Whether activation_replaced can, which wants of experts that theirs is a module."""
    return arch.layers[layer].activation is not None or arch.layers[layer].function is not None


@contextmanager
def activation_replaced(
    arch: Architecture, layer: int, function: Callable[[Tensor], Tensor], shared: str = ""
) -> Iterator[None]:
    """Put `function` in the place of the activation function of one layer's MLP, or with SHARED of its shared expert
    alone."""
    parts = arch.layers[layer].shared if shared else arch.layers[layer]
    assert parts is not None
    if parts.function is not None:
        with _product_replaced(arch, layer, function, shared):
            yield
        return
    module = arch.module(layer, f"{shared}activation")
    with ExitStack() as stack:
        stack.callback(module.register_forward_hook(lambda _module, args, _output: function(args[0])).remove)
        if parts.shared is not None:
            stack.enter_context(activation_replaced(arch, layer, function, SHARED))
        yield
