"""Sets of neurons of one MLP: what they do at a place, random sets to compare with, and what they read."""

from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch

from lib import hooks, mlp, ranks, sweep
from lib.massive import is_massive

RUNS = {"keep_only": "only {} on", "remove_only": "{} off"}
WHOLE_DRAWS = 3  # random sets that are run whole
NOT_WHOLE = dict.fromkeys(("perplexity", "loss_change", "sink_rate", "sink_rate_change"))
MATCHED = 20
TRIES = 50  # for each set, to find a different one
MATCHED_RULE = (
    f"random sets: for each neuron of the set, in random order, one of the {MATCHED} neurons of this MLP whose mean "
    "|activation| at the place is nearest to its own in rank, that are neither in the set nor drawn yet: as active as "
    "this MLP has them"
)


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


def carried(arch, layer, dim, at, minimal_set, draws):
    """The share of the down projection's output that the first neurons of `minimal_set` give, as ratio cells:
    {"set": all of them, "without_its_last"}. at: of at_place. None of no neuron."""
    if not minimal_set:
        return None
    chosen = [row["neuron"] for row in minimal_set]
    weight = arch.weight(layer, "down")[dim, chosen].detach().double().cpu()
    parts = (at[mlp.neuron_output(arch)][:, chosen] * weight).numpy()
    output = at[mlp.OUTPUT][:, dim].numpy()
    given = np.stack([parts.sum(1), parts[:, :-1].sum(1)], axis=1) * np.sign(output)[:, None]
    return dict(zip(("set", "without_its_last"), draws.ratios(given, abs(output)), strict=True))


def prove(lm, windows, place, layer, end_layer, chosen, activity, options):
    """(results.runs, results.null): the neurons `chosen` alone and removed, and random sets of the same size.

    A run: label; value and share of the baseline's at `layer`, end_value and end_share at `end_layer`; of --n_whole
    windows perplexity, loss_change, sink_rate, sink_rate_change (random sets: of the first WHOLE_DRAWS). Values are of
    the windows in which the place is massive at `layer` (of all, if it is in none), shares sums over sums of those in
    which it is massive at their layer, along the baseline's sign; None if there is none.
    activity: (neurons,) by what random sets are matched; see _matched_sets.
    """
    everything = {*range(len(activity))}
    random = _matched_sets(activity, chosen, options.n_random, options.seed)
    sets = {"": ("the set", chosen), **{f"random_{i}_": (f"random {i}", draw) for i, draw in enumerate(random)}}
    changes = {}
    for prefix, (these, neurons) in sets.items():
        off = {"keep_only": everything - {*neurons}, "remove_only": neurons}
        for name, word in RUNS.items():
            full = f"{prefix}{name}"
            changes[full] = NeuronsOff(full, word.format(these), layer, tuple(sorted(off[name])))
    values = sweep.at_place(lm, windows, place, list(changes.values()), options.batch_size)
    step = max(1, len(windows.ids) // options.n_whole)
    rows = slice(0, step * options.n_whole, step)
    some = list(changes.values())[: len(RUNS) * (1 + WHOLE_DRAWS)]
    whole = sweep.measure(lm, replace(windows, ids=windows.ids[rows]), place.of(rows), some, options.batch_size)
    of_whole = _of_whole(whole, place.draws.of(rows))
    massive = is_massive(values[sweep.BASELINE], place.medians)
    here = massive[:, layer] if massive[:, layer].any() else np.full(len(massive), True)

    def described(names):
        """The runs of these changes, judged together as a family."""
        rows = [{"label": changes[name].label if name in changes else name} for name in names]
        for prefix, at in (("", layer), ("end_", end_layer)):
            found = np.stack([values[name][:, at] for name in names], axis=1)
            level = place.draws.of(here).averages(found[here])
            shares, before = [None] * len(names), values[sweep.BASELINE][massive[:, at], at]
            if len(before):
                along = found[massive[:, at]] * np.sign(before)[:, None]
                shares = place.draws.of(massive[:, at]).ratios(along, abs(before), family=True)
            for row, value, share in zip(rows, level, shares, strict=True):
                row |= {f"{prefix}value": value, f"{prefix}share": share}
        return {name: row | of_whole.get(name, NOT_WHOLE) for name, row in zip(names, rows, strict=True)}

    runs = described([sweep.BASELINE, *RUNS])
    by_kind = {name: described([f"random_{i}_{name}" for i in range(len(random))]) for name in RUNS if random}
    draws = [
        {"neurons": draw, "activity": _mean(activity, draw)}
        | {name: of[f"random_{i}_{name}"] for name, of in by_kind.items()}
        for i, draw in enumerate(random)
    ]
    single = len(chosen) == 1
    return runs, {
        "rule": MATCHED_RULE,
        "activity_of_set": _mean(activity, chosen),
        "possible": min(MATCHED, len(activity) - 1) if single else None,
        "enumerated": single and len(random) == min(MATCHED, len(activity) - 1),
        "draws": draws,
    }


def _mean(activity, neurons):
    return float(activity[list(neurons)].mean()) if neurons else None


def _of_whole(measured, draws):
    """{change: {perplexity, loss_change, sink_rate, sink_rate_change}} of sweep.measure."""
    before = measured[sweep.BASELINE]
    return {
        name: {
            "perplexity": draws.perplexity(of.losses),
            "loss_change": draws.averages(of.losses - before.losses),
            "sink_rate": draws.averages(of.sink_rates()),
            "sink_rate_change": draws.averages(of.sink_rates() - before.sink_rates()),
        }
        for name, of in measured.items()
    }


def _matched_sets(activity, chosen, n, seed):
    """Up to `n` different sets, sorted, by MATCHED_RULE; none of size zero or where too few neurons are left."""
    rng, rank = np.random.default_rng(seed), np.argsort(np.argsort(activity))
    others = np.setdiff1d(np.arange(len(activity)), chosen)
    if not chosen or len(others) < len(chosen):
        return []
    sets = {}
    for _try in range(TRIES * n):
        left, drawn = others, []
        for neuron in rng.permutation(chosen):
            near = left[np.argsort(abs(rank[left] - rank[neuron]), kind="stable")[:MATCHED]]
            drawn.append(int(rng.choice(near)))
            left = left[left != drawn[-1]]
        sets[tuple(sorted(drawn))] = None
        if len(sets) == n:
            break
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
