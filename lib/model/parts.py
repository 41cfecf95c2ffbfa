"""Where the writes of one block come from: back to the projections, and to what these read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lib.model import experts
from lib.model.layer import Layer, Returns
from lib.model.trace import Attention, Block, Call, first_output
from lib.model.writes import ROUNDINGS, Found, Kind, Values, is_sum, path_of

OUTPUTS = 32  # of a projection, that are computed again
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


class Parts:
    """Finds the Layer of one run of a block."""

    def __init__(self, block: Block, known: Iterable[Kind]) -> None:
        self.block, self.values = block, Values(block)
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
        layer = Layer(keep=keep, scales={path_of(found): scale for scale, found in left if scale != 1})
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
        mlps: list[tuple[Layer, Found]] = []
        others: list[str] = []
        for scale, found in left:
            inner = self._with_experts(self._inner(layer, found, stream), found, stream)
            is_last = found is left[-1][1]
            if inner.inner is None or self._is_by_position(found, otherwise=is_last and len(stream) > 1):
                mlps.append((inner, found))
            else:
                others.append(path_of(found))
            stream.append(scale / keep * found.value)
        mlps, beside = self._one_mlp(mlps)
        others += beside
        if len(mlps) == 1:
            layer = mlps[0][0]
        if len(others) == 1 and layer.attention_write is None:
            layer, others = replace(layer, attention_write=others[0]), []
        if len(mlps) > 1:
            layer = replace(layer, inner="several of its modules write as an MLP does")
            others += [path_of(found) for _layer, found in mlps]
        return replace(layer, others=tuple(others))

    def _one_mlp(self, mlps: list[tuple[Layer, Found]]) -> tuple[list[tuple[Layer, Found]], list[str]]:
        """The one with neurons, and the paths of others that read something else; all, where others read the same."""
        known = [mlp for mlp in mlps if mlp[0].inner is None]
        reads = [self._child(self._first_of(found)).taken for _layer, found in mlps]
        if len(known) != 1 or any(same(one, other) for one, other in combinations(reads, 2)):
            return mlps, []
        return known, [path_of(found) for _layer, found in mlps if found is not known[0][1]]

    def _with_experts(self, layer: Layer, write: Found, stream: Sequence[Tensor]) -> Layer:
        """Where the MLP is a mixture, its experts, if their sum is what they give."""
        if layer.inner is None:
            return layer
        mixture = self._first_of(write)
        for call in self.block.calls:
            inside = call.path == mixture.path or call.path.startswith(f"{mixture.path}.")
            if call.given is not None and call.given.ndim == 2 and experts.is_experts(call.module) and inside:
                chosen = experts.chosen(*call.arguments)
                if experts.gives_sum(call.module, chosen, call.given, ROUNDINGS * 16):
                    found = replace(layer, experts=call.path, experts_sum=mixture.path)
                    found = self._with_shared(found, call, mixture, stream)
                    return found if found.experts is None else self._with_neurons(found, call, chosen.hidden, stream)
        return layer

    def _with_neurons(self, layer: Layer, experts_call: Call, taken: Tensor, stream: Sequence[Tensor]) -> Layer:
        """With the experts' neurons, unless something follows before these are added up."""
        if experts_call.module.has_post_expert_norm:
            return replace(layer, inner="a norm follows the down projection of each of its experts")
        if layer.shared_expert is not None and layer.shared is None:
            return replace(layer, inner="those of the shared expert beside its experts are not known")
        function = f"{experts_call.path}.act_fn"
        if any(call.path == function for call in self.block.calls):
            layer = replace(layer, activation=function)
        return self._reading(replace(layer, down=None, transposed=frozenset(), inner=None), taken, stream)

    def _with_shared(self, layer: Layer, experts_call: Call, mixture: Call, stream: Sequence[Tensor]) -> Layer:
        """With the shared expert; without any where the rest of the mixture is not that of one."""
        width = self.values.before.numel()
        values = [x for x in (experts_call.given, mixture.given) if x is not None and x.numel() == width]
        if len(values) < 2:  # experts may work in fewer dims than the residual stream has
            return replace(layer, experts=None, experts_sum=None)
        given, total = (x.cpu().double().view(-1, x.shape[-1]) for x in values)
        bound = ROUNDINGS * self.values.epsilon * (given.abs() + total.abs()).amax()
        rest = total - given
        if (rest.abs() <= bound).all():
            return layer
        inside = [call for call in self.block.calls if call.path.startswith(f"{mixture.path}.")]
        for call in reversed(inside):
            if call is experts_call or call.given is None or call.given.numel() != width:
                continue
            shared = call.given.cpu().double().view(rest.shape)
            by_token = (rest * shared).sum(-1, keepdim=True) / (shared * shared).sum(-1, keepdim=True).clamp_min(1e-30)
            if ((rest - by_token * shared).abs() <= bound).all():
                calls = [other for other in self.block.calls if same(other.given, call.given)]
                parts = self._inner(Layer(), Found(calls, call.given.flatten().cpu().double()), stream)
                known = parts.inner is None and any(other.path == parts.down for other in calls)
                return replace(layer, shared_expert=call.path, shared=parts if known else None)
        return replace(layer, experts=None, experts_sum=None)

    def _is_of(self, write: Found, attention: Attention) -> bool:
        """Whether a write comes from the part of the block that attention is in."""
        projection, _orientation = self._back(write)
        path = (projection or write.calls[-1]).path
        return not attention.path or path.partition(".")[0] == attention.path.partition(".")[0]

    def _attention(self, layer: Layer, write: Found, attention: Attention) -> Layer:
        projection, orientation = self._back(write)
        layer = replace(
            layer,
            attention_module=attention.path,
            attention_write=path_of(write),
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
                written = projection.given.flatten().cpu().double()
                if same(module.given, projection.given):
                    layer = replace(layer, attention_returns=returns)
                elif is_sum(module.given.flatten().cpu().double(), [self.values.before, written], self.values.epsilon):
                    layer = replace(layer, attention_returns=replace(returns, adds=True))
        return layer

    def _back(self, found: Found) -> tuple[Call | None, str]:
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
        return next((call for call in self.block.calls if same(call.given, value)), None)

    def _is_by_position(self, found: Found, otherwise: bool) -> bool:
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
        given = given.view(*call.taken.shape[:2], -1).flip(1).flatten()  # mixtures may give all tokens in a row
        return torch.allclose(given, call.given.flatten(), rtol=1e-3, atol=1e-5)

    def _first_of(self, found: Found) -> Call:
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

    def _inner(self, layer: Layer, write: Found, stream: Sequence[Tensor]) -> Layer:
        """With an MLP's projections, as far as they are found."""
        layer = replace(layer, mlp_write=path_of(write))
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
            entered = next((p for p in first if same(p[2], activation.taken)), None)
            if entered is None:
                continue
            given = cast(Tensor, activation.given)
            if same(given, down.taken):
                return self._first(layer, {"up": entered}, activation, stream)
            for other in first:
                if other[2] is not entered[2] and same(given * other[2].reshape(given.shape), down.taken):
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
        return self._reading(layer, cast(Tensor, roles["up"][0].taken), stream)

    def _reading(self, layer: Layer, taken: Tensor, stream: Sequence[Tensor]) -> Layer:
        """With the norm through which an MLP that takes this reads the residual stream."""
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
        flat, expected = (value.flatten().cpu().double() for value in (one, other))
        return len(flat) == len(expected) and is_sum(expected, [flat], CLOSE * self.values.epsilon)

    def _is_stream(self, value: Tensor | None, stream: Sequence[Tensor]) -> bool:
        if value is None or value.numel() != self.values.before.numel():
            return False
        flat = value.flatten().cpu().double()
        return any(is_sum(flat, parts, self.values.epsilon) for parts in (stream, stream[:1]))


def is_projection(call: Call) -> str | None:
    """ "out, in" or "in, out", as the weight is; None if this is no product with a weight.

    A sum of n terms is rounded n times in float32 at least, by chance up or down: one large term, as a massive
    activation is, makes each of these errors as large (Higham 1993).
    """
    if not has_matrix(call.module) or call.taken is None or call.given is None:
        return None
    if call.replaced:
        return "in, out" if isinstance(call.module, Conv1D) else "out, in"
    with align_module_device(call.module):
        weight, bias = weight_of(call.module), getattr(call.module, "bias", None)
        taken, dtype = _exact(call.taken.flatten(0, -2)), call.given.dtype
        some = torch.linspace(0, call.given.shape[-1] - 1, OUTPUTS, device=weight.device).long()
        given = _exact(call.given.flatten(0, -2)[:, some.to(call.given.device)])
        added = 0 if bias is None else _exact(bias.detach()[some])
        steps = taken.shape[-1] ** 0.5 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        for name, matrix in (("out, in", weight), ("in, out", weight.T)):
            if matrix.shape != (call.given.shape[-1], call.taken.shape[-1]):
                continue
            rows = _exact(matrix.detach()[some]).T
            bound = (ROUNDINGS * torch.finfo(dtype).eps + steps) * (taken.abs() @ rows.abs() + given.abs())
            if ((taken @ rows + added - given).abs() <= bound).all():
                return name
    return None


def _exact(value: Tensor) -> Tensor:
    """On the host, in float64."""
    return value.cpu().double()


def weight_of(module: torch.nn.Module) -> Tensor:
    return cast(Tensor, module.weight)


def has_matrix(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return (
        one is not None
        and other is not None
        and one.numel() == other.numel()
        and torch.equal(one.flatten(), other.flatten().to(one.device))
    )


def _is_map(value: Any, n_heads: int) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 3 and value.shape[-3] % n_heads == 0


def _halves(width: int) -> list[slice]:
    return [slice(0, width), slice(width, 2 * width), slice(0, None, 2), slice(1, None, 2)]
