"""Single scalars of the down projection: scaled, beside others of the nearest size (super weights, Yu et al. 2024)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from experiments.neuron_sets.results import Scaled, SuperWeight
from lib.core.massive import is_massive
from lib.core.neurons import WeightScaled
from lib.core.place import Place
from lib.core.results import Neuron
from lib.core.sweep import BASELINE, Measured
from lib.model.arch import Architecture

FIRST = 2  # neurons of the set
FACTORS = 0.0, 0.5, 2.0, 3.0  # Yu et al. scale from 0 to 3
RANDOM, MATCHED = 3, 100  # scalars a neuron, of those nearest in size


def changes(arch: Architecture, layer: int, dim: int, minimal_set: Sequence[Neuron], seed: int) -> list[WeightScaled]:
    """Of each of the set's first neurons the FACTORS, then random scalars of this matrix zeroed: RANDOM of the MATCHED
    whose |weight| is nearest to its own, that neither come from the set nor go to `dim`; none twice."""
    if arch.layers[layer].experts is not None or not minimal_set:
        return []
    weight = arch.weight(layer, "down").detach().float().cpu().abs()
    weight[dim] = torch.inf
    weight[:, [row.neuron for row in minimal_set]] = torch.inf
    rng, made = np.random.default_rng(seed), []
    for row in minimal_set[:FIRST]:
        made += [_scaled(layer, dim, row.neuron, factor) for factor in FACTORS]
        distance = (weight - abs(row.weight)).abs().flatten()
        at_most = min(MATCHED, int(distance.isfinite().sum()))
        near = distance.topk(at_most, largest=False).indices.numpy()
        for place in rng.choice(near, min(RANDOM, at_most), replace=False).tolist():
            other, neuron = divmod(place, weight.shape[1])
            made.append(_scaled(layer, other, neuron, 0.0))
            weight[other, neuron] = torch.inf
    return made


def _scaled(layer: int, dim: int, neuron: int, factor: float) -> WeightScaled:
    label = f"down[{dim}, {neuron}] x {factor:g}"
    return WeightScaled(label, label, layer, dim, neuron, factor)


def super_weights(
    arch: Architecture, made: Sequence[WeightScaled], runs: Mapping[str, Measured], place: Place
) -> list[SuperWeight]:
    """runs: of sweep.measure on the windows of `place`."""
    if not made:
        return []
    layer, before = made[0].layer, runs[BASELINE]
    weight = arch.weight(layer, "down").detach()
    massive = is_massive(before.values, place.medians)[:, layer]
    values = np.stack([runs[change.name].values[:, layer] for change in made], axis=1)
    signed = before.values[massive, layer]
    along = values[massive] * np.sign(signed)[:, None]
    shares = place.draws.of(massive).ratios(along, abs(signed), family=True) if massive.any() else [None] * len(made)
    losses = np.stack([runs[change.name].losses - before.losses for change in made], axis=1)
    rates = np.stack([runs[change.name].sink_rates() - before.sink_rates() for change in made], axis=1)
    families = (place.draws.averages(each, family=True) for each in (values, losses, rates))
    found: list[SuperWeight] = []
    for change, share, value, loss, rate in zip(made, shares, *families, strict=True):
        scalar = weight[change.dim, change.neuron].item()
        scaled = Scaled(change.dim, change.neuron, scalar, change.factor, value, share, loss, rate)
        if change.dim != place.dim:
            found[-1].random.append(scaled)
        elif change.factor == FACTORS[0]:
            found.append(SuperWeight(change.neuron, scalar, [scaled], []))
        else:
            found[-1].doses.append(scaled)
    return found
