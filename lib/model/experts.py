"""Mixtures of experts: which of them a token is sent to, and what each writes.

In transformers 5 the experts of a layer are one module of 3-D weights, (experts, out, in), that is called with the
tokens, the experts chosen for each, and the routing weights. What it gives is the sum over the chosen experts of
routing weight x (down projection x activation + bias).
"""

from __future__ import annotations

from collections.abc import Callable
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


def count(module: torch.nn.Module) -> int:
    """How many experts a module has."""
    return len(cast(Tensor, module.down_proj))


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


def activations(module: torch.nn.Module, experts: Tensor, hidden: Tensor) -> Tensor:
    """(k, width) float32 input of the down projection in each of these experts, of one token.

    experts: (k,); hidden: (hidden,).
    """
    first, hidden = _rows(module, "gate_up_proj" if module.has_gate else "up_proj", experts), hidden.float()
    value = torch.einsum("khw,h->kw" if module.is_transposed else "kwh,h->kw", first, hidden)
    if module.has_bias:
        value = value + _rows(module, "gate_up_proj_bias" if module.has_gate else "up_proj_bias", experts)
    function = cast(Callable[[Tensor], Tensor], module._apply_gate if module.has_gate else module.act_fn)
    return function(value)


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
        return cast(Tensor, getattr(module, name)).detach().index_select(0, experts).float()
