"""Sets of neurons of one MLP: what they do at a place, random sets to compare with, and what they read."""

import math
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from lib import hooks, mlp, ranks, sweep
from lib.massive import is_massive


@dataclass(frozen=True)
class NeuronsOff:
    """A change for lib.sweep: these neurons of one layer's MLP are off, in every position."""

    name: str
    label: str
    layer: int
    neurons: tuple

    @property
    def first_layer(self):
        return self.layer

    def hooks(self, arch, _rows=None):
        return hooks.neurons_off(arch, self.layer, self.neurons)


def at_place(lm, windows, place, layer, batch_size):
    """{checkpoint of mlp.checkpoints_of: (windows, width) float64 tensor} of one layer, at the place's positions.

    Windows are cut after the place: by causality no later token can change it. Raises UserError for inf or nan.
    """
    points = mlp.checkpoints_of(lm.arch, layer)
    kept = {name: [] for name, *_ in points}
    length = int(place.positions.max()) + 1
    for rows, ids in ranks.batches(windows.ids[:, :length], batch_size):
        positions = torch.from_numpy(place.positions[rows])

        def keep(name, ids=ids, positions=positions):
            def see(_layer, value):
                value = value.view(*ids.shape, -1)[torch.arange(len(ids)), positions.to(value.device)]
                hooks.require_finite(layer, value)
                kept[name].append(value.double().cpu())

            return see

        with ExitStack() as stack:
            for name, _label, role, side in points:
                watch = hooks.watch_inputs if side == "input" else hooks.watch_outputs
                stack.enter_context(watch(lm.arch, role, keep(name), [layer]))
            stack.enter_context(hooks.stop_after(lm.arch, layer))
            hooks.forward(lm, ids)
    return {name: torch.cat(ranks.gather(parts)) for name, parts in kept.items()}


def prove(lm, windows, place, layer, end_layer, chosen, options):
    """(results.runs, results.null): the neurons `chosen` alone and removed, and random sets of the same size.

    A run: label; value and share of the baseline's at `layer`, end_value and end_share at `end_layer`; perplexity;
    sink_rate. Shares are paired, over the windows in which the place is massive at that layer; None if there is none.
    """
    others = sorted({*range(lm.arch.weight(layer, "down").shape[1])} - {*chosen})
    random = _random_sets(others, len(chosen), options.n_random, options.seed)
    changes = [*_alone_and_removed("", "the set", "", chosen, others, layer)]
    for i, draw in enumerate(random):
        rest = {*others, *chosen} - {*draw}
        changes += _alone_and_removed(f"random_{i}_", "random", f", draw {i}", draw, rest, layer)
    measured = sweep.measure(lm, windows, place, changes, options.batch_size)
    baseline, draws = measured[sweep.BASELINE].values, place.draws
    massive = is_massive(baseline, place.medians)

    def described(name, label):
        of, row = measured[name], {"label": label}
        for prefix, at in (("", layer), ("end_", end_layer)):
            here = massive[:, at]
            row[f"{prefix}value"] = draws.averages(of.values[:, at])
            row[f"{prefix}share"] = (
                draws.of(here).averages(of.values[here, at] / baseline[here, at]) if here.any() else None
            )
        row["perplexity"] = draws.perplexity(of.losses)
        return row | {"sink_rate": draws.averages(of.sink_rates())}

    rows = {change.name: described(change.name, change.label) for change in changes}
    names = ("keep_only", "remove_only")
    runs = {sweep.BASELINE: described(sweep.BASELINE, "baseline"), **{name: rows[name] for name in names}}
    null = [{"neurons": draw, **{name: rows[f"random_{i}_{name}"] for name in names}} for i, draw in enumerate(random)]
    return runs, null


def _alone_and_removed(prefix, these, draw, chosen, others, layer):
    yield NeuronsOff(f"{prefix}keep_only", f"only {these} on{draw}", layer, tuple(others))
    yield NeuronsOff(f"{prefix}remove_only", f"{these} off{draw}", layer, tuple(chosen))


def _random_sets(others, size, n, seed):
    """Up to `n` different sets of `size` of the neurons `others`; none of size zero."""
    rng = np.random.default_rng(seed)
    possible = math.comb(len(others), size) if size else 0
    sets = {}
    while len(sets) < min(n, possible):
        sets[tuple(sorted(rng.choice(others, size, replace=False).tolist()))] = None
    return list(sets)


def norm_name(arch, layer):
    """Class of the norm through which the MLP reads the residual stream; None where it reads that itself."""
    return None if arch.family.mlp_norm is None else type(arch.module(layer, "mlp_norm")).__name__


def reads(arch, layer, at, neurons, top):
    """Where the pre-activations of `neurons` come from, as means over the windows of `at` (of at_place).

    [{neuron, projections: {role: {pre_activation, sum, bias, relative_error, dims_to_half, inputs}}}]; roles: "up", and
    "gate" where the MLP is gated. inputs: the `top` dims with the largest |normed value x weight|, as {dim, residual,
    normed, weight, contribution, share of the pre-activation}. sum: of all dims; with the bias it is the
    pre-activation. dims_to_half: how many dims, the largest contributions along its sign first, give half of it; None
    where all do not.
    """
    roles = {"gate": "gate", "up": "up"} if arch.is_gated else {"up": "after_linear1"}
    means = {name: values.mean(0) for name, values in at.items()}
    return [
        {
            "neuron": neuron,
            "projections": {
                role: _inputs(arch, layer, role, neuron, means, means[name][neuron].item(), top)
                for role, name in roles.items()
            },
        }
        for neuron in neurons
    ]


def _inputs(arch, layer, role, neuron, means, pre_activation, top):
    residual, normed = means["residual"], means.get("mlp_input", means["residual"])
    weight, bias = arch.weight(layer, role)[neuron].double().cpu(), arch.bias(layer, role)
    bias = 0.0 if bias is None else bias[neuron].item()
    contribution = normed * weight
    total = contribution.sum().item()
    cumulative = contribution.sort(descending=pre_activation >= 0).values.cumsum(0)
    half = (cumulative / pre_activation >= 0.5).nonzero().flatten().tolist()
    return {
        "pre_activation": pre_activation,
        "sum": total,
        "bias": bias,
        "relative_error": mlp.ratio(abs(total + bias - pre_activation), abs(pre_activation)),
        "dims_to_half": half[0] + 1 if half else None,
        "inputs": [
            {
                "dim": dim,
                "residual": residual[dim].item(),
                "normed": normed[dim].item(),
                "weight": weight[dim].item(),
                "contribution": contribution[dim].item(),
                "share": mlp.ratio(contribution[dim].item(), pre_activation),
            }
            for dim in contribution.abs().argsort(descending=True)[:top].tolist()
        ],
    }
