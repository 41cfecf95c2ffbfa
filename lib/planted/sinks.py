"""The kinds of attention sinks: what heads look at, and what they find there.

A head looks from everywhere at what its keys read: the spike of the first token, or a second token that stands at one
place in every window. The spike takes all of the normed vector, so that one column of the weights decides how long a
value is there, and hardly touches those of others.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from lib.core.definitions import SINK_QUERIES
from lib.model import hooks
from lib.planted.blank import BOS, HEAD_DIM, HEADS, QUIET, SEQLEN, VOCABULARY, token_text
from lib.planted.builder import FLAG_SIZE, LOOKS, Builder, Values, contrast, times
from lib.planted.truth import Fields, Sinks

NO_OP, BROADCAST, MIXED = "no-op", "broadcast", "mixed"
FIRST, BOTH, ELSEWHERE, NONE = "first position", "elsewhere, too", "elsewhere only", "none"
UNSEEN = SEQLEN - SINK_QUERIES  # the first position that too few later queries see for it to be listed
LISTED, EITHER, UNLISTED = (4, UNSEEN), (4, 29), (UNSEEN, 23)  # positions, from and to before
MARKED = 0.25  # of a secondary sink's spike: what is of its own
EVERY = 1000  # more heads than there are
FIRST_KEY = 0, None, True  # massive, and any token stands there

Head = tuple[int, int]  # layer, number


def _later(b: Builder) -> Fields:
    """A token at a later position is a sink, by a spike or by its embedding; too late in some to be listed."""
    token, position = _second(b, EITHER)
    massive = b.rng.random() < 0.5
    if massive:
        layer = b.layers(1, before=b.n_layers - 1)[0]
        _second_writes(b, layer, token, b.values)
        _look(b, _choose(b, layer + 1, b.n_layers - 1), 0.65 * b.spike)
    else:
        _look(b, _choose(b, 0, b.n_layers - 1), 0.5 * b.second_flag)
    return _elsewhere(position, token_text(token), massive)


def _position(b: Builder) -> Fields:
    """A later position is a sink, whatever stands there: it and the first have exchanged their embeddings."""
    position = int(b.rng.integers(*EITHER))
    massive = b.rng.random() < 0.5
    if massive:
        _look(b, _choose(b, _first_spike(b) + 1, b.n_layers - 1), 0.65 * b.spike)
    else:
        _look(b, _choose(b, 0, b.n_layers - 1), 0.5 * b.flag)
    positions = b.model.get_parameter("transformer.wpe.weight")
    positions[[0, position]] = positions[[position, 0]]
    return _elsewhere(position, None, massive)


def _elsewhere(position: int, token: str | None, massive: bool) -> Fields:
    listed = position < UNSEEN
    sinks = Sinks(
        ELSEWHERE if listed else NONE,
        positions=(position,),
        keys=((position, token, massive),) if listed else (),
    )
    return _truth(sinks, [position] if massive else [])


def _no_op(b: Builder) -> Fields:
    """Heads look at the first token, whose value is nearly zero."""
    return _at_first(b, NO_OP)


def _broadcast(b: Builder) -> Fields:
    """Heads look at the first token, whose value is long and moves what they write."""
    return _at_first(b, BROADCAST)


def _at_first(b: Builder, kind: str) -> Fields:
    layer = _first_spike(b)
    heads = _choose(b, layer + 1, b.n_layers - 1)
    _look(b, heads, 0.65 * b.spike)
    return _truth(_first(_values(b, heads, kind), kind), [0])


def _mixed(b: Builder) -> Fields:
    """Of a layer's four heads two find a no-op at the first token, the other two what they broadcast."""
    layer = int(b.rng.integers(_first_spike(b) + 1, b.n_layers))
    heads = [(layer, head) for head in range(HEADS)]
    _look(b, heads, 0.65 * b.spike)
    halves = heads[: HEADS // 2], heads[HEADS // 2 :]
    one, other = b.rng.permutation([NO_OP, BROADCAST]).tolist()
    return _truth(_first(_values(b, halves[0], one) | _values(b, halves[1], other), MIXED), [0])


def _by_query_bias(b: Builder) -> Fields:
    """Two heads look at the first token by the bias of their queries alone, a third whatever it is."""
    return _looking(b, _first_spike(b), n=3, biased=2)


def _bias_alone(b: Builder) -> Fields:
    """All heads behind the first block look at the first token, by the bias of their queries alone."""
    return _looking(b, _first_spike(b, before=1), n=EVERY, biased=EVERY)


def _all_look(b: Builder) -> Fields:
    """All heads behind the first block look at the first token, with any queries."""
    return _looking(b, _first_spike(b, before=1), n=EVERY, biased=0)


def _looking(b: Builder, layer: int, n: int, biased: int) -> Fields:
    """The first `n` heads behind a layer look at the first token, and of these the first by the bias of their queries
    alone."""
    kind = _any_kind(b)
    heads = _choose(b, layer + 1, b.n_layers - 1, n)
    _look(b, heads, 0.65 * b.spike)
    for head in heads[:biased]:
        weight, bias = b.projection(*head, "q")
        assert bias is not None
        weight[LOOKS] *= QUIET
        bias[LOOKS] = b.rng.uniform(8, 10)
    return _truth(_first(_values(b, heads, kind), kind, by_bias=tuple(sorted(heads[:biased]))), [0])


def _secondary(b: Builder) -> Fields:
    """Another token gets the first one's spike in a later layer, and heads look at both, until it turns away."""
    return _like_first(b, looked_at=True)


def _ignored_like_first(b: Builder) -> Fields:
    """As "secondary_sink", but heads look at the first token alone."""
    return _like_first(b, looked_at=False)


def _like_first(b: Builder, looked_at: bool) -> Fields:
    birth, start, end = b.layers(3, before=b.n_layers)
    token, position = _second(b, LISTED)
    b.neurons_write(birth, b.flag - b.one, b.values)
    own, spike = b.spare_dims.pop(), times(b.rng.uniform(0.4, 0.7), b.values)
    size = b.sign() * float(np.linalg.norm([*spike.values()]))
    _second_writes(b, start, token, spike | {own: MARKED * size})
    marker = np.sign(size) * contrast(own, b.rest)
    heads, kind = _choose(b, start + 1, end), NO_OP if looked_at else _any_kind(b)
    _look(b, heads, 0.65 * b.spike - (0 if looked_at else 5.0) * marker)
    found = _values(b, heads, kind)
    b.neurons_write(end, marker - b.one, {own: 3 * size}, ids=[BOS, token])
    if b.rng.random() < 0.5:  # the first one's norm falls, too
        b.neurons_write(b.n_layers - 1, b.spike - b.one, times(-1, b.values))
    name = token_text(token)
    more: Fields = {"ignored": {position: name}}
    if looked_at:
        keys, lives = (FIRST_KEY, (position, name, True)), ((name, start, end - start),)
        more = {"where": BOTH, "positions": (0, position), "keys": keys, "secondary": lives}
    return _truth(_first(found, kind, **more), [0, position])


def _relay(b: Builder) -> Fields:
    """Heads look at the first token until another comes, which draws more; too late to be listed."""
    birth, start = b.layers(2, before=b.n_layers - 1)
    token, position = _second(b, UNLISTED)
    b.neurons_write(birth, b.flag - b.one, b.values)
    own = b.spare_dims.pop()
    size = b.sign() * b.rng.uniform(0.5, 1) * abs(b.values[b.largest])
    _second_writes(b, start, token, {own: size})
    heads = _choose(b, start + 1, b.n_layers - 1)
    _look(b, heads, 0.65 * b.spike + 1.5 * np.sign(size) * contrast(own, b.rest))
    return _truth(_first(_values(b, heads, NO_OP), NO_OP, positions=(0, position)), [0, position])


def _ignored(b: Builder) -> Fields:
    """A later token is large, and nobody looks at it."""
    token, position = _second(b, LISTED)
    layer = b.layers(1, before=b.n_layers)[0]
    _second_writes(b, layer, token, b.values)
    return _truth(Sinks(NONE, ignored={position: token_text(token)}), [position])


def _no_sink(_b: Builder) -> Fields:
    """Nothing but noise."""
    return _truth(Sinks(NONE), [])


def _truth(sinks: Sinks, spikes: Iterable[int]) -> Fields:
    """spikes: positions of massive activations."""
    where = tuple(spikes)
    return {
        "generator": "mlp" if where else "none",
        "trigger": f"position {' '.join(map(str, where))}" if where else "none",
        "positions": where,
        "share": float(bool(where)),
        "attention": sinks,
    }


def _first(heads: dict[Head, str], kind: str, **more: Any) -> Sinks:
    """Heads, with what they find there, look at the spike of the first token; more: fields of Sinks."""
    named = tuple(sorted((*head, found) for head, found in heads.items()))
    return Sinks(**{"where": FIRST, "kind": kind, "heads": named, "positions": (0,), "keys": (FIRST_KEY,)} | more)


def _second(b: Builder, positions: tuple[int, int]) -> tuple[int, int]:
    """A second token, and where it stands in every window."""
    token, _flag = b.add_second_token(FLAG_SIZE)
    position = int(b.rng.integers(*positions))
    b.placed[position] = token
    return token, position


def _second_writes(b: Builder, layer: int, token: int, values: Values) -> None:
    """Let an MLP write values at the second token, and nothing at all at the first, where SiLU would leave some."""
    b.neurons_write(layer, b.second_flag - b.one - b.flag, values, ids=[BOS, token])


def _first_spike(b: Builder, before: int | None = None) -> int:
    """Let an MLP write the values at the first token; returns its layer, any but the last, or one `before`."""
    layer = b.layers(1, before=before or b.n_layers - 1)[0]
    b.neurons_write(layer, b.flag - b.one, b.values)
    return layer


def _choose(b: Builder, first: int, last: int, n: int = 2) -> list[Head]:
    return [(layer, head) for layer, head in b.spare_heads if first <= layer <= last][:n]


def _any_kind(b: Builder) -> str:
    return NO_OP if b.rng.random() < 0.5 else BROADCAST


def _look(b: Builder, heads: Iterable[Head], keys: torch.Tensor) -> None:
    """Heads whose keys read this; others that share them do not look."""
    for layer, head in heads:
        b.head_looks(layer, head, keys)
        key = b.projection(layer, head, "k")[0]
        for other in range(HEADS):
            if (layer, other) not in heads and b.projection(layer, other, "k")[0].data_ptr() == key.data_ptr():
                b.projection(layer, other, "q")[0][LOOKS] *= QUIET


def _values(b: Builder, heads: Iterable[Head], kind: str) -> dict[Head, str]:
    """Let what heads find at the first token be short, or long, beside other tokens' values; returns their kind."""
    ids = torch.from_numpy(b.rng.integers(BOS + 1, VOCABULARY, size=(8, SEQLEN)))
    ids[:, 0] = BOS
    size = b.rng.uniform(0.02, 0.1) if kind == NO_OP else b.rng.uniform(1.5, 3)
    fused = b.model.config.model_type == "gpt2"
    for layer, head in heads:
        seen: list[torch.Tensor] = []
        reads = b.arch.blocks[layer].get_submodule("attn.c_attn" if fused else "self_attn.v_proj")
        handle = reads.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args[0]))
        hooks.forward(b.lm, ids)
        handle.remove()
        weight, bias = b.projection(layer, head, "v")
        values = seen[0] @ weight.T + (0 if bias is None else bias)  # (windows, seq, channels)
        direction = torch.from_numpy(b.rng.standard_normal(HEAD_DIM).astype(np.float32))
        wanted = size * values[:, 1:].norm(dim=2).mean() * direction / direction.norm()
        weight[:, b.largest] += (wanted - values[:, 0].mean(0)) / seen[0][:, 0, b.largest].mean()
        if kind == BROADCAST:
            b.arch.weight(layer, "head_projection")[:, head * HEAD_DIM : (head + 1) * HEAD_DIM] *= 3
    return dict.fromkeys(heads, kind)


KINDS: dict[str, Callable[[Builder], Fields]] = {
    "later_sink": _later,
    "secondary_sink": _secondary,
    "no_op": _no_op,
    "broadcast": _broadcast,
    "mixed_sinks": _mixed,
    "relay": _relay,
    "like_first": _ignored_like_first,
    "ignored": _ignored,
    "no_sink": _no_sink,
}
ALL_LOOK = {"all_look": _all_look}
WITH_POSITIONS = {"later_position": _position}
WITH_QUERY_BIAS = {"query_bias": _by_query_bias, "bias_alone": _bias_alone}
