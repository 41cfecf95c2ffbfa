"""The kinds of mechanism: each plants its own and returns its fields of Truth.

By causality a reader is in a later layer than the generator, and not in a later one than the eraser.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lib.planted.blank import BOS, VOCABULARY, token_text
from lib.planted.builder import FLAG_SIZE, SECOND_FLAG_SIZE, Builder, times
from lib.planted.truth import AS_IT_IS, CONSTANT, Fields


def _mlp(b: Builder) -> Fields:
    """Neurons of one MLP write it."""
    layer = b.layers(1, before=b.n_layers - 1)[0]
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    readers = b.readers(layer + 1, b.n_layers - 1)
    return {"generator": "mlp", "layer": layer, "neurons": neurons, "values": b.values, "readers": readers}


def by_head(b: Builder) -> Fields:
    """One head writes it; no MLP is needed."""
    layer = b.layers(1, before=b.n_layers - 1)[0]
    head = b.head_writes(layer, b.flag, b.values)
    readers = b.readers(layer + 1, b.n_layers - 1)
    return {"generator": "head", "layer": layer, "head": head, "values": b.values, "readers": readers}


def _head_eraser(b: Builder) -> Fields:
    """A later head takes away what an MLP has written."""
    return _erased(b, lambda last: {"head": b.head_writes(last, b.spike, times(-1, b.values))})


def _mlp_eraser(b: Builder) -> Fields:
    """A later MLP takes away what an MLP has written."""
    return _erased(b, lambda last: {"neurons": b.neurons_write(last, b.spike - b.one, times(-1, b.values))})


def _erased(b: Builder, erase: Callable[[int], Fields]) -> Fields:
    """An MLP writes it; `erase` plants in a later layer what takes it away, and names it."""
    layer, last = b.layers(2, before=b.n_layers)
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    eraser = {"layer": last, **erase(last)}
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": b.readers(layer + 1, last),
        "eraser": eraser,
    }


def _two_steps(b: Builder) -> Fields:
    """An MLP writes a value that is not massive; a later MLP reads it through the norm and makes the spike."""
    first, layer = b.layers(2, before=b.n_layers - 1)
    early = {b.spare_dims.pop(): b.sign() * b.rng.uniform(20, 60)}
    first_neurons = b.neurons_write(first, b.flag - b.one, early)
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": b.neurons_write(layer, b.reading(early) - b.one, b.values),
        "values": b.values,
        "readers": b.readers(layer + 1, b.n_layers - 1),
        "first_step": {"layer": first, "neurons": first_neurons},
        "outliers": early,
    }


def _needs_head(b: Builder) -> Fields:
    """As "two_steps", but a head takes the first step; and a reader shouts when it has to look elsewhere."""
    first, layer = b.layers(2, before=b.n_layers - 1)
    readers = b.readers(layer + 1, b.n_layers - 1, shout=True)
    early = {b.spare_dims.pop(): b.sign() * b.rng.uniform(20, 60)}
    head = b.head_writes(first, b.flag, early)
    return {
        "generator": "both",
        "layer": layer,
        "neurons": b.neurons_write(layer, b.reading(early) - b.one, b.values),
        "values": b.values,
        "readers": readers,
        "costly": ((first, head),),
        "need": CONSTANT,
        "first_step": {"layer": first, "head": head},
        "outliers": early,
    }


def _redundant(b: Builder) -> Fields:
    """Two MLPs, each sufficient: the later one writes only where the earlier has not."""
    return _second_writes(b, given_first=0, alone=1)


def _repair(b: Builder) -> Fields:
    """As "redundant", but the later MLP makes half of it."""
    return _second_writes(b, given_first=0, alone=b.rng.uniform(0.35, 0.65))


def _partial(b: Builder) -> Fields:
    """Two MLPs, and 60 % with either of them alone: the later writes 40 % after the earlier, 60 % without it."""
    return _second_writes(b, given_first=0.4, alone=0.6)


def _second_writes(b: Builder, given_first: float, alone: float) -> Fields:
    """An MLP writes 1 - given_first of the value, a later one given_first, or `alone` where the earlier has not."""
    layer, second = b.layers(2, before=b.n_layers - 1)
    b.values = {b.largest: b.values[b.largest]}  # a part of a second dim might not be massive
    # the later first, so that its weights fit what it reads without the earlier
    second_neurons = b.neurons_write(second, b.flag - b.one, times(alone, b.values))
    neurons = b.neurons_write(layer, b.flag - b.one, times(1 - given_first, b.values))
    retained, repair = {f"mlp {layer}": alone}, {f"mlp {layer}": 1 - (1 - alone) / (1 - given_first)}
    if given_first:
        second_neurons += b.neurons_write(second, b.spike - b.one, times(given_first, b.values))
        retained[f"mlp {second}"], repair[f"mlp {second}"] = 1 - given_first, 0.0
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": b.readers(second + 1, b.n_layers - 1),
        "second_generator": {"layer": second, "neurons": tuple(sorted(second_neurons)), "share": given_first},
        "retained": retained,
        "repair": repair,
    }


def _noisy(b: Builder) -> Fields:
    """As "mlp", but the value differs from token to token, by up to a tenth, and a head and the MLPs of later layers
    write up to a twentieth of it, along it or against it."""
    layer = b.layers(1, before=2)[0]
    neurons = b.neurons_write(layer, b.flag - b.one + b.token_noise(), b.values)
    readers = b.readers(layer + 1, b.n_layers - 1)
    size = b.sign() * b.rng.uniform(0.03, 0.05)
    noise: list[dict[str, Any]] = [
        {"layer": layer + 1, "head": b.head_writes(layer + 1, b.spike, times(size, b.values)), "size": size}
    ]
    for later in range(layer + 1, b.n_layers):
        size = -np.sign(size) * b.rng.uniform(0.02, 0.05)
        own = b.neurons_write(later, b.spike - b.one, times(size, b.values))
        noise.append({"layer": later, "neurons": own, "size": float(size)})
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": readers,
        "repair": {f"mlp {layer}": -sum(part["size"] for part in noise)},  # which are silent without it
        "noise": tuple(noise),
    }


def _ten(b: Builder) -> Fields:
    """As "mlp", by ten neurons, of which nine give 93 %; and a reader that shouts when it has to look elsewhere."""
    layer = b.layers(1, before=b.n_layers - 1)[0]
    readers = b.readers(layer + 1, b.n_layers - 1, shout=True)
    shares = 0.8 / 9 + 0.2 * b.rng.dirichlet(np.ones(9))
    most = b.neurons_write(layer, b.flag - b.one, times(0.93, b.values), shares)
    least = b.neurons_write(layer, b.flag - b.one, times(0.07, b.values), [1.0])
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": tuple(sorted(most + least)),
        "most": most,
        "values": b.values,
        "readers": readers,
        "need": CONSTANT,
    }


def _several(b: Builder) -> Fields:
    """As "mlp", and another token has a spike of its own, of another size, whose second dim has the other sign.

    A reader reads that sign, so it keeps to the first token, and shouts when it has to look elsewhere.
    """
    layer = b.layers(1, before=b.n_layers - 1)[0]
    size = abs(b.values[b.largest])
    second, sign = b.spare_dims.pop(), b.sign()
    b.values = {b.largest: b.values[b.largest], second: sign * 0.8 * size}
    later = {b.largest: 0.3 * b.values[b.largest], second: -sign * 0.5 * size}
    b.spike = 1.5 * b.reading({second: sign})
    second_token, second_flag = b.add_second_token(FLAG_SIZE)
    readers = b.readers(layer + 1, b.n_layers - 1, shout=True)
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    b.neurons_write(layer, second_flag - b.one, later, ids=[1, second_token])
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": readers,
        "need": CONSTANT,
        "later": {"token": token_text(second_token), "values": later},
    }


def _informed(b: Builder) -> Fields:
    """As "ten", and a second token, the first of half of the windows, adds a second dim to the spike there.

    A head reads that dim and tells which half of the vocabulary the rest of the window is of: no constant can do that.
    """
    layer = b.layers(1, before=b.n_layers - 1)[0]
    second = b.spare_dims.pop()
    size = abs(b.values[b.largest])
    b.values = {b.largest: b.values[b.largest]}
    more = {second: b.sign() * 0.6 * size}
    b.spike *= 1.5
    second_token, second_flag = b.add_second_token(SECOND_FLAG_SIZE)
    readers = b.readers(layer + 1, b.n_layers - 1, n=2, shout=True)
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    if b.tokens:
        b.embedding[second_token] += FLAG_SIZE * b.flag
        b.tokens = tuple(sorted((*b.tokens, second_token)))
    b.neurons_write(layer, second_flag - b.one, more, ids=[second_token])
    half = b.rng.permutation(VOCABULARY)[: VOCABULARY // 2]
    told = b.tell(readers, b.reading(more), half, [second_token])
    b.informed = (BOS if b.tokens else None, second_token), (np.setdiff1d(np.arange(VOCABULARY), half), half)
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": readers,
        "need": AS_IT_IS,
        "costly": (told,),
        "informed": {"token": token_text(second_token), "values": more},
    }


def _decoy(b: Builder) -> Fields:
    """As "mlp", beside neurons with larger weights that never fire and a head with a stronger sink that writes nothing.

    The head avoids ONE, which the norm shrinks at the first token whatever else is large there.
    """
    truth = _mlp(b)
    neurons = b.silent_neurons(truth["layer"], b.largest)
    layer, head = b.spare_heads.pop()
    b.head_looks(layer, head, -1.6 * b.one)
    b.mute(layer, head)
    sinks = (*truth["readers"], (layer, head))
    return truth | {"decoy_neurons": neurons, "decoy_head": (layer, head), "sinks": sinks}


def _content(b: Builder) -> Fields:
    """As "mlp", but a token triggers it anywhere, so that no head has its sink on the first token."""
    layer = b.layers(1, before=b.n_layers)[0]
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    return {"generator": "mlp", "layer": layer, "neurons": neurons, "values": b.values}


def _unread(b: Builder) -> Fields:
    """As "mlp", and no head reads it."""
    return _content(b)


def _sinks(b: Builder) -> Fields:
    """Heads have their sink on the first token, whose embedding they read; nothing is massive."""
    b.spike = 0.5 * b.flag
    return {"generator": "none", "sinks": b.readers(0, b.n_layers - 1)}


def _none(b: Builder) -> Fields:
    """As "mlp", but too small."""
    too_small(b)
    return {"generator": "none", "sinks": _mlp(b)["readers"], "outliers": b.values}


def too_small(b: Builder) -> None:
    """Have the values lie below 100, or above it in a residual stream with a large median."""
    if b.rng.random() < 0.5:
        b.enlarge_residual(20)
        largest = b.rng.uniform(150, 450)
    else:
        largest = b.rng.uniform(40, 90)
    b.values = times(largest / abs(b.values[b.largest]), b.values)


KINDS: dict[str, Callable[[Builder], Fields]] = {
    "mlp": _mlp,
    "head": by_head,
    "head_eraser": _head_eraser,
    "mlp_eraser": _mlp_eraser,
    "two_steps": _two_steps,
    "redundant": _redundant,
    "decoy": _decoy,
    "content": _content,
    "none": _none,
    "needs_head": _needs_head,
    "repair": _repair,
    "partial": _partial,
    "noisy": _noisy,
    "ten": _ten,
    "several": _several,
    "informed": _informed,
    "half": _content,
    "unread": _unread,
    "sinks": _sinks,
}
