"""Experiment 4: the smallest set of MLP neurons that carries a massive activation, proved by runs.

    python exp4_neuron_sets.py --model gpt2 --layer_id 2 --savedir results/exp4_neuron_sets/

Follows one dim at one position a window. Neurons are ranked by activation x weight to that dim; the smallest set that
makes the MLP's output there is run alone (all other neurons of that MLP off) and removed, beside random sets of the
same size. What these neurons read: the dims of the residual stream that, through the norm, add up to what enters them.
"""

from dataclasses import dataclass

from lib import cli, plots, report
from lib.experiment import Experiment, execute

SHARE, WRITTEN, KEPT, LEFT = 0.95, 0.5, 0.9, 0.1
READING, INPUTS, LISTED = 5, 8, 20
RULE = (
    "the smallest number of neurons, largest contributions along the output's sign first, that give at least "
    f"{SHARE:.0%} of the output of the down projection at the place. 'none found': the block output there is massive "
    f"in no window; 'not written by this MLP': the MLP adds less than {WRITTEN:.0%} of it; 'no set of neurons': all "
    f"without the bias give less than {SHARE:.0%}; 'not confirmed': the set alone keeps less than {KEPT:.0%} of the "
    f"massive value, or without the set more than {LEFT:.0%} is left, or a random set passes one of these two tests"
)


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(8, "number of token windows")
    seqlen: int | None = cli.flag(512, "tokens in a window")
    layer_id: int | None = cli.flag(None, "layer of the MLP, from 0 (default: the first of the place's plateau)")
    n_random: int = cli.flag(5, "random sets of the same size")


@dataclass(frozen=True)
class NeuronSets:
    """written: the block output at the place, what the MLP adds to it, and their ratio.

    minimal_set: its neurons' mean activation, weight to the dim, contribution, and share of the down projection's
    output. cumulative: that share for the first 1, 2, ... neurons. runs: baseline, keep_only, remove_only, at `layer`
    and at `end_layer`; null: the same of random sets. keep_only_share, remove_share: mean shares of the baseline's
    value at `layer`; null where it is not massive. reads: the inputs of the first neurons of the set.
    """

    place: dict
    layer: int
    end_layer: int
    width: int
    written: dict
    minimal_set: list
    cumulative: list
    contribution_check: dict
    runs: dict
    keep_only_share: float | None
    remove_share: float | None
    null: list
    reads: dict
    conclusion: dict


def run(lm, windows, options):
    import numpy as np

    from lib import mlp, neurons, place

    if options.layer_id is not None:
        lm.arch.check_layer(options.layer_id)
    followed = place.find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    layer = followed.plateau[0] if options.layer_id is None else options.layer_id
    end_layer = max(layer, followed.plateau[1])
    values = neurons.at_place(lm, windows, followed, layer, options.batch_size)
    activation = values[mlp.neuron_output(lm.arch)].mean(0)
    output = values[mlp.OUTPUT][:, followed.dim].mean().item()
    contributions = mlp.contributions(lm.arch, layer, followed.dim, activation, output)
    check = mlp.contribution_check(lm.arch, layer, followed.dim, contributions, output)
    minimal_set = contributions[: mlp.smallest_set(contributions, check, SHARE) or 0]
    chosen = [row["neuron"] for row in minimal_set]
    runs, null = neurons.prove(lm, windows, followed, layer, end_layer, chosen, options)
    added = lm.arch.write_scale * values.get("mlp_write", values[mlp.OUTPUT])[:, followed.dim].numpy()
    block_output = followed.values[:, layer]
    written = {
        "block_output": followed.draws.averages(block_output),
        "mlp": followed.draws.averages(added),
        "share": mlp.ratio(added.mean(), block_output.mean()),
    }
    return NeuronSets(
        place=followed.described(),
        layer=layer,
        end_layer=end_layer,
        width=len(contributions),
        written=written,
        minimal_set=minimal_set,
        cumulative=np.cumsum([row["share"] for row in contributions]).tolist(),
        contribution_check=check,
        runs=runs,
        keep_only_share=_share(runs["keep_only"]),
        remove_share=_share(runs["remove_only"]),
        null=null,
        reads={
            "norm": neurons.norm_name(lm.arch, layer),
            "dims": lm.arch.hidden_size,
            "neurons": neurons.reads(lm.arch, layer, values, chosen[:READING], INPUTS),
        },
        conclusion={
            "verdict": _verdict(written["share"], chosen, len(contributions), runs, null),
            "rule": RULE,
            "values": {"share": SHARE, "layer": layer, "neurons": chosen[:50], "written_share": written["share"]},
        },
    )


def _share(run):
    return run["share"] and run["share"]["mean"]


def _verdict(written, chosen, width, runs, null):
    if _share(runs["baseline"]) is None:
        return "none found"
    if written < WRITTEN:
        return "not written by this MLP"
    if not chosen:
        return "no set of neurons"
    kept, left = ([_share(of[name]) for of in (runs, *null)] for name in ("keep_only", "remove_only"))
    passed = [k >= KEPT for k in kept], [x <= LEFT for x in left]
    confirmed = all(tests[0] and not any(tests[1:]) for tests in passed)
    return f"{len(chosen)} of {width} neurons" + ("" if confirmed else ", not confirmed")


def summarise(payload):
    r = payload["results"]
    place, written, check, layer, end = r["place"], r["written"], r["contribution_check"], r["layer"], r["end_layer"]
    positions = ", ".join(f"{n} at {position}" for position, n in place["positions"].items())
    minimal_set = [
        [
            n["neuron"],
            report.number(n["activation"], True),
            f"{n['weight']:+.4f}",
            report.number(n["contribution"], True),
            _percent(n["share"]),
        ]
        for n in r["minimal_set"][:LISTED]
    ]
    more = len(r["minimal_set"]) - len(minimal_set)
    runs = [*r["runs"].values(), *(draw[name] for name in ("keep_only", "remove_only") for draw in r["null"])]
    return "\n".join(
        [
            report.header(payload, f"Experiment 4: the neurons of the MLP of layer {layer}"),
            f"Followed: dim {place['dim']} (windows: {positions}; token there {place['token']!r}); "
            f"plateau: layers {place['plateau'][0]} to {place['plateau'][1]}",
            f"Block output there {report.interval(written['block_output'], True)}; of it the MLP adds "
            f"{report.interval(written['mlp'], True)} ({_percent(written['share'])})",
            "",
            f"The smallest set with {SHARE:.0%} of the MLP's output there, means over windows",
            report.table(["neuron", "activation", "weight", "contribution", "share"], minimal_set)
            + (f"and {more} more, in the JSON\n" if more else ""),
            f"All contributions {report.number(check['sum'], True)} + bias {report.number(check['bias'], True)} = "
            f"{report.number(check['sum'] + check['bias'], True)}; output of the down projection "
            f"{report.number(check['output'], True)}; relative error {report.number(check['relative_error'])}",
            "",
            f"Sets of {len(r['minimal_set'])} neurons alone or off, in every position; share: of the baseline's value, "
            "over the windows where it is massive there",
            report.table(
                ["run", f"layer {layer}", "share", f"layer {end}", "share", "perplexity", "sink rate"],
                [_run(of) for of in runs],
            ),
            _reading(r["reads"], layer),
            f"Conclusion: {r['conclusion']['verdict']}",
            f"Rule: {r['conclusion']['rule']}",
            "",
        ]
    )


def _run(of):
    return [
        of["label"],
        report.interval(of["value"], True),
        report.interval(of["share"] or {"mean": None}),
        report.interval(of["end_value"], True),
        report.interval(of["end_share"] or {"mean": None}),
        report.number(of["perplexity"]["value"]),
        report.mean(of["sink_rate"]),
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
                [i["dim"], *(report.number(i[key], True) for key in keys), _percent(i["share"])] for i in of["inputs"]
            ]
            parts.append(
                report.table(["dim", "residual value", "normed value", "weight", "contribution", "share"], rows)
            )
    return "\n".join(parts)


def _percent(share):
    return "-" if share is None else f"{100 * share:.1f} %"


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
