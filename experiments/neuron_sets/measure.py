"""The smallest set of neurons that carries a place, alone and removed, beside random sets; what each reads."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from msgspec import UNSET

from experiments.neuron_sets import super_weights
from experiments.neuron_sets.results import (
    Carried,
    Input,
    MeasuredWindows,
    NeuronsRun,
    Null,
    Projection,
    RandomSet,
    ReadingNeuron,
    Reads,
    Results,
    Runs,
    SuperWeight,
    Written,
)
from lib.core import mlp, neurons, sweep
from lib.core.changes import Change
from lib.core.data import Windows
from lib.core.definitions import CARRIED
from lib.core.evidence import Average
from lib.core.massive import is_massive
from lib.core.place import Place, find
from lib.core.results import SHARED_EXPERT, Neuron, NeuronName, OfExpert, smallest_set
from lib.core.stats import SHARE, Draws
from lib.core.sweep import Measured
from lib.model import experts
from lib.model.arch import SHARED, Architecture
from lib.model.models import LanguageModel
from lib.run.errors import UserError

READING, INPUTS = 5, 8  # neurons whose inputs are listed, and how many of these
INPUT = "residual", "mlp_input"  # checkpoints before the first projection
RUNS = {"keep_only": "only {} on", "remove_only": "{} off"}
WHOLE_DRAWS = 3  # random sets that are run whole
MATCHED = 20
TRIES = 50  # for each set, to find a different one
MATCHED_RULE = (
    f"random sets: for each neuron of the set, in random order, one of the {MATCHED} neurons of this MLP whose mean "
    "|activation| at the place is nearest to its own in rank, that are neither in the set nor drawn yet: as active as "
    "this MLP has them"
)
MIXTURE_RULE = MATCHED_RULE.replace("|activation|", "|routing weight x activation|") + ", among those active there"


def carried(
    arch: Architecture,
    layer: int,
    dim: int,
    values: Mapping[str, torch.Tensor],
    minimal_set: list[Neuron],
    draws: Draws,
) -> Carried | None:
    """What the neurons of `minimal_set` give, as ratios of sums; None of no neuron. values: of neurons.at_place."""
    if not minimal_set:
        return None
    chosen = [mlp.number_of(arch, layer, row.name) for row in minimal_set]
    weight = mlp.down_row(arch, layer, dim)[chosen]
    parts = (values[mlp.neuron_output(arch, layer)][:, chosen] * weight).numpy()
    output = values[mlp.OUTPUT][:, dim].numpy()
    given = np.stack([parts.sum(1), parts[:, :-1].sum(1)], axis=1) * np.sign(output)[:, None]
    return Carried(*draws.ratios(given, abs(output)))


def prove(
    lm: LanguageModel,
    windows: Windows,
    place: Place,
    layer: int,
    end_layer: int,
    chosen: list[int],
    activity: np.ndarray,
    scaled: Sequence[neurons.WeightScaled],
    options: Any,
) -> tuple[Runs, Null, list[SuperWeight]]:
    """The neurons `chosen` alone and removed, and random sets of the same size; single weights `scaled`.

    Whole windows are --n_whole of them; of random sets the first WHOLE_DRAWS are run on these.
    chosen: as Architecture.n_neurons counts them. activity: (neurons,) by what random sets are matched; see
    _matched_sets. In a mixture they are of neurons that are active at the place.
    """
    everything = {*range(len(activity))}
    is_mixture = lm.arch.layers[layer].experts is not None
    among = np.flatnonzero(activity) if is_mixture else np.arange(len(activity))
    matched = _matched_sets(activity[among], np.searchsorted(among, chosen).tolist(), options.n_random, options.seed)
    random = [tuple(among[list(draw)].tolist()) for draw in matched]
    sets = {"": ("the set", chosen), **{f"random_{i}_": (f"random {i}", draw) for i, draw in enumerate(random)}}
    changes = {}
    for prefix, (these, members) in sets.items():
        off = {"keep_only": everything - {*members}, "remove_only": members}
        for name, word in RUNS.items():
            full = f"{prefix}{name}"
            changes[full] = neurons.NeuronsOff(full, word.format(these), layer, tuple(sorted(off[name])))
    values = sweep.values_at_place(lm, windows, place, list(changes.values()), options.batch_size)
    rows = windows.spread(options.n_whole)
    some: list[Change] = [*list(changes.values())[: len(RUNS) * (1 + WHOLE_DRAWS)], *scaled]
    in_whole = place.of(rows)
    whole = sweep.measure(lm, replace(windows, ids=windows.ids[rows]), in_whole, some, options.batch_size)
    scalars = super_weights.super_weights(lm.arch, scaled, whole, in_whole)
    of_sets = {name: run for name, run in whole.items() if name in (sweep.BASELINE, *changes)}
    whole_of = _whole_of(of_sets, in_whole.draws)
    massive = is_massive(values[sweep.BASELINE], place.medians)
    here = massive[:, layer] if massive[:, layer].any() else np.full(len(massive), True)

    def after(names: Sequence[str], end: int) -> tuple[list[Average], list[Average | None]]:
        """(value, share) of each of these changes in the output of the layer `end`."""
        outputs = np.stack([values[name][:, end] for name in names], axis=1)
        there = massive[:, end]
        before = values[sweep.BASELINE][there, end]
        level = place.draws.of(here).averages(outputs[here])
        if not len(before):
            return level, [None] * len(names)
        along = outputs[there] * np.sign(before)[:, None]
        return level, place.draws.of(there).ratios(along, abs(before), family=True)

    def described(names: Sequence[str]) -> list[NeuronsRun]:
        """The runs of these changes, judged together as a family."""
        labels = [changes[name].label if name in changes else name for name in names]
        cells = zip(*after(names, layer), *after(names, end_layer), strict=True)
        return [
            NeuronsRun(label, *row, **whole_of.get(name, {}))
            for name, label, row in zip(names, labels, cells, strict=True)
        ]

    alone, without = (described([f"random_{i}_{name}" for i in range(len(random))]) if random else [] for name in RUNS)
    single = len(chosen) == 1
    possible = min(MATCHED, len(among) - 1) if single else None
    null = Null(
        rule=MIXTURE_RULE if is_mixture else MATCHED_RULE,
        activity_of_set=_mean(activity, chosen) if chosen else None,
        possible=possible,
        enumerated=len(random) == possible,
        draws=[
            RandomSet([mlp.name_of(lm.arch, layer, n) for n in draw], _mean(activity, draw), *runs)
            for draw, *runs in zip(random, alone, without, strict=True)
        ],
    )
    return Runs(*described([sweep.BASELINE, *RUNS])), null, scalars


def _mean(activity: np.ndarray, members: Sequence[int]) -> float:
    return float(activity[list(members)].mean())


def _whole_of(measured: Mapping[str, Measured], draws: Draws) -> dict[str, dict[str, Any]]:
    """{change: the fields of its NeuronsRun that whole windows give} of sweep.measure."""
    before = measured[sweep.BASELINE]
    return {
        name: {
            "perplexity": draws.perplexity(run.losses),
            "loss_change": draws.averages(run.losses - before.losses),
            "sink_rate": draws.averages(run.sink_rates(), within=SHARE),
            "sink_rate_change": draws.averages(run.sink_rates() - before.sink_rates()),
        }
        for name, run in measured.items()
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
    return None if arch.layers[layer].mlp_norm is None else type(arch.module(layer, "mlp_norm")).__name__


def reads(
    arch: Architecture, layer: int, values: Mapping[str, torch.Tensor], chosen: Sequence[NeuronName], top: int
) -> list[ReadingNeuron]:
    """Where the pre-activations of the neurons `chosen` come from, as means over the windows of `values` (of
    neurons.at_place), with the `top` inputs of each; of an expert's over those in which it is chosen."""
    return [
        _of_expert(arch, layer, values, name, top)
        if isinstance(name, OfExpert) and name.expert != SHARED_EXPERT
        else _of_projections(arch, layer, values, name, top)
        for name in chosen
    ]


def _of_projections(
    arch: Architecture, layer: int, values: Mapping[str, torch.Tensor], name: NeuronName, top: int
) -> ReadingNeuron:
    """Of a dense MLP, or of a shared expert."""
    neuron, shared, prefix = (name.neuron, SHARED, "shared_") if isinstance(name, OfExpert) else (name, "", "")
    checkpoints = {"gate": "gate", "up": "up"} if arch.is_gated(layer, shared) else {"up": "after_linear1"}
    means = {name: vectors.mean(0) for name, vectors in values.items()}
    projections = {}
    for role, checkpoint in checkpoints.items():
        weight, biases = arch.weight(layer, shared + role)[neuron], arch.bias(layer, shared + role)
        bias = 0.0 if biases is None else biases[neuron].item()
        projections[role] = _projection(weight, bias, means, means[prefix + checkpoint][neuron].item(), top)
    return ReadingNeuron(neuron, projections, expert=SHARED_EXPERT if shared else UNSET)


def _of_expert(
    arch: Architecture, layer: int, values: Mapping[str, torch.Tensor], name: OfExpert, top: int
) -> ReadingNeuron:
    module, expert = arch.module(layer, "experts"), int(name.expert)
    here = values[mlp.ROUTING][:, expert] != 0
    means = {checkpoint: values[checkpoint][here].mean(0) for checkpoint in INPUT if checkpoint in values}
    hidden = means.get("mlp_input", means["residual"])
    entered = experts.enters(module, torch.tensor([expert]), hidden)[0]
    projections = {}
    for role, index in experts.of_neuron(module, name.neuron).items():
        row, bias = experts.first_row(module, expert, index)
        projections[role] = _projection(row, bias, means, entered[index].item(), top)
    return ReadingNeuron(name.neuron, projections, expert=expert)


def _projection(
    row: torch.Tensor, bias: float, means: Mapping[str, torch.Tensor], pre_activation: float, top: int
) -> Projection:
    """row: (hidden,) weights of one neuron."""
    residual, normed = means["residual"], means.get("mlp_input", means["residual"])
    weight = row.detach().cpu().double()
    contribution = normed * weight
    total = contribution.sum().item()
    cumulative = contribution.sort(descending=pre_activation >= 0).values.cumsum(0)
    half = (cumulative / pre_activation >= 0.5).nonzero().flatten().tolist()
    return Projection(
        pre_activation=pre_activation,
        sum=total,
        bias=bias,
        relative_error=abs(total + bias - pre_activation) / abs(pre_activation) if pre_activation else None,
        dims_to_half=half[0] + 1 if half else None,
        inputs=[
            Input(
                dim=dim,
                residual=residual[dim].item(),
                normed=normed[dim].item(),
                weight=weight[dim].item(),
                contribution=contribution[dim].item(),
                share=contribution[dim].item() / pre_activation if pre_activation else None,
            )
            for dim in contribution.abs().argsort(descending=True)[:top].tolist()
        ],
    )


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    lm.arch.require_attention()
    if options.layer_id is not None:
        lm.arch.require_neurons(options.layer_id)
    if options.n_whole < 1:
        raise UserError("--n_whole: at least 1")
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    layer, dim = place.plateau[0] if options.layer_id is None else options.layer_id, place.dim
    lm.arch.require_neurons(layer)
    end_layer = max(layer, place.plateau[1])
    spiking = is_massive(place.values[:, layer], place.medians[:, layer])
    here = spiking if spiking.any() else ~spiking
    draws, block_output = place.draws.of(here), place.values[here, layer]
    values = {
        name: vectors[here]
        for name, vectors in neurons.checkpoints_at_place(lm, windows, place, layer, options.batch_size).items()
    }
    activation = values[mlp.neuron_output(lm.arch, layer)]
    contributions, check = mlp.at_place(lm.arch, layer, dim, values)
    minimal_set = contributions[: smallest_set(contributions, check.output, CARRIED) or 0]
    chosen = [mlp.number_of(lm.arch, layer, row.name) for row in minimal_set]
    activity = activation.abs().mean(0).numpy()
    scaled = super_weights.changes(lm.arch, layer, dim, minimal_set, options.seed)
    runs, null, scalars = prove(lm, windows, place, layer, end_layer, chosen, activity, scaled, options)
    added = lm.arch.scale(layer, "mlp_write") * values.get("mlp_write", values[mlp.OUTPUT])[:, dim].numpy()
    shares = [row.share for row in contributions]
    return Results(
        place=place.described(),
        layer=layer,
        end_layer=end_layer,
        width=lm.arch.n_neurons(layer),
        windows=MeasuredWindows(
            all=len(windows.ids),
            massive=place.draws.share(spiking),
            whole=min(options.n_whole, len(windows.ids)),
        ),
        written=Written(
            block_output=draws.averages(block_output),
            mlp=draws.averages(added),
            share=draws.ratios(added * np.sign(block_output), abs(block_output)) if spiking.any() else None,
        ),
        minimal_set=minimal_set,
        carried=carried(lm.arch, layer, dim, values, minimal_set, draws),
        cumulative=shares if None in shares else np.cumsum(np.array(shares)).tolist(),
        contribution_check=check,
        runs=runs,
        keep_only_share=runs.keep_only.share,
        remove_share=runs.remove_only.share,
        null=null,
        reads=Reads(
            norm=norm_name(lm.arch, layer),
            dims=lm.arch.hidden_size,
            neurons=reads(lm.arch, layer, values, [row.name for row in minimal_set[:READING]], INPUTS),
        ),
        mixture=mlp.mixture(lm.arch, layer, values[mlp.ROUTING].numpy()) if mlp.ROUTING in values else UNSET,
        super_weights=UNSET if mlp.ROUTING in values else scalars,
    )
