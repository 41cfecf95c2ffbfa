"""Which outputs of which projections queries and keys are made of, found by running a model on a few tokens; and these
projections computed otherwise.

Every projection of an attention module gives the same noise at every token; then other noise in some of its outputs, as
many as a head is wide, in others at each token. A query or a key that differs there is made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from torch.nn.functional import linear

from lib.model import attention_rows, hooks
from lib.model.attention_rows import Attended, Parts
from lib.model.parts import has_matrix, weight_of
from lib.model.trace import Call, first_output, first_tensor

if TYPE_CHECKING:
    from lib.model.arch import Architecture
    from lib.model.models import LanguageModel

LENGTH = 5  # of sequences
NEARLY = 1e-2  # of the largest value


@dataclass(frozen=True, eq=False)
class Projection:
    """Some outputs of a projection. path: in the block. transposed: whether its weight is (in, out). outputs: (n,)
    their indices, those of a head side by side; width: of one head. takes: how many inputs it has."""

    path: str
    transposed: bool
    outputs: Tensor
    width: int
    takes: int

    def weight(self, module: torch.nn.Module) -> Tensor:
        """(n, in)."""
        weight = weight_of(module)
        return (weight.T if self.transposed else weight)[self.outputs.to(weight.device)]

    def bias(self, module: torch.nn.Module) -> Tensor | None:
        """(n,)."""
        bias = getattr(module, "bias", None)
        return None if bias is None else bias[self.outputs.to(bias.device)]


@dataclass(frozen=True)
class Found:
    """Where one layer's queries and keys come from, or why that is not known ("are ..."). additive: whether a query is
    the sum of what the terms of its projection give: no norm follows."""

    query: Projection | str
    key: Projection | str
    additive: bool = False


@dataclass(frozen=True)
class _Group:
    """Neighbouring outputs of one module: as many as a head is wide, or all."""

    path: str
    outputs: slice


def find(lm: LanguageModel) -> dict[int, Found]:
    """Of every layer with attention."""
    layers = lm.arch.with_role("attention_module")
    calls, attended = _plain(lm, layers)
    known = [layer for layer in layers if layer in attended]
    stored = _stored(lm, {layer: calls[layer] for layer in known})
    groups = {layer: _groups(stored[layer], attended[layer].query.shape[-1]) for layer in known}
    noised = [_noised(lm, groups, how) for how in ("same", "changed", "doubled")]
    differences = _on_host([_differences(*(parts[layer] for parts in noised)) for layer in known])
    unseen = "are not seen in what computes attention"
    found = dict.fromkeys(layers, Found(unseen, unseen))
    for layer, (*differs, error) in zip(known, differences, strict=True):
        found[layer] = _found(groups[layer], stored[layer], attended[layer], differs, additive=error < NEARLY)
    return found


def _on_host(values: list[Tensor]) -> list[list[float]]:
    """(n,) vectors of several devices, in one copy."""
    if not values:
        return []
    device = values[0].device
    together = torch.cat([(value if value.device == device else value.to(device)).float() for value in values]).cpu()
    return [part.tolist() for part in together.split([len(value) for value in values])]


def _plain(lm: LanguageModel, layers: list[int]) -> tuple[dict[int, list[Call]], dict[int, Parts]]:
    """What modules around attention take and give, and attention's parts where they are known."""
    calls: dict[int, list[Call]] = {layer: [] for layer in layers}
    parts: dict[int, Parts] = {}

    def see(layer: int, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            taken, given = (
                None if x is None else x.clone() for x in (first_tensor(args, kwargs), first_output(output))
            )
            calls[layer].append(Call(path, module, taken, given))

        return hook

    with ExitStack() as stack:
        for layer in layers:
            for path, module in candidates(lm.arch, layer):
                stack.callback(module.register_forward_hook(see(layer, path), with_kwargs=True).remove)
        stack.enter_context(_parts_kept(lm, layers, parts))
        hooks.forward(lm, _ids(lm, 1))
    return calls, parts


def _ids(lm: LanguageModel, n: int) -> Tensor:
    """So many tokens, at least."""
    length = min(LENGTH, lm.arch.n_positions or LENGTH)
    return torch.zeros(max(2, -(-n // length)), length, dtype=torch.long)


def candidates(arch: Architecture, layer: int) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules with a matrix in the part of the block that attention is in, but the output projection."""
    parts = arch.layers[layer]
    part = (parts.attention_module or "").partition(".")[0]
    for path, module in arch.blocks[layer].named_modules():
        inside = not part or path.partition(".")[0] == part
        if inside and has_matrix(module) and path not in (parts.head_projection, parts.attention_write):
            yield path, module


@contextmanager
def _parts_kept(lm: LanguageModel, layers: list[int], kept: dict[int, Parts]) -> Iterator[None]:
    def see(layer: int, attended: Attended) -> None:
        if attended.parts is not None:
            parts = (attended.parts.query, attended.parts.key, attended.parts.value, attended.parts.output)
            kept[layer] = Parts(*(part.clone() for part in parts))

    with attention_rows.watch_rows(lm, see, layers):
        yield


@dataclass(frozen=True)
class _Stored:
    """A projection as its module keeps it. takes, gives: how many inputs and outputs it has."""

    transposed: bool
    takes: int
    gives: int


@torch.inference_mode()
def _stored(lm: LanguageModel, calls: dict[int, list[Call]]) -> dict[int, dict[str, _Stored]]:
    """Of each layer, by path, what gives the product of what it takes with its weight."""
    tried: list[tuple[int, str, _Stored]] = []
    errors: list[Tensor] = []
    for layer, of_layer in calls.items():
        for call in of_layer:
            if call.taken is None or call.given is None:
                continue
            stored = _Stored(False, call.taken.shape[-1], call.given.shape[-1])
            with align_module_device(call.module):
                weight, bias = weight_of(call.module), getattr(call.module, "bias", None)
                for transposed, matrix in ((False, weight), (True, weight.T)):
                    if matrix.shape == (stored.gives, stored.takes):
                        product = linear(call.taken.flatten(0, -2), matrix, bias) - call.given.flatten(0, -2)
                        errors.append((product.abs().amax() / call.given.abs().amax().clamp(min=1e-30))[None])
                        tried.append((layer, call.path, replace(stored, transposed=transposed)))
    found: dict[int, dict[str, _Stored]] = {layer: {} for layer in calls}
    for (layer, path, stored), (error,) in zip(tried, _on_host(errors), strict=True):
        if error < NEARLY:
            found[layer].setdefault(path, stored)
    return found


def _groups(stored: dict[str, _Stored], width: int) -> list[_Group]:
    groups: list[_Group] = []
    for path, projection in stored.items():
        n = projection.gives
        step = width if n % width == 0 else n
        groups += [_Group(path, slice(start, start + step)) for start in range(0, n, step)]
    return groups


def _noised(lm: LanguageModel, groups: dict[int, list[_Group]], how: str) -> dict[int, Parts]:
    """Attention's parts where projections give noise: "same" at every token, "doubled", or "changed" at token t in
    group t."""
    kept: dict[int, Parts] = {}
    ids = _ids(lm, max(map(len, groups.values()), default=1))

    def give(of_layer: list[_Group], path: str) -> Callable[..., Tensor | None]:
        def hook(_module: torch.nn.Module, _args: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                return None
            one, other = torch.randn(2, output.shape[-1], generator=torch.Generator().manual_seed(0)).to(output)
            new = one.expand(ids.numel(), -1).clone() * (2 if how == "doubled" else 1)
            for token, group in enumerate(of_layer if how == "changed" else ()):
                if group.path == path:
                    new[token, group.outputs] = other[group.outputs]
            return new.view(output.shape)

        return hook

    with ExitStack() as stack:
        for layer, of_layer in groups.items():
            for path in dict.fromkeys(group.path for group in of_layer):
                module = lm.arch.blocks[layer].get_submodule(path)
                stack.callback(module.register_forward_hook(give(of_layer, path)).remove)
        stack.enter_context(_parts_kept(lm, [*groups], kept))
        hooks.forward(lm, ids)
    return kept


def _differences(same: Parts, changed: Parts, doubled: Parts) -> Tensor:
    """(3 x tokens + 1,): whether each token's query, key and value differ where a group was changed at it; and how far
    queries of doubled noise are from doubled queries, in parts of these."""
    differs = [
        (getattr(same, name) != getattr(changed, name)).any(3).any(1).flatten() for name in ("query", "key", "value")
    ]
    once = 2 * same.query.float()
    error = (doubled.query.float() - once).abs().amax() / once.abs().amax()
    return torch.cat([*(part.float() for part in differs), error[None]])


def _found(
    groups: list[_Group], stored: dict[str, _Stored], attended: Parts, differs: list[float], additive: bool
) -> Found:
    n_tokens = len(differs) // 3
    query, key, value = (
        {token for token in range(len(groups)) if differs[part * n_tokens + token]} for part in range(3)
    )

    def projection(made_by: set[int], others: set[int], like: Tensor) -> Projection | str:
        mine = [groups[token] for token in sorted(made_by)]
        paths = {group.path for group in mine}
        _batch, heads, _seq, width = like.shape
        outputs = [torch.arange(group.outputs.start, group.outputs.stop) for group in mine]
        n = sum(map(len, outputs))
        if len(paths) != 1 or n % width or heads * width % n:  # several heads of queries may share one of keys
            return "are not the outputs of one projection"
        if made_by & others:
            return "are made of outputs of which something else is made, too"
        (path,) = paths
        return Projection(path, stored[path].transposed, torch.cat(outputs), width, stored[path].takes)

    return Found(projection(query, key | value, attended.query), projection(key, query | value, attended.key), additive)


Compute = Callable[[int, Tensor, Tensor, Tensor | None], Tensor]
"""(layer, what the projection takes, (n, in) weight, (n,) bias) -> (..., n) outputs."""


@contextmanager
def computed(arch: Architecture, projections: Mapping[int, Projection], compute: Compute) -> Iterator[None]:
    """Have these outputs of each layer's projection computed otherwise."""

    def instead(layer: int, projection: Projection) -> Callable[..., Tensor]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            taken = first_tensor(args, kwargs)
            assert taken is not None, "a projection takes a tensor"
            with align_module_device(module):
                new = compute(layer, taken, projection.weight(module), projection.bias(module))
            return output.index_copy(-1, projection.outputs.to(output.device), new)

        return hook

    with ExitStack() as stack:
        for layer, projection in projections.items():
            module = arch.blocks[layer].get_submodule(projection.path)
            stack.callback(module.register_forward_hook(instead(layer, projection), with_kwargs=True).remove)
        yield


def biases_of(arch: Architecture, projections: Mapping[int, Projection]) -> dict[int, Tensor]:
    """{layer: (n,)} of these outputs, of each that has any."""
    found: dict[int, Tensor] = {}
    for layer, projection in projections.items():
        module = arch.blocks[layer].get_submodule(projection.path)
        with align_module_device(module):
            bias = projection.bias(module)
            if bias is not None:
                found[layer] = bias.detach().clone()
    return found


def biases_replaced(
    arch: Architecture, projections: Mapping[int, Projection], biases: Mapping[int, Tensor]
) -> AbstractContextManager[None]:
    """Put these biases in the place of the projections' own, in the layers that have one here."""

    def compute(layer: int, taken: Tensor, weight: Tensor, _bias: Tensor | None) -> Tensor:
        return linear(taken, weight, biases[layer].to(taken))

    return computed(arch, {layer: projections[layer] for layer in biases}, compute)
