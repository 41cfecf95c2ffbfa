"""Experiment 2C: what happens inside one layer's MLP, and which neurons make its largest output.

    python exp2c_mlp_internal_analysis.py --model gpt2 --layer_id 2 --nsamples 30 --savedir results/exp2c_mlp_internal/

Gives each checkpoint's maximum over all tokens (each may sit elsewhere), then follows one (position, dim) through
all of them: in every window the MLP's largest output, or --position and --dim. The contribution of a neuron is its
activation times its weight to the dim; contributions plus bias are the output of the down projection. The
activation function is then replaced by the identity and by ReLU in this layer.
"""

from dataclasses import dataclass

from lib import cli, plots, report
from lib.experiment import Experiment, execute

SHARE = 0.9


@dataclass(frozen=True)
class Options(cli.Options):
    layer_id: int = cli.flag(2, "layer of the MLP, from 0")
    position: int | None = cli.flag(None, "position to follow (default: of the MLP's largest output in each window)")
    dim: int | None = cli.flag(None, "dim to follow (default: the one in which that output is largest)")


@dataclass(frozen=True)
class MlpInternal:
    """checkpoints: maximum of |value| over all tokens of all windows, and the mean of the windows' medians.

    followed: the followed dim and its windows, averages of its value at each checkpoint with that width.
    contributions: every neuron's mean activation (the input of the down projection) x weight, largest first.
    largest_activation: in each window of any neuron there, in parts of the MLP's output, a ratio of sums. by_weight:
    the largest weights alone, for contrast. replaced: the same place with another activation function.
    """

    layer: int
    checkpoints: list
    followed: dict
    contributions: list
    contribution_check: dict
    largest_activation: dict
    neurons: list
    by_weight: list
    replaced: dict
    conclusion: dict


def run(lm, windows, options):
    from lib import mlp, ranks

    lm.arch.check_layer(options.layer_id)
    if options.dim is not None:
        lm.arch.check_dim(options.dim)
    if options.position is not None and not 0 <= options.position < windows.ids.shape[1]:
        raise cli.UserError(
            f"position {options.position} is out of range: a window has 0 to {windows.ids.shape[1] - 1}"
        )
    inside = mlp.Internals(lm, options.layer_id, options.position, options.dim)
    with ranks.progress(len(windows.ids), options.batch_size, "MLP") as progress:
        for rows, ids in windows.batches(options.batch_size):
            inside.measure(rows, ids)
            progress.update(len(ids))
    inside.gather()
    draws = windows.draws(options.seed)
    followed = inside.followed(draws)
    contributions = inside.contributions(followed["dim"])
    check = inside.check(followed["dim"], contributions)
    needed = mlp.smallest_set(contributions, check, SHARE)
    by_rank = {row["neuron"]: rank for rank, row in enumerate(contributions, 1)}
    heaviest = sorted(contributions, key=lambda row: -abs(row["weight"]))[:5]
    return MlpInternal(
        layer=options.layer_id,
        checkpoints=inside.checkpoints(),
        followed=followed,
        contributions=contributions,
        contribution_check=check,
        largest_activation=inside.largest_activation(followed["dim"], draws),
        neurons=inside.neurons(followed["dim"], contributions[:10]),
        by_weight=[row | {"rank_by_contribution": by_rank[row["neuron"]]} for row in heaviest],
        replaced=inside.replaced(followed["dim"], draws),
        conclusion={
            "verdict": "none" if needed is None else f"{needed} of {len(contributions)} neurons",
            "rule": "smallest number of neurons, largest contributions along the output's sign first, that give "
            f"{SHARE:.0%} of the output; none if all together do not",
            "values": {"neurons": [row["neuron"] for row in contributions[: needed or 0]][:50]},
        },
    )


def summarise(payload):
    r = payload["results"]
    followed, check, activation = r["followed"], r["contribution_check"], r["followed"]["activation_function"]
    checkpoints = [
        [c["label"], c["width"], report.number(c["max"]), report.number(c["median"]), _ratio(c), _place(c)]
        for c in r["checkpoints"]
    ]
    values = [[c["label"], report.interval(c["value"], True)] for c in followed["values"]]
    neurons = [
        [n["neuron"], *(report.number(n[key], True) for key in followed["neuron_checkpoints"]), *_contribution(n)]
        for n in r["neurons"]
    ]
    by_weight = [
        [
            n["neuron"],
            f"{n['weight']:+.4f}",
            report.number(n["activation"], True),
            *_contribution(n)[1:],
            n["rank_by_contribution"],
        ]
        for n in r["by_weight"]
    ]
    replaced = [
        [
            f["label"],
            report.interval(f["mlp_output"], True),
            report.interval(f["block_output"], True),
            report.number(f["perplexity"]["value"]),
        ]
        for f in r["replaced"].values()
    ]
    positions = ", ".join(f"{n} at {position}" for position, n in followed["positions"].items())
    return "\n".join(
        [
            report.header(payload, f"Experiment 2C: inside the MLP of layer {r['layer']}"),
            "Maxima of |value| over all tokens of all windows (each may sit at another token), and the mean of the",
            "windows' medians",
            report.table(["checkpoint", "width", "max", "median", "ratio", "where the maximum is"], checkpoints),
            f"Followed: dim {followed['dim']}, in {followed['sequences']} of {followed['of']} windows where it is the "
            f"MLP's largest output (position: {positions})",
            report.table(["checkpoint", f"dim {followed['dim']}, signed"], values),
            "The neurons behind it at that position, means over these windows",
            report.table(["neuron", *followed["neuron_checkpoints"], "weight", "contribution", "share"], neurons),
            f"All contributions {report.number(check['sum'], True)} + bias {report.number(check['bias'], True)} = "
            f"{report.number(check['sum'] + check['bias'], True)}; output of the down projection "
            f"{report.number(check['output'], True)}; relative error {report.number(check['relative_error'])}",
            f"Largest activation of a neuron there, in parts of the output: {report.interval(r['largest_activation'])}",
            "",
            "For contrast, the largest weights to this dim, whatever the neurons do (this is no contribution)",
            report.table(["neuron", "weight", "activation", "contribution", "share", "rank"], by_weight),
            f"{activation} replaced in this layer",
            report.table(["activation function", "MLP output there", "block output there", "perplexity"], replaced),
            f"Conclusion: {r['conclusion']['verdict']} carry it",
            f"Rule: {r['conclusion']['rule']}",
            "",
        ]
    )


def _ratio(checkpoint):
    """The median may be zero: ReLU leaves most neurons at exactly that."""
    return "inf" if checkpoint["ratio"] is None else f"{checkpoint['ratio']:,.0f}"


def _place(checkpoint):
    at = checkpoint["at"]
    return f"window {at['sequence']}, position {at['position']} {at['token']!r}, index {at['index']}"


def _contribution(n):
    return [f"{n['weight']:+.4f}", report.number(n["contribution"], True), report.fraction(n["share"])]


EXPERIMENT = Experiment(
    name="exp2c",
    json="exp2c_detailed_results.json",
    txt="EXPERIMENT_2C_SUMMARY.txt",
    run=run,
    summary=summarise,
    figures={
        "exp2c_activation_flow.png": plots.activation_flow,
        "exp2c_dimension_analysis.png": plots.dimension_analysis,
        "exp2c_gelu_impact.png": plots.activation_function_impact,
    },
)

if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
