"""The smallest set of neurons that carries a place, alone and removed, beside random sets; what each reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lib.core import mlp, neurons, sweep
from lib.core.data import Windows
from lib.core.definitions import CARRIED
from lib.core.massive import is_massive
from lib.core.place import Place, find
from lib.core.stats import Draws
from lib.core.sweep import Measured
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.run.errors import UserError

READING, INPUTS = 5, 8  # neurons whose inputs are listed, and how many of these
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


def carried(
    arch: Architecture,
    layer: int,
    dim: int,
    at: Mapping[str, torch.Tensor],
    minimal_set: list[dict[str, Any]],
    draws: Draws,
) -> dict[str, Any] | None:
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


def prove(
    lm: LanguageModel,
    windows: Windows,
    place: Place,
    layer: int,
    end_layer: int,
    chosen: list[int],
    activity: np.ndarray,
    options: Any,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
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
    for prefix, (these, members) in sets.items():
        off = {"keep_only": everything - {*members}, "remove_only": members}
        for name, word in RUNS.items():
            full = f"{prefix}{name}"
            changes[full] = neurons.NeuronsOff(full, word.format(these), layer, tuple(sorted(off[name])))
    values = sweep.at_place(lm, windows, place, list(changes.values()), options.batch_size)
    rows = windows.spread(options.n_whole)
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


def _mean(activity: np.ndarray, members: Sequence[int]) -> float | None:
    return float(activity[list(members)].mean()) if members else None


def _of_whole(measured: Mapping[str, Measured], draws: Draws) -> dict[str, dict[str, Any]]:
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


def _matched_sets(activity: np.ndarray, chosen: list[int], n: int, seed: int) -> list[tuple[int, ...]]:
    """Up to `n` different sets, sorted, by MATCHED_RULE; none of size zero or where too few neurons are left."""
    rng, rank = np.random.default_rng(seed), np.argsort(np.argsort(activity))
    others = np.setdiff1d(np.arange(len(activity)), chosen)
    if not chosen or len(others) < len(chosen):
        return []
    sets: dict[tuple[int, ...], None] = {}
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


def norm_name(arch: Architecture, layer: int) -> str | None:
    """Class of the norm through which the MLP reads the residual stream; None where it reads that itself."""
    return None if arch.family.mlp_norm is None else type(arch.module(layer, "mlp_norm")).__name__


def reads(
    arch: Architecture, layer: int, at: Mapping[str, torch.Tensor], chosen: Sequence[int], top: int
) -> list[dict[str, Any]]:
    """Where the pre-activations of the neurons `chosen` come from, as means over the windows of `at` (of at_place).

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
        for neuron in chosen
    ]


def _inputs(
    arch: Architecture,
    layer: int,
    role: str,
    neuron: int,
    means: Mapping[str, torch.Tensor],
    pre_activation: float,
    top: int,
) -> dict[str, Any]:
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


@dataclass(frozen=True)
class NeuronSets:
    """windows: all, the share in which the place is massive at `layer` (all that follows is of these, or of all if
    there is none), and how many are run whole. written: the block output at the place, what the MLP adds to it, and
    their ratio. minimal_set: its neurons' mean activation, weight to the dim, contribution, and share of the down
    projection's output; carried: that share of the whole set and without its last neuron; cumulative: for the first 1,
    2, ... neurons. runs: baseline, keep_only, remove_only, at `layer` and at `end_layer`; null: the same of random
    sets. keep_only_share, remove_share: of the baseline's value at `layer`; null where it is not massive. reads: the
    inputs of the first neurons of the set.
    """

    place: dict[str, Any]
    layer: int
    end_layer: int
    width: int
    windows: dict[str, Any]
    written: dict[str, Any]
    minimal_set: list[dict[str, Any]]
    carried: dict[str, Any] | None
    cumulative: list[float]
    contribution_check: dict[str, Any]
    runs: dict[str, dict[str, Any]]
    keep_only_share: dict[str, Any] | None
    remove_share: dict[str, Any] | None
    null: dict[str, Any]
    reads: dict[str, Any]


def run(lm: LanguageModel, windows: Windows, options: Any) -> NeuronSets:
    if options.layer_id is not None:
        lm.arch.check_layer(options.layer_id)
    if options.n_whole < 1:
        raise UserError("--n_whole: at least 1")
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    layer, dim = place.plateau[0] if options.layer_id is None else options.layer_id, place.dim
    end_layer = max(layer, place.plateau[1])
    spiking = is_massive(place.values[:, layer], place.medians[:, layer])
    here = spiking if spiking.any() else ~spiking
    draws, block_output = place.draws.of(here), place.values[here, layer]
    at = {name: of[here] for name, of in neurons.at_place(lm, windows, place, layer, options.batch_size).items()}
    activation = at[mlp.neuron_output(lm.arch)]
    output = at[mlp.OUTPUT][:, dim].mean().item()
    contributions = mlp.contributions(lm.arch, layer, dim, activation.mean(0), output)
    check = mlp.contribution_check(lm.arch, layer, dim, contributions, output)
    minimal_set = contributions[: mlp.smallest_set(contributions, check, CARRIED) or 0]
    chosen = [row["neuron"] for row in minimal_set]
    activity = activation.abs().mean(0).numpy()
    runs, null = prove(lm, windows, place, layer, end_layer, chosen, activity, options)
    added = lm.arch.write_scale * at.get("mlp_write", at[mlp.OUTPUT])[:, dim].numpy()
    return NeuronSets(
        place=place.described(),
        layer=layer,
        end_layer=end_layer,
        width=len(contributions),
        windows={
            "all": len(windows.ids),
            "massive": place.draws.share(spiking),
            "whole": min(options.n_whole, len(windows.ids)),
        },
        written={
            "block_output": draws.averages(block_output),
            "mlp": draws.averages(added),
            "share": draws.ratios(added * np.sign(block_output), abs(block_output)) if spiking.any() else None,
        },
        minimal_set=minimal_set,
        carried=carried(lm.arch, layer, dim, at, minimal_set, draws),
        cumulative=np.cumsum([row["share"] for row in contributions]).tolist(),
        contribution_check=check,
        runs=runs,
        keep_only_share=runs["keep_only"]["share"],
        remove_share=runs["remove_only"]["share"],
        null=null,
        reads={
            "norm": norm_name(lm.arch, layer),
            "dims": lm.arch.hidden_size,
            "neurons": reads(lm.arch, layer, at, chosen[:READING], INPUTS),
        },
    )
