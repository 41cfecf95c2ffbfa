"""What is changed: single parameters behind the sink, and as much elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from experiments.sink_circuit.results import (
    EPES,
    FIRST_POSITION,
    FIRST_TOKEN,
    KEY_COLUMNS,
    MLPS,
    POSITIONS,
    QUERY_BIAS,
    RAW,
)
from lib.model import edits, hooks, queries
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.model.queries import Projection
from lib.run.errors import UserError

COLUMNS = 3  # of the key projections
LEAST = 3  # tokens in a window
LABELS = {
    QUERY_BIAS: "query bias zero in all layers",
    FIRST_POSITION: "position 0 gets position 1's embedding",
    EPES: "EPEs of 0 and 1 swapped after block 0",
    RAW: "raw embeddings of 0 and 1 swapped there",
    FIRST_TOKEN: "first token's embedding zero",
    MLPS: "no MLPs",
    POSITIONS: "no position embeddings",
    KEY_COLUMNS: f"keys without EPE 0's {COLUMNS} largest dims",
}


Split = tuple[dict[int, Projection], dict[int, Projection]] | str
Apply = Callable[[Architecture, int], AbstractContextManager[object]]  # of the number of windows


@dataclass(frozen=True)
class Change:
    """A change for lib.core.versions."""

    name: str
    label: str
    apply: Apply
    first_layer = 0

    def hooks(self, arch: Architecture, rows: slice) -> AbstractContextManager[object]:
        return self.apply(arch, rows.stop - rows.start)


@dataclass(frozen=True)
class Pair:
    """An edit and its control."""

    edit: Change
    control: Change


@dataclass(frozen=True, eq=False)
class Positions:
    """(seq, hidden) float32: the position embeddings, and the same as block 0's MLP makes them (EPE): what block 0
    gives for them alone, its attention off."""

    raw: Tensor
    epe: Tensor


@dataclass(frozen=True, eq=False)
class Circuit:
    """What a model has of it, or why not. queries, keys: the projections of every layer with attention; biases: of its
    queries, {layer: (outputs,)}; dims, random_dims: the largest of EPE 0, and as many others.

    additive: whether queries are sums of what their biases and the rest give.
    """

    queries: dict[int, Projection] | str
    keys: dict[int, Projection] | str
    biases: dict[int, Tensor] | str
    positions: Positions | str
    dims: list[int] | None
    random_dims: list[int] | None
    additive: bool

    def split(self) -> Split:
        """The projections of queries and keys; or why what query biases give of logits is not told apart."""
        if isinstance(self.queries, str) or isinstance(self.biases, str):
            return str(self.biases)
        if isinstance(self.keys, str):
            return self.keys
        return (self.queries, self.keys) if self.additive else "a norm follows the projection of its queries"


def find(lm: LanguageModel, seqlen: int, seed: int) -> Circuit:
    found = queries.find(lm)

    def known(part: str, word: str) -> dict[int, Projection] | str:
        every = {layer: getattr(of_layer, part) for layer, of_layer in found.items()}
        why = (f"layer {layer}: its {word} {value}" for layer, value in every.items() if isinstance(value, str))
        return next(why, every)

    projections = known("query", "queries")
    positions = _positions(lm, seqlen)
    dims = random_dims = None
    if isinstance(positions, Positions):
        order = positions.epe[0].abs().argsort(descending=True).tolist()
        dims, others = sorted(order[:COLUMNS]), sorted(order[COLUMNS:])
        random_dims = sorted(np.random.default_rng(seed).choice(others, COLUMNS, replace=False).tolist())
    return Circuit(
        queries=projections,
        keys=known("key", "keys"),
        biases=projections
        if isinstance(projections, str)
        else queries.biases_of(lm.arch, projections) or "its queries have no bias",
        positions=positions,
        dims=dims,
        random_dims=random_dims,
        additive=all(of_layer.additive for of_layer in found.values()),
    )


def _positions(lm: LanguageModel, seqlen: int) -> Positions | str:
    """One pass of the position embeddings alone."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda *seen: kept.update({name: seen[-1].clone()})

    def alone(_layer: int, hidden: Tensor) -> Tensor:
        return kept["raw"].to(hidden).expand(hidden.shape)

    try:
        with (
            edits.position_embeddings_changed(lm.arch, keep("raw")),
            hooks.watch_inputs(lm.arch, "block", alone, [0]),
            edits.attention_off(lm.arch, [0]),
            hooks.watch_outputs(lm.arch, "block", keep("epe"), [0]),
            hooks.stop_after(lm.arch, 0),
        ):
            hooks.forward(lm, torch.zeros(1, seqlen, dtype=torch.long))
    except UserError as error:
        return str(error)
    return Positions(kept["raw"][0].float(), kept["epe"][0].float())


def control_positions(seqlen: int) -> tuple[int, int]:
    """Two neighbours in the first half, 5 and 6 if there is room. Raises UserError if there are none."""
    if seqlen < LEAST:
        raise UserError(f"windows must have at least {LEAST} tokens: controls change later positions")
    one = max(1, min(5, seqlen // 2 - 2))
    return one, one + 1


def pairs(lm: LanguageModel, circuit: Circuit, seqlen: int, seed: int) -> dict[str, Pair | str]:
    """Every edit with its control, or why it is not there."""
    one, other = control_positions(seqlen)
    biases, positions, keys = circuit.biases, circuit.positions, circuit.keys
    made: dict[str, Pair | str] = {}

    def add(name: str, edit: Apply, control: Apply, label: str) -> None:
        made[name] = Pair(Change(name, LABELS[name], edit), Change(f"{name}_control", label, control))

    if isinstance(biases, str):
        made[QUERY_BIAS] = biases
    else:
        label = "random vectors of its norm added to it"
        add(QUERY_BIAS, biases_times(circuit, 0.0), biased(circuit, turned(circuit, biases, seed)), label)
    if isinstance(positions, str):
        made |= dict.fromkeys((FIRST_POSITION, EPES, RAW, POSITIONS, KEY_COLUMNS), positions)
    else:
        label = f"position {one} gets position {other}'s embedding"
        add(FIRST_POSITION, embedding_of_next(0), embedding_of_next(one), label)
        for name, vectors, kind in ((EPES, positions.epe, "EPEs"), (RAW, positions.raw, "raw embeddings")):
            label = f"{kind} of {one} and {other} swapped there"
            add(name, directions_swapped(vectors, 0), directions_swapped(vectors, one), label)
        add(POSITIONS, no_positions(0), no_positions(1), "no position embeddings but that of 0")
        if isinstance(keys, str):
            made[KEY_COLUMNS] = keys
        elif any(projection.takes != lm.arch.hidden_size for projection in keys.values()):
            made[KEY_COLUMNS] = "its keys are not made of the residual stream's dims"
        else:
            label = f"keys without {COLUMNS} random dims"
            add(KEY_COLUMNS, no_columns(keys, circuit.dims), no_columns(keys, circuit.random_dims), label)
    add(FIRST_TOKEN, no_token(0), no_token(one), f"token embedding of position {one} zero")
    try:
        mlps = lm.arch.mlps
        add(MLPS, no_mlps(mlps), no_later_mlps(mlps, seqlen), "no MLPs but at position 0")
    except UserError as error:
        made[MLPS] = str(error)
    return {name: made[name] for name in LABELS}


def doses(circuit: Circuit, factors: Sequence[float]) -> dict[str, list[tuple[float, Change]]]:
    """Of what is there, in the order of the factors."""
    applied: dict[str, Callable[[float], Apply]] = {}
    if not isinstance(circuit.biases, str):
        applied[QUERY_BIAS] = partial(biases_times, circuit)
    if not isinstance(circuit.positions, str):
        applied[FIRST_POSITION] = embedding_times
    return {
        name: [(factor, Change(f"{name} times {factor}", "", apply(factor))) for factor in factors]
        for name, apply in applied.items()
    }


def biased(circuit: Circuit, biases: Mapping[int, Tensor]) -> Apply:
    """These as query biases."""
    assert not isinstance(circuit.queries, str)
    projections = circuit.queries
    return lambda arch, _n: queries.biases_replaced(arch, projections, biases)


def biases_times(circuit: Circuit, factor: float) -> Apply:
    assert not isinstance(circuit.biases, str)
    return biased(circuit, {layer: factor * bias for layer, bias in circuit.biases.items()})


def turned(circuit: Circuit, biases: Mapping[int, Tensor], seed: int) -> dict[int, Tensor]:
    """With a random vector added to each head's, as long as that."""
    assert not isinstance(circuit.queries, str)
    generator, made = torch.Generator().manual_seed(seed), {}
    for layer, bias in biases.items():
        heads = bias.float().view(-1, circuit.queries[layer].width)
        drawn = normalize(torch.randn(heads.shape, generator=generator), dim=1).to(heads.device)
        made[layer] = (heads + drawn * heads.norm(dim=1, keepdim=True)).flatten()
    return made


def no_columns(keys: Mapping[int, Projection], dims: list[int] | None) -> Apply:
    """Keys that do not read these dims of what their projection takes."""

    def compute(_layer: int, taken: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(taken.index_fill(-1, torch.tensor(dims, device=taken.device), 0), weight, bias)

    return lambda arch, _n: queries.computed(arch, keys, compute)


def _set(hidden: Tensor, positions: int | slice, value: Tensor | float) -> Tensor:
    changed = hidden.clone()
    changed[:, positions] = value
    return changed


def embedding_of_next(position: int) -> Apply:
    """A position gets the next one's embedding."""
    return lambda arch, _n: edits.position_embeddings_changed(
        arch, lambda embedding: _set(embedding, position, embedding[:, position + 1])
    )


def embedding_times(factor: float) -> Apply:
    """Position 0's embedding times this."""
    return lambda arch, _n: edits.position_embeddings_changed(
        arch, lambda embedding: _set(embedding, 0, factor * embedding[:, 0])
    )


def no_positions(first: int) -> Apply:
    """No position embeddings from this one on."""
    return lambda arch, _n: edits.position_embeddings_changed(
        arch, lambda embedding: _set(embedding, slice(first, None), 0)
    )


def no_token(position: int) -> Apply:
    return lambda arch, _n: edits.embeddings_changed(
        arch.token_embedding, lambda embedding: _set(embedding, position, 0)
    )


def directions_swapped(vectors: Tensor, position: int) -> Apply:
    """What block 0 gives at a position and the next one has along its own vector becomes as much along the other's."""
    pair = slice(position, position + 2)
    units = normalize(vectors[pair], dim=1)

    def swap(_layer: int, hidden: Tensor) -> Tensor:
        here, own = hidden[:, pair].float(), units.to(hidden.device)
        along = (here * own).sum(2, keepdim=True)
        return _set(hidden, pair, here + along * (own.flip(0) - own))

    return lambda arch, _n: hooks.watch_outputs(arch, "block", swap, [0])


def no_mlps(layers: Sequence[int]) -> Apply:
    return lambda arch, _n: edits.mlps_off(arch, layers)


def no_later_mlps(layers: Sequence[int], seqlen: int) -> Apply:
    """Off at all positions but 0."""

    @contextmanager
    def apply(arch: Architecture, n: int) -> Iterator[None]:
        where = (torch.arange(seqlen) > 0).expand(n, -1).contiguous()
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(edits.mlp_off_at(arch, layer, where))
            yield

    return apply
