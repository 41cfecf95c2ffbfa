"""Claims about what the removal of heads does."""

from collections.abc import Iterable
from math import atanh, sqrt, tanh

from scipy.special import ndtri

from experiments.head_pruning.results import Null
from experiments.head_pruning.results import Results as HeadPruning
from experiments.head_sweep.results import VALUE_EFFECTS, SingleHead
from lib.claims.cells import (
    LOWEST,
    absolute_change,
    all_of,
    all_within,
    head_names,
    highest_of,
    largest_of,
    less,
    together,
    up_to,
)
from lib.claims.judging import Judged, claim
from lib.claims.measured import CannotTellError, Measured, documents, of_something
from lib.core import evidence
from lib.core.definitions import COST, HARDLY, LEVEL, MOST, MOVES, ODDS, WEAK
from lib.core.evidence import Cell, Interval, Test, within
from lib.core.results import Head
from lib.core.stats import binomial_interval, percentile_interval


def _at_place(heads: Iterable[SingleHead]) -> dict[str, Cell]:
    """{"18.7, birth": change of the value, in parts of the baseline's} of single heads off."""
    effects = ((Head(row.layer, row.head), name, row.zero.effect(name)) for row in heads for name in VALUE_EFFECTS)
    return {f"{head}, {name}": change.relative for head, name, change in effects if change and change.relative}


def _losses(heads: Iterable[SingleHead]) -> dict[Head, Cell]:
    return {Head(row.layer, row.head): row.zero.loss for row in heads}


@claim(
    "1",
    "Removing the three heads that attend most to the first token hardly moves massive activations (GPT-2: +0.06 %)",
    f"the absolute change at the largest massive place, relative to its size, is below {HARDLY:.0%} without TOP (its "
    "interval holds what other documents would rank into TOP); where all of TOP run after the layer where the place is "
    "looked at, it was certain beforehand and is no evidence",
)
def highest_hardly_matter(measured: Measured) -> Judged:
    pruned = measured.head_pruning.results
    change = _as_ranked(absolute_change(of_something(measured.head_pruning.conclusion).top), pruned.null.top)
    why = _certain(pruned, "top")
    if why:
        raise CannotTellError(f"{why} (absolute change {change.mean:.1e})")
    values = {"heads": head_names(pruned.sets.top), "absolute change": change}
    if pruned.null.top.absolute_change:
        values["share of other sets of TOP's layers that change as much"] = pruned.null.top.p
    return [Test("absolute change without TOP", change, "below", HARDLY)], values


def _as_ranked(change: Cell, null: Null) -> Cell:
    """Its interval, as much wider as sets differ that documents drawn anew would rank."""
    if change.ci95 is None or not null.ranked_anew or null.of_set is None:
        return change
    (low, high), (fewest, most) = change.ci95, percentile_interval(null.ranked_anew)
    return Cell(change.mean, (low + min(0, fewest - null.of_set), high + max(0, most - null.of_set)))


def _certain(pruned: HeadPruning, name: str) -> str | None:
    """Why nothing could change at the place without these heads."""
    heads, layer = pruned.sets.named(name), pruned.places[name][0].layer
    if min(head.layer for head in heads) <= layer:
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
def lowest_are_safe(measured: Measured) -> Judged:
    sweep = measured.head_sweep
    lowest = sorted(sweep.results.heads, key=lambda head: head.score)[:LOWEST]
    n = documents(sweep)
    moved, losses = together(_at_place(lowest), n), together(_losses(lowest), n)
    largest, dearest = largest_of(moved), highest_of(losses)
    values = {
        "heads": head_names(losses),
        "by windows of": sweep.provenance["data"]["seqlen"],
        f"largest change ({largest})": moved[largest],
        f"largest loss ({dearest})": losses[dearest],
    }
    return all_within("change by", moved, up_to(MOVES)) + all_of("loss without", losses, "below", COST), values


@claim(
    "5",
    "Heads that attend least matter more to massive activations than those that attend most (GPT-2: 7 times)",
    "at the largest massive place the absolute change without BOTTOM exceeds that without TOP (intervals hold what "
    "other documents would rank into them), and at most "
    f"{ODDS:.0%} of the other sets of as many heads of BOTTOM's own layers change as much. No evidence for it: too few "
    "sets for that, and a set of which all heads run after the layer where the place is looked at (it was certain to "
    "do nothing); either part refuted decides, unless BOTTOM is such a set",
)
def lowest_matter_more(measured: Measured) -> Judged:
    pruned, sets = measured.head_pruning.results, of_something(measured.head_pruning.conclusion)
    certain = {name: _certain(pruned, name) for name in ("top", "bottom")}
    if certain["bottom"]:
        raise CannotTellError(certain["bottom"])
    null = pruned.null.bottom
    n = len(null.absolute_change)
    top = _as_ranked(absolute_change(sets.top), pruned.null.top)
    bottom = _as_ranked(absolute_change(sets.bottom), null)
    tests = [Test("absolute change without BOTTOM, less that without TOP", less(bottom, top), "above", 0.0)]
    values: dict[str, Cell | int] = {"TOP": top, "BOTTOM": bottom}
    enough = n * ODDS >= 1
    if enough and null.p is not None and null.at_least_as_large is not None:
        p = null.p
        drawn = Cell(p, (p, p) if null.enumerated else binomial_interval(null.at_least_as_large, n))
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
def singles_hardly_matter(measured: Measured) -> Judged:
    sweep, told = measured.head_sweep.results, measured.head_sweep.conclusion.values
    n = documents(measured.head_sweep)
    losses, moved = together(_losses(sweep.heads), n), together(_at_place(sweep.heads), n)
    dearest, largest = largest_of(losses), largest_of(moved)
    values = {
        "heads": len(losses),
        f"largest change of the loss ({dearest})": losses[dearest],
        f"of the value ({largest})": moved[largest],
        "cost more": head_names(told.costs),
        "move more": head_names(sorted({Head(move.layer, move.head) for move in told.moves.zero})),
    }
    tests = all_within("loss without", losses, up_to(COST)) + all_within("change by", moved, up_to(MOVES))
    return tests, values


@claim(
    "early heads",
    "Heads of early layers matter more to the model than later ones, whatever they attend to",
    "the mean |change of the loss| of single heads off is larger in the first quarter of the layers than in each other "
    "quarter, with layers 0 and 1 and without them (paired; intervals simultaneous over the quarters)",
)
def early_matter_more(measured: Measured) -> Judged:
    early = measured.head_sweep.results.early
    if early is None:
        raise CannotTellError("fewer than four layers have no quarters")
    if early.first_minus_from_2 is None:
        raise CannotTellError("the first quarter is no more than layers 0 and 1")
    n = documents(measured.head_sweep)
    whole, rest = (together(dict(enumerate(more, 2)), n) for more in (early.first_minus, early.first_minus_from_2))
    tests = all_of("first quarter, less quarter", whole, "above", 0.0)
    tests += all_of("first quarter without layers 0 and 1, less quarter", rest, "above", 0.0)
    values: dict[str, Cell] = {f"quarter {i}": quarter.loss for i, quarter in enumerate(early.quarters, 1)}
    least = min(rest, key=lambda quarter: rest[quarter].mean)
    return tests, values | {f"first without layers 0 and 1, less quarter {least}": rest[least]}


@claim(
    "attention is not impact",
    "How much a head attends to the first token does not tell what its removal costs",
    f"the rank correlation, over heads, of attention and the change of the loss within layers (depth alone is no "
    f"evidence) lies within {WEAK}, Fisher's interval; only where most heads' changes are told from zero, since noise "
    "hides a correlation",
)
def attention_is_not_impact(measured: Measured) -> Judged:
    heads = measured.head_sweep.results.heads
    correlation = measured.head_sweep.conclusion.values.correlations.score_loss
    rho = correlation.within_layers
    if rho is None:
        raise CannotTellError("the heads of no layer differ")
    n = correlation.heads - len({head.layer for head in heads}) + 1  # a mean less in each layer but one
    cell = Cell(rho, fisher(rho, n))
    test = within("rank correlation within layers", cell, up_to(WEAK))
    sure = [Test("", head.zero.loss, "above", 0.0).answer is not None for head in heads]
    values = {
        "within layers": cell,
        "p": correlation.p,
        "over all": correlation.rho,
        "heads": correlation.heads,
        "told from zero": sum(sure),
    }
    if evidence.every(test) and sum(sure) <= MOST * len(sure):
        raise CannotTellError(
            f"the changes of only {sum(sure)} of {len(sure)} heads are told from zero: noise may hide it"
        )
    return test, values


def fisher(rho: float, n: int) -> Interval | None:
    """Interval of a rank correlation of `n` pairs: Fisher's z with the variance of Bonett and Wright (2000)."""
    if n <= 3 or abs(rho) >= 1:
        return None
    reach = ndtri((1 + LEVEL) / 2) * sqrt((1 + rho**2 / 2) / (n - 3))
    return tanh(atanh(rho) - reach), tanh(atanh(rho) + reach)


@claim(
    "3D",
    "In one sentence nothing changes when a head is removed, not even the highest (GPT-2: -0.08 % and 0.00 %)",
    f"in every comparison, the largest change anywhere downstream is below {HARDLY:.0%} of the largest baseline value "
    "(of this sentence: exact); heads that run after the birth count against it, and not for it",
)
def nothing_in_a_sentence(measured: Measured) -> Judged:
    born, compared = measured.birth_layer, [result.results for result in measured.before_after]
    values: dict[str, float | str] = {}
    tests: list[Test] = []
    for removal in compared:
        size = max(abs(layer.largest.before) for layer in removal.downstream)
        change = max(abs(layer.most_changed.after - layer.most_changed.before) for layer in removal.downstream)
        share = change / size if size else float("inf")
        name = f"head {Head(removal.layer, removal.head)}"
        values[f"{name} ({removal.chosen})"] = share
        tests.append(Test(f"change by {name}", evidence.exact(share), "below", HARDLY))
    ranked = measured.files.get("head_analysis")
    if ranked:
        highest = ranked[0].results.ranking[0]
        values["the model's highest"] = str(Head(highest.layer, highest.head))
    if evidence.every(tests) and all(removal.layer > born for removal in compared):
        raise CannotTellError(f"causality: they run after layer {born}, where the largest value is born")
    return tests, values
