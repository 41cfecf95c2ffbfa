"""Mixtures of experts: which of them a token is sent to, and what each writes.

In transformers 5 the experts of a layer are one module of 3-D weights, (experts, out, in), that is called with the
tokens, the experts chosen for each, and the routing weights. What it gives is the sum over the chosen experts of
routing weight x (down projection x activation + bias).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from torch import Tensor

LAYOUT = "has_gate", "has_bias", "has_post_expert_norm", "is_transposed"  # how transformers says what it keeps


@dataclass(frozen=True)
class Chosen:
    """hidden: (tokens, hidden) that enter. experts, weights: (tokens, k) experts chosen for each, and what the output
    of each is multiplied by."""

    hidden: Tensor
    experts: Tensor
    weights: Tensor

    def at(self, tokens: Tensor) -> Chosen:
        """Of these tokens alone."""
        tokens = tokens.to(self.hidden.device)
        return Chosen(self.hidden[tokens], self.experts[tokens], self.weights[tokens])


@dataclass(frozen=True)
class Off:
    """Experts that give nothing: (layer, expert) each, None for the shared expert. renormalised: whether the weights of
    the others that a token is sent to are rescaled, so that they sum to what all of its weights summed to."""

    experts: tuple[tuple[int, int | None], ...]
    renormalised: bool = False


def chosen(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Chosen:
    """Of the arguments of a module of experts."""
    hidden, experts, weights = (*args, *kwargs.values())[:3]
    return Chosen(hidden, experts, weights)


def called_with(
    weights: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a module of experts with other routing weights."""
    given = [*args, *kwargs.values()]
    given[2] = weights
    return tuple(given[: len(args)]), dict(zip(kwargs, given[len(args) :], strict=True))


def without(of: Chosen, off: Tensor, renormalised: Tensor) -> Tensor:
    """(tokens, k) routing weights with experts off, in a batch of as many versions, one after the other.

    off: (versions, experts) bool; renormalised: (versions,) bool, as in Off. Where none of a token's experts remains,
    all are 0.
    """
    experts, weights = (value.unflatten(0, (len(off), -1)) for value in (of.experts, of.weights))
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    kept = weights.masked_fill(off.gather(1, experts.flatten(1)).view_as(experts), 0)
    before, left = (value.sum(-1, keepdim=True) for value in (weights, kept))
    rescaled = kept * torch.where(left == 0, 0, before / left)
    return torch.where(renormalised[:, None, None], rescaled, kept).flatten(0, 1).to(of.weights.dtype)


def largest_outputs(module: torch.nn.Module, of: Chosen) -> Tensor:
    """(tokens, k) largest |output| over dims of each chosen expert, without routing weight.

    Costs what the module's own pass does: each token goes to each of its experts alone, with weight 1.
    """
    each = of.experts.reshape(-1, 1)
    hidden = of.hidden.repeat_interleave(of.experts.shape[1], 0)
    given = module.forward(hidden, each, torch.ones_like(each, dtype=of.weights.dtype))
    return given.abs().amax(-1).view(of.experts.shape)


def sizes(module: torch.nn.Module) -> tuple[int, int]:
    """How many experts there are, and how many neurons each has."""
    n, *sides = cast(Tensor, module.down_proj).shape
    return n, sides[0] if module.is_transposed else sides[1]


def enters(module: torch.nn.Module, experts: Tensor, hidden: Tensor) -> Tensor:
    """(k, width, or twice that where there is a gate) float32 output of the first projection of each of these experts,
    of one token.

    experts: (k,); hidden: (hidden,).
    """
    name = "gate_up_proj" if module.has_gate else "up_proj"
    first = _rows(module, name, experts)
    hidden = hidden.to(first)
    value = torch.einsum("khw,h->kw" if module.is_transposed else "kwh,h->kw", first, hidden)
    return value + _rows(module, f"{name}_bias", experts) if module.has_bias else value


def of_neuron(module: torch.nn.Module, neuron: int) -> dict[str, int]:
    """{"gate": where `enters` has what enters the activation function of a neuron, "up": by what it is multiplied}, or
    "up" alone where there is no gate."""
    if not module.has_gate:
        return {"up": neuron}
    _n, width = sizes(module)
    if module.is_concatenated:
        return {"gate": neuron, "up": width + neuron}
    return {"gate": 2 * neuron, "up": 2 * neuron + 1}


def activations(module: torch.nn.Module, experts: Tensor, hidden: Tensor) -> Tensor:
    """(k, width) float32 input of the down projection in each of these experts, of one token, as `enters`."""
    function = cast(Callable[[Tensor], Tensor], module._apply_gate if module.has_gate else module.act_fn)
    return function(enters(module, experts, hidden))


def outputs(module: torch.nn.Module, experts: Tensor, hidden: Tensor) -> Tensor:
    """(k, hidden) float32 output of each of these experts for one token, without routing weight."""
    down = _rows(module, "down_proj", experts)
    inner = activations(module, experts, hidden)
    value = torch.einsum("kwh,kw->kh" if module.is_transposed else "khw,kw->kh", down, inner)
    if module.has_bias:
        value = value + _rows(module, "down_proj_bias", experts)
    if module.has_post_expert_norm:
        value = cast(Callable[[Tensor], Tensor], module.post_expert_norm)(value)
    return value


def writes(module: torch.nn.Module, of: Chosen, dim: int) -> Tensor:
    """(tokens, k) float32 of what each chosen expert writes into a dim, routing weight included."""
    rows = zip(of.experts, of.hidden, strict=True)
    values = torch.stack([outputs(module, experts, hidden)[:, dim] for experts, hidden in rows])
    return values * of.weights.float()


def weighted(module: torch.nn.Module, of: Chosen) -> Tensor:
    """(tokens, experts x width) float32 of routing weight x activation of every neuron, 0 in experts not chosen."""
    n, width = sizes(module)
    rows = zip(of.experts, of.hidden, strict=True)
    values = torch.stack([activations(module, experts, hidden) for experts, hidden in rows])
    values = values * of.weights.float()[:, :, None]
    empty = values.new_zeros(len(values), n, width)
    return empty.scatter(1, of.experts[:, :, None].expand_as(values), values).flatten(1)


def biases(module: torch.nn.Module, of: Chosen) -> Tensor:
    """(tokens, hidden) float32 of what the biases of down projections add, routing weight included."""
    if not module.has_bias:
        return torch.zeros_like(of.hidden, dtype=torch.float32)
    rows = torch.stack([_rows(module, "down_proj_bias", experts) for experts in of.experts])
    return (rows * of.weights.float()[:, :, None]).sum(1)


def routing(module: torch.nn.Module, of: Chosen) -> Tensor:
    """(tokens, experts) float32 routing weights, 0 of experts not chosen."""
    n, _width = sizes(module)
    return of.weights.new_zeros(len(of.weights), n).scatter(1, of.experts, of.weights).float()


def down_row(module: torch.nn.Module, dim: int) -> Tensor:
    """(experts x width,) weights of the down projections to a dim."""
    with align_module_device(module):
        down = cast(Tensor, module.down_proj).detach()
        return (down[:, :, dim] if module.is_transposed else down[:, dim]).flatten().clone()


def first_row(module: torch.nn.Module, expert: int, index: int) -> tuple[Tensor, float]:
    """(hidden,) weights and the bias of one entry of `enters` of an expert."""
    name = "gate_up_proj" if module.has_gate else "up_proj"
    with align_module_device(module):
        first = cast(Tensor, getattr(module, name))[expert].detach()
        bias = cast(Tensor, getattr(module, f"{name}_bias"))[expert, index].item() if module.has_bias else 0.0
        return (first[:, index] if module.is_transposed else first[index]).clone(), bias


@dataclass(frozen=True)
class Projections:
    """Of one expert: (width, hidden) gate, None where there is none, and up, with its (width,) bias; (hidden, width)
    down."""

    gate: Tensor | None
    up: Tensor
    bias: Tensor | None
    down: Tensor


def projections(module: torch.nn.Module, expert: int) -> Projections:
    """One expert's, float32, whichever way the module stores them."""

    def stored(name: str) -> Tensor:
        rows = _rows(module, name, torch.tensor([expert]))[0]
        return rows.T if module.is_transposed and rows.ndim == 2 else rows

    first = stored("gate_up_proj" if module.has_gate else "up_proj")
    if not module.has_gate:
        return Projections(None, first, stored("up_proj_bias") if module.has_bias else None, stored("down_proj"))
    gate, up = first.chunk(2) if module.is_concatenated else (first[::2], first[1::2])
    return Projections(gate, up, None, stored("down_proj"))


@contextmanager
def columns_off(module: torch.nn.Module, off: Tensor) -> Iterator[None]:
    """Have the module compute with zeros in these columns of its down projections, (experts, width) bool.

    Its parameter stays as it is; for a while another tensor stands before it.
    """
    outer = vars(module).get("down_proj")
    with align_module_device(module):
        down = cast(Tensor, module.down_proj).detach()
        columns = off.to(down.device)
        masked = down.masked_fill(columns[:, :, None] if module.is_transposed else columns[:, None], 0)
    vars(module)["down_proj"] = masked  # Python looks here before PyTorch looks among parameters
    try:
        yield
    finally:
        del vars(module)["down_proj"]
        if outer is not None:
            vars(module)["down_proj"] = outer


def is_experts(module: torch.nn.Module) -> bool:
    """Whether a module is one of transformers' experts."""
    down = getattr(module, "down_proj", None)
    return isinstance(down, Tensor) and down.ndim == 3 and all(hasattr(module, name) for name in LAYOUT)


def gives_sum(module: torch.nn.Module, of: Chosen, given: Tensor, roundings: float) -> bool:
    """Whether the module's (tokens, hidden) output is what its chosen experts write, at some of the tokens."""
    some = torch.arange(0, len(of.hidden), max(1, len(of.hidden) // 4), device=given.device)
    here = of.at(some)
    for row, value in enumerate(given[some].float()):
        parts = outputs(module, here.experts[row], here.hidden[row]) * here.weights[row, :, None].float()
        bound = roundings * torch.finfo(given.dtype).eps * (parts.abs().sum(0).max() + 1e-30)
        if (parts.sum(0) - value).abs().max() > bound:
            return False
    return True


def _rows(module: torch.nn.Module, name: str, experts: Tensor) -> Tensor:
    with align_module_device(module):
        rows = cast(Tensor, getattr(module, name)).detach()
        return rows.index_select(0, experts.to(rows.device)).float()
