"""What the weights of one MLP, or of one expert, can blow up: nothing here runs the model.

Gated: with the activation function taken for the identity, output dim k is the quadratic form of
S_k = (U_k + U_k^T) / 2, U_k = sum over neurons i of down[k, i] gate[i]^T up[i] (arXiv 2603.05498). Plain: to first
order around what the biases give, it is the linear form down[k] diag(activation'(bias)) up. Both are of the
normed stream before the norm's weights, which are folded into what reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.core.on_device import OnDevice
from lib.core.results import SHARED_EXPERT
from lib.model import experts
from lib.model.arch import SHARED, Architecture
from lib.model.attention_rows import wide
from lib.model.experts import Projections
from lib.model.parts import FUNCTIONS
from lib.model.writes import is_norm

DIMS = 8  # of each MLP with the largest norms, whose eigenvectors are looked for
NEURONS = 10  # of each of them that are named
STEPS = 64  # of Lanczos' iteration
VALUES = 3  # of a down projection, singular
SQUARINGS = 24  # of a matrix whose largest eigenvalue is looked for
AT_ONCE = 64  # MLPs whose numbers go to the host together
EXHAUSTED = 1e-5  # of the largest step: what is left of a new one where no direction is new
BLOCK = 1024  # neurons that are paired with all others at once
NEARLY = 0.05  # of the largest value: within this a norm is a scale and a bias


@dataclass(frozen=True)
class Mlp:
    """(width, hidden) first and second: the projections that enter the activation function and that are multiplied with
    it, of the normed stream before the norm's weights; without second, the first with the function's slope. down:
    (hidden, width), with the weights of a norm that follows. centred: whether the norm before takes the mean away.
    folds: whether its norms are no more than what is folded in. expert: its number, SHARED_EXPERT, or None of a dense
    MLP."""

    layer: int
    expert: int | str | None
    first: Tensor
    second: Tensor | None
    down: Tensor
    centred: Tensor
    folds: Tensor


@dataclass(frozen=True)
class Screened:
    """norms: (hidden,) of every dim. dims: the DIMS with the largest. values, directions: (dims,), (dims, hidden) top
    eigenvalues, and unit vectors along which the neuron with the largest share opens; of a plain MLP the length of the
    linear form, with the sign that it writes there, and its direction. neurons, shares: (dims, n) with the largest
    shares of each. singular, left: (n,), (n, hidden) of the down projection; right: (n,) the neuron with the largest
    |weight| of each right vector."""

    layer: int
    expert: int | str | None
    gated: bool
    centred: np.ndarray
    folds: np.ndarray
    norms: np.ndarray
    dims: np.ndarray
    values: np.ndarray
    directions: np.ndarray
    neurons: np.ndarray
    shares: np.ndarray
    singular: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @property
    def why_not(self) -> str | None:
        """Why it says nothing, where it does not."""
        if not self.folds:
            return f"layer {self.layer}: a norm of its MLP is more than a scale and a bias of a normalised vector"
        if not self.gated and self.singular[0] and not self.norms.any():
            return f"layer {self.layer}: its activation function is flat around what the biases give"
        return None


@dataclass(frozen=True)
class Norm:
    """What a norm does to a normalised vector: x scale + bias, after its mean is taken away if centred, () bool.
    folds: () bool, whether that is all, as it is not where a gate follows."""

    scale: Tensor
    bias: Tensor
    centred: Tensor
    folds: Tensor

    def folded(self, weight: Tensor) -> Tensor:
        """(out, hidden) weights that read what comes before scale and bias."""
        folded = wide(weight.detach()) * self.scale
        return folded - self.centred * folded.mean(1, keepdim=True)


def norm_of(arch: Architecture, layer: int, role: str, like: Tensor) -> Norm:
    """That in a layer's role, by what it makes of vectors whose norm is known; the identity where there is none."""
    module = arch.module(layer, role) if layer in arch.with_role(role) else None
    if module is None or not is_norm(module):
        one = torch.ones_like(wide(like[:, 0].detach()))
        centred = torch.zeros_like(one[0], dtype=torch.bool)
        return Norm(one, torch.zeros_like(one), centred, ~centred)
    signs = torch.ones(arch.hidden_size)
    signs[1::2] = -1
    any_one = torch.randn(arch.hidden_size, generator=torch.Generator().manual_seed(0))
    probes = 64 * torch.stack([signs, -signs, torch.ones_like(signs), any_one])  # a norm's epsilon is nothing beside 64
    dtype = next((weight.dtype for weight in module.parameters()), like.dtype)
    with torch.no_grad():
        given, opposite, constant, other = wide(module(probes.to(like.device, dtype)[:, None])[:, 0])
    scale = (given - opposite) / 2 * signs.to(given)
    bias = (given + opposite) / 2
    centred = (constant - bias).abs().sum() < scale.abs().sum() / 2
    taken = any_one.to(given)
    taken = taken - centred * taken.mean()
    expected = taken / taken.square().mean().sqrt() * scale + bias
    return Norm(scale, bias, centred, (other - expected).abs().amax() <= NEARLY * other.abs().amax())


def mlps(arch: Architecture, layer: int) -> Iterator[Mlp]:
    """Of one layer, one after the other; it has neurons that are known."""
    if arch.layers[layer].experts is None:
        yield _dense(arch, layer, None)
        return
    module = arch.module(layer, "experts")
    function: Any = None if module.has_gate else module.act_fn
    for expert in range(experts.sizes(module)[0]):
        yield _made(arch, layer, expert, experts.projections(module, expert), function)
    if arch.layers[layer].shared is not None:
        yield _dense(arch, layer, SHARED_EXPERT)


def _dense(arch: Architecture, layer: int, expert: str | None) -> Mlp:
    shared = "" if expert is None else SHARED
    parts = arch.layers[layer] if expert is None else arch.layers[layer].shared
    assert parts is not None
    gate = arch.weight(layer, f"{shared}gate") if parts.gate else None
    up, down = (arch.weight(layer, f"{shared}{role}") for role in ("up", "down"))
    function: Any = FUNCTIONS[parts.function] if parts.function else arch.module(layer, f"{shared}activation")
    return _made(arch, layer, expert, Projections(gate, up, arch.bias(layer, f"{shared}up"), down), function)


def _made(
    arch: Architecture,
    layer: int,
    expert: int | str | None,
    stored: Projections,
    function: Callable[[Tensor], Tensor],
) -> Mlp:
    up, down = wide(stored.up.detach()), wide(stored.down.detach())
    before, after = (norm_of(arch, layer, role, stored.down) for role in ("mlp_norm", "mlp_write"))
    down = down * after.scale[:, None] * arch.scale(layer, "mlp_write")
    folds = before.folds & after.folds
    if stored.gate is not None:
        first, second = before.folded(stored.gate), before.folded(up)
        return Mlp(layer, expert, first, second, down, before.centred, folds)
    entered = up @ before.bias + (0 if stored.bias is None else wide(stored.bias.detach()))
    with torch.enable_grad():
        entered = entered.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(entered).sum(), entered)
    return Mlp(layer, expert, slope[:, None] * before.folded(up), None, down, before.centred, folds)


def screened(mlps: Iterable[Mlp]) -> Iterator[Screened]:
    """Each of them, held one at a time."""
    waiting = map(screen, mlps)
    while some := [*islice(waiting, AT_ONCE)]:
        here = OnDevice()
        for i, found in enumerate(some):
            for name, value in found.values.items():
                here.keep((i, name), value)
        taken = here.take()
        for i, found in enumerate(some):
            values = {name: taken[i, name] for name in found.values}
            yield Screened(found.layer, found.expert, found.gated, **values)


@dataclass(frozen=True)
class Found:
    """A Screened whose arrays are still on the model's device."""

    layer: int
    expert: int | str | None
    gated: bool
    values: dict[str, Tensor]


def screen(mlp: Mlp) -> Found:
    """Costs about 5 x width^2 x hidden multiplications of a gated MLP."""
    down, first, second = mlp.down, mlp.first, mlp.second
    norms = (down @ first).square().sum(1).sqrt() if second is None else quadratic_norms(mlp)
    dims = norms.topk(min(DIMS, len(norms))).indices
    rows = down.index_select(0, dims)
    if second is None:
        values = norms.index_select(0, dims)
        directions = rows @ first / _nonzero(values)[:, None]
        given = rows * (directions @ first.T)
    else:

        def form(v: Tensor) -> Tensor:  # (dims, hidden)
            return (rows * (v @ second.T) @ first + rows * (v @ first.T) @ second) / 2

        every, vectors = largest_eigen(form, (len(dims), len(norms)), down)
        values, directions = every[:, 0], vectors[:, :, 0]
        given = rows * (directions @ first.T) * (directions @ second.T)
    shares = (given / _nonzero(values)[:, None]).topk(min(NEURONS, down.shape[1]))
    strongest = shares.indices[:, :1]
    opens = _signs((directions @ first.T).gather(1, strongest))
    if second is None:
        values = values * opens[:, 0]  # in the direction in which that neuron opens
    singular, vectors = largest_eigen(lambda v: (v @ down) @ down.T, (1, len(norms)), down)
    left = vectors[0].T
    return Found(
        mlp.layer,
        mlp.expert,
        second is not None,
        {
            "centred": mlp.centred,
            "folds": mlp.folds,
            "norms": norms,
            "dims": dims,
            "values": values,
            "directions": directions * opens,
            "neurons": shares.indices,
            "shares": shares.values,
            "singular": singular[0].clamp_min(0).sqrt(),
            "left": left,
            "right": (left @ down).abs().argmax(1),
        },
    )


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values == 0, 1, values)


def _signs(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1, 1).to(values)


def quadratic_norms(mlp: Mlp) -> Tensor:
    """(hidden,) Frobenius norm of every S_k, without making any: |S_k|^2 = (|U_k|^2 + tr U_k^2) / 2, and both are sums
    over pairs of neurons."""
    assert mlp.second is not None
    down, first, second = mlp.down, mlp.first, mlp.second
    squares = down.new_zeros(len(down))
    for start in range(0, down.shape[1], BLOCK):
        here, after = slice(start, start + BLOCK), slice(start, None)
        pairs = (first[here] @ first[after].T) * (second[here] @ second[after].T)
        pairs += (first[here] @ second[after].T) * (second[here] @ first[after].T)
        pairs[:, BLOCK:] *= 2  # each pair of two blocks stands for both orders
        squares += ((down[:, after] @ pairs.T) * down[:, here]).sum(1) / 2
    return squares.clamp_min(0).sqrt()


def largest_eigen(apply: Callable[[Tensor], Tensor], shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """(n, m) eigenvalues, the largest |eigenvalue| first, and (n, size, m) eigenvectors of n symmetric matrices, which
    `apply` multiplies with (n, size) vectors: VALUES of each, or size. Nothing is copied to the host."""
    basis, diagonal, beside = _lanczos(apply, shape, like)
    small = torch.diag_embed(diagonal)
    small = small + torch.diag_embed(beside[:, :-1], 1) + torch.diag_embed(beside[:, :-1], -1)
    found = []
    for _value in range(min(VALUES, shape[1])):
        value, vector = _largest(small)
        small = small - value[:, None, None] * vector[:, :, None] * vector[:, None]
        found.append((value, vector))
    values, vectors = zip(*found, strict=True)
    return torch.stack(values, 1), basis @ torch.stack(vectors, 2)


def _largest(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) largest |eigenvalues| and (n, m) eigenvectors of small symmetric matrices: high powers of them, shifted so
    that one end of the spectrum is 0, have the vector of the other end in each column."""
    bound = matrices.abs().sum(2).amax(1)[:, None, None]
    one = torch.eye(matrices.shape[1]).to(matrices)
    ends = []
    for sign in (1, -1):
        power = bound * one + sign * matrices
        for _squaring in range(SQUARINGS):
            power = power / _nonzero(power.abs().amax((1, 2), keepdim=True))
            power = power @ power
        column = power.square().sum(1).argmax(1)
        vector = power.gather(2, column[:, None, None].expand(-1, len(one), 1))[:, :, 0]
        vector = vector / _nonzero(_length(vector))
        ends.append((((matrices @ vector[:, :, None])[:, :, 0] * vector).sum(1), vector))
    (high, above), (low, below) = ends
    is_high = high.abs() >= low.abs()
    return torch.where(is_high, high, low), torch.where(is_high[:, None], above, below)


def _lanczos(apply: Callable[[Tensor], Tensor], shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, size, steps) orthonormal columns, and of the tridiagonal matrix in these, (n, steps) each, its diagonal and
    what is beside it."""
    new = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)
    basis, diagonal, beside = [new / _length(new)], [], []
    largest = torch.zeros_like(new[:, :1])
    for _step in range(min(STEPS, shape[1])):
        new = apply(basis[-1])
        largest = torch.maximum(largest, _length(new))
        diagonal.append((new * basis[-1]).sum(1))
        every = torch.stack(basis, 1)
        for _again in range(2):
            new = new - ((every @ new[:, :, None]) * every).sum(1)
        length = _length(new)
        is_new = length > EXHAUSTED * largest
        beside.append((length * is_new)[:, 0])
        basis.append(torch.where(is_new, new / _nonzero(length), 0))
    return torch.stack(basis[:-1], 2), torch.stack(diagonal, 1), torch.stack(beside, 1)


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(1, keepdim=True).sqrt()
