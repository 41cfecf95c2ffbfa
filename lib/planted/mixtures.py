"""The kinds of mechanism in mixtures of experts, each beside a decoy: an expert to which no token goes, with by far the
largest weights.
"""

from collections.abc import Callable, Sequence

import numpy as np

from lib.core.results import SHARED_EXPERT
from lib.planted.builder import Builder, times
from lib.planted.kinds import by_head, too_small
from lib.planted.truth import Expert, Fields, expert_name


def _expert(b: Builder) -> Fields:
    """Neurons of one expert write it."""
    return _by_experts(b, [1.0])


def _two_experts(b: Builder) -> Fields:
    """Neurons of two experts of one layer write a part each, which is massive without the other."""
    b.values = {b.largest: b.values[b.largest]}  # a part of a second dim might not be massive
    first = b.rng.uniform(0.54, 0.6)
    return _by_experts(b, [first, 1 - first])


def _redundant_experts(b: Builder) -> Fields:
    """Experts of two layers, each sufficient: the later one writes only where the earlier has not."""
    layer, second = b.layers(2, before=b.n_layers - 1)
    b.values = {b.largest: b.values[b.largest]}
    (later,) = b.route(second, 1)
    # the later first, so that its weights fit what it reads without the earlier
    neurons = b.neurons_write(second, b.flag - b.one, b.values, expert=later)
    truth, name = _by_experts(b, [1.0], layer=layer, last=second), expert_name(second, later)
    return truth | {
        "experts": (*truth["experts"], (second, later)),
        "expert_writes": truth["expert_writes"] | {name: 0.0},
        "expert_retained": dict.fromkeys([*truth["expert_writes"], name], 1.0),
        "second_generator": {"layer": second, "neurons": tuple((later, n) for n in neurons), "share": 0},
        "retained": {f"mlp {layer}": 1.0},
        "repair": {f"mlp {layer}": 1.0},
    }


def _shared_expert(b: Builder) -> Fields:
    """Neurons of the shared expert write it."""
    return _by_experts(b, [1.0], SHARED_EXPERT)


def _by_experts(
    b: Builder, shares: Sequence[float], *known: Expert, layer: int | None = None, last: int | None = None
) -> Fields:
    """As many experts of a layer as shares write it: `known`, or any, to which the trigger is sent then. Readers are
    behind layer `last`, if it is given."""
    layer = b.layers(1, before=b.n_layers - 1)[0] if layer is None else layer
    decoy = b.unreached_expert(layer)
    experts = known or b.route(layer, len(shares))
    neurons = [
        (expert, neuron)
        for expert, share in zip(experts, shares, strict=True)
        for neuron in b.neurons_write(layer, b.flag - b.one, times(share, b.values), _parts(b), expert=expert)
    ]
    b.enlarge_expert(layer, decoy)
    names = [expert_name(layer, expert) for expert in experts]
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": tuple(sorted(neurons)),
        "values": b.values,
        "readers": b.readers((layer if last is None else last) + 1, b.n_layers - 1),
        "experts": tuple(sorted((layer, expert) for expert in experts)),
        "expert_writes": dict(zip(names, shares, strict=True)),
        "expert_retained": dict(zip(names, (1 - share for share in shares), strict=True)),
        "decoy_expert": (layer, decoy),
    }


def _parts(b: Builder) -> np.ndarray:
    """The shares of one to three neurons: each gives a tenth of the value, also where its expert gives 40 % of it."""
    n = int(b.rng.integers(1, 4))
    return 0.3 + (1 - 0.3 * n) * b.rng.dirichlet(np.ones(n))


def _head(b: Builder) -> Fields:
    """One head writes it; no expert is needed."""
    truth = by_head(b)
    decoy = b.unreached_expert(truth["layer"])
    b.enlarge_expert(truth["layer"], decoy)
    return truth | {"decoy_expert": (truth["layer"], decoy)}


def _none(b: Builder) -> Fields:
    """As "expert", but too small."""
    too_small(b)
    truth = _expert(b)
    return {
        "generator": "none",
        "sinks": truth["readers"],
        "outliers": b.values,
        "decoy_expert": truth["decoy_expert"],
    }


KINDS: dict[str, Callable[[Builder], Fields]] = {
    "expert": _expert,
    "two_experts": _two_experts,
    "redundant_experts": _redundant_experts,
    "head": _head,
    "none": _none,
}
WITH_SHARED = KINDS | {"shared_expert": _shared_expert}
