"""Claims about what the removal of heads does."""

from math import atanh, sqrt, tanh

from scipy.special import ndtri

from lib.claims.cells import (
    LOWEST,
    all_of,
    all_within,
    exactly,
    head_name,
    head_names,
    largest_of,
    less,
    together,
    up_to,
)
from lib.claims.judging import Judged, claim
from lib.claims.results import CannotTellError, Results
from lib.core import evidence
from lib.core.definitions import COST, HARDLY, LEVEL, MOST, MOVES, ODDS, WEAK
from lib.core.evidence import Cell, Stored, Test, within
from lib.core.stats import binomial_interval

EFFECTS = ("birth", "end", "last")  # of experiment 7, at the place


def _at_place(head: Stored) -> dict[str, Cell]:
    """{"18.7, birth": change of the value, in parts of the baseline's} of one head of experiment 7 off."""
    return {
        f"{head_name((head['layer'], head['head']))}, {key}": head["zero"][key]["relative"]
        for key in EFFECTS
        if head["zero"][key]
    }


def _losses(heads: list[Stored]) -> dict[str, Cell]:
    return {head_name((head["layer"], head["head"])): head["zero"]["loss"] for head in heads}


@claim(
    "1",
    "Removing the three heads that attend most to the first token hardly moves massive activations (GPT-2: +0.06 %)",
    f"the absolute change at the largest massive place, relative to its size, is below {HARDLY:.0%} without TOP; where "
    "all of TOP run after the layer where the place is looked at, it was certain beforehand and is no evidence",
)
def highest_hardly_matter(results: Results) -> Judged:
    change = exactly(results.verdict("head_pruning")["values"]["top"], "absolute_change")
    why = _certain(results["head_pruning"], "top")
    if why:
        raise CannotTellError(f"{why} (absolute change {change['mean']:.1e})")
    heads, null = results["head_pruning"]["sets"]["top"], results["head_pruning"]["null"]["top"]
    values = {"heads": head_names(heads), "absolute change": change}
    if null["absolute_change"]:
        values["share of other sets of TOP's layers that change as much"] = null["p"]
    return [Test("absolute change without TOP", change, "below", HARDLY)], values


def _certain(pruned: Stored, name: str) -> str | None:
    """Why nothing could change at the place without these heads."""
    heads, layer = pruned["sets"][name], pruned["places"][name][0]["layer"]
    if min(of for of, _head in heads) <= layer:
        return None
    return (
        f"causality: all of {name.upper()} ({head_names(heads)}) run after layer {layer}, where the place is looked "
        "at, so it was certain beforehand"
    )


@claim(
    "2",
    f"Heads that attend least to the first token are safe to prune (GPT-2: the {LOWEST} lowest, 11.8 among them)",
    f"none of the {LOWEST} heads with the lowest scores in these windows, off alone, changes the value at the place by "
    f"{MOVES:.0%} (at the first and at the end of the plateau: of the baseline's there; at the last layer: of the "
    f"baseline's at the end of the plateau), or raises the loss by {COST} nats a token; intervals simultaneous over "
    "all heads",
)
def lowest_are_safe(results: Results) -> Judged:
    sweep = results["exp7"]
    if not sweep["place"]["massive"]:
        raise CannotTellError("nothing is massive in this model")
    lowest = sorted(sweep["heads"], key=lambda head: head["score"])[:LOWEST]
    n = results.documents("exp7")
    moved = together({name: cell for head in lowest for name, cell in _at_place(head).items()}, n)
    losses = together(_losses(lowest), n)
    largest, dearest = largest_of(moved), max(losses, key=lambda name: losses[name]["mean"])
    values = {
        "heads": " ".join(losses),
        "by windows of": results.data("exp7")["seqlen"],
        f"largest change ({largest})": moved[largest],
        f"largest loss ({dearest})": losses[dearest],
    }
    return all_within("change by", moved, up_to(MOVES)) + all_of("loss without", losses, "below", COST), values


@claim(
    "5",
    "Heads that attend least matter more to massive activations than those that attend most (GPT-2: 7 times)",
    "at the largest massive place the absolute change without BOTTOM exceeds that without TOP, and at most "
    f"{ODDS:.0%} of the other sets of as many heads of BOTTOM's own layers change as much. No evidence for it: too few "
    "sets for that, and a set of which all heads run after the layer where the place is looked at (it was certain to "
    "do nothing); either part refuted decides, unless BOTTOM is such a set",
)
def lowest_matter_more(results: Results) -> Judged:
    conclusion, pruned = results.verdict("head_pruning"), results["head_pruning"]
    certain = {name: _certain(pruned, name) for name in ("top", "bottom")}
    if certain["bottom"]:
        raise CannotTellError(certain["bottom"])
    null = pruned["null"]["bottom"]
    n = len(null["absolute_change"])
    top, bottom = (exactly(conclusion["values"][name], "absolute_change") for name in ("top", "bottom"))
    tests = [Test("absolute change without BOTTOM, less that without TOP", less(bottom, top), "above", 0.0)]
    values = {"TOP": top, "BOTTOM": bottom}
    enough = n * ODDS >= 1
    if enough:
        p = null["p"]
        drawn = {"mean": p, "ci95": [p, p] if null["enumerated"] else binomial_interval(null["at_least_as_large"], n)}
        tests.append(Test("other sets of BOTTOM's layers that change as much", drawn, "below", ODDS))
        values |= {"other sets that change as much": drawn, "of": n}
    if evidence.every(tests) is not False:
        if certain["top"]:
            raise CannotTellError(certain["top"])
        if not n:
            raise CannotTellError("no other heads beside them (--n_random)")
        if not enough:
            raise CannotTellError(f"{n} other sets of heads of these layers: too few to tell BOTTOM from chance")
    return tests, values


@claim(
    "13",
    "The model is robust to losing single heads: neither massive activations nor the loss move",
    f"no head of all, off alone, changes the loss by {COST} nats a token, or the value at the place by {MOVES:.0%} (as "
    "in row 2), in either direction; intervals simultaneous over all heads",
)
def singles_hardly_matter(results: Results) -> Judged:
    sweep = results["exp7"]
    if not sweep["place"]["massive"]:
        raise CannotTellError("nothing is massive in this model")
    n = results.documents("exp7")
    losses = together(_losses(sweep["heads"]), n)
    moved = together({name: cell for head in sweep["heads"] for name, cell in _at_place(head).items()}, n)
    told = sweep["conclusion"]["values"]
    dearest, largest = largest_of(losses), largest_of(moved)
    values = {
        "heads": len(losses),
        f"largest change of the loss ({dearest})": losses[dearest],
        f"of the value ({largest})": moved[largest],
        "cost more": head_names(told["costs"]),
        "move more": head_names(sorted({(layer, head) for layer, head, *_how in told["moves"]["zero"]})),
    }
    tests = all_within("loss without", losses, up_to(COST)) + all_within("change by", moved, up_to(MOVES))
    return tests, values


@claim(
    "early heads",
    "Heads of early layers matter more to the model than later ones, whatever they attend to",
    "the mean |change of the loss| of single heads off is larger in the first quarter of the layers than in each other "
    "quarter, with layers 0 and 1 and without them (paired; intervals simultaneous over the quarters)",
)
def early_matter_more(results: Results) -> Judged:
    early = results["exp7"]["early"]
    if early is None:
        raise CannotTellError("fewer than four layers have no quarters")
    if early["first_minus_from_2"] is None:
        raise CannotTellError("the first quarter is no more than layers 0 and 1")
    n = results.documents("exp7")
    whole, rest = (together(dict(enumerate(early[key], 2)), n) for key in ("first_minus", "first_minus_from_2"))
    tests = all_of("first quarter, less quarter", whole, "above", 0.0)
    tests += all_of("first quarter without layers 0 and 1, less quarter", rest, "above", 0.0)
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
def attention_is_not_impact(results: Results) -> Judged:
    sweep = results["exp7"]
    of = sweep["conclusion"]["values"]["correlations"]["score_loss"]
    if of["within_layers"] is None:
        raise CannotTellError("the heads of no layer differ")
    n = of["heads"] - len({head["layer"] for head in sweep["heads"]}) + 1  # a mean less in each layer but one
    cell = {"mean": of["within_layers"], "ci95": fisher(of["within_layers"], n)}
    test = within("rank correlation within layers", cell, up_to(WEAK))
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


def fisher(rho: float, n: int) -> list[float] | None:
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
def nothing_in_a_sentence(results: Results) -> Judged:
    born, compared = results.birth_layer, results.every("compare_3d")
    values: dict[str, float | str] = {}
    tests: list[Test] = []
    for of in compared:
        size = max(abs(layer["largest"]["before"]) for layer in of["downstream"])
        change = max(
            abs(layer["most_changed"]["after"] - layer["most_changed"]["before"]) for layer in of["downstream"]
        )
        share = change / size if size else float("inf")
        name = f"head {of['layer']}.{of['head']}"
        values[f"{name} ({of['chosen']})"] = share
        tests.append(Test(f"change by {name}", evidence.exact(share), "below", HARDLY))
    ranked = results.files.get("head_analysis")
    if ranked:
        highest = ranked[0]["results"]["ranking"][0]
        values["the model's highest"] = head_name((highest["layer"], highest["head"]))
    if evidence.every(tests) and all(of["layer"] > born for of in compared):
        raise CannotTellError(f"causality: they run after layer {born}, where the largest value is born")
    return tests, values
