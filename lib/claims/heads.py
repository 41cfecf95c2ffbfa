"""Claims about attention heads: where they look and what they write."""

from itertools import pairwise
from math import comb

from lib.claims.cells import (
    HIGHEST,
    TOGETHER,
    all_of,
    all_within,
    head_name,
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
from lib.claims.results import CannotTellError, Results, is_head
from lib.core import evidence
from lib.core.definitions import MOST, PERSISTS, WRITES
from lib.core.evidence import Test, within


@claim(
    "specialised heads",
    "Some heads look at the first token most of the time, others hardly ever (GPT-2: 0.828 and 0.001)",
    f"the highest mean attention to the first token is above {MOST}, the lowest below what attending evenly gives; "
    f"intervals {TOGETHER}",
)
def specialised(results: Results) -> Judged:
    heads = results["head_analysis"]
    scores = together(
        {(i, j): cell for i, layer in enumerate(heads["scores"]) for j, cell in enumerate(layer)},
        results.documents("head_analysis"),
    )
    highest, lowest = (scores[at["layer"], at["head"]] for at in (heads["ranking"][0], heads["ranking"][-1]))
    tests = [
        Test("highest score", highest, "above", MOST),
        Test("lowest score", lowest, "below", heads["uniform"]),
    ]
    return tests, {"highest": highest, "lowest": lowest, "evenly": heads["uniform"]}


@claim(
    "2b",
    "A head that does not look at the first token writes nothing into the massive activation",
    "of the heads whose mean attention to the first token is below what attending evenly gives, none writes "
    f"{WRITES:.0%} of the peak at the place, in either direction; heads that run after the birth count against it, and "
    f"not for it, and it cannot be told where no other head up to the birth writes as much, wherever it looks; "
    f"intervals {TOGETHER}",
)
def elsewhere_write_nothing(results: Results) -> Judged:
    analysis, born = results["head_analysis"], results.birth_layer
    scores = together(
        {(i, j): cell for i, layer in enumerate(analysis["scores"]) for j, cell in enumerate(layer)},
        results.documents("head_analysis"),
    )
    writes = together(results.head_writes(), results.documents("exp3"))
    below = [Test("score", scores[head], "below", analysis["uniform"]).answer for head in writes]
    low = {head: writes[head] for head, answer in zip(writes, below, strict=True) if answer}
    if not low:
        raise CannotTellError("no head is sure to attend less than evenly to the first token")
    tests = all_within(
        "write, in parts of the peak, of head", {head_name(of): cell for of, cell in low.items()}, up_to(WRITES)
    )
    able = {head: cell for head, cell in writes.items() if head[0] <= born}
    if evidence.every(tests) is not False:
        if not any(head in low for head in able):
            raise CannotTellError(
                f"causality: all {len(low)} heads that look elsewhere run after layer {born}, the birth"
            )
        if not any(abs(cell["mean"]) >= WRITES for cell in able.values()):
            most = largest_of(able)
            raise CannotTellError(
                f"no head up to layer {born}, the birth, writes {WRITES:.0%} of the peak, wherever it looks (the most: "
                f"{head_name(most)}, {able[most]['mean']:.1e} of it)"
            )
    most = largest_of(low)
    return tests, {"heads below": len(low), f"largest write, in parts of the peak ({head_name(most)})": low[most]}


@claim(
    "2c",
    "An attention head takes the massive activation away in the end (predicted for GPT-2: 11.8; without it layer 11 "
    "stays near 2,900)",
    "the head that takes away most takes more than any other part, and with it alone off the last block's output keeps "
    f"{PERSISTS[0]} to {PERSISTS[1]} of the value at the end of the plateau",
)
def one_erases(results: Results) -> Judged:
    erasers, born = results.erasers, results.birth_layer
    if not erasers:
        raise CannotTellError(f"nothing is sure to take {WRITES:.0%} of it away")
    later = [write for write in results["exp3"]["writes"] if write["layer"] is not None and write["layer"] >= born]
    written = together({(of["layer"], of["component"]): of["share"] for of in later}, results.documents("exp3"))
    taken = {part: in_parts_of(-1.0, cell) for part, cell in written.items()}
    heads, others = ({part: taken[part] for part in taken if is_head(part[1]) is of} for of in (True, False))
    values = {"largest eraser": erasers[0]["name"], "writes": erasers[0]["value"], "peak": peak_size(results.place)}
    head, other = (highest_of(of) for of in (heads, others))
    what = "what the most erasing head takes, less what the most erasing other part takes, in parts of the peak"
    tests = [Test(what, less(heads[head], others[other]), "above", 0.0)]
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
    "6",
    "The heads that attend most to the first token read the massive activation and do not generate it",
    f"of the {HIGHEST} highest heads, those in layers up to the peak's each write less than {WRITES:.0%} of the peak; "
    f"heads of later layers cannot generate it (causality) and are no evidence; intervals {TOGETHER}",
)
def highest_only_read(results: Results) -> Judged:
    peak = results.place["peak_layer"]
    top = [(head["layer"], head["head"]) for head in results["head_analysis"]["ranking"][:HIGHEST]]
    able = [head for head in top if head[0] <= peak]
    if not able:
        raise CannotTellError(f"causality: all ten run after layer {peak}, the peak's, so it was certain beforehand")
    writes = results.head_writes()
    shares = together({head_name(head): writes[head] for head in able}, results.documents("exp3"))
    largest = largest_of(shares)
    values = {"heads that could": " ".join(shares), f"largest write, in parts of the peak ({largest})": shares[largest]}
    return all_within("write, in parts of the peak, of head", shares, up_to(WRITES)), values


@claim(
    "15",
    f"The {HIGHEST} highest heads have a definite order",
    "every paired difference of neighbouring scores lies above 0; they are ranked and compared on the same windows, so "
    "this holds or cannot be told, and cannot fail; intervals simultaneous over all pairs of the model's heads, of "
    "which any could have come out as neighbours",
)
def order(results: Results) -> Judged:
    heads = results["head_analysis"]["ranking"]
    ranking = heads[:HIGHEST]
    steps = results["head_analysis"]["neighbours"][: len(ranking) - 1]
    names = [" over ".join(head_name((of["layer"], of["head"])) for of in pair) for pair in pairwise(ranking)]
    documents = results.documents("head_analysis")
    cells = {name: one_of(comb(len(heads), 2), step, documents) for name, step in zip(names, steps, strict=True)}
    smallest = min(cells, key=lambda name: cells[name]["mean"])
    return all_of("score,", cells, "above", 0.0), {
        "neighbours told apart": sum(Test("", cell, "above", 0.0).answer is True for cell in cells.values()),
        "of": len(cells),
        f"smallest difference ({smallest})": cells[smallest],
    }
