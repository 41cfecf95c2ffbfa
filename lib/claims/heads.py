"""Claims about attention heads: where they look and what they write."""

from itertools import pairwise
from math import comb

from lib.claims.cells import (
    HIGHEST,
    TOGETHER,
    all_of,
    all_within,
    head_names,
    highest_of,
    in_parts_of,
    largest_of,
    less,
    one_of,
    peak_size,
    together,
    up_to,
)
from lib.claims.judging import Judged, claim
from lib.claims.measured import CannotTellError, Measured, documents, head_shares
from lib.core import evidence
from lib.core.definitions import MOST, PERSISTS, WRITES
from lib.core.evidence import Cell, Test, within
from lib.core.results import Head


@claim(
    "specialised heads",
    "Some heads look at the first token most of the time, others hardly ever (GPT-2: 0.828 and 0.001)",
    f"the highest mean attention to the first token is above {MOST}, the lowest below what attending evenly gives; "
    f"intervals {TOGETHER}",
)
def specialised(measured: Measured) -> Judged:
    heads, scores = measured.head_scores.results, _scores(measured)
    highest, lowest = (scores[Head(head.layer, head.head)] for head in (heads.ranking[0], heads.ranking[-1]))
    tests = [
        Test("highest score", highest, "above", MOST),
        Test("lowest score", lowest, "below", heads.uniform),
    ]
    return tests, {"highest": highest, "lowest": lowest, "evenly": heads.uniform}


def _scores(measured: Measured) -> dict[Head, Cell]:
    rows = enumerate(measured.head_scores.results.scores)
    cells = {Head(layer, head): cell for layer, row in rows for head, cell in enumerate(row)}
    return together(cells, documents(measured.head_scores))


@claim(
    "2b",
    "A head that does not look at the first token writes nothing into the massive activation",
    "of the heads whose mean attention to the first token is below what attending evenly gives, none writes "
    f"{WRITES:.0%} of the peak at the place, in either direction; heads that run after the birth count against it, and "
    f"not for it, and it cannot be told where no other head up to the birth writes as much, wherever it looks; "
    f"intervals {TOGETHER}",
)
def elsewhere_write_nothing(measured: Measured) -> Judged:
    evenly, born, scores = measured.head_scores.results.uniform, measured.birth_layer, _scores(measured)
    writes = together(head_shares(measured.ledger), documents(measured.ledger))
    below = [Test("score", scores[head], "below", evenly).answer for head in writes]
    low = {head: writes[head] for head, answer in zip(writes, below, strict=True) if answer}
    if not low:
        raise CannotTellError("no head is sure to attend less than evenly to the first token")
    tests = all_within("write, in parts of the peak, of head", low, up_to(WRITES))
    able = {head: cell for head, cell in writes.items() if head.layer <= born}
    if evidence.every(tests) is not False:
        if not any(head in low for head in able):
            raise CannotTellError(
                f"causality: all {len(low)} heads that look elsewhere run after layer {born}, the birth"
            )
        if not any(abs(cell.mean) >= WRITES for cell in able.values()):
            most = largest_of(able)
            raise CannotTellError(
                f"no head up to layer {born}, the birth, writes {WRITES:.0%} of the peak, wherever it looks (the most: "
                f"{most}, {able[most].mean:.1e} of it)"
            )
    most = largest_of(low)
    return tests, {"heads below": len(low), f"largest write, in parts of the peak ({most})": low[most]}


@claim(
    "2c",
    "An attention head takes the massive activation away in the end (predicted for GPT-2: 11.8; without it layer 11 "
    "stays near 2,900)",
    "the head that takes away most takes more than any other part, and with it alone off the last block's output keeps "
    f"{PERSISTS[0]} to {PERSISTS[1]} of the value at the end of the plateau",
)
def one_erases(measured: Measured) -> Judged:
    ledger, born = measured.ledger, measured.birth_layer
    erasers = ledger.conclusion.values.erasers
    if not erasers:
        raise CannotTellError(f"nothing is sure to take {WRITES:.0%} of it away")
    later = {write.name: write for write in ledger.results.writes if write.order >= max(born, 0)}
    shares = together({name: write.share for name, write in later.items()}, documents(ledger))
    taken = {name: in_parts_of(-1.0, cell) for name, cell in shares.items()}
    heads, others = (
        {name: cell for name, cell in taken.items() if (later[name].of_head is not None) is wanted}
        for wanted in (True, False)
    )
    values = {"largest eraser": erasers[0].name, "writes": erasers[0].value, "peak": peak_size(measured.place)}
    if not heads or not others:
        raise CannotTellError(f"nothing but {'heads' if heads else 'what is no single head'} writes from the birth on")
    most, other = highest_of(heads), highest_of(others)
    what = "what the most erasing head takes, less what the most erasing other part takes, in parts of the peak"
    tests = [Test(what, less(heads[most], others[other]), "above", 0.0)]
    if not tests[0].answer:
        return tests, values
    head, sweep = later[most].of_head, measured.head_sweep.results
    off = next(row.zero.last.relative for row in sweep.heads if (row.layer, row.head) == head)
    if off is None:
        raise CannotTellError("no window has the spike")
    stays = sweep.baseline.last.mean / sweep.baseline.end.mean
    kept = Cell(stays + off.mean, off.ci95 and (stays + off.ci95[0], stays + off.ci95[1]))
    what = f"kept in the last layer without head {head}"
    return tests + within(what, kept, PERSISTS), values | {what: kept}


@claim(
    "6",
    "The heads that attend most to the first token read the massive activation and do not generate it",
    f"of the {HIGHEST} highest heads, those in layers up to the peak's each write less than {WRITES:.0%} of the peak; "
    f"heads of later layers cannot generate it (causality) and are no evidence; intervals {TOGETHER}",
)
def highest_only_read(measured: Measured) -> Judged:
    peak = measured.place.peak_layer
    top = [Head(head.layer, head.head) for head in measured.head_scores.results.ranking[:HIGHEST]]
    able = [head for head in top if head.layer <= peak]
    if not able:
        raise CannotTellError(f"causality: all ten run after layer {peak}, the peak's, so it was certain beforehand")
    writes = head_shares(measured.ledger)
    if not writes:
        raise CannotTellError("no head's write is told apart")
    shares = together({head: writes[head] for head in able}, documents(measured.ledger))
    largest = largest_of(shares)
    values = {
        "heads that could": head_names(shares),
        f"largest write, in parts of the peak ({largest})": shares[largest],
    }
    return all_within("write, in parts of the peak, of head", shares, up_to(WRITES)), values


@claim(
    "15",
    f"The {HIGHEST} highest heads have a definite order",
    "every paired difference of neighbouring scores lies above 0; they are ranked and compared on the same windows, so "
    "this holds or cannot be told, and cannot fail; intervals simultaneous over all pairs of the model's heads, of "
    "which any could have come out as neighbours",
)
def order(measured: Measured) -> Judged:
    heads = measured.head_scores.results.ranking
    ranking = [Head(head.layer, head.head) for head in heads[:HIGHEST]]
    steps = measured.head_scores.results.neighbours[: len(ranking) - 1]
    names = [f"{head} over {lower}" for head, lower in pairwise(ranking)]
    n = documents(measured.head_scores)
    cells = {name: one_of(comb(len(heads), 2), step, n) for name, step in zip(names, steps, strict=True)}
    smallest = min(cells, key=lambda name: cells[name].mean)
    return all_of("score,", cells, "above", 0.0), {
        "neighbours told apart": sum(Test("", cell, "above", 0.0).answer is True for cell in cells.values()),
        "of": len(cells),
        f"smallest difference ({smallest})": cells[smallest],
    }
