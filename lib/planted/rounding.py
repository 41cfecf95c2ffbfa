"""The kinds of models that say with every token of which half of the vocabulary the next is, beside a spike: in values
too small to be left where the spike sets the scale of int8, in values that are left, and without a spike.
"""

from collections.abc import Callable

import numpy as np

from lib.planted.blank import BOS, VOCABULARY
from lib.planted.builder import Builder, times
from lib.planted.truth import Fields

STEPS = 127  # of int8, from 0 to the largest value


def _fine(b: Builder) -> Fields:
    """What is told is less than half a step of the spike's scale."""
    step = abs(b.values[b.largest]) / STEPS
    _tell(b, b.rng.uniform(0.1, 0.3) * step)
    return _spike(b)


def _coarse(b: Builder) -> Fields:
    """What is told is more than two steps of a smaller spike's scale."""
    b.values = times(b.rng.uniform(300, 500) / abs(b.values[b.largest]), b.values)
    step = abs(b.values[b.largest]) / STEPS
    _tell(b, b.rng.uniform(2.6, 3.4) * step)
    return _spike(b)


def _spikeless(b: Builder) -> Fields:
    """As "fine", without the spike."""
    _tell(b, b.rng.uniform(0.5, 1.0))
    return {"generator": "none"}


def _spike(b: Builder) -> Fields:
    layer = b.layers(1, before=b.n_layers - 1)[0]
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    return {"generator": "mlp", "layer": layer, "neurons": neurons, "values": b.values}


def _tell(b: Builder, size: float) -> None:
    """Each window is of one half of the vocabulary, which the embeddings of its tokens carry and the logits follow."""
    half = b.rng.permutation(np.arange(BOS + 1, VOCABULARY))[: VOCABULARY // 2]
    other = np.setdiff1d(np.arange(BOS + 1, VOCABULARY), half)
    logits = b.model.get_output_embeddings().get_parameter("weight")
    for sign, tokens in ((1, half), (-1, other)):
        b.embedding[tokens, b.told] = sign * size
        logits[tokens, b.told] = sign
    first = BOS if b.tokens else None
    b.informed = (first, first), (half, other)


KINDS: dict[str, Callable[[Builder], Fields]] = {"fine": _fine, "coarse": _coarse, "spikeless": _spikeless}
