"""Where a model keeps its parts, found by running it on a few tokens: no names, no list of architectures.

A block's output is its input plus what its modules write into the residual stream. So: keep what every module in a
block takes and gives, look for the one, two or three outputs whose sum is the difference, and go back from each to the
projection it comes from and to what that projection reads. All is compared element by element, within the rounding of
the dtype; what does not hold is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, pairwise
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lib.model import experts
from lib.model.finite import require_finite
from lib.model.trace import Attention, Block, Call, Recorder, first_output, outside
from lib.run.errors import UserError

TOKENS = 2, 7  # sequences, and a length that is no number of heads or experts
ROUNDINGS = 4  # of each term of a sum
SUM_OF = 3  # writes of a block, at most
OUTPUTS = 32  # of a projection, that are computed again
FITTED = 512  # values that a scale is fitted to
SAME = 64  # in units of the last place: what outputs may differ by that should not differ
LEAST_SCALE = 1e-2
SAME_SCALE = 1e-3  # a fitted scale and the number of the configuration that it is
NOT_FINITE = "its output is not finite"
Kind = tuple[str, ...]  # paths
BACK = 3  # modules between a projection and the residual stream, at most


CLOSE = 8  # times ROUNDINGS
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {  # of activation, as code may call them
    "SiLU": functional.silu,
    "GELU": functional.gelu,
    "GELU, tanh": partial(functional.gelu, approximate="tanh"),
    "ReLU": torch.relu,
    "squared ReLU": lambda value: torch.relu(value).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Layer:
    """Where one block keeps its parts: paths of modules in the block, None for what it does not have."""

    attention_module: str | None = None
    """The module that computes attention."""
    n_heads: int = 0
    head_projection: str | None = None
    """Attention's output projection; its input is the heads' outputs side by side."""
    heads: str | None = None
    """Why its heads are not known, where they are not."""
    attention_write: str | None = None
    """The module whose output attention adds to the residual stream: that projection, or a norm after it. In a block
    without attention, that of what mixes tokens in its place: a state space, a recurrence, linear attention."""
    attention_returns: Returns | None = None
    """What the attention module gives, where it is the projection's output, alone or with the residual stream."""
    others: tuple[str, ...] = ()
    """What else writes into the residual stream."""
    mlp_write: str | None = None
    """The module whose output the MLP adds to the residual stream: the down projection, a norm after it, or experts."""
    down: str | None = None
    """Last projection of the MLP; its input is the activation of every neuron."""
    up: str | None = None
    """First projection of the MLP (of a gated MLP: the one without the activation function)."""
    gate: str | None = None
    """Projection that enters the activation function in a gated MLP; None in a plain one."""
    activation: str | None = None
    """The MLP's activation function, where it is a module."""
    function: str | None = None
    """Its name in FUNCTIONS, where it is none."""
    mlp_norm: str | None = None
    """The norm before the MLP, whose input is the residual stream; None where its first projection reads that itself,
    or is not known."""
    keep: float = 1.0
    """What the residual stream is multiplied by before the writes are added."""
    experts: str | None = None
    """The experts of a mixture: a module that lib/model/experts.py knows."""
    experts_sum: str | None = None
    """The module whose output is the sum of the experts and of the shared expert beside them."""
    shared_expert: str | None = None
    """The module of that expert, whose output may be multiplied by a number for each token."""
    scales: dict[str, float] = field(default_factory=dict)
    """What a write is multiplied by before it is added, by its path; 1 where it is not here."""
    slices: dict[str, slice] = field(default_factory=dict)
    """Which part of its module's output a role is, where one projection is two."""
    transposed: frozenset[str] = frozenset()
    """Roles whose weight is (in, out)."""
    inner: str | None = None
    """Why the MLP's neurons are not known, where they are not."""


@dataclass(frozen=True)
class Returns:
    """What an attention module gives. others: how many values beside the first, maps of attention or None; None: it
    gives a tensor. adds: whether the first is the sum with the residual stream."""

    others: int | None
    adds: bool


def is_sum(total: Tensor, parts: Iterable[Tensor], epsilon: float) -> bool:
    """Whether a flat tensor is the sum of others within their roundings."""
    parts = list(parts)
    for some in (slice(0, 64), slice(None)):
        here = [part[some] for part in parts]
        bound = total[some].abs() + sum(part.abs() for part in here)
        if not ((total[some] - sum(here)).abs() <= ROUNDINGS * epsilon * bound).all():
            return False
    return True


@dataclass
class _Found:
    """Outputs of one value: the calls that gave it, the innermost first; in float64."""

    calls: list[Call]
    value: Tensor


@dataclass(frozen=True)
class Writes:
    """keep: what the block's input is multiplied by; outputs: (what it is multiplied by, output) of what it adds."""

    keep: float
    outputs: tuple[tuple[float, _Found], ...]


class _Values:
    """A block's run, by value."""

    def __init__(self, block: Block) -> None:
        assert block.taken is not None
        assert block.given is not None
        self.block = block
        own = (value for module in block.module.modules() for value in vars(module).values())
        self.numbers = [1.0, *dict.fromkeys(value for value in own if isinstance(value, float))]
        self.epsilon = torch.finfo(block.given.dtype).eps
        self.before, self.after = (x.detach().flatten().double().cpu() for x in (block.taken, block.given))
        self.outputs: list[_Found] = []
        self.is_post_norm = False
        for call in block.calls:
            if call.given is None or call.given.numel() != self.before.numel():
                continue
            value = call.given.detach().flatten().double().cpu()
            if torch.equal(value, self.before):
                continue
            self.is_post_norm |= is_norm(call.module) and torch.equal(value, self.after)
            same = next((found for found in self.outputs if torch.equal(found.value, value)), None)
            if same is None:
                self.outputs.append(_Found([call], value))
            else:
                same.calls.append(call)

    def is_block(self, parts: list[Tensor], keep: float = 1.0) -> bool:
        """Whether the block adds the sum of these to its input, multiplied by `keep`."""
        return is_sum(self.after, [keep * self.before, *parts], self.epsilon)

    def writes(self, known: Iterable[Kind]) -> Writes | None:
        """What the block adds; None if it is not found. known: paths of what other blocks add."""
        by_path = {_path(found): found for found in self.outputs}
        for paths in known:
            chosen = tuple(by_path[path] for path in paths if path in by_path)
            if len(chosen) == len(paths) and (writes := self._sum(chosen, fit=False) or self._sum(chosen, fit=True)):
                return writes
        for fit in (False, True):
            if fit and self.is_post_norm:
                break
            for n in range(1, SUM_OF + 1):
                for some in combinations(self.outputs, n):
                    if writes := self._sum(some, fit):
                        return writes
        return None

    def _sum(self, some: tuple[_Found, ...], fit: bool) -> Writes | None:
        """The outputs with what they and the block's input are multiplied by; None if this is not what it gives."""
        values = [found.value for found in some]
        if not fit:
            return Writes(1.0, tuple((1.0, found) for found in some)) if self.is_block(values) else None
        for parts, total in ((values, self.after - self.before), ([*values, self.before], self.after)):
            least = fitted(parts, total)
            for scales in (self._own(least), least):
                keep = scales[len(some)] if len(scales) > len(some) else 1.0
                scaled = [scale * value for scale, value in zip(scales, values, strict=False)]
                if min(map(abs, (*scales, keep))) > LEAST_SCALE and self.is_block(scaled, keep):
                    return Writes(keep, tuple(zip(scales, some, strict=False)))
        return None

    def _own(self, scales: list[float]) -> list[float]:
        """The numbers that the block keeps, where the fitted ones are these."""
        return [
            next((own for own in self.numbers if abs(own - scale) <= SAME_SCALE * abs(own)), scale) for scale in scales
        ]


def fitted(parts: list[Tensor], total: Tensor) -> list[float]:
    """What to multiply `parts` by for the least squares of `total`."""
    some = torch.stack(parts, dim=1)[:FITTED], total[:FITTED, None]
    return torch.linalg.lstsq(*some).solution[:, 0].tolist()


def is_projection(call: Call) -> str | None:
    """ "out, in" or "in, out", as the weight is; None if this is no product with a weight."""
    if not _has_matrix(call.module) or call.taken is None or call.given is None:
        return None
    if call.replaced:
        return "in, out" if isinstance(call.module, Conv1D) else "out, in"
    with align_module_device(call.module):
        weight, bias = weight_of(call.module), getattr(call.module, "bias", None)
        taken = call.taken.flatten(0, -2).double().to(weight.device)
        some = torch.linspace(0, call.given.shape[-1] - 1, OUTPUTS, device=weight.device).long()
        given = call.given.flatten(0, -2).to(weight.device)[:, some].double()
        added = torch.zeros(()) if bias is None else bias.detach()[some].double()
        for name, matrix in (("out, in", weight), ("in, out", weight.T)):
            if matrix.shape != (call.given.shape[-1], call.taken.shape[-1]):
                continue
            rows = matrix.detach()[some].double().T
            bound = taken.abs() @ rows.abs() + given.abs()
            if ((taken @ rows + added - given).abs() <= ROUNDINGS * torch.finfo(call.given.dtype).eps * bound).all():
                return name
    return None


class _Parts:
    """Finds the Layer of one run of a block."""

    def __init__(self, block: Block, known: Iterable[Kind]) -> None:
        self.block, self.values = block, _Values(block)
        self.projections: dict[int, str | None] = {}
        self.writes = self.values.writes(known)

    def layer(self) -> Layer | str:
        """Or what does not hold."""
        if self.writes is None and self.values.is_post_norm:
            return "its output is that of a norm: the residual stream itself is normalised (post-norm)"
        if self.writes is None:
            return "its output is not its input plus what its modules give"
        order = {id(call): i for i, call in enumerate(self.block.calls)}
        left = sorted(self.writes.outputs, key=lambda write: order[id(write[1].calls[0])])
        keep = self.writes.keep
        layer = Layer(keep=keep, scales={_path(found): scale for scale, found in left if scale != 1})
        stream = [self.values.before]  # as the MLP reads it
        for write in left:
            before = [call for call in self.block.attention if call.before <= order[id(write[1].calls[0])]]
            if before and self._is_of(write[1], before[-1]):
                layer = self._attention(layer, write[1], before[-1])
                left.remove(write)
                stream.append(write[0] / keep * write[1].value)
                break
        else:
            if self.block.attention:
                layer = replace(layer, heads="its attention does not write into the residual stream")
        mlps: list[tuple[Layer, _Found]] = []
        others: list[str] = []
        for scale, found in left:
            inner = self._inner(layer, found, stream)
            is_last = found is left[-1][1]
            if inner.inner is None or self._is_by_position(found, otherwise=is_last and len(stream) > 1):
                mlps.append((inner, found))
            else:
                others.append(_path(found))
            stream.append(scale / keep * found.value)
        mlps, beside = self._one_mlp(mlps)
        others += beside
        if len(mlps) == 1:
            layer = self._with_experts(*mlps[0])
        if len(others) == 1 and layer.attention_write is None:
            layer, others = replace(layer, attention_write=others[0]), []
        if len(mlps) > 1:
            layer = replace(layer, inner="several of its modules write as an MLP does")
            others += [_path(found) for _layer, found in mlps]
        return replace(layer, others=tuple(others))

    def _one_mlp(self, mlps: list[tuple[Layer, _Found]]) -> tuple[list[tuple[Layer, _Found]], list[str]]:
        """The one with neurons, and the paths of others that read something else; all, where others read the same."""
        known = [mlp for mlp in mlps if mlp[0].inner is None]
        reads = [self._child(self._first_of(found)).taken for _layer, found in mlps]
        if len(known) != 1 or any(_same(one, other) for one, other in combinations(reads, 2)):
            return mlps, []
        return known, [_path(found) for _layer, found in mlps if found is not known[0][1]]

    def _with_experts(self, layer: Layer, write: _Found) -> Layer:
        """Where the MLP is a mixture, its experts, if their sum is what they give."""
        mixture = self._first_of(write)
        for call in self.block.calls:
            inside = call.path == mixture.path or call.path.startswith(f"{mixture.path}.")
            if call.given is not None and call.given.ndim == 2 and experts.is_experts(call.module) and inside:
                chosen = experts.chosen(*call.arguments)
                if experts.gives_sum(call.module, chosen, call.given, ROUNDINGS * 16):
                    return self._with_shared(replace(layer, experts=call.path, experts_sum=mixture.path), call, mixture)
        return layer

    def _with_shared(self, layer: Layer, experts_call: Call, mixture: Call) -> Layer:
        """With the shared expert; without any where the rest of the mixture is not that of one."""
        width = self.values.before.numel()
        if experts_call.given is None or mixture.given is None or mixture.given.numel() != width:
            return replace(layer, experts=None, experts_sum=None)
        given, total = (x.double().view(-1, x.shape[-1]) for x in (experts_call.given, mixture.given))
        bound = ROUNDINGS * self.values.epsilon * (given.abs() + total.abs()).amax()
        rest = total - given
        if (rest.abs() <= bound).all():
            return layer
        inside = [call for call in self.block.calls if call.path.startswith(f"{mixture.path}.")]
        for call in reversed(inside):
            if call is experts_call or call.given is None or call.given.numel() != width:
                continue
            shared = call.given.double().view(rest.shape)
            by_token = (rest * shared).sum(-1, keepdim=True) / (shared * shared).sum(-1, keepdim=True).clamp_min(1e-30)
            if ((rest - by_token * shared).abs() <= bound).all():
                return replace(layer, shared_expert=call.path)
        return replace(layer, experts=None, experts_sum=None)

    def _is_of(self, write: _Found, attention: Attention) -> bool:
        """Whether a write comes from the part of the block that attention is in."""
        projection, _orientation = self._back(write)
        path = (projection or write.calls[-1]).path
        return not attention.path or path.partition(".")[0] == attention.path.partition(".")[0]

    def _attention(self, layer: Layer, write: _Found, attention: Attention) -> Layer:
        projection, orientation = self._back(write)
        layer = replace(
            layer,
            attention_module=attention.path,
            attention_write=_path(write),
            n_heads=attention.n_heads,
        )
        if projection is None:
            return layer
        layer = replace(layer, head_projection=projection.path)
        if orientation == "in, out":
            layer = replace(layer, transposed=layer.transposed | {"head_projection"})
        module = next((call for call in self.block.calls if call.path == attention.path), None)
        assert projection.given is not None
        if module is not None and module.given is not None and projection.path.startswith(f"{attention.path}."):
            others = module.raw[1:] if isinstance(module.raw, tuple) else None
            if all(other is None or _is_map(other, attention.n_heads) for other in others or ()):
                returns = Returns(None if others is None else len(others), adds=False)
                written = projection.given.flatten().double().cpu()
                if _same(module.given, projection.given):
                    layer = replace(layer, attention_returns=returns)
                elif is_sum(module.given.flatten().double().cpu(), [self.values.before, written], self.values.epsilon):
                    layer = replace(layer, attention_returns=replace(returns, adds=True))
        return layer

    def _back(self, found: _Found) -> tuple[Call | None, str]:
        """The projection behind a write: its own module, or one before a norm."""
        call: Call | None = found.calls[0]
        for _step in range(BACK):
            if call is None:
                break
            orientation = self._projection(call)
            if orientation:
                return call, orientation
            call = self._giver(call.taken)
        return None, ""

    def _projection(self, call: Call) -> str | None:
        if id(call) not in self.projections:
            self.projections[id(call)] = is_projection(call)
        return self.projections[id(call)]

    def _giver(self, value: Tensor | None) -> Call | None:
        """The innermost call that gave this value."""
        return next((call for call in self.block.calls if _same(call.given, value)), None)

    def _is_by_position(self, found: _Found, otherwise: bool) -> bool:
        """Whether the module of the block that gives this does the same to the tokens in any order; `otherwise`: where
        it wants more than the stream."""
        call = self._child(self._first_of(found))
        if call.taken is None or call.taken.ndim != 3 or call.given is None:
            return otherwise
        try:
            given = first_output(call.module(call.taken.flip(1)))
        except Exception:
            return otherwise
        if given is None or given.numel() != call.given.numel():
            return otherwise
        given = given.view(call.given.shape).flip(1).flatten()
        return torch.allclose(given, call.given.flatten(), rtol=1e-3, atol=1e-5)

    def _first_of(self, found: _Found) -> Call:
        """What gives a write before the norms that may follow."""
        call = found.calls[-1]
        for _step in range(BACK):
            child = self._child(call)
            before = self._giver(child.taken)
            if before is None or any(True for _ in child.module.children()):
                break
            call = before
        return call

    def _child(self, call: Call) -> Call:
        """The block's own module that this one is in."""
        path = call.path.partition(".")[0]
        return next(call for call in self.block.calls if call.path == path)

    def _inner(self, layer: Layer, write: _Found, stream: Sequence[Tensor]) -> Layer:
        """With an MLP's projections, as far as they are found."""
        layer = replace(layer, mlp_write=_path(write))
        down, orientation = self._back(write)
        if down is None or down.taken is None:
            return replace(layer, inner="no projection gives what its MLP writes, as in a mixture of experts")
        layer = replace(layer, down=down.path)
        if orientation == "in, out":
            layer = replace(layer, transposed=layer.transposed | {"down"})
        width = down.taken.shape[-1]
        earlier = self.block.calls[: self.block.calls.index(down)]
        first: list[tuple[Call, slice, Tensor, str]] = []  # projections' outputs, whole or in two
        others: list[Call] = []  # what may be an activation function
        n_tokens = down.taken.shape[:-1].numel()
        for call in earlier:
            if call.given is None or call.taken is None or call.given.shape[:-1].numel() != n_tokens:
                continue
            n = call.given.shape[-1]
            if n in (width, 2 * width) and call.module is not down.module:
                stored = self._projection(call)
                if stored:
                    parts = [slice(None)] if n == width else _halves(width)
                    first += [(call, part, call.given[..., part], stored) for part in parts]
                elif call.given.shape[-1] == width and call.taken.shape[-1] == width:
                    others.append(call)
        for activation in others:
            entered = next((p for p in first if _same(p[2], activation.taken)), None)
            if entered is None:
                continue
            given = cast(Tensor, activation.given)
            if _same(given, down.taken):
                return self._first(layer, {"up": entered}, activation, stream)
            for other in first:
                if other[2] is not entered[2] and _same(given * other[2].reshape(given.shape), down.taken):
                    return self._first(layer, {"gate": entered, "up": other}, activation, stream)
        for name, function in FUNCTIONS.items():
            for entered in first:
                given = function(entered[2])
                if self._close(given, down.taken):
                    return self._first(layer, {"up": entered}, name, stream)
                for other in first:
                    if other is not entered and self._close(given * other[2].reshape(given.shape), down.taken):
                        return self._first(layer, {"gate": entered, "up": other}, name, stream)
        return replace(layer, inner="the input of its down projection is no activation of a projection's output")

    def _first(
        self,
        layer: Layer,
        roles: dict[str, tuple[Call, slice, Tensor, str]],
        activation: Call | str,
        stream: Sequence[Tensor],
    ) -> Layer:
        """With what is before the down projection."""
        layer = replace(
            layer,
            activation=None if isinstance(activation, str) else activation.path,
            function=activation if isinstance(activation, str) else None,
            up=roles["up"][0].path,
            gate=roles["gate"][0].path if "gate" in roles else None,
            slices={role: part for role, (_call, part, _value, _o) in roles.items() if part != slice(None)},
            transposed=layer.transposed | {role for role, found in roles.items() if found[3] == "in, out"},
        )
        taken = cast(Tensor, roles["up"][0].taken)
        if self._is_stream(taken, stream):
            return layer
        norm = self._giver(taken)
        while norm is not None and not self._is_stream(norm.taken, stream):
            norm = self._giver(norm.taken)
        if norm is None:
            return replace(layer, inner="what its first projection reads is no norm of the residual stream")
        return replace(layer, mlp_norm=norm.path)

    def _close(self, one: Tensor, other: Tensor) -> bool:
        """Within a few roundings; functions may be computed in several ways."""
        flat, expected = (value.flatten().double().cpu() for value in (one, other))
        return len(flat) == len(expected) and is_sum(expected, [flat], CLOSE * self.values.epsilon)

    def _is_stream(self, value: Tensor | None, stream: Sequence[Tensor]) -> bool:
        if value is None or value.numel() != self.values.before.numel():
            return False
        flat = value.flatten().double().cpu()
        return any(is_sum(flat, parts, self.values.epsilon) for parts in (stream, stream[:1]))


def is_norm(module: torch.nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _path(found: _Found) -> str:
    """Of the innermost module that gives this in the shape of the residual stream."""
    whole = (call for call in found.calls if call.given is not None and call.given.ndim == 3)
    return next(whole, found.calls[0]).path


def _is_map(value: Any, n_heads: int) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 3 and value.shape[-3] % n_heads == 0


def _halves(width: int) -> list[slice]:
    return [slice(0, width), slice(width, 2 * width), slice(0, None, 2), slice(1, None, 2)]


def weight_of(module: torch.nn.Module) -> Tensor:
    return cast(Tensor, module.weight)


def _has_matrix(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return (
        one is not None
        and other is not None
        and one.numel() == other.numel()
        and torch.equal(one.flatten(), other.flatten().to(one.device))
    )


@dataclass(frozen=True)
class Found:
    """Paths in the base model: blocks: of the list of its blocks; layers: the Layer of each; position_embedding: of the
    learned or fixed vectors that are added to the tokens' before the first block, None where there are none."""

    blocks: str
    layers: list[Layer]
    hidden_size: int
    position_embedding: str | None


def discover(model: PreTrainedModel, longest: int | None) -> Found:
    """The blocks of `model.base_model`, by one pass of a few tokens.

    longest: how many tokens a sequence may have.

    Raises UserError: no list of blocks, or a block whose writes are not found; the model sees ahead, or gives infinite
    values.
    """
    base, length = model.base_model, min(TOKENS[1], longest or TOKENS[1])
    tokens = cast(torch.nn.Embedding, model.get_input_embeddings())
    shape = TOKENS[0], length
    unsupported = f"unsupported architecture '{model.config.model_type}'"
    lists = {
        path: module for path, module in base.named_modules() if isinstance(module, torch.nn.ModuleList) and len(module)
    }
    outer = {path: of for path, of in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    layers: dict[tuple[str, int], Layer | str] = {}
    ends: dict[tuple[str, int], tuple[Tensor | None, Tensor | None]] = {}
    kinds: dict[Kind, None] = {}

    def done(key: tuple[str, int], block: Block) -> None:
        if key in layers:
            layers[key] = "it runs more than once"
            return
        ends[key] = block.taken, block.given
        if block.taken is None or block.given is None or block.taken.shape != block.given.shape:
            layers[key] = "it takes or gives no residual stream"
            return
        if not block.given.isfinite().all():
            layers[key] = NOT_FINITE
            return
        if block.taken.shape[:2] != shape:
            layers[key] = "it runs over something else than the tokens that are given"
            return
        if any(isinstance(layer, str) for (path, _i), layer in layers.items() if path == key[0]):
            layers[key] = "one before it does not hold"
            return
        parts = _Parts(block, kinds)
        if parts.writes is not None:
            kinds[tuple(_path(found) for _scale, found in parts.writes.outputs)] = None
        layers[key] = parts.layer()

    blocks = {(path, i): block for path, of in outer.items() for i, block in enumerate(of)}
    before: dict[str, Tensor] = {}  # what modules outside of blocks give
    ids = torch.randint(len(tokens.weight), shape, generator=torch.Generator().manual_seed(0))
    ids[:, 0] = ids[0, 0]
    device = torch.device("cpu") if model.device.type == "meta" else model.device
    with torch.inference_mode(), Recorder(shape, done).watching(blocks), outside(base, lists, tokens, before):
        base(input_ids=ids.to(device), use_cache=False)
    chains = [path for path, of in outer.items() if _chained([ends.get((path, i)) for i in range(len(of))])]
    if not chains:
        raise UserError(f"{unsupported}: no list of blocks, each of which takes what the one before gives")
    path = max(chains, key=lambda path: sum(p.numel() for p in outer[path].parameters()))
    width = cast(Tensor, ends[path, 0][0]).shape
    also = [other for other in chains if other != path and all(cast(Tensor, x).shape == width for x in ends[other, 0])]
    if also:
        raise UserError(f"{unsupported}: several lists of blocks run: {path}, {', '.join(also)}")
    found: list[Layer] = []
    for i in range(len(outer[path])):
        layer = layers[path, i]
        if layer == NOT_FINITE:
            require_finite(i, cast(Tensor, ends[path, i][1]))
        if isinstance(layer, str):
            raise UserError(f"{unsupported}: layer {i}: {layer}")
        require_causal(i, cast(Tensor, ends[path, i][1]))
        found.append(layer)
    first = cast(Tensor, ends[path, 0][0])
    return Found(path, found, first.shape[-1], _position_embedding(first, before))


def require_causal(layer: int, output: Tensor) -> None:
    """Raise UserError if a block's output at the first token, the same in both sequences, depends on later ones."""
    one, other = output[:2, 0].float()
    if (one - other).abs().max() > SAME * torch.finfo(output.dtype).eps * one.abs().max():
        raise UserError(
            f"the model sees ahead: the output of layer {layer} at the first token depends on later tokens; only "
            "causal models can be measured"
        )


def _position_embedding(first: Tensor, before: dict[str, Tensor]) -> str | None:
    """The module whose output, the same for all sequences, is a part of the sum that enters the first block."""
    entered = first.flatten().double().cpu()
    values = {}
    for path, value in before.items():
        if value.ndim in (2, 3) and value.shape[-2:] == first.shape[-2:]:
            values[path] = value.expand(first.shape).flatten().double().cpu()
    for path, positions in values.items():
        one, other = positions.view(first.shape)
        if not torch.equal(one, other) or torch.equal(one[0], one[1]):
            continue
        for others in (other for n in (1, 2) for other in combinations(values, n)):
            rest = [values[other] for other in others]
            if path in others:
                continue
            for scales in ([1.0] * len(rest), fitted(rest, entered - positions)):
                parts = [scale * part for scale, part in zip(scales, rest, strict=True)]
                if is_sum(entered, [positions, *parts], torch.finfo(first.dtype).eps):
                    return path
    return None


def _chained(ends: Sequence[tuple[Tensor | None, Tensor | None] | None]) -> bool:
    if not all(end is not None and end[0] is not None and end[1] is not None for end in ends):
        return False
    return all(_same(cast(tuple, one)[1], cast(tuple, other)[0]) for one, other in pairwise(ends))
