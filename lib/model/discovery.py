"""Where a model keeps its parts, found by running it on a few tokens: no names, no list of architectures.

A block's output is its input plus what its modules write into the residual stream. So: keep what every module in a
block takes and gives, look for the one, two or three outputs whose sum is the difference, and go back from each to the
projection it comes from and to what that projection reads. All is compared element by element, within the rounding of
the dtype; what does not hold is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softmax
from torch.overrides import TorchFunctionMode

from lib.run.errors import UserError

TOKENS = 2, 11  # sequences, and a length that is no number of heads or experts
ROUNDINGS = 4  # of each term of a sum
SUM_OF = 3  # writes of a block, at most
SAME_SCALE = 1e-3  # a fitted scale and the number of the configuration that it is
BACK = 3  # modules between a projection and the residual stream, at most
FUNCTIONS = (scaled_dot_product_attention, softmax, torch.softmax, Tensor.softmax)


@dataclass(frozen=True)
class Layer:
    """Where one block keeps its parts: paths of modules in the block, None for what it does not have."""

    attention_module: str | None = None
    """The module that computes attention."""
    n_heads: int = 0
    head_projection: str | None = None
    """Attention's output projection; its input is the heads' outputs side by side."""
    attention_write: str | None = None
    """The module whose output attention adds to the residual stream: that projection, or a norm after it."""
    attention_returns: Returns | None = None
    """What the attention module gives, where it is the projection's output, alone or with the residual stream."""
    mixers: tuple[str, ...] = ()
    """What else mixes tokens and writes into the residual stream: a state space, a recurrence, linear attention."""
    mlp_write: str | None = None
    """The module whose output the MLP adds to the residual stream: the down projection, a norm after it, or experts."""
    down: str | None = None
    """Last projection of the MLP; its input is the activation of every neuron."""
    up: str | None = None
    """First projection of the MLP (of a gated MLP: the one without the activation function)."""
    gate: str | None = None
    """Projection that enters the activation function in a gated MLP; None in a plain one."""
    activation: str | None = None
    """The MLP's activation function."""
    mlp_norm: str | None = None
    """The norm before the MLP, whose input is the residual stream; None where the MLP reads that itself."""
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


@dataclass
class _Call:
    """One module's run: the tensor it took, and the one it gave."""

    path: str
    module: torch.nn.Module
    taken: Tensor | None
    given: Tensor | None = None
    raw: Any = None


@dataclass
class _Attention:
    """One call of attention: the innermost module around it, its heads, and how many modules had ended before."""

    path: str
    n_heads: int
    before: int


@dataclass
class _Block:
    """One run of a block."""

    module: torch.nn.Module
    calls: list[_Call] = field(default_factory=list)  # in the order of their ends
    attention: list[_Attention] = field(default_factory=list)
    taken: Tensor | None = None
    given: Tensor | None = None
    runs: int = 0


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a module takes: the first tensor of numbers among its arguments."""
    values = (*args, *([kwargs["hidden_states"]] if "hidden_states" in kwargs else []), *kwargs.values())
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def first_output(output: Any) -> Tensor | None:
    """What a module gives: of several values the first."""
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


class _Recorder(TorchFunctionMode):
    """Keeps what the modules of blocks take and give, and where attention is called; `done` gets each block's run."""

    def __init__(self, done: Callable[[tuple[str, int], _Block], None]) -> None:
        super().__init__()
        self.done = done
        self.open: list[tuple[_Block, str]] = []  # modules that run, the innermost last

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if self.open and function in FUNCTIONS:
            n_heads = _heads(args[0] if args else next(iter(kwargs.values())), output)
            if n_heads:
                block, path = self.open[-1]
                block.attention.append(_Attention(path, n_heads, len(block.calls)))
        return output

    @contextmanager
    def watching(self, blocks: dict[tuple[str, int], torch.nn.Module]) -> Iterator[None]:
        with ExitStack() as stack:
            for key, module in blocks.items():
                for path, part in module.named_modules():
                    stack.enter_context(self._watched(key, module, path, part))
            stack.enter_context(self)
            yield

    @contextmanager
    def _watched(self, key: tuple[str, int], block: torch.nn.Module, path: str, part: torch.nn.Module) -> Iterator[None]:
        started: list[_Call] = []

        def enter(_module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            taken = first_tensor(args, kwargs)
            started.append(_Call(path, part, None if taken is None else taken.clone()))
            run = self.open[-1][0] if self.open and path else _Block(block)
            self.open.append((run, path))

        def leave(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            if not started:
                return
            call, (run, _path) = started.pop(), self.open.pop()
            given = first_output(output)
            call.given, call.raw = None if given is None else given.clone(), output
            if path:
                run.calls.append(call)
            else:
                run.taken, run.given = call.taken, call.given
                self.done(key, run)

        handles = [
            part.register_forward_pre_hook(enter, with_kwargs=True),
            part.register_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _heads(first: Tensor, output: Tensor) -> int:
    """Of attention's first argument, a query or logits, or 0: not attention, but another softmax."""
    length = TOKENS[1]
    if first.ndim == 4 and first.shape[2] == length and (output is not first):
        return first.shape[1]
    if first.ndim == 3 and first.shape[1] == length and first.shape[2] >= length:
        return first.shape[0] // TOKENS[0]
    return 0


@dataclass
class _Found:
    """Outputs of one value: the calls that gave it, the innermost first; in float64."""

    calls: list[_Call]
    value: Tensor


class _Values:
    """A block's run, by value."""

    def __init__(self, block: _Block) -> None:
        assert block.taken is not None
        assert block.given is not None
        self.block = block
        self.epsilon = torch.finfo(block.given.dtype).eps
        self.before, self.after = (x.detach().flatten().double().cpu() for x in (block.taken, block.given))
        self.outputs: list[_Found] = []
        for call in block.calls:
            if call.given is None or call.given.numel() != self.before.numel():
                continue
            value = call.given.detach().flatten().double().cpu()
            if torch.equal(value, self.before):
                continue
            same = next((found for found in self.outputs if torch.equal(found.value, value)), None)
            if same is None:
                self.outputs.append(_Found([call], value))
            else:
                same.calls.append(call)

    def is_sum(self, total: Tensor, parts: Iterable[Tensor]) -> bool:
        """Whether `total` is that of the parts within their roundings."""
        parts = list(parts)
        for some in (slice(0, 64), slice(None)):
            total_here = total[some]
            here = [part[some] for part in parts]
            bound = total_here.abs() + sum(part.abs() for part in here)
            if not ((total_here - sum(here)).abs() <= ROUNDINGS * self.epsilon * bound).all():
                return False
        return True

    def writes(self, known: Iterable[tuple[tuple[str, float], ...]]) -> tuple[tuple[float, _Found], ...] | None:
        """((scale, output), ...) whose sum is what the block adds; None if there are none."""
        for kind in known:
            by_path = {found.calls[0].path: found for found in self.outputs}
            if all(path in by_path for path, _scale in kind):
                chosen = tuple((scale, by_path[path]) for path, scale in kind)
                if self.is_sum(self.after, [self.before, *(scale * found.value for scale, found in chosen)]):
                    return chosen
        for n in range(1, SUM_OF + 1):
            for some in combinations(self.outputs, n):
                if self.is_sum(self.after, [self.before, *(found.value for found in some)]):
                    return tuple((1.0, found) for found in some)
        for n in range(1, SUM_OF + 1):
            for some in combinations(self.outputs, n):
                scales = self._scales([found.value for found in some])
                parts = [scale * found.value for scale, found in zip(scales, some, strict=True)]
                if all(scales) and self.is_sum(self.after, [self.before, *parts]):
                    return tuple(zip(scales, some, strict=True))
        return None

    def _scales(self, parts: list[Tensor]) -> list[float]:
        """By least squares; the numbers that the block keeps, where they are these."""
        matrix = torch.stack(parts, dim=1)
        fitted = torch.linalg.lstsq(matrix, (self.after - self.before)[:, None]).solution[:, 0].tolist()
        own = [1.0, *(value for value in vars(self.block.module).values() if isinstance(value, float))]
        nearest = [min(own, key=lambda value: abs(value - scale)) for scale in fitted]  # noqa: B023
        return [
            near if abs(near - scale) <= SAME_SCALE * abs(scale) else scale
            for near, scale in zip(nearest, fitted, strict=True)
        ]


def is_projection(call: _Call) -> str | None:
    """ "out, in" or "in, out", as the weight is; None if this is no product with a weight."""
    weight = getattr(call.module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or call.taken is None or call.given is None:
        return None
    with align_module_device(call.module):
        weight, bias = call.module.weight.detach().double(), getattr(call.module, "bias", None)
        taken, given = call.taken.double().to(weight.device), call.given.double().to(weight.device)
        for name, matrix in (("out, in", weight), ("in, out", weight.T)):
            if matrix.shape != (given.shape[-1], taken.shape[-1]):
                continue
            size = taken.abs() @ matrix.abs().T
            error = (taken @ matrix.T + (0 if bias is None else bias.detach().double()) - given).abs()
            if (error <= ROUNDINGS * torch.finfo(call.given.dtype).eps * (size + given.abs())).all():
                return name
    return None


class _Parts:
    """Finds the Layer of one run of a block, or says in `why` what does not hold."""

    def __init__(self, block: _Block, known: Iterable[tuple[tuple[str, float], ...]]) -> None:
        self.block, self.values = block, _Values(block)
        self.writes = self.values.writes(known)

    def layer(self) -> Layer | str:
        """Or what does not hold."""
        if self.writes is None:
            return "its output is not its input plus what its modules give"
        order = {id(call): i for i, call in enumerate(self.block.calls)}
        left = sorted(self.writes, key=lambda write: order[id(write[1].calls[0])])
        layer = Layer(scales={found.calls[0].path: scale for scale, found in left if scale != 1})
        attention = next(
            (
                (write, call)
                for write in left
                for call in reversed(self.block.attention)
                if call.before <= order[id(write[1].calls[0])]
            ),
            None,
        )
        stream = [self.values.before]
        if attention is not None:
            write, call = attention
            left.remove(write)
            stream.append(write[0] * write[1].value)
            layer = self._attention(layer, write[1], call)
        mixers = []
        for scale, found in left:
            inner = self._inner(layer, found, stream)
            if inner is not None:
                layer = inner
            elif (scale, found) == left[-1] and (len(stream) > 1 or self._is_by_position(found)):
                layer = replace(layer, mlp_write=found.calls[0].path, inner="not known")
            else:
                mixers.append(found.calls[0].path)
            stream.append(scale * found.value)
        return replace(layer, mixers=tuple(mixers))

    def _attention(self, layer: Layer, write: _Found, attention: _Attention) -> Layer:
        projection, orientation = self._back(write)
        layer = replace(
            layer,
            attention_module=attention.path,
            attention_write=write.calls[0].path,
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
                elif self.values.is_sum(module.given.flatten().double().cpu(), [self.values.before, written]):
                    layer = replace(layer, attention_returns=replace(returns, adds=True))
        return layer

    def _back(self, found: _Found) -> tuple[_Call | None, str]:
        """The projection behind a write: its own module, or one before a norm."""
        call: _Call | None = found.calls[0]
        for _step in range(BACK):
            if call is None:
                break
            orientation = is_projection(call)
            if orientation:
                return call, orientation
            call = self._giver(call.taken)
        return None, ""

    def _giver(self, value: Tensor | None) -> _Call | None:
        """The innermost call that gave this value."""
        return next((call for call in self.block.calls if _same(call.given, value)), None)

    def _is_by_position(self, found: _Found) -> bool:
        """Whether the module of the block that gives this does the same to the tokens in any order."""
        path = found.calls[-1].path.partition(".")[0]
        call = next(call for call in self.block.calls if call.path == path)
        if call.taken is None or call.taken.ndim != 3 or call.given is None:
            return False
        try:
            given = first_output(call.module(call.taken.flip(1)))
        except Exception:  # it wants more than the stream
            return False
        return given is not None and torch.allclose(
            given.flip(1).flatten(), call.given.flatten(), rtol=1e-3, atol=1e-5
        )

    def _inner(self, layer: Layer, write: _Found, stream: Sequence[Tensor]) -> Layer | None:
        """With an MLP's projections; None where this is none."""
        down, orientation = self._back(write)
        if down is None or down.taken is None:
            return None
        layer = replace(layer, mlp_write=write.calls[0].path, down=down.path)
        if orientation == "in, out":
            layer = replace(layer, transposed=layer.transposed | {"down"})
        width = down.taken.shape[-1]
        earlier = self.block.calls[: self.block.calls.index(down)]
        first: list[tuple[_Call, slice, Tensor, str]] = []  # projections' outputs, whole or in two
        others: list[_Call] = []  # what may be an activation function
        for call in earlier:
            if call.given is None or call.taken is None or call.given.shape[:-1].numel() != down.taken.shape[:-1].numel():
                continue
            if call.given.shape[-1] in (width, 2 * width) and call.module is not down.module:
                orientation = is_projection(call) if _has_matrix(call.module) else None
                if orientation:
                    n = call.given.shape[-1]
                    parts = [slice(None)] if n == width else _halves(width)
                    first += [(call, part, call.given[..., part], orientation) for part in parts]
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
        return replace(layer, inner="the input of its down projection is no activation of a projection's output")

    def _first(
        self,
        layer: Layer,
        roles: dict[str, tuple[_Call, slice, Tensor, str]],
        activation: _Call,
        stream: Sequence[Tensor],
    ) -> Layer:
        """With what is before the down projection."""
        layer = replace(
            layer,
            activation=activation.path,
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

    def _is_stream(self, value: Tensor | None, stream: Sequence[Tensor]) -> bool:
        if value is None or value.numel() != self.values.before.numel():
            return False
        flat = value.flatten().double().cpu()
        return self.values.is_sum(flat, stream) or self.values.is_sum(flat, stream[:1])


def _is_map(value: Any, n_heads: int) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 3 and value.shape[-3] % n_heads == 0


def _halves(width: int) -> list[slice]:
    return [slice(0, width), slice(width, 2 * width), slice(0, None, 2), slice(1, None, 2)]


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
    """A model's blocks: the path of their list in the base model, and the Layer of each."""

    blocks: str
    layers: list[Layer]


def discover(model: torch.nn.Module, vocabulary: int) -> Found:
    """The blocks of `model.base_model`, by one pass of a few tokens.

    Raises UserError: no list of blocks, or a block whose writes are not found.
    """
    base = cast(torch.nn.Module, model.base_model)
    lists = {
        path: module
        for path, module in base.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module)
    }
    outer = {path: of for path, of in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    layers: dict[tuple[str, int], Layer | str] = {}
    ends: dict[tuple[str, int], tuple[Tensor | None, Tensor | None]] = {}
    kinds: dict[tuple[tuple[str, float], ...], None] = {}

    def done(key: tuple[str, int], block: _Block) -> None:
        if key in layers:
            layers[key] = "it runs more than once"
            return
        ends[key] = block.taken, block.given
        if block.taken is None or block.given is None or block.taken.shape != block.given.shape:
            layers[key] = "it takes or gives no residual stream"
            return
        parts = _Parts(block, kinds)
        if parts.writes is not None:
            kinds[tuple((found.calls[0].path, scale) for scale, found in parts.writes)] = None
        layers[key] = parts.layer()

    blocks = {(path, i): block for path, of in outer.items() for i, block in enumerate(of)}
    length = min(TOKENS[1], vocabulary)
    ids = torch.randint(vocabulary, (TOKENS[0], length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), _Recorder(done).watching(blocks):
        base(input_ids=ids.to(model.device), use_cache=False)
    chains = [path for path, of in outer.items() if _chained([ends.get((path, i)) for i in range(len(of))])]
    if not chains:
        raise UserError("no list of blocks, each of which takes what the one before gives")
    path = max(chains, key=lambda path: sum(p.numel() for p in outer[path].parameters()))
    found: list[Layer] = []
    for i in range(len(outer[path])):
        layer = layers[path, i]
        if isinstance(layer, str):
            raise UserError(f"layer {i}: {layer}")
        found.append(layer)
    return Found(path, found)


def _chained(ends: Sequence[tuple[Tensor | None, Tensor | None] | None]) -> bool:
    if not all(end is not None and end[0] is not None and end[1] is not None for end in ends):
        return False
    pairs = zip(ends[:-1], ends[1:], strict=True)
    return all(_same(cast(tuple, one)[1], cast(tuple, other)[0]) for one, other in pairs)
