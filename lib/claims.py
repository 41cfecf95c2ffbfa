"""The claims about massive activations that the seed study made or that its figures rest on, as rules over results.

`row` is the row of the claims list that a claim belongs to; rows that end in a letter split one of them. A claim is
supported or refuted by its rule, printed with the numbers; it is untested where a result is missing, or where the
results cannot tell, with the reason. What a judge returns beside its verdict are the numbers it rests on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lib.ablation import COLLAPSES, PERSISTS

VERDICTS = SUPPORTED, REFUTED, UNTESTED = "supported", "refuted", "untested"
SCRIPTS = {
    "layerwise": "main_llm.py --exp2",
    "head_analysis": "analyze_heads_simple.py",
    "head_pruning": "test_head_pruning_on_massive.py",
    "exp1": "exp1_feasibility_test.py",
    "exp2a": "exp2a_mlp_feasibility_test.py",
    "exp2b": "exp2b_mlp_layer_sweep.py",
    "exp2c": "exp2c_mlp_internal_analysis.py",
    "exp3": "exp3_lifecycle_ledger.py",
    "exp4": "exp4_neuron_sets.py",
    "exp5": "exp5_interventions.py",
    "exp6": "exp6_trigger_census.py",
    "exp7": "exp7_head_sweep.py",
    "compare_3d": "compare_3d_before_after_pruning.py",
}
LARGE = 0.1  # of the peak, or of the value at the place
COST = 0.05  # nats a token
LOWEST = 5


class UntestedError(Exception):
    """The reason why a claim cannot be judged."""


@dataclass(frozen=True)
class Claim:
    """text: what is claimed, with the seed study's figure for GPT-2. judge: Results -> (bool, {name: number})."""

    row: str
    text: str
    rule: str
    judge: Callable


CLAIMS = []


def claim(row, text, rule):
    """Register the function below as the judge of a claim."""

    def register(judge):
        CLAIMS.append(Claim(row, text, rule, judge))
        return judge

    return register


class Results:
    """`results` of one model's JSON files, by experiment. Raises UntestedError for what is missing.

    files: {experiment: [payload, ...]}, the one to prefer first.
    """

    def __init__(self, files):
        self.files = files

    def __getitem__(self, experiment):
        return self.every(experiment)[0]

    def every(self, experiment):
        if not self.files.get(experiment):
            raise UntestedError(f"no result of {SCRIPTS[experiment]}")
        return [payload["results"] for payload in self.files[experiment]]

    @property
    def place(self):
        """The place that experiment 3 follows. Raises UntestedError if nothing is massive there."""
        place = self["exp3"]["place"]
        if not place["massive"]:
            raise UntestedError("nothing is massive in this model")
        return place

    @property
    def birth_layer(self):
        """Where the plateau begins."""
        return self.place["plateau"][0]

    def at_birth(self, experiment):
        """The result whose `layer` is the birth layer."""
        layer = self.birth_layer
        found = [results for results in self.every(experiment) if results["layer"] == layer]
        if not found:
            raise UntestedError(f"no result of {SCRIPTS[experiment]} --layer_id {layer}, where the plateau begins")
        return found[0]

    def verdict(self, experiment):
        """The conclusion of an experiment that judges massive activations. Raises UntestedError if there are none."""
        conclusion = self[experiment]["conclusion"]
        if conclusion["verdict"] == "none found":
            raise UntestedError("nothing is massive in this model")
        return conclusion


def judge(claim, results):
    """{row, claim, rule, verdict, values, reason}."""
    try:
        holds, values = claim.judge(results)
        verdict, reason = (SUPPORTED if holds else REFUTED), None
    except UntestedError as error:
        verdict, values, reason = UNTESTED, {}, str(error)
    described = {"row": claim.row, "claim": claim.text, "rule": claim.rule}
    return described | {"verdict": verdict, "values": values, "reason": reason}


def _peak(place):
    return abs(place["values"][place["peak_layer"]]["mean"])


def _judged(results, experiment, verdict):
    """Whether an ablation's verdict is this one, with what is retained."""
    conclusion = results.verdict(experiment)
    values = {"verdict": conclusion["verdict"], "retained": conclusion["values"]["retained"]}
    return conclusion["verdict"] == verdict, values


def _named(heads):
    return " ".join(f"{layer}.{head}" for layer, head in heads)


def _relative(change, before):
    return abs(change) / abs(before) if before else np.inf


@claim(
    "size",
    "The largest values are 300 to 3,000 times the median (GPT-2)",
    "the mean ratio of top-1 to the median lies in this range in every layer where a value is massive",
)
def _(results):
    massive = {entry["layer"] for entry in results["layerwise"]["massive"]}
    ratios = [layer["ratio"]["mean"] for layer in results["layerwise"]["layers"] if layer["layer"] in massive]
    if not ratios:
        raise UntestedError("nothing is massive in this model")
    return min(ratios) >= 300 and max(ratios) <= 3000, {"lowest ratio": min(ratios), "highest ratio": max(ratios)}


@claim(
    "phases",
    "They emerge in an early layer, stay on a plateau, and drop in the last layer (GPT-2: layers 2, 5 to 10, 11)",
    "at the followed place the plateau begins in the first quarter of the layers, spans at least half of them, and the "
    "last block's output is below half of the peak",
)
def _(results):
    place = results.place
    n = len(place["values"])
    first, end = place["plateau"]
    last = place["values"][-1]["mean"]
    holds = first < n / 4 and end - first + 1 >= n / 2 and abs(last) < _peak(place) / 2
    return holds, {"layers": n, "plateau from": first, "to": end, "peak": _peak(place), "last layer": last}


@claim(
    "specialised heads",
    "Some heads look at the first token most of the time, others hardly ever (GPT-2: 0.828 and 0.001)",
    "the highest mean attention to the first token is at least 0.5, the lowest below what attending evenly gives",
)
def _(results):
    heads = results["head_analysis"]
    highest, lowest = (heads["ranking"][i]["score"] for i in (0, -1))
    values = {"highest": highest, "lowest": lowest, "evenly": heads["uniform"]}
    return highest >= 0.5 and lowest < heads["uniform"], values


@claim(
    "1",
    "Removing the three heads that attend most to the first token hardly moves massive activations (GPT-2: +0.06 %)",
    "the interval of the absolute change at the baseline's massive places, relative to their size, ends below 1 %",
)
def _(results):
    top = results.verdict("head_pruning")["values"]["top"]["absolute_change"]
    heads = _named(results["head_pruning"]["sets"]["top"])
    return (top["ci95"] or [0, top["mean"]])[1] < 0.01, {"heads": heads, "absolute change": top}


@claim(
    "2",
    f"Heads that attend least to the first token are safe to prune (GPT-2: the {LOWEST} lowest, 11.8 among them)",
    f"none of the {LOWEST} heads with the lowest scores, off alone, changes the value at the place at the first, the "
    f"end of the plateau or the last layer by {LARGE:.0%} of the baseline's at the end of the plateau, or raises the "
    f"loss by {COST} nats a token",
)
def _(results):
    sweep = results["exp7"]
    size = abs(sweep["baseline"]["end"]["mean"])
    if not sweep["place"]["massive"]:
        raise UntestedError("nothing is massive in this model")
    lowest = sorted(sweep["heads"], key=lambda head: head["score"])[:LOWEST]
    moved = {
        f"{head['layer']}.{head['head']}": max(
            abs(head["zero"][key]["mean"]) / size for key in ("birth", "end", "last") if head["zero"][key]
        )
        for head in lowest
    }
    largest = max(moved, key=moved.get)
    loss = max(head["zero"]["loss"]["mean"] for head in lowest)
    values = {"heads": " ".join(moved), "largest change": moved[largest], "of head": largest, "largest loss": loss}
    return moved[largest] < LARGE and loss < COST, values


@claim(
    "2b",
    "A head that does not look at the first token writes nothing into the massive activation",
    f"no head whose mean attention to the first token is below what attending evenly gives writes {LARGE:.0%} of the "
    "peak at the place, in either direction",
)
def _(results):
    place, analysis = results.place, results["head_analysis"]
    scores, evenly = analysis["scores"], analysis["uniform"]  # of the same windows
    low = [head for head in results["exp7"]["heads"] if scores[head["layer"]][head["head"]]["mean"] < evenly]
    if not low:
        raise UntestedError("every head attends more than evenly to the first token")
    most = max(low, key=lambda head: abs(head["write"]))
    values = {
        "heads below": len(low),
        "largest write": most["write"],
        "of head": _named([[most["layer"], most["head"]]]),
    }
    return abs(most["write"]) < LARGE * _peak(place), values | {"peak": _peak(place)}


@claim(
    "2c",
    "An attention head takes the massive activation away in the end (predicted for GPT-2: 11.8; without it layer 11 "
    "stays near 2,900)",
    "the largest eraser of the ledger is a head, and with it alone off the last block's output keeps "
    f"{PERSISTS:.0%} of the value at the end of the plateau",
)
def _(results):
    place, erasers = results.place, results["exp3"]["conclusion"]["values"]["erasers"]
    if not erasers:
        raise UntestedError("nothing takes it away")
    eraser = erasers[0]
    values = {"largest eraser": eraser["name"], "writes": eraser["value"], "peak": _peak(place)}
    if not eraser["component"].startswith("head"):
        return False, values
    name = eraser["layer"], int(eraser["component"].split()[1])
    sweep = results["exp7"]
    change = next(h["zero"]["last"]["mean"] for h in sweep["heads"] if (h["layer"], h["head"]) == name)
    kept = (sweep["baseline"]["last"]["mean"] + change) / sweep["baseline"]["end"]["mean"]
    return kept >= PERSISTS, values | {"kept in the last layer without it": kept}


@claim(
    "3",
    "Massive activations persist without any attention head (GPT-2: +0.63 %)",
    f"experiment 1's verdict at the same places is persists (at least {PERSISTS:.0%} of the size retained)",
)
def _(results):
    return _judged(results, "exp1", "persists")


@claim(
    "3b",
    "Without heads the largest value of every layer but the last changes by less than 2 % (GPT-2's own table: +86.8 % "
    "in layer 0)",
    "|change of top-1| is below 2 % of the baseline's in every layer but the last",
)
def _(results):
    before, after = (results["exp1"]["conditions"][name]["layers"] for name in ("baseline", "all_heads_off"))
    pairs = zip(before[:-1], after[:-1], strict=True)
    changes = [_relative(a["top1"]["mean"] - b["top1"]["mean"], b["top1"]["mean"]) for b, a in pairs]
    worst = int(np.argmax(changes))
    return max(changes) < 0.02, {"largest change": changes[worst], "in layer": worst}


@claim(
    "4",
    "Massive activations collapse without MLPs",
    f"experiment 2A's verdict at the same places is collapses (at most {COLLAPSES:.0%} of the size retained)",
)
def _(results):
    return _judged(results, "exp2a", "collapses")


@claim(
    "4b",
    "Without MLPs about 61 % of the massive value is lost (GPT-2: compared across layers and signs)",
    "at the same layer, position and dim, signed, between 56 % and 66 % is lost",
)
def _(results):
    lost = 1 - results.verdict("exp2a")["values"]["retained"]["mean"]
    return 0.56 <= lost <= 0.66, {"lost": lost}


@claim(
    "5",
    "Heads that attend least matter more to massive activations than those that attend most (GPT-2: 7 times)",
    "the absolute change without the BOTTOM heads exceeds that without the TOP heads, and also that of every random "
    "draw of heads from its own layers",
)
def _(results):
    conclusion, null = results.verdict("head_pruning"), results["head_pruning"]["null"]["bottom"]["absolute_change"]
    top, bottom = (conclusion["values"][name]["absolute_change"]["mean"] for name in ("top", "bottom"))
    if not null:
        raise UntestedError("no random heads beside them (--n_random)")
    values = {"TOP": top, "BOTTOM": bottom, "random, lowest": min(null), "random, highest": max(null)}
    return bottom > top and bottom > max(null), values


@claim(
    "6",
    "The heads that attend most to the first token read the massive activation and do not generate it",
    f"of the ten highest heads, those in layers up to the birth each write less than {LARGE:.0%} of the peak; heads of "
    "later layers cannot generate it (causality) and are no evidence",
)
def _(results):
    place = results.place
    top = [(head["layer"], head["head"]) for head in results["head_analysis"]["ranking"][:10]]
    able = [head for head in top if head[0] <= results.birth_layer]
    if not able:
        raise UntestedError(f"causality: all ten run after layer {results.birth_layer}, so it was certain beforehand")
    writes = {
        (write["layer"], int(write["component"].split()[1])): write["value"]
        for write in results["exp3"]["writes"]
        if write["component"].startswith("head")
    }
    largest = max(able, key=lambda head: abs(writes[head]))
    values = {"heads that could": _named(able), "largest write": writes[largest], "peak": _peak(place)}
    return abs(writes[largest]) < LARGE * _peak(place), values


@claim(
    "7",
    "One MLP is the source (GPT-2: layer 2)",
    f"exactly one MLP is necessary (at most {COLLAPSES:.0%} retained with it off alone, at the end of the plateau), "
    f"and it is sufficient (at least {PERSISTS:.0%} with all other MLPs off)",
)
def _(results):
    values = results.verdict("exp2b")["values"]
    necessary, sufficient = ([at for kind, at in values[word] if kind == "mlp"] for word in ("necessary", "sufficient"))
    rows = results["exp2b"]["kinds"]["mlp"]
    born = rows[results.birth_layer]
    listed = {
        "necessary": " ".join(map(str, necessary)) or "none",
        "sufficient": " ".join(map(str, sufficient)) or "none",
        f"retained without MLP {results.birth_layer}": born["alone"]["retained"],
        "with it as the only MLP": born["only"]["retained"] if "only" in born else "-",
    }
    return len(necessary) == 1 and necessary == sufficient, listed


@claim(
    "7b",
    "What is removed is made good downstream: compensation",
    f"the interval of the self-repair ratio of the MLP that writes most lies above {LARGE}; refuted if it ends below; "
    "otherwise untested",
)
def _(results):
    rows = results["exp2b"]["kinds"]["mlp"]
    able = [row for row in rows if row["repair"]]
    if not able:
        raise UntestedError(f"no MLP before the end of the plateau writes {LARGE:.0%} of the peak")
    row = max(able, key=lambda row: abs(row["write"]["mean"]))
    ratio = row["repair"]["ratio"]
    low, high = ratio["ci95"] or [ratio["mean"]] * 2
    if low <= LARGE <= high:
        raise UntestedError(f"the interval of the self-repair ratio, {low:.2f} to {high:.2f}, holds {LARGE}")
    return low > LARGE, {"mlp": row["layer"], "self-repair ratio": ratio}


@claim(
    "8",
    "The neurons with the largest weights to the dim contribute most",
    "the five largest |weight| are the five largest contributions (activation x weight) in the MLP of the birth",
)
def _(results):
    inside = results.at_birth("exp2c")
    ranks = [row["rank_by_contribution"] for row in inside["by_weight"][:5]]
    neurons = " ".join(str(row["neuron"]) for row in inside["by_weight"][:5])
    return max(ranks) <= 5, {"by weight": neurons, "ranks by contribution": " ".join(map(str, ranks))}


@claim(
    "8b",
    "Many moderate contributions add up to the massive value",
    "at least a tenth of the MLP's neurons are needed for 95 % of its output at the place",
)
def _(results):
    sets = results.at_birth("exp4")
    if sets["keep_only_share"] is None or not sets["minimal_set"]:
        raise UntestedError(f"experiment 4 says: {sets['conclusion']['verdict']}")
    share = len(sets["minimal_set"]) / sets["width"]
    values = {
        "neurons": len(sets["minimal_set"]),
        "of": sets["width"],
        "kept by them alone": sets["keep_only_share"],
        "left without them": sets["remove_share"],
    }
    return share >= 0.1, values


@claim(
    "9",
    "The activation function has no part in the massive value (GPT-2: GELU, 0 %)",
    "with it replaced by the identity and by ReLU, the MLP's output at the place changes by less than 1 %",
)
def _(results):
    of = results.at_birth("exp2c")["replaced"]
    actual = of["actual"]["mlp_output"]["mean"]
    changes = {name: _relative(of[name]["mlp_output"]["mean"] - actual, actual) for name in ("identity", "relu")}
    return max(changes.values()) < 0.01, {of[name]["label"]: change for name, change in changes.items()}


@claim(
    "9b",
    "The activation function of that layer does not matter",
    f"with it replaced by the identity and by ReLU, the loss rises by less than {COST} nats a token",
)
def _(results):
    of = results.at_birth("exp2c")["replaced"]
    actual = np.log(of["actual"]["perplexity"]["value"])
    rises = {name: float(np.log(of[name]["perplexity"]["value"]) - actual) for name in ("identity", "relu")}
    return max(rises.values()) < COST, {f"{of[name]['label']}, loss": rise for name, rise in rises.items()}


@claim(
    "10",
    "The maxima of an MLP's checkpoints follow one value through it (GPT-2: 19.88, 62.91, 62.91, 2,342)",
    "the maxima of all checkpoints from the residual stream to the MLP's output sit at the same token",
)
def _(results):
    points = results.at_birth("exp2c")["checkpoints"]
    at = [(point["at"]["sequence"], point["at"]["position"]) for point in points if point["name"] != "block_output"]
    return len(set(at)) == 1, {"different tokens": len(set(at)), "checkpoints": len(at)}


@claim(
    "10b",
    "The value explodes at the down projection, the neurons before it are moderate (GPT-2: 62.91 to 2,342)",
    f"at the place no neuron's activation reaches {LARGE:.0%} of the MLP's output in the dim",
)
def _(results):
    inside = results.at_birth("exp2c")
    output = inside["contribution_check"]["output"]
    largest = max(inside["contributions"], key=lambda row: abs(row["activation"]))
    values = {"largest activation": largest["activation"], "of neuron": largest["neuron"], "output": output}
    return abs(largest["activation"]) < LARGE * abs(output), values


@claim(
    "11",
    "The last layer drops sharply (GPT-2: layer 11), in the block's output before the final norm",
    "at the place, the last block's output is below half of the one before it",
)
def _(results):
    before, last = (results.place["values"][i]["mean"] for i in (-2, -1))
    erasers = results["exp3"]["conclusion"]["values"]["erasers"]
    names = ", ".join(write["name"] for write in erasers) or "none"
    return abs(last) < abs(before) / 2, {"one before": before, "last": last, "erasers": names}


@claim(
    "12",
    "The second largest value is one fixed place too (GPT-2: dim 138)",
    "in every layer of the plateau, top-2 sits at the same position and dim in at least 90 % of the windows",
)
def _(results):
    first, end = results.place["plateau"]
    layers = results["layerwise"]["layers"][first : end + 1]
    places = {(layer["at"][1]["position"], layer["at"][1]["dim"]) for layer in layers}
    share = min(layer["at"][1]["sequences"] / layer["top1"]["n"] for layer in layers)
    named = ", ".join(f"dim {dim} at {position}" for position, dim in sorted(places))
    return len(places) == 1 and share >= 0.9, {"places": named, "lowest share of windows": share}


@claim(
    "13",
    "The model is robust to losing single heads: neither massive activations nor the loss move",
    f"without TOP and without BOTTOM at least {PERSISTS:.0%} is retained and the loss rises by less than {COST} nats a "
    "token",
)
def _(results):
    verdicts, conditions = results.verdict("head_pruning")["values"], results["head_pruning"]["conditions"]
    baseline = np.log(conditions["baseline"]["perplexity"]["value"])
    values = {}
    for name in ("top", "bottom"):
        values[f"{name.upper()} retained"] = verdicts[name]["retained"]["mean"]
        values[f"{name.upper()}, loss"] = float(np.log(conditions[name]["perplexity"]["value"]) - baseline)
    kept, losses = list(values.values())[::2], list(values.values())[1::2]
    return min(kept) >= PERSISTS and max(losses) < COST, values


@claim(
    "13b",
    "The model needs its massive activations, but only as a constant (Sun et al. 2024)",
    "experiment 5's verdict: set to zero from the birth layer on they cost loss, set to their mean they do not",
)
def _(results):
    conclusion = results.at_birth("exp5")["conclusion"]
    if conclusion["verdict"] in ("none found", "undecided"):
        raise UntestedError(f"experiment 5 says: {conclusion['verdict']}")
    onward = conclusion["values"]["onward"]
    values = {"verdict": conclusion["verdict"], "loss, zero": onward["zero"], "loss, mean": onward["mean"]}
    return conclusion["verdict"] == "a constant is enough", values


@claim(
    "13c",
    "Attention sinks hang on the massive activation",
    "with the MLP of the birth off alone the sink rate is below half of the baseline's",
)
def _(results):
    results.verdict("exp2b")
    born = results["exp3"]["conclusion"]["values"]["birth"]
    if not born or born["component"] != "mlp":
        raise UntestedError(f"no MLP gives birth to it: {results['exp3']['conclusion']['verdict']}")
    before = results["exp2b"]["baseline"]["sink_rate"]
    after = results["exp2b"]["kinds"]["mlp"][born["layer"]]["alone"]["sink_rate"]
    return after["mean"] < before["mean"] / 2, {"sink rate": before, f"without {born['name']}": after}


@claim(
    "14",
    "The first token is special for its position, whatever it is",
    "experiment 6's verdict: nearly every vocabulary entry spikes as the first token and hardly any when moved",
)
def _(results):
    conclusion = results.verdict("exp6")
    census, values = results["exp6"]["census"], conclusion["values"]
    listed = {
        "verdict": conclusion["verdict"],
        "tokens that spike first": values["first_token_share"],
        "of": census["tokens"],
        "moved tokens that spike": values["moved_share"],
    }
    return conclusion["verdict"] == "position", listed


@claim(
    "15",
    "The ten highest heads have a definite order",
    "they are sorted, and the intervals of neighbouring scores do not overlap",
)
def _(results):
    heads = results["head_analysis"]
    top = heads["ranking"][:10]
    cells = [heads["scores"][head["layer"]][head["head"]] for head in top]
    if cells[0]["ci95"] is None:
        raise UntestedError("one window has no interval")
    overlaps = sum(low["ci95"][1] >= high["ci95"][0] for high, low in pairwise(cells))
    ordered = all(high["score"] >= low["score"] for high, low in pairwise(top))
    return ordered and not overlaps, {"neighbours that overlap": overlaps, "of": len(cells) - 1}


@claim(
    "early heads",
    "Heads of early layers matter more to the model than later ones, whatever they attend to",
    "the mean |change of the loss| of single heads off is larger in the first quarter of the layers than in each other",
)
def _(results):
    losses = np.array([layer["zero"]["loss"] for layer in results["exp7"]["layers"]])
    if len(losses) < 4:
        raise UntestedError("fewer than four layers have no quarters")
    quarters = [part.mean() for part in np.array_split(losses, 4)]
    values = {f"quarter {i}": float(mean) for i, mean in enumerate(quarters, 1)}
    return quarters[0] > max(quarters[1:]), values


@claim(
    "attention is not impact",
    "How much a head attends to the first token does not tell what its removal costs",
    "|rank correlation| of attention and the change of the loss over heads is below 0.3",
)
def _(results):
    of = results["exp7"]["conclusion"]["values"]["spearman"]["score_loss"]
    if of["rho"] is None:
        raise UntestedError("the heads do not differ")
    return abs(of["rho"]) < 0.3, {"rho": of["rho"], "heads": of["heads"]}


@claim(
    "3D",
    "In one sentence nothing changes when a head is removed, not even the highest (GPT-2: -0.08 % and 0.00 %)",
    "in every comparison, the largest change anywhere downstream is below 1 % of the largest baseline value",
)
def _(results):
    values = {}
    for of in results.every("compare_3d"):
        downstream = of["downstream"]
        size = max(abs(layer["largest"]["before"]) for layer in downstream)
        change = max(abs(layer["most_changed"]["after"] - layer["most_changed"]["before"]) for layer in downstream)
        values[f"head {of['layer']}.{of['head']}"] = _relative(change, size)
    return max(values.values()) < 0.01, values
