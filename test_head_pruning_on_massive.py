"""What removing single heads does to massive activations, beside random heads of the same layers.

    python test_head_pruning_on_massive.py --model gpt2 --nsamples 20 --savedir results/head_pruning_massive/

TOP heads attend most to the first token, BOTTOM heads least; they come from the model's own ranking on the same
windows (for GPT-2's weights: the seed study's sets), from --config (written by analyze_heads_simple.py), or from --top
and --bottom. A head is off when its slice of the input of the attention output projection is zero; the bias stays. The
null for each set is --n_random draws of other heads from the same layers.
"""

from dataclasses import dataclass
from pathlib import Path

from lib import cli, identity, plots, pruning, report
from lib.experiment import Experiment, execute

SEED_STUDY = {"top": ((2, 7), (5, 1), (6, 1)), "bottom": ((0, 1), (4, 11), (11, 8))}


@dataclass(frozen=True)
class Options(cli.Options):
    nsamples: int = cli.flag(20, "number of token windows")
    dataset_config: str | None = cli.flag(None, "configuration of a hub dataset")
    config: Path | None = cli.flag(None, "pruning configuration of analyze_heads_simple.py", type=cli.path)
    top: tuple = cli.flag((), "TOP heads as layer.head, for example 2.7 5.1 6.1", nargs="+")
    bottom: tuple = cli.flag((), "BOTTOM heads as layer.head", nargs="+")
    n_random: int = cli.flag(5, "draws of random heads for each set")
    dims: tuple = cli.flag((), "dims to follow (default: those of the baseline's massive activations)", **cli.INTS)

    def idle(self):
        return super().idle() | ({"config": "--top and --bottom name all heads"} if self.top and self.bottom else {})


@dataclass(frozen=True)
class Pruning:
    """Conditions `top`, `bottom` and their random draws beside the baseline; see lib.ablation.Comparison.

    sets: the heads and where they come from. null: {set: {draws: [condition names], absolute_change: [per draw],
    loss: [per draw, nats a token]}}.
    """

    definition: str
    sets: dict
    conditions: dict
    changes: dict
    massive: list
    dims: list
    null: dict
    conclusion: dict


def run(lm, windows, options):
    from lib import ablation
    from lib.massive import DEFINITION

    sets = choose_sets(lm, windows, options)
    conditions = [
        ablation.Condition("top", "TOP heads off", heads=sets["top"]),
        ablation.Condition("bottom", "BOTTOM heads off", heads=sets["bottom"]),
    ]
    draws = {}
    for name in ("top", "bottom"):
        draws[name] = [
            ablation.Condition(
                f"random_like_{name}_{i}", f"random heads off, layers of {name.upper()}, draw {i}", heads
            )
            for i, heads in enumerate(random_heads(lm.arch, sets, name, options))
        ]
        conditions += draws[name]
    result = ablation.compare(lm, windows, conditions, options, options.dims)
    null = {name: null_of(result, [draw.name for draw in of]) for name, of in draws.items()}
    values = {name: result.verdicts[name] for name in ("top", "bottom")}
    conclusion = {
        "verdict": values["top"]["verdict"],
        "rule": f"the verdict on the TOP heads: {ablation.RULE}",
        "values": values,
    }
    return Pruning(DEFINITION, sets, result.conditions, result.changes, result.massive, result.dims, null, conclusion)


def choose_sets(lm, windows, options):
    """{"top", "bottom": ((layer, head), ...), "source"}. Raises UserError for heads out of range."""
    from lib import sinks

    top, bottom = pruning.parse_heads(options.top), pruning.parse_heads(options.bottom)
    if options.config:
        ranked, source = pruning.read_config(options.config), options.config.name
    elif top and bottom:
        ranked, source = (top, bottom), "--top and --bottom"
    elif identity.is_gpt2(report.model_provenance(options, lm)) and (lm.arch.n_layers, lm.arch.n_heads) == (12, 12):
        ranked, source = (SEED_STUDY["top"], SEED_STUDY["bottom"]), "the seed study's sets for GPT-2"
    else:
        scores = sinks.measure(lm, windows, options.batch_size).scores.mean(0)
        cells = [(cell["layer"], cell["head"]) for cell in sinks.rank(scores)]
        ranked = (tuple(cells[: pruning.OVERALL]), tuple(cells[::-1][: pruning.OVERALL]))
        source = "this model's ranking on these windows"
    sets = {"top": top or ranked[0], "bottom": bottom or ranked[1], "source": source}
    for layer, head in (*sets["top"], *sets["bottom"]):
        lm.arch.check_head(layer, head)
    return sets


def random_heads(arch, sets, name, options):
    """Up to `n_random` different draws, as the layers allow, of as many heads in the same layers, none in either set.

    Raises UserError if a layer has too few other heads for one draw.
    """
    import math

    import numpy as np

    rng = np.random.default_rng([options.seed, name == "bottom"])
    taken = {*sets["top"], *sets["bottom"]}
    layers = [layer for layer, _head in sets[name]]
    possible = 1
    for layer in sorted(set(layers)):
        free = arch.n_heads - sum(other == layer for other, _head in taken)
        if free < layers.count(layer):
            raise cli.UserError(f"layer {layer} has only {free} heads outside TOP and BOTTOM to draw random heads from")
        possible *= math.comb(free, layers.count(layer))
    draws = set()
    while len(draws) < min(options.n_random, possible):
        draw = []
        for layer in sorted(set(layers)):
            free = [head for head in range(arch.n_heads) if (layer, head) not in taken]
            draw += [(layer, int(head)) for head in rng.choice(free, size=layers.count(layer), replace=False)]
        if tuple(sorted(draw)) not in draws:
            draws.add(tuple(sorted(draw)))
            yield tuple(sorted(draw))


def null_of(result, names):
    changes = [result.verdicts[name].get("absolute_change") for name in names]
    return {
        "draws": names,
        "absolute_change": [change and change["mean"] for change in changes],
        "perplexity": [result.conditions[name]["perplexity"]["value"] for name in names],
    }


def summarise(payload):
    r = payload["results"]
    rows = []
    for name in ("top", "bottom"):
        change = r["conclusion"]["values"][name].get("absolute_change")
        if change is None:
            continue
        null = r["null"][name]["absolute_change"]
        spread = f"{report.number(min(null))} to {report.number(max(null))}" if null else "-"
        larger = f"{sum(x >= change['mean'] for x in null)} of {len(null)}"
        heads = " ".join(f"{layer}.{head}" for layer, head in r["sets"][name])
        rows.append([name.upper(), heads, report.interval(change), spread, larger])
    return "\n".join(
        [
            report.header(payload, "Removing single heads"),
            f"TOP and BOTTOM heads: {r['sets']['source']}",
            "",
            report.massive_table(r["massive"], r["definition"]),
            report.conditions_table(r["conditions"]),
            "Absolute change at the baseline's massive places, relative to their size:",
            report.table(
                ["set", "heads", "change", "random heads of the same layers", "random draws at least as large"], rows
            ),
            f"Conclusion: TOP {r['conclusion']['verdict']}, BOTTOM {r['conclusion']['values']['bottom']['verdict']}",
            f"Rule: {r['conclusion']['rule']}",
            "Heads of later layers cannot change earlier ones, and no attention score can change position 0, which",
            "sees only itself: a set is fairly compared only with the random heads of its own layers.",
            "",
        ]
    )


EXPERIMENT = Experiment(
    name="head_pruning",
    json="pruning_results.json",
    txt="pruning_summary.txt",
    run=run,
    summary=summarise,
    details=lambda payload: report.ablation_details(payload, ("top", "bottom")),
    figures={
        "Prune_TOP_Heads_comparison.png": lambda payload: plots.pruning_comparison(payload, "top"),
        "Prune_BOTTOM_Heads_comparison.png": lambda payload: plots.pruning_comparison(payload, "bottom"),
        "summary_comparison.png": plots.pruning_summary,
    },
)

if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
