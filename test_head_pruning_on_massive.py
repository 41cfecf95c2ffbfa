"""What removing single heads does to massive activations, beside random heads of the same layers.

    python test_head_pruning_on_massive.py --model gpt2 --nsamples 20 --savedir results/head_pruning_massive/

TOP heads attend most to the first token, BOTTOM heads least; they come from the model's own ranking on the same
windows (for GPT-2's weights: the seed study's sets), from --config (written by analyze_heads_simple.py), or from --top
and --bottom. A head is off when its slice of the input of the attention output projection is zero; the bias stays. The
null for each set are other heads of the same layers: all draws that are possible, or NULL of them, at the followed
place; --n_random of these are run whole.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod
from pathlib import Path

from lib import cli, identity, plots, pruning, report
from lib.experiment import Experiment, execute
from lib.judges.pruning import SETS

NULL = 200  # draws of random heads
SEED_STUDY = {"top": ((2, 7), (5, 1), (6, 1)), "bottom": ((0, 1), (4, 11), (11, 8))}


@dataclass(frozen=True)
class Options(cli.Options):
    dataset_config: str | None = cli.flag(None, "configuration of a hub dataset")
    config: Path | None = cli.flag(None, "pruning configuration of analyze_heads_simple.py", type=cli.path)
    top: tuple = cli.flag((), "TOP heads as layer.head, for example 2.7 5.1 6.1", nargs="+")
    bottom: tuple = cli.flag((), "BOTTOM heads as layer.head", nargs="+")
    n_random: int = cli.flag(5, "draws of random heads for each set that are run whole")
    dims: tuple = cli.flag((), "dims to follow (default: those of the baseline's massive activations)", **cli.INTS)

    def idle(self):
        return super().idle() | ({"config": "--top and --bottom name all heads"} if self.top and self.bottom else {})


@dataclass(frozen=True)
class Pruning:
    """Conditions `top`, `bottom` and random draws beside the baseline; see lib.ablation.Comparison.

    place: of lib.place. sets: the heads and where they come from. first_tokens: {set: of the largest place, see
    lib.ablation.Feasibility}. null: {set: see `null_of`}.
    """

    definition: str
    place: dict
    sets: dict
    conditions: dict
    changes: dict
    places: dict
    first_tokens: dict
    massive: list
    dims: list
    null: dict


def run(lm, windows, options):
    from lib import ablation, place
    from lib.massive import DEFINITION

    sets = choose_sets(lm, windows, options)
    draws = {name: random_heads(lm.arch, sets, name, options.seed) for name in SETS}
    conditions = [ablation.Condition(name, f"{name.upper()} heads off", heads=sets[name]) for name in SETS]
    whole = {
        name: [
            ablation.Condition(f"random_like_{name}_{i}", f"random heads off, layers of {name.upper()}, draw {i}", of)
            for i, of in enumerate(draws[name][0][: options.n_random])
        ]
        for name in SETS
    }
    result = ablation.compare(lm, windows, [*conditions, *whole["top"], *whole["bottom"]], options, options.dims)
    at = place.find(lm, windows, options.batch_size, seed=options.seed)
    null = null_of(lm, windows, at, sets, draws, options)
    for name in SETS:
        names = [condition.name for condition in whole[name]]
        perplexities = [result.conditions[of]["perplexity"]["value"] for of in names]
        null[name] |= {"run_whole": names, "perplexity": perplexities}
    exact = exact_of(lm, windows, result, conditions)
    return Pruning(
        DEFINITION, at.described(), sets, result.conditions, result.changes, result.places, exact, result.massive,
        result.dims, null,
    )  # fmt: skip


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


def random_heads(arch, sets, name, seed):
    """(draws, how many are possible) of as many heads in the same layers, none in either set, in random order: all that
    are possible, or NULL different ones.

    Raises UserError if a layer has too few other heads for one draw.
    """
    import numpy as np

    rng = np.random.default_rng([seed, name == "bottom"])
    taken = {*sets["top"], *sets["bottom"]}
    free, wanted = {}, Counter(layer for layer, _head in sets[name])
    for layer in sorted(wanted):
        free[layer] = [head for head in range(arch.n_heads) if (layer, head) not in taken]
        if len(free[layer]) < wanted[layer]:
            raise cli.UserError(
                f"layer {layer} has only {len(free[layer])} heads outside TOP and BOTTOM to draw random heads from"
            )
    possible = prod(comb(len(of), wanted[layer]) for layer, of in free.items())
    if possible <= NULL:
        every = product(*(combinations(of, wanted[layer]) for layer, of in free.items()))
        draws = [tuple(_pairs(free, heads)) for heads in every]
        return [draws[i] for i in rng.permutation(possible)], possible
    draws = {}
    while len(draws) < NULL:
        heads = [sorted(rng.choice(of, size=wanted[layer], replace=False).tolist()) for layer, of in free.items()]
        draws[tuple(_pairs(free, heads))] = None
    return list(draws), possible


def _pairs(layers, heads):
    return [(layer, head) for layer, of in zip(layers, heads, strict=True) for head in of]


def null_of(lm, windows, place, sets, draws, options):
    """{set: its absolute change at the followed place, beside that of the draws}.

    Each has possible, enumerated (whether all possible draws are here), draws, absolute_change (of each: sum of
    |change| over sum of |baseline|, after the end of the plateau, over the windows that have the spike), of_set,
    at_least_as_large (how many draws) and p, (that + 1) / (draws + 1). impossible: None, or why no head of these layers
    can change it, which leaves no p; nothing is compared where nothing is massive.
    """
    import numpy as np

    from lib import heads, sweep

    end, has = place.plateau[1], place.spiking
    off = {heads.label(of): of for name in SETS for of in (sets[name], *draws[name][0])} if place.massive else {}
    changes = [heads.HeadsSet(name, dict.fromkeys(of, 0.0)) for name, of in off.items()]
    values = sweep.at_place(lm, windows, place, changes, options.batch_size) if changes else {}
    before = place.values[has, end]

    def changed(of):
        return float(np.abs(values[heads.label(of)][has, end] - values[sweep.BASELINE][has, end]).sum() / size)

    null, size = {}, np.abs(before).sum()
    for name in SETS:
        drawn, possible = draws[name]
        null[name] = {
            "possible": possible,
            "enumerated": len(drawn) == possible,
            "draws": drawn,
            "absolute_change": [changed(of) for of in drawn] if place.massive else [],
            "of_set": changed(sets[name]) if place.massive else None,
            "impossible": None,
            "at_least_as_large": None,
            "p": None,
        }
        if min(layer for layer, _head in sets[name]) > end:
            null[name]["impossible"] = f"causality: all of its heads run after layer {end}"
        elif place.massive:
            k = sum(change >= null[name]["of_set"] for change in null[name]["absolute_change"])
            null[name] |= {"at_least_as_large": k, "p": (k + 1) / (len(drawn) + 1)}
    return null


def exact_of(lm, windows, result, conditions):
    """{set: lib.first_tokens of the largest place, or None where that is not the first position}."""
    from lib import first_tokens

    largest = next(iter(result.places["top"]), None)
    if largest is None or largest["position"] != "first":
        return dict.fromkeys(SETS)
    medians = {name: [layer["median"]["mean"] for layer in of["layers"]] for name, of in result.conditions.items()}
    found = first_tokens.measure(lm, windows, largest["dim"], largest["layer"], conditions, medians)
    return found or dict.fromkeys(SETS)


def summarise(payload):
    r = payload["results"]
    words = ", ".join(f"{name.upper()} {r['conclusion']['values'][name]['verdict']}" for name in SETS)
    return "\n".join(
        [
            report.header(payload, "Removing single heads"),
            f"TOP and BOTTOM heads: {r['sets']['source']}",
            "",
            report.massive_table(r["massive"], r["definition"]),
            *(_places(r, name) for name in SETS if r["places"][name]),
            report.conditions_table(r["conditions"]),
            report.place_text(r["place"]),
            f"Absolute change after layer {r['place']['plateau'][1]}, relative to its size (windows with the spike),",
            "beside random heads of the same layers; p: the share of draws, the set among them, that change it as much",
            report.table(
                ["set", "heads", "change", "random, lowest to highest", "draws", "at least as large", "p"],
                [_null_row(r, name) for name in SETS],
            ),
            f"{words}\n",
            report.conclusion_text(r["conclusion"]),
            "Heads of later layers cannot change earlier ones, and no attention score can change position 0, which",
            "sees only itself: a set is fairly compared only with the random heads of its own layers.",
            "",
        ]
    )


def _places(r, name):
    """What is left of each place without one set of heads."""
    places = r["places"][name]
    exact = {"places": places, "first_tokens": r["first_tokens"][name]}
    table = report.places_table(places, r["conclusion"]["values"][name]["places"])
    return f"{name.upper()} heads off. {table}{report.first_tokens_text(exact)}"


def _null_row(r, name):
    null = r["null"][name]
    heads = " ".join(f"{layer}.{head}" for layer, head in r["sets"][name])
    draws = f"{'all ' if null['enumerated'] else ''}{len(null['draws'])} of {null['possible']:,}"
    row = [name.upper(), heads, report.number(null["of_set"])]
    if null["impossible"]:
        return [*row, null["impossible"], draws, "-", "-"]
    changes = null["absolute_change"]
    spread = f"{report.number(min(changes))} to {report.number(max(changes))}" if changes else "-"
    larger = "-" if null["p"] is None else str(null["at_least_as_large"])
    return [*row, spread, draws, larger, report.number(null["p"])]


EXPERIMENT = Experiment(
    name="head_pruning",
    json="pruning_results.json",
    txt="pruning_summary.txt",
    run=run,
    summary=summarise,
    details=lambda payload: report.ablation_details(payload, SETS),
    figures={
        "Prune_TOP_Heads_comparison.png": lambda payload: plots.pruning_comparison(payload, "top"),
        "Prune_BOTTOM_Heads_comparison.png": lambda payload: plots.pruning_comparison(payload, "bottom"),
        "summary_comparison.png": plots.pruning_summary,
    },
)

if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
