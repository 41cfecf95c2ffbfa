"""The claims about massive activations that the seed study made or that its figures rest on, as rules over results.

`row` is the row of the claims list that a claim belongs to; rows that end in a letter split one of them. A claim holds
here, or does not, by lib.evidence's Tests of its rule, printed with the numbers; it cannot be told where a result is
missing, where an interval holds a threshold, or where causality made the outcome certain beforehand. `here` is one
model on some texts. What a judge returns beside its Tests are the numbers it rests on.

Where one of many is picked out, its simultaneous interval counts: the stored one (family95), or, where there is none,
the single one widened as Bonferroni's correction does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import atanh, ceil, sqrt, tanh

from scipy.special import ndtri

from lib import evidence
from lib.definitions import (
    COLLAPSES,
    COST,
    DROPS,
    EARLY,
    HARDLY,
    LOST,
    MANY,
    MOST,
    MOVES,
    NEARLY_ALL,
    ODDS,
    PERSISTS,
    RATIOS,
    REPAIRS,
    SINK_EPSILON,
    SLIGHTLY,
    WEAK,
    WRITES,
)
from lib.evidence import Test, within
from lib.stats import LEVEL, binomial_interval

VERDICTS = HOLDS, FAILS, CANNOT_TELL = "holds here", "does not hold here", evidence.CANNOT_TELL
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
LOWEST, HIGHEST = 5, 10
EFFECTS = ("birth", "end", "last")  # of experiment 7, at the place
TOGETHER = "simultaneous over all that are looked at"


class CannotTellError(Exception):
    """The reason why a claim cannot be judged."""


@dataclass(frozen=True)
class Claim:
    """text: what is claimed, with the seed study's figure for GPT-2. judge: Results -> ([Test], {name: number})."""

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


def birth_layer(ledger):
    """The layer of the birth in experiment 3's results; the first of the plateau, where no layer's part gives birth."""
    birth = ledger["conclusion"]["values"]["birth"]
    return ledger["place"]["plateau"][0] if birth is None or birth["layer"] is None else birth["layer"]


class Results:
    """`results` of one model's JSON files, by experiment. Raises CannotTellError for what is missing.

    files: {experiment: [payload, ...]}, the one to prefer first.
    """

    def __init__(self, files):
        self.files = files

    def __getitem__(self, experiment):
        return self.every(experiment)[0]

    def every(self, experiment):
        if not self.files.get(experiment):
            raise CannotTellError(f"no result of {SCRIPTS[experiment]}")
        return [payload["results"] for payload in self.files[experiment]]

    def data(self, experiment):
        """The provenance of the windows of self[experiment]."""
        self.every(experiment)
        return self.files[experiment][0]["provenance"]["data"]

    @property
    def place(self):
        """The place that experiment 3 follows. Raises CannotTellError if nothing is massive there."""
        place = self["exp3"]["place"]
        if not place["massive"]:
            raise CannotTellError("nothing is massive in this model")
        return place

    @property
    def birth_layer(self):
        return self.place and birth_layer(self["exp3"])

    @property
    def erasers(self):
        return self.place and self["exp3"]["conclusion"]["values"]["erasers"]

    def at_birth(self, experiment):
        """The result whose `layer` is that of the birth."""
        layer = self.birth_layer
        found = [results for results in self.every(experiment) if results["layer"] == layer]
        if not found:
            raise CannotTellError(f"no result of {SCRIPTS[experiment]} --layer_id {layer}, the layer of the birth")
        return found[0]

    def in_mlp(self, experiment):
        """As at_birth. Raises CannotTellError unless that layer's MLP gives birth."""
        found = self.at_birth(experiment)
        conclusion = self["exp3"]["conclusion"]
        birth = conclusion["values"]["birth"]
        if birth is None or birth["component"] != "mlp":
            raise CannotTellError(f"no MLP is sure to give birth to it ({conclusion['verdict']})")
        return found

    def head_writes(self):
        """{(layer, head): what it adds at the place, in parts of the peak}, by the ledger."""
        return {
            (write["layer"], int(write["component"].split()[1])): write["share"]
            for write in self["exp3"]["writes"]
            if _is_head(write["component"])
        }

    def verdict(self, experiment):
        """The conclusion of an experiment that judges massive activations. Raises CannotTellError if there are none."""
        return _of_something(self[experiment]["conclusion"])


def _is_head(component):
    return component.startswith("head ")


def _of_something(conclusion):
    if conclusion["verdict"] == evidence.NONE_FOUND:
        raise CannotTellError("nothing is massive in this model")
    return conclusion


def judge(claim, results):
    """{row, claim, rule, verdict, values, tests, reason}."""
    try:
        tests, values = claim.judge(results)
        verdict = {True: HOLDS, False: FAILS, None: CANNOT_TELL}[evidence.every(tests)]
        reason = evidence.reasons(tests) if verdict == CANNOT_TELL else None
    except CannotTellError as error:
        verdict, tests, values, reason = CANNOT_TELL, [], {}, str(error)
    except LookupError as error:
        verdict, tests, values = CANNOT_TELL, [], {}
        reason = f"its results have no {error}: measure them anew"
    return {
        "row": claim.row,
        "claim": claim.text,
        "rule": claim.rule,
        "verdict": verdict,
        "values": values,
        "tests": [test.listed() | {"answer": test.answer} for test in tests],
        "reason": reason,
    }


@dataclass(frozen=True)
class Said:
    """Whether an experiment's own verdict is this one: as an evidence.Test, of which its own tests are the numbers."""

    experiment: str
    conclusion: dict
    wanted: str

    @property
    def answer(self):
        verdict = self.conclusion["verdict"]
        return None if verdict == evidence.CANNOT_TELL else verdict == self.wanted

    @property
    def reason(self):
        open_ = [test["what"] for test in self.conclusion["tests"] if test["side"] not in ("above", "below")]
        why = self.conclusion["values"].get("why") or ", ".join(open_) or "see there"
        return f"{SCRIPTS[self.experiment]} cannot tell: {why}"

    def listed(self):
        """distance: of its nearest threshold."""
        told = [test["distance"] for test in self.conclusion["tests"] if test["distance"] is not None]
        return {
            "what": f"the verdict of {SCRIPTS[self.experiment]}",
            "mean": None,
            "interval": None,
            "wanted": self.wanted,
            "threshold": None,
            "side": self.conclusion["verdict"],
            "distance": min(told, key=abs, default=None),
        }


def _together(cells):
    """{name: cell} with simultaneous intervals in place of single ones."""
    wider = ndtri(1 - (1 - LEVEL) / 2 / len(cells)) / ndtri((1 + LEVEL) / 2) if cells else 1

    def widened(cell):
        if "family95" in cell or cell["ci95"] is None:
            return cell.get("family95")
        return [cell["mean"] + wider * (limit - cell["mean"]) for limit in cell["ci95"]]

    return {name: {"mean": cell["mean"], "ci95": widened(cell)} for name, cell in cells.items()}


def _all(what, cells, wanted, threshold):
    """The Tests that decide whether all of {name: cell} are `wanted`: of the one whose interval begins furthest on the
    other side, and of the one whose interval ends furthest there."""
    tests = [Test(f"{what} {name}", cell, wanted, threshold) for name, cell in cells.items()]
    untold = [test for test in tests if test.limits is None]
    if untold:
        return untold[:1]
    to_the_other_side = 1 if wanted == "below" else -1
    worst = [max(tests, key=lambda test, end=end: to_the_other_side * test.limits[end]) for end in (0, 1)]
    return worst[: 1 if worst[0] is worst[1] else 2]


def _all_within(what, cells, bounds):
    return _all(what, cells, "above", bounds[0]) + _all(what, cells, "below", bounds[1])


def _up_to(bound):
    return -bound, bound


def _in_parts_of(size, cell):
    """A cell divided by a number; of one of many, after `_together`."""
    limits = cell["ci95"] and sorted(limit / size for limit in cell["ci95"])
    return {"mean": cell["mean"] / size, "ci95": limits}


def _less(cell, other):
    """The difference of two cells that were not paired: its interval reaches from one's low to the other's high end."""
    both = cell["ci95"] and other["ci95"]
    limits = both and [cell["ci95"][0] - other["ci95"][1], cell["ci95"][1] - other["ci95"][0]]
    return {"mean": cell["mean"] - other["mean"], "ci95": limits}


def _count(sure, open_):
    """The cell of how many things are so, of which some are sure and others open."""
    return {"mean": len(sure), "ci95": [len(sure), len(sure) + len(open_)]}


def _most(cells):
    """The name of the cell whose mean is largest in size."""
    return max(cells, key=lambda name: abs(cells[name]["mean"]))


def _exactly(values, key):
    """What an ablation left or changed at its largest place: exact over first tokens, where that is known."""
    exact = values.get("first_tokens")
    return evidence.exact(exact[key]) if exact else values[key]


def _peak(place):
    return abs(place["values"][place["peak_layer"]]["mean"])


def _name(head):
    return f"{head[0]}.{head[1]}"


def _named(heads):
    return " ".join(map(_name, heads)) or "none"


def _at_place(head):
    """{"18.7, birth": change of the value, in parts of the baseline's} of one head of experiment 7 off."""
    return {
        f"{_name((head['layer'], head['head']))}, {key}": head["zero"][key]["relative"]
        for key in EFFECTS
        if head["zero"][key]
    }


def _losses(heads):
    return {_name((head["layer"], head["head"])): head["zero"]["loss"] for head in heads}


@claim(
    "size",
    "The largest values are 300 to 3,000 times the median (GPT-2)",
    f"the ratio of top-1 to the median lies between {RATIOS[0]:,.0f} and {RATIOS[1]:,.0f} in every layer where a value "
    f"is massive; intervals {TOGETHER}",
)
def _(results):
    massive = {entry["layer"] for entry in results["layerwise"]["massive"]}
    layers = {layer["layer"]: layer["ratio"] for layer in results["layerwise"]["layers"] if layer["layer"] in massive}
    if not layers:
        raise CannotTellError("nothing is massive in this model")
    ratios = _together(layers)
    lowest, highest = (of(ratios, key=lambda layer: ratios[layer]["mean"]) for of in (min, max))
    values = {f"lowest ratio, layer {lowest}": ratios[lowest], f"highest, layer {highest}": ratios[highest]}
    return _all_within("ratio, layer", ratios, RATIOS), values


@claim(
    "phases",
    "They emerge in an early layer, stay on a plateau, and drop in the last layer (GPT-2: layers 2, 5 to 10, 11)",
    f"the mean value at the followed place is above {DROPS} of the peak's in some layer of the first quarter, and "
    f"again half of the layers after the plateau's begin or later; after the last block it lies within {DROPS} of it",
)
def _(results):
    place = results.place
    n, (first, end) = len(place["values"]), place["plateau"]
    sizes = {
        layer: _in_parts_of(place["values"][place["peak_layer"]]["mean"], cell)
        for layer, cell in enumerate(place["values"])
    }
    late = {layer: cell for layer, cell in sizes.items() if layer + 1 >= first + n / 2}
    tests = within("last layer, in parts of the peak", sizes[n - 1], _up_to(DROPS))
    for when, part in (("early", {layer: sizes[layer] for layer in range(ceil(n * EARLY))}), ("late", late)):
        cells = _together(part) or {"-": evidence.exact(0.0)}
        tests.append(Test(f"largest of the {when} layers, in parts of the peak", cells[_most(cells)], "above", DROPS))
    values = {"layers": n, "plateau from": first, "to": end, "peak": _peak(place), "last layer": place["values"][-1]}
    return tests, values


@claim(
    "specialised heads",
    "Some heads look at the first token most of the time, others hardly ever (GPT-2: 0.828 and 0.001)",
    f"the highest mean attention to the first token is above {MOST}, the lowest below what attending evenly gives; "
    f"intervals {TOGETHER}",
)
def _(results):
    heads = results["head_analysis"]
    scores = _together(
        {(i, j): cell for i, layer in enumerate(heads["scores"]) for j, cell in enumerate(layer)},
    )
    highest, lowest = (scores[at["layer"], at["head"]] for at in (heads["ranking"][0], heads["ranking"][-1]))
    tests = [
        Test("highest score", highest, "above", MOST),
        Test("lowest score", lowest, "below", heads["uniform"]),
    ]
    return tests, {"highest": highest, "lowest": lowest, "evenly": heads["uniform"]}


@claim(
    "1",
    "Removing the three heads that attend most to the first token hardly moves massive activations (GPT-2: +0.06 %)",
    f"the absolute change at the largest massive place, relative to its size, is below {HARDLY:.0%} without TOP; where "
    "all of TOP run after the birth it was certain beforehand, and a change below is no evidence",
)
def _(results):
    change = _exactly(results.verdict("head_pruning")["values"]["top"], "absolute_change")
    heads, born = results["head_pruning"]["sets"]["top"], results.birth_layer
    test = Test("absolute change without TOP", change, "below", HARDLY)
    if test.answer is not False and all(layer > born for layer, _head in heads):
        raise CannotTellError(
            f"causality: all of TOP ({_named(heads)}) run after layer {born}, where it is born, so it was certain "
            f"beforehand (absolute change {change['mean']:.1e})"
        )
    return [test], {"heads": _named(heads), "absolute change": change}


@claim(
    "2",
    f"Heads that attend least to the first token are safe to prune (GPT-2: the {LOWEST} lowest, 11.8 among them)",
    f"none of the {LOWEST} heads with the lowest scores in these windows, off alone, changes the value at the place by "
    f"{MOVES:.0%} (at the first and at the end of the plateau: of the baseline's there; at the last layer: of the "
    f"baseline's at the end of the plateau), or raises the loss by {COST} nats a token; intervals simultaneous over "
    "all heads",
)
def _(results):
    sweep = results["exp7"]
    if not sweep["place"]["massive"]:
        raise CannotTellError("nothing is massive in this model")
    lowest = sorted(sweep["heads"], key=lambda head: head["score"])[:LOWEST]
    moved = _together({name: cell for head in lowest for name, cell in _at_place(head).items()})
    losses = _together(_losses(lowest))
    largest, dearest = _most(moved), max(losses, key=lambda name: losses[name]["mean"])
    values = {
        "heads": " ".join(losses),
        "by windows of": results.data("exp7")["seqlen"],
        f"largest change ({largest})": moved[largest],
        f"largest loss ({dearest})": losses[dearest],
    }
    return _all_within("change by", moved, _up_to(MOVES)) + _all("loss without", losses, "below", COST), values


@claim(
    "2b",
    "A head that does not look at the first token writes nothing into the massive activation",
    "of the heads whose mean attention to the first token is below what attending evenly gives, none writes "
    f"{WRITES:.0%} of the peak at the place, in either direction; heads that run after the birth count against it, and "
    f"not for it, and it cannot be told where no other head up to the birth writes as much, wherever it looks; "
    f"intervals {TOGETHER}",
)
def _(results):
    analysis, born = results["head_analysis"], results.birth_layer
    scores = _together({(i, j): cell for i, layer in enumerate(analysis["scores"]) for j, cell in enumerate(layer)})
    writes = _together(results.head_writes())
    below = [Test("score", scores[head], "below", analysis["uniform"]).answer for head in writes]
    low = {head: writes[head] for head, answer in zip(writes, below, strict=True) if answer}
    if not low:
        raise CannotTellError("no head is sure to attend less than evenly to the first token")
    tests = _all_within(
        "write, in parts of the peak, of head", {_name(of): cell for of, cell in low.items()}, _up_to(WRITES)
    )
    able = {head: cell for head, cell in writes.items() if head[0] <= born}
    if evidence.every(tests) is not False:
        if not any(head in low for head in able):
            raise CannotTellError(
                f"causality: all {len(low)} heads that look elsewhere run after layer {born}, the birth"
            )
        if not any(abs(cell["mean"]) >= WRITES for cell in able.values()):
            most = _most(able)
            raise CannotTellError(
                f"no head up to layer {born}, the birth, writes {WRITES:.0%} of the peak, wherever it looks (the most: "
                f"{_name(most)}, {able[most]['mean']:.1e} of it)"
            )
    most = _most(low)
    return tests, {"heads below": len(low), f"largest write, in parts of the peak ({_name(most)})": low[most]}


@claim(
    "2c",
    "An attention head takes the massive activation away in the end (predicted for GPT-2: 11.8; without it layer 11 "
    "stays near 2,900)",
    "the head that takes away most takes more than any other part, and with it alone off the last block's output keeps "
    f"{PERSISTS[0]} to {PERSISTS[1]} of the value at the end of the plateau",
)
def _(results):
    erasers, born = results.erasers, results.birth_layer
    if not erasers:
        raise CannotTellError(f"nothing is sure to take {WRITES:.0%} of it away")
    later = [write for write in results["exp3"]["writes"] if write["layer"] is not None and write["layer"] >= born]
    written = _together({(of["layer"], of["component"]): of["share"] for of in later})
    taken = {part: _in_parts_of(-1.0, cell) for part, cell in written.items()}
    heads, others = ({part: taken[part] for part in taken if _is_head(part[1]) is of} for of in (True, False))
    values = {"largest eraser": erasers[0]["name"], "writes": erasers[0]["value"], "peak": _peak(results.place)}
    head, other = (max(of, key=lambda part, of=of: of[part]["mean"]) for of in (heads, others))
    what = "what the most erasing head takes, less what the most erasing other part takes, in parts of the peak"
    tests = [Test(what, _less(heads[head], others[other]), "above", 0.0)]
    if not tests[0].answer:
        return tests, values
    layer, number = head[0], int(head[1].split()[1])
    sweep = results["exp7"]
    off = next(h for h in sweep["heads"] if (h["layer"], h["head"]) == (layer, number))["zero"]["last"]["relative"]
    stays = sweep["baseline"]["last"]["mean"] / sweep["baseline"]["end"]["mean"]
    kept = {"mean": stays + off["mean"], "ci95": off["ci95"] and [stays + limit for limit in off["ci95"]]}
    what = f"kept in the last layer without head {layer}.{number}"
    return tests + within(what, kept, PERSISTS), values | {what: kept}


@claim(
    "3",
    "Massive activations persist without any attention head (GPT-2: +0.63 %)",
    f"experiment 1 at the largest place: {PERSISTS[0]} to {PERSISTS[1]} retained, exact over first tokens where it "
    "is position 0",
)
def _(results):
    return _retained(results, "exp1", PERSISTS)


def _retained(results, experiment, bounds):
    conclusion = results.verdict(experiment)
    retained = _exactly(conclusion["values"], "retained")
    values = {"verdict": conclusion["verdict"], "retained": retained}
    exact = conclusion["values"].get("first_tokens")
    if exact:
        values |= {"exact over first tokens": exact["tokens"], "in the windows": conclusion["values"]["retained"]}
    return within("retained", retained, bounds), values


@claim(
    "3b",
    "Without heads the largest value of every layer but the last changes by less than 2 % (GPT-2's own table: +86.8 % "
    "in layer 0)",
    f"the paired change of top-1 is within {SLIGHTLY:.0%} of the baseline's mean in every layer but the last; "
    f"intervals {TOGETHER}",
)
def _(results):
    before = results["exp1"]["conditions"]["baseline"]["layers"][:-1]
    changes = {
        layer["layer"]: _in_parts_of(layer["top1"]["mean"], change["top1"])
        for layer, change in zip(before, results["exp1"]["changes"]["all_heads_off"][:-1], strict=True)
    }
    changes = _together(changes)
    worst = _most(changes)
    return _all_within("change of top-1, layer", changes, _up_to(SLIGHTLY)), {
        f"largest change (layer {worst})": changes[worst]
    }


@claim(
    "4",
    "Massive activations collapse without MLPs",
    f"experiment 2A at the largest place: {COLLAPSES[0]} to {COLLAPSES[1]} retained, exact over first tokens where "
    "it is position 0",
)
def _(results):
    return _retained(results, "exp2a", COLLAPSES)


@claim(
    "4b",
    "Without MLPs about 61 % of the massive value is lost (GPT-2: compared across layers and signs)",
    f"at the same layer, position and dim, signed, {LOST[0]:.0%} to {LOST[1]:.0%} is lost",
)
def _(results):
    lost = _less(evidence.exact(1.0), _exactly(results.verdict("exp2a")["values"], "retained"))
    return within("lost", lost, LOST), {"lost": lost}


@claim(
    "5",
    "Heads that attend least matter more to massive activations than those that attend most (GPT-2: 7 times)",
    "at the largest massive place the absolute change without BOTTOM exceeds that without TOP, and at most "
    f"{ODDS:.0%} of the other sets of as many heads of BOTTOM's own layers change as much; only where heads of both "
    "run up to the birth (later ones were certain to do little) and there are sets enough",
)
def _(results):
    conclusion, sets, born = results.verdict("head_pruning"), results["head_pruning"]["sets"], results.birth_layer
    for name in ("top", "bottom"):
        if all(layer > born for layer, _head in sets[name]):
            raise CannotTellError(
                f"causality: all of {name.upper()} ({_named(sets[name])}) run after layer {born}, where it is born"
            )
    null = results["head_pruning"]["null"]["bottom"]
    if not null["absolute_change"]:
        raise CannotTellError("no other heads beside them (--n_random)")
    n = len(null["absolute_change"])
    if n * ODDS < 1:
        raise CannotTellError(f"{n} other sets of heads of these layers: too few to tell BOTTOM from chance")
    top, bottom = (_exactly(conclusion["values"][name], "absolute_change") for name in ("top", "bottom"))
    p = null["p"]
    drawn = {"mean": p, "ci95": [p, p] if null["enumerated"] else binomial_interval(null["at_least_as_large"], n)}
    tests = [
        Test("absolute change without BOTTOM, less that without TOP", _less(bottom, top), "above", 0.0),
        Test("other sets of BOTTOM's layers that change as much", drawn, "below", ODDS),
    ]
    return tests, {"TOP": top, "BOTTOM": bottom, "other sets that change as much": drawn, "of": n}


@claim(
    "6",
    "The heads that attend most to the first token read the massive activation and do not generate it",
    f"of the {HIGHEST} highest heads, those in layers up to the birth each write less than {WRITES:.0%} of the peak; "
    f"heads of later layers cannot generate it (causality) and are no evidence; intervals {TOGETHER}",
)
def _(results):
    born = results.birth_layer
    top = [(head["layer"], head["head"]) for head in results["head_analysis"]["ranking"][:HIGHEST]]
    able = [head for head in top if head[0] <= born]
    if not able:
        raise CannotTellError(f"causality: all ten run after layer {born}, so it was certain beforehand")
    writes = results.head_writes()
    shares = _together({_name(head): writes[head] for head in able})
    largest = _most(shares)
    values = {"heads that could": " ".join(shares), f"largest write, in parts of the peak ({largest})": shares[largest]}
    return _all_within("write, in parts of the peak, of head", shares, _up_to(WRITES)), values


@claim(
    "7",
    "One MLP is the source (GPT-2: layer 2)",
    f"exactly one MLP is necessary ({COLLAPSES[0]} to {COLLAPSES[1]} retained with it off alone, at the end of the "
    f"plateau), and it is sufficient ({PERSISTS[0]} to {PERSISTS[1]} with all other MLPs, or all but MLP 0, off; a "
    "trained model without MLP 0 is hardly that model)",
)
def _(results):
    values = results.verdict("exp2b")["values"]
    sure = {word: [layer for kind, layer in values[word] if kind == "mlp"] for word in ("necessary", "sufficient")}
    open_ = {word: [layer for of, kind, layer in values["cannot_tell"] if (of, kind) == (word, "mlp")] for word in sure}
    rows = results["exp2b"]["kinds"]["mlp"]
    listed = {}
    for word in sure:
        listed[word] = " ".join(map(str, sure[word])) or "none"
        if open_[word]:
            listed[f"perhaps {word}"] = " ".join(map(str, open_[word]))
    born = rows[results.birth_layer]
    listed[f"retained without MLP {born['layer']}"] = born["alone"]["retained"]
    for run, name in (("only", "with it as the only MLP"), ("only_with_first", "with it and MLP 0")):
        if run in born:
            listed[name] = born[run]["retained"]
    both = [[layer for layer in of["necessary"] if layer in of["sufficient"]] for of in (sure, _either(sure, open_))]
    tests = within("number of necessary MLPs", _count(sure["necessary"], open_["necessary"]), (0.5, 1.5))
    what = "number of necessary MLPs that are sufficient, too"
    return [*tests, Test(what, {"mean": len(both[0]), "ci95": [len(of) for of in both]}, "above", 0.5)], listed


def _either(sure, open_):
    return {word: sure[word] + open_[word] for word in sure}


@claim(
    "7b",
    "What is removed is made good downstream: compensation",
    f"without the MLP that writes most, more than {REPAIRS:.0%} of its write is made good at the place, at the end of "
    f"the plateau, or a massive activation appears elsewhere in more than {MOST:.0%} of the windows that had the spike",
)
def _(results):
    results.verdict("exp2b")
    able = [row for row in results["exp2b"]["kinds"]["mlp"] if row["repair"]]
    if not able:
        raise CannotTellError(f"no MLP before the end of the plateau writes {WRITES:.0%} of the peak")
    row = max(able, key=lambda row: abs(row["write"]["mean"]))
    repair = row["repair"]
    ratio = _together({"": repair["ratio"]})[""]
    tests = [Test("self-repair ratio", ratio, "above", REPAIRS)]
    values = {"MLP": row["layer"], "self-repair ratio": ratio}
    if repair["elsewhere"]:
        share = repair["elsewhere"]["share"]
        tests.append(Test("windows in which something else becomes massive", share, "above", MOST))
        values["massive elsewhere"] = share
    return _one_is_enough(tests), values


def _one_is_enough(tests):
    """Those that decide."""
    for answer in (True, None):
        decisive = [test for test in tests if test.answer is answer]
        if decisive:
            return decisive
    return tests


@claim(
    "8",
    "The neurons with the largest weights to the dim contribute most",
    "the neurons of the smallest set that carries the value, in the MLP of the birth, are the ones with the largest "
    "|weight| to the dim, however many they are",
)
def _(results):
    sets, inside = results.in_mlp("exp4"), results.in_mlp("exp2c")
    chosen = {row["neuron"] for row in _confirmed(sets)}
    if sets["place"]["dim"] != inside["followed"]["dim"]:
        raise CannotTellError(f"experiment 2C follows dim {inside['followed']['dim']}, 4 dim {sets['place']['dim']}")
    heaviest = sorted(inside["contributions"], key=lambda row: -abs(row["weight"]))[: len(chosen)]
    others = [row["neuron"] for row in heaviest if row["neuron"] not in chosen]
    values = {
        "smallest set": " ".join(str(row["neuron"]) for row in sets["minimal_set"][:HIGHEST]),
        "largest weights": " ".join(str(row["neuron"]) for row in heaviest[:HIGHEST]),
    }
    return [Test("of the largest weights, outside the set", evidence.exact(len(others)), "below", 0.5)], values


def _confirmed(sets):
    """The smallest set of experiment 4. Raises CannotTellError unless its runs confirm it."""
    verdict = sets["conclusion"]["verdict"]
    if verdict != f"{len(sets['minimal_set'])} of {sets['width']} neurons":
        why = sets["conclusion"]["values"]["why"]
        raise CannotTellError(f"{SCRIPTS['exp4']} says: {verdict}" + (f" ({why})" if why else ""))
    return sets["minimal_set"]


@claim(
    "8b",
    "Many moderate contributions add up to the massive value",
    f"more than {MANY:.0%} of the neurons of the MLP of the birth are in the smallest set that carries the value",
)
def _(results):
    sets = results.in_mlp("exp4")
    n = len(_confirmed(sets))
    values = {
        "neurons": n,
        "of": sets["width"],
        "kept by them alone": sets["keep_only_share"],
        "left without them": sets["remove_share"],
    }
    return [Test("share of the neurons", evidence.exact(n / sets["width"]), "above", MANY)], values


REPLACED = ("identity", "relu")


@claim(
    "9",
    "The activation function has no part in the massive value (GPT-2: GELU, 0 %)",
    "with it replaced by the identity and by ReLU, the paired change of the MLP's output at the place is within "
    f"{HARDLY:.0%}",
)
def _(results):
    of = results.in_mlp("exp2c")["replaced"]
    changes = {of[name]["label"]: of[name]["mlp_output_change"] for name in REPLACED}
    tests = [test for name, cell in changes.items() for test in within(f"change by {name}", cell, _up_to(HARDLY))]
    return tests, changes


@claim(
    "9b",
    "The activation function of that layer does not matter",
    f"with it replaced by the identity and by ReLU, the loss rises by less than {COST} nats a token (paired)",
)
def _(results):
    of = results.in_mlp("exp2c")["replaced"]
    rises = {f"{of[name]['label']}, loss": of[name]["loss_change"] for name in REPLACED}
    return [Test(name, cell, "below", COST) for name, cell in rises.items()], rises


@claim(
    "10",
    "The maxima of an MLP's checkpoints follow one value through it (GPT-2: 19.88, 62.91, 62.91, 2,342)",
    "the maxima of all checkpoints from the residual stream to the MLP's output sit at the same token (of these "
    "windows: exact)",
)
def _(results):
    points = results.in_mlp("exp2c")["checkpoints"]
    at = [(point["at"]["sequence"], point["at"]["position"]) for point in points if point["name"] != "block_output"]
    test = Test("different tokens", evidence.exact(len(set(at))), "below", 1.5)
    return [test], {"different tokens": len(set(at)), "checkpoints": len(at)}


@claim(
    "10b",
    "The value explodes at the down projection, the neurons before it are moderate (GPT-2: 62.91 to 2,342)",
    f"at the place the largest activation of a neuron is below {MANY:.0%} of the MLP's output in the dim",
)
def _(results):
    inside = results.in_mlp("exp2c")
    share, largest = inside["largest_activation"], max(inside["contributions"], key=lambda row: abs(row["activation"]))
    values = {
        "largest activation": largest["activation"],
        "of neuron": largest["neuron"],
        "output": inside["contribution_check"]["output"],
        "in parts of it": share,
    }
    return [Test("largest activation, in parts of the output", share, "below", MANY)], values


@claim(
    "11",
    "The last layer drops sharply (GPT-2: layer 11), in the block's output before the final norm",
    f"at the place, the last block's output is within {DROPS} of the one before it (paired)",
)
def _(results):
    before, last = (results.place["values"][i] for i in (-2, -1))
    drop = results["exp3"]["drop"]
    if drop is None:
        raise CannotTellError("there is nothing to drop")
    names = ", ".join(write["name"] for write in results.erasers) or "none"
    values = {"one before": before, "last": last, "ratio": drop, "erasers": names}
    return within("last block's output over the one before", drop, _up_to(DROPS)), values


@claim(
    "12",
    "The second largest value is one fixed place too (GPT-2: dim 138)",
    "in every layer of the plateau, top-2 sits at the same position and dim in more than "
    f"{NEARLY_ALL:.0%} of the windows (binomial intervals over documents, {TOGETHER})",
)
def _(results):
    first, end = results.place["plateau"]
    layers = results["layerwise"]["layers"][first : end + 1]
    at = {layer["layer"]: layer["at"][1] for layer in layers}
    places = {(of["position"], of["dim"]) for of in at.values()}
    windows, data = layers[0]["top1"]["n"], results.data("layerwise")
    n = windows if data["documents_drawn"] in (None, 1) else data["documents_effective"]
    shares = {layer: of["sequences"] / windows for layer, of in at.items()}
    cells = {layer: {"mean": of, "ci95": binomial_interval(of * n, n)} for layer, of in shares.items()}
    tests = [
        Test("different places", evidence.exact(len(places)), "below", 1.5),
        *_all("share of windows, layer", _together(cells), "above", NEARLY_ALL),
    ]
    lowest = min(shares, key=shares.get)
    named = ", ".join(f"dim {dim} at {position}" for position, dim in sorted(places))
    return tests, {"places": named, f"lowest share of windows (layer {lowest})": _together(cells)[lowest]}


@claim(
    "13",
    "The model is robust to losing single heads: neither massive activations nor the loss move",
    f"no head of all, off alone, changes the loss by {COST} nats a token, or the value at the place by {MOVES:.0%} (as "
    "in row 2), in either direction; intervals simultaneous over all heads",
)
def _(results):
    sweep = results["exp7"]
    if not sweep["place"]["massive"]:
        raise CannotTellError("nothing is massive in this model")
    losses = _together(_losses(sweep["heads"]))
    moved = _together({name: cell for head in sweep["heads"] for name, cell in _at_place(head).items()})
    told = sweep["conclusion"]["values"]
    dearest, largest = _most(losses), _most(moved)
    values = {
        "heads": len(losses),
        f"largest change of the loss ({dearest})": losses[dearest],
        f"of the value ({largest})": moved[largest],
        "cost more": _named(told["costs"]),
        "move more": _named(sorted({(layer, head) for layer, head, *_how in told["moves"]["zero"]})),
    }
    tests = _all_within("loss without", losses, _up_to(COST)) + _all_within("change by", moved, _up_to(MOVES))
    return tests, values


@claim(
    "13b",
    "The model needs its massive activations, but only as a constant (Sun et al. 2024)",
    "experiment 5's verdict at the birth: without what writes them there the loss rises, and held at their mean from "
    "there on it does not",
)
def _(results):
    conclusion = _of_something(results.at_birth("exp5")["conclusion"])
    of, onward = conclusion["values"]["counterfactual"], conclusion["values"]["onward"]
    values = {
        "verdict": conclusion["verdict"],
        f"loss, {of['condition'].replace('_', ' ')}": of["loss_change"],
        "loss, mean": onward["mean"],
    }
    return [Said("exp5", conclusion, "needed, a constant is enough")], values


@claim(
    "13c",
    "Attention sinks hang on the massive activation",
    "without what writes the massive activations at the birth (experiment 5's counterfactual, which leaves "
    f"{COLLAPSES[0]} to {COLLAPSES[1]} of the value) more than {DROPS:.0%} of the sinks are gone (paired)",
)
def _(results):
    experiment = results.at_birth("exp5")
    of = _of_something(experiment["conclusion"])["values"]["counterfactual"]
    gone = [] if of["left"] is None else within("value left", of["left"], COLLAPSES)
    if not gone or not evidence.every(gone):
        raise CannotTellError(f"{of['condition'].replace('_', ' ')} is not sure to take the value away")
    epsilon = of.get("epsilon", SINK_EPSILON)
    before = experiment["conditions"]["baseline"]["sink_rates"][str(epsilon)]
    if not before["mean"]:
        raise CannotTellError("there are no sinks")
    change = _in_parts_of(before["mean"], of["sink_rate_change"])
    values = {"sink rate": before, f"change, {of['condition'].replace('_', ' ')}": of["sink_rate_change"]}
    return [Test("change of the sink rate, in parts of it", change, "below", -DROPS)], values


@claim(
    "14",
    "The first token is special for its position, whatever it is",
    "experiment 6's verdict, the simplest cause that fits all of its manipulations, is position",
)
def _(results):
    conclusion = results.verdict("exp6")
    values = conclusion["values"]
    listed = {"verdict": conclusion["verdict"], "tokens that spike first": values["first_token_share"]}
    listed |= {f"spike, {name}": values[name] for name in ("moved", "repeated", "own") if values[name]}
    return [Said("exp6", conclusion, "position")], listed


@claim(
    "15",
    f"The {HIGHEST} highest heads have a definite order",
    "every paired difference of neighbouring scores lies above 0; intervals simultaneous over these differences",
)
def _(results):
    ranking = results["head_analysis"]["ranking"][:HIGHEST]
    steps = results["head_analysis"]["neighbours"][: len(ranking) - 1]
    names = [" over ".join(_name((of["layer"], of["head"])) for of in pair) for pair in pairwise(ranking)]
    cells = _together(dict(zip(names, steps, strict=True)))
    smallest = min(cells, key=lambda name: cells[name]["mean"])
    return _all("score,", cells, "above", 0.0), {
        "neighbours told apart": sum(Test("", cell, "above", 0.0).answer is True for cell in cells.values()),
        "of": len(cells),
        f"smallest difference ({smallest})": cells[smallest],
    }


@claim(
    "early heads",
    "Heads of early layers matter more to the model than later ones, whatever they attend to",
    "the mean |change of the loss| of single heads off is larger in the first quarter of the layers than in each other "
    "quarter, with layers 0 and 1 and without them (paired; intervals simultaneous over the quarters)",
)
def _(results):
    early = results["exp7"]["early"]
    if early is None:
        raise CannotTellError("fewer than four layers have no quarters")
    if early["first_minus_from_2"] is None:
        raise CannotTellError("the first quarter is no more than layers 0 and 1")
    whole, rest = (_together(dict(enumerate(early[key], 2))) for key in ("first_minus", "first_minus_from_2"))
    tests = _all("first quarter, less quarter", whole, "above", 0.0)
    tests += _all("first quarter without layers 0 and 1, less quarter", rest, "above", 0.0)
    values = {f"quarter {i}": quarter["loss"] for i, quarter in enumerate(early["quarters"], 1)}
    least = min(rest, key=lambda quarter: rest[quarter]["mean"])
    return tests, values | {f"first without layers 0 and 1, less quarter {least}": rest[least]}


@claim(
    "attention is not impact",
    "How much a head attends to the first token does not tell what its removal costs",
    f"the rank correlation, over heads, of attention and the change of the loss within layers (depth alone is no "
    f"evidence) lies within {WEAK}, Fisher's interval; only where most heads' changes are told from zero, since noise "
    "hides a correlation",
)
def _(results):
    sweep = results["exp7"]
    of = sweep["conclusion"]["values"]["correlations"]["score_loss"]
    if of["within_layers"] is None:
        raise CannotTellError("the heads of no layer differ")
    n = of["heads"] - len({head["layer"] for head in sweep["heads"]}) + 1  # a mean less in each layer but one
    cell = {"mean": of["within_layers"], "ci95": _fisher(of["within_layers"], n)}
    test = within("rank correlation within layers", cell, _up_to(WEAK))
    sure = [Test("", head["zero"]["loss"], "above", 0.0).answer is not None for head in sweep["heads"]]
    values = {
        "within layers": cell,
        "p": of["p"],
        "over all": of["rho"],
        "heads": of["heads"],
        "told from zero": sum(sure),
    }
    if evidence.every(test) and sum(sure) <= MOST * len(sure):
        raise CannotTellError(
            f"the changes of only {sum(sure)} of {len(sure)} heads are told from zero: noise may hide it"
        )
    return test, values


def _fisher(rho, n):
    """Interval of a rank correlation of `n` pairs: Fisher's z with the variance of Bonett and Wright (2000)."""
    if n <= 3 or abs(rho) >= 1:
        return None
    reach = ndtri((1 + LEVEL) / 2) * sqrt((1 + rho**2 / 2) / (n - 3))
    return [tanh(atanh(rho) - reach), tanh(atanh(rho) + reach)]


@claim(
    "3D",
    "In one sentence nothing changes when a head is removed, not even the highest (GPT-2: -0.08 % and 0.00 %)",
    f"in every comparison, the largest change anywhere downstream is below {HARDLY:.0%} of the largest baseline value "
    "(of this sentence: exact); heads that run after the birth count against it, and not for it",
)
def _(results):
    born, compared = results.birth_layer, results.every("compare_3d")
    values, tests = {}, []
    for of in compared:
        size = max(abs(layer["largest"]["before"]) for layer in of["downstream"])
        change = max(
            abs(layer["most_changed"]["after"] - layer["most_changed"]["before"]) for layer in of["downstream"]
        )
        name = f"head {of['layer']}.{of['head']}"
        values[name] = change / size if size else float("inf")
        tests.append(Test(f"change by {name}", evidence.exact(values[name]), "below", HARDLY))
    if evidence.every(tests) and all(of["layer"] > born for of in compared):
        raise CannotTellError(f"causality: they run after layer {born}, where the largest value is born")
    return tests, values
