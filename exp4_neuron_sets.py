"""Experiment 4: the smallest set of MLP neurons that carries a massive activation, proved by runs.

    python exp4_neuron_sets.py --model gpt2 --layer_id 2 --savedir results/exp4_neuron_sets/

Follows one dim at one position a window. Neurons are ranked by activation x weight to that dim; the smallest set that
makes the MLP's output there is run alone (all other neurons of that MLP off) and removed, beside random sets of the
same size that are as active. The place is measured in all windows, exactly, by running no later token; perplexity and
sink rate need whole windows, and --n_whole of them are run. What these neurons read: the dims of the residual stream
that, through the norm, add up to what enters them.
"""

from dataclasses import dataclass

from lib import cli, plots, report
from lib.definitions import CARRIED
from lib.experiment import Experiment, execute

READING, INPUTS, LISTED = 5, 8, 20


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(32, "number of token windows")
    seqlen: int | None = cli.flag(512, "tokens in a window")
    layer_id: int | None = cli.flag(None, "layer of the MLP, from 0 (default: the first of the place's plateau)")
    n_whole: int = cli.flag(8, "how many windows are run whole, for perplexity and sink rate")
    n_random: int = cli.flag(20, "random sets of the same size")

    def idle(self):
        few = {"n_whole": f"there are only {self.nsamples} windows"} if self.n_whole > self.nsamples else {}
        return super().idle() | few


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

    place: dict
    layer: int
    end_layer: int
    width: int
    windows: dict
    written: dict
    minimal_set: list
    carried: dict | None
    cumulative: list
    contribution_check: dict
    runs: dict
    keep_only_share: dict | None
    remove_share: dict | None
    null: dict
    reads: dict


def run(lm, windows, options):
    import numpy as np

    from lib import massive, mlp, neurons, place

    if options.layer_id is not None:
        lm.arch.check_layer(options.layer_id)
    if options.n_whole < 1:
        raise cli.UserError("--n_whole: at least 1")
    followed = place.find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    layer, dim = followed.plateau[0] if options.layer_id is None else options.layer_id, followed.dim
    end_layer = max(layer, followed.plateau[1])
    spiking = massive.is_massive(followed.values[:, layer], followed.medians[:, layer])
    here = spiking if spiking.any() else ~spiking
    draws, block_output = followed.draws.of(here), followed.values[here, layer]
    at = {name: of[here] for name, of in neurons.at_place(lm, windows, followed, layer, options.batch_size).items()}
    activation = at[mlp.neuron_output(lm.arch)]
    output = at[mlp.OUTPUT][:, dim].mean().item()
    contributions = mlp.contributions(lm.arch, layer, dim, activation.mean(0), output)
    check = mlp.contribution_check(lm.arch, layer, dim, contributions, output)
    minimal_set = contributions[: mlp.smallest_set(contributions, check, CARRIED) or 0]
    chosen = [row["neuron"] for row in minimal_set]
    activity = activation.abs().mean(0).numpy()
    runs, null = neurons.prove(lm, windows, followed, layer, end_layer, chosen, activity, options)
    added = lm.arch.write_scale * at.get("mlp_write", at[mlp.OUTPUT])[:, dim].numpy()
    return NeuronSets(
        place=followed.described(),
        layer=layer,
        end_layer=end_layer,
        width=len(contributions),
        windows={
            "all": len(windows.ids),
            "massive": followed.draws.share(spiking),
            "whole": min(options.n_whole, len(windows.ids)),
        },
        written={
            "block_output": draws.averages(block_output),
            "mlp": draws.averages(added),
            "share": draws.ratios(added * np.sign(block_output), abs(block_output)) if spiking.any() else None,
        },
        minimal_set=minimal_set,
        carried=neurons.carried(lm.arch, layer, dim, at, minimal_set, draws),
        cumulative=np.cumsum([row["share"] for row in contributions]).tolist(),
        contribution_check=check,
        runs=runs,
        keep_only_share=runs["keep_only"]["share"],
        remove_share=runs["remove_only"]["share"],
        null=null,
        reads={
            "norm": neurons.norm_name(lm.arch, layer),
            "dims": lm.arch.hidden_size,
            "neurons": neurons.reads(lm.arch, layer, at, chosen[:READING], INPUTS),
        },
    )


def summarise(payload):
    r = payload["results"]
    written, check, layer, end, carried = (
        r[key] for key in ("written", "contribution_check", "layer", "end_layer", "carried")
    )
    null, windows = r["null"], r["windows"]
    minimal_set = [
        [
            n["neuron"],
            report.number(n["activation"], True),
            f"{n['weight']:+.4f}",
            report.number(n["contribution"], True),
            report.fraction(n["share"]),
        ]
        for n in r["minimal_set"][:LISTED]
    ]
    more = len(r["minimal_set"]) - len(minimal_set)
    random = [draw[name] for name in ("keep_only", "remove_only") for draw in null["draws"]]
    runs = [*r["runs"].values(), *(of for of in random if of["perplexity"])]
    return "\n".join(
        [
            report.header(payload, f"Experiment 4: the neurons of the MLP of layer {layer}"),
            report.place_text(r["place"]),
            f"Massive there at layer {layer}: {report.interval(windows['massive'])} of {windows['all']} windows; what "
            "follows is of these, or of all if there is none",
            f"Block output there {report.interval(written['block_output'], True)}; of it the MLP adds "
            f"{report.interval(written['mlp'], True)} (share {report.interval(written['share'] or {'mean': None})})",
            "",
            f"The smallest set with {CARRIED:.0%} of the MLP's output there, means over windows",
            report.table(["neuron", "activation", "weight", "contribution", "share"], minimal_set)
            + (f"and {more} more, in the JSON\n" if more else ""),
            *_carried(carried),
            f"All contributions {report.number(check['sum'], True)} + bias {report.number(check['bias'], True)} = "
            f"{report.number(check['sum'] + check['bias'], True)}; output of the down projection "
            f"{report.number(check['output'], True)}; relative error {report.number(check['relative_error'])}",
            "",
            f"Sets of {len(r['minimal_set'])} neurons alone or off, in every position; share: of the baseline's value, "
            "sums over the windows where it is massive there",
            f"{_null(null)}Perplexity and sink rate: of {windows['whole']} whole windows",
            report.table(
                ["run", f"layer {layer}", "share", f"layer {end}", "share", "perplexity", "sink rate"],
                [_run(of) for of in runs],
            ),
            _reading(r["reads"], layer),
            report.conclusion_text(r["conclusion"]),
        ]
    )


def _carried(carried):
    if carried is None:
        return []
    whole, less = (report.interval(carried[key]) for key in ("set", "without_its_last"))
    return [f"Share of the output: the set {whole}, without its last neuron {less}"]


def _null(null):
    """How random sets are drawn, and what the best of them do."""
    draws = null["draws"]
    if not draws:
        return ""
    drawn = f"all {null['possible']} that are possible" if null["enumerated"] else f"{len(draws)} different ones"
    active = [draw["activity"] for draw in draws]
    alone, left = ([draw[name]["share"] for draw in draws] for name in ("keep_only", "remove_only"))
    shares = ""
    if alone[0]:
        most, least = max(of["mean"] for of in alone), min(of["mean"] for of in left)
        shares = f"; they keep {report.number(most)} at most, and {report.number(least)} is left at least"
    return (
        f"{null['rule']}\n{drawn}; mean |activation| {report.number(min(active))} to {report.number(max(active))}, of "
        f"the set {report.number(null['activity_of_set'])}{shares}\n"
    )


def _run(of):
    perplexity = of["perplexity"]
    return [
        of["label"],
        report.interval(of["value"], True),
        report.interval(of["share"] or {"mean": None}),
        report.interval(of["end_value"], True),
        report.interval(of["end_share"] or {"mean": None}),
        report.number(perplexity["value"]) if perplexity else "-",
        report.mean(of["sink_rate"]) if of["sink_rate"] else "-",
    ]


def _reading(reads, layer):
    """What the neurons read: one table a neuron and projection."""
    through = f"through its {reads['norm']}" if reads["norm"] else "without a norm"
    parts = [f"What they read: the residual stream before the MLP of layer {layer}, {through}, at the same place\n"]
    for neuron in reads["neurons"]:
        for role, of in neuron["projections"].items():
            parts.append(
                f"Neuron {neuron['neuron']}, {role} projection: all dims {report.number(of['sum'], True)} + bias "
                f"{report.number(of['bias'], True)} = {report.number(of['sum'] + of['bias'], True)}; its output "
                f"{report.number(of['pre_activation'], True)}; relative error {report.number(of['relative_error'])}; "
                f"half of it in {of['dims_to_half'] or '-'} of {reads['dims']} dims"
            )
            keys = ("residual", "normed", "weight", "contribution")
            rows = [
                [i["dim"], *(report.number(i[key], True) for key in keys), report.fraction(i["share"])]
                for i in of["inputs"]
            ]
            parts.append(
                report.table(["dim", "residual value", "normed value", "weight", "contribution", "share"], rows)
            )
    return "\n".join(parts)


EXPERIMENT = Experiment(
    name="exp4",
    json="exp4_results.json",
    txt="EXPERIMENT_4_SUMMARY.txt",
    run=run,
    summary=summarise,
    figures={"exp4_neuron_sets.png": plots.neuron_sets, "exp4_neurons_read.png": plots.neurons_read},
)

if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
