"""Experiment 7: which single heads move the massive activation, and which does the model miss?"""

from typing import Any

from lib.core import evidence, stats
from lib.core.definitions import COST, MOVES

Judged = dict[tuple[int, int], tuple[str, evidence.Test]]  # of each (layer, head) the word and the nearer threshold
KINDS = ("zero", "mean")
FAMILY = "family95"
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


def judge(results: dict[str, Any]) -> dict[str, Any]:
    """values: moves {kind: [[layer, head, "lowers" or "raises", effect]]}, cannot_tell {kind: [[layer, head]]} (at the
    plateau), cannot_tell_last (at the last layer), costs, gains, costs_cannot_tell [[layer, head]], correlations."""
    keys = [key for key in results["shown"] if key in ("birth", "end", "last")]
    place = {kind: {key: _judged(results, kind, key) for key in keys} for kind in KINDS}
    plateau = [key for key in keys if key != "last"]
    loss = _judged(results, "zero", "loss")
    moves = {kind: _moves(of) for kind, of in place.items()}
    unclear = {kind: _unclear([of[key] for key in plateau]) for kind, of in place.items()}
    values = {
        "moves": moves,
        "cannot_tell": unclear,
        "cannot_tell_last": {kind: _unclear([of[key] for key in keys if key == "last"]) for kind, of in place.items()},
        "costs": [list(head) for head, (word, _test) in loss.items() if word == "above"],
        "gains": [list(head) for head, (word, _test) in loss.items() if word == "below"],
        "costs_cannot_tell": _unclear([loss]),
        "correlations": {
            f"{x}_{effect}": _correlation(results["heads"], x, key)
            for effect, key in (("place", "end"), ("loss", "loss"))
            for x in ("score", "write")
        },
    }
    tests = [test for of in (*place["zero"].values(), loss) for test in _decisive(of)]
    named = {f"{layer}.{head} {does}": None for layer, head, does, key in moves["zero"] if key in plateau}
    if not results["place"]["massive"]:
        verdict = evidence.NONE_FOUND
    else:
        verdict = ", ".join(named) or (evidence.CANNOT_TELL if unclear["zero"] else "no single head")
    return evidence.conclusion(verdict, RULE, values, tests)


def _judged(results: dict[str, Any], kind: str, key: str) -> Judged:
    """{(layer, head): ("above", "below", "between" or CANNOT_TELL, the Test of the nearer threshold)} of the heads
    whose removal can have this effect; empty for the value where nothing is massive."""
    judged = {}
    for row in results["heads"]:
        cell, threshold = row[kind][key], COST
        if key != "loss":
            cell, threshold = cell and cell["relative"], MOVES
        if cell is None:
            continue
        what = f"{row['layer']}.{row['head']}: {'loss' if key == 'loss' else f'relative change, {key}'}"
        tests = [
            evidence.Test(what, cell, "above", threshold, FAMILY),
            evidence.Test(what, cell, "below", -threshold, FAMILY),
        ]
        nearer, answers = tests[cell["mean"] < 0], [test.answer for test in tests]
        word = nearer.wanted if True in answers else "between" if None not in answers else evidence.CANNOT_TELL
        judged[row["layer"], row["head"]] = word, nearer
    return judged


def _moves(place: dict[str, Judged]) -> list[list[Any]]:
    does = {"above": "raises", "below": "lowers"}
    return [
        [*head, does[word], key]
        for key, judged in place.items()
        for head, (word, _test) in judged.items()
        if word in does
    ]


def _unclear(several: list[Judged]) -> list[list[int]]:
    """Heads that cannot be told in one of these and are not named in another."""
    words = [{head: word for head, (word, _test) in of.items()} for of in several]
    named = {head for of in words for head, word in of.items() if word in ("above", "below")}
    unclear = {head for of in words for head, word in of.items() if word == evidence.CANNOT_TELL}
    return [list(head) for head in sorted(unclear - named)]


def _decisive(judged: Judged) -> list[evidence.Test]:
    """The Tests of the heads that are named, of those that cannot be told, and of the nearest of all others."""
    by: dict[str, list[evidence.Test]] = {"named": [], evidence.CANNOT_TELL: [], "between": []}
    for word, test in judged.values():
        by[word if word in by else "named"].append(test)
    for tests in by.values():
        tests.sort(key=lambda test: -abs(test.cell["mean"]))
    nearest = sorted(by["between"], key=lambda test: abs(test.distance or 0))[:1]
    return [*by["named"], *by[evidence.CANNOT_TELL][:LISTED], *nearest]


def _correlation(heads: list[dict[str, Any]], name: str, key: str) -> dict[str, Any]:
    """Of |score| or |write| and what the removal changes: |value|, or the loss."""
    able = [row for row in heads if row["zero"][key]]
    x = [abs(row[name]) for row in able]
    changes = [row["zero"][key]["mean"] for row in able]
    effect = changes if key == "loss" else [abs(change) for change in changes]
    within, p = stats.stratified_spearman(x, effect, [row["layer"] for row in able])
    return {"rho": stats.spearman(x, effect), "within_layers": within, "p": p, "heads": len(able)}
