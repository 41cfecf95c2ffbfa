"""Experiment 7: which single heads move the massive activation, and which does the model miss?"""

from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

from experiments.head_sweep.results import (
    KINDS,
    VALUE_EFFECTS,
    ByKind,
    Correlation,
    Correlations,
    Effect,
    Kind,
    Move,
    Results,
    SingleHead,
    ValueEffect,
    Values,
    Verdict,
)
from lib.core import evidence, stats
from lib.core.definitions import COST, MOVES
from lib.core.results import Head

Judged: TypeAlias = dict[Head, tuple[str, evidence.Test]]
"""The word, "above", "below", "between" or CANNOT_TELL, and the Test of the nearer threshold."""
LISTED = 8  # of the heads that cannot be told, those with the largest changes, have their thresholds printed
RULE = (
    f"a head moves the value if its removal changes it, along the spike's sign, by more than {MOVES:.0%} of the "
    "baseline's, up (raises) or down (lowers), at the first layer or at the end of the plateau: the whole simultaneous "
    "interval, over all heads that can change it, lies beyond; the ratio is of sums over the windows that have the "
    f"spike. {evidence.CANNOT_TELL}: the interval holds {MOVES:.0%} or -{MOVES:.0%}. In the same way, and named apart, "
    "the value at the last layer, relative to the baseline's at the end of the plateau: a head that raises it erases "
    f"where it is. costs, gains: in the same way the loss without the head, above {COST} or below -{COST} nats a "
    "token. no single head: none moves the value, and none cannot be told; "
    f"{evidence.NONE_FOUND}: nothing is massive. The verdict is on heads set to zero. correlations: Spearman's over "
    "heads (of the place: those that can change it); within layers: of the ranks in each layer, pooled, in which depth "
    "has no part; p: two-sided, of heads shuffled within their layers"
)


def judge(results: Results) -> Verdict:
    shown = [effect for effect in VALUE_EFFECTS if effect in results.shown]
    plateau = [effect for effect in shown if effect != "last"]
    later = [effect for effect in shown if effect == "last"]
    zero, mean = ({effect: _judged(results, kind, effect) for effect in shown} for kind in KINDS)
    loss = _judged(results, "zero", "loss")
    moves, unclear = _moves(zero), _unclear(zero[effect] for effect in plateau)
    values = Values(
        moves=ByKind(moves, _moves(mean)),
        cannot_tell=ByKind(unclear, _unclear(mean[effect] for effect in plateau)),
        cannot_tell_last=ByKind(_unclear(zero[effect] for effect in later), _unclear(mean[effect] for effect in later)),
        costs=[head for head, (word, _test) in loss.items() if word == "above"],
        gains=[head for head, (word, _test) in loss.items() if word == "below"],
        costs_cannot_tell=_unclear([loss]),
        correlations=_correlations(results.heads),
    )
    tests = [test for judged in (*zero.values(), loss) for test in _decisive(judged)]
    named = dict.fromkeys(f"{move.layer}.{move.head} {move.does}" for move in moves if move.effect in plateau)
    if not results.place.massive:
        verdict = evidence.NONE_FOUND
    else:
        verdict = ", ".join(named) or (evidence.CANNOT_TELL if unclear else "no single head")
    return evidence.conclusion(verdict, RULE, values, tests)


def _judged(results: Results, kind: Kind, effect: Effect) -> Judged:
    """The heads whose removal can have this effect; empty for the value where nothing is massive."""
    judged: Judged = {}
    for head in results.heads:
        change = head.changes(kind).effect(effect)
        if change is None:
            continue
        cell, threshold = (change, COST) if effect == "loss" else (change.relative, MOVES)
        if cell is None:
            continue
        what = f"{head.layer}.{head.head}: {'loss' if effect == 'loss' else f'relative change, {effect}'}"
        tests = [
            evidence.Test(what, cell, "above", threshold, "family95"),
            evidence.Test(what, cell, "below", -threshold, "family95"),
        ]
        nearer, answers = tests[cell.mean < 0], [test.answer for test in tests]
        word = nearer.wanted if True in answers else "between" if None not in answers else evidence.CANNOT_TELL
        judged[Head(head.layer, head.head)] = word, nearer
    return judged


def _moves(place: dict[ValueEffect, Judged]) -> list[Move]:
    does: dict[str, Literal["lowers", "raises"]] = {"above": "raises", "below": "lowers"}
    return [
        Move(*head, does[word], effect)
        for effect, judged in place.items()
        for head, (word, _test) in judged.items()
        if word in does
    ]


def _unclear(several: Iterable[Judged]) -> list[Head]:
    """Heads that cannot be told in one of these and are not named in another."""
    words = [(head, word) for judged in several for head, (word, _test) in judged.items()]
    named = {head for head, word in words if word in ("above", "below")}
    unclear = {head for head, word in words if word == evidence.CANNOT_TELL}
    return sorted(unclear - named)


def _decisive(judged: Judged) -> list[evidence.Test]:
    """The Tests of the heads that are named, of those that cannot be told, and of the nearest of all others."""
    by: dict[str, list[evidence.Test]] = {"named": [], evidence.CANNOT_TELL: [], "between": []}
    for word, test in judged.values():
        by[word if word in by else "named"].append(test)
    for tests in by.values():
        tests.sort(key=lambda test: -abs(test.cell.mean))
    nearest = sorted(by["between"], key=lambda test: abs(test.distance or 0))[:1]
    return [*by["named"], *by[evidence.CANNOT_TELL][:LISTED], *nearest]


def _correlations(heads: list[SingleHead]) -> Correlations:
    able = [(head, abs(head.zero.end.mean)) for head in heads if head.zero.end]
    losses = [(head, head.zero.loss.mean) for head in heads]
    return Correlations(
        score_place=_correlation(able, _score),
        write_place=_correlation(able, _write),
        score_loss=_correlation(losses, _score),
        write_loss=_correlation(losses, _write),
    )


def _score(head: SingleHead) -> float:
    return head.score


def _write(head: SingleHead) -> float:
    return abs(head.write)


def _correlation(changes: list[tuple[SingleHead, float]], size: Callable[[SingleHead], float]) -> Correlation:
    """Of the heads' sizes and what their removal changes."""
    heads, effects = [head for head, _effect in changes], [effect for _head, effect in changes]
    sizes = [size(head) for head in heads]
    within, p = stats.stratified_spearman(sizes, effects, [head.layer for head in heads])
    return Correlation(stats.spearman(sizes, effects), within, p, len(heads))
