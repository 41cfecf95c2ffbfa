"""Claims about what is left without all heads or without all MLPs."""

from experiments.ablation.results import Stored
from lib.claims.cells import TOGETHER, all_within, in_parts_of, largest_of, less, retained, together, up_to
from lib.claims.judging import Judged, claim
from lib.claims.measured import CannotTellError, Measured, documents, of_something
from lib.core import evidence
from lib.core.definitions import COLLAPSES, LOST, PERSISTS, SLIGHTLY
from lib.core.evidence import within


@claim(
    "3",
    "Massive activations persist without any attention head (GPT-2: +0.63 %)",
    f"experiment 1 at the largest place: {PERSISTS[0]} to {PERSISTS[1]} retained, exact over first tokens where it "
    "is position 0",
)
def persist_without_heads(measured: Measured) -> Judged:
    return _retained(measured.without_heads, PERSISTS)


def _retained(result: Stored, bounds: tuple[float, float]) -> Judged:
    there = of_something(result.conclusion)
    left = retained(there)
    values = {"verdict": result.conclusion.verdict, "retained": left}
    if there.first_tokens:
        values |= {"exact over first tokens": there.first_tokens.tokens, "in the windows": there.retained}
    return within("retained", left, bounds), values


@claim(
    "3b",
    "Without heads the largest value of every layer but the last changes by less than 2 % (GPT-2's own table: +86.8 % "
    "in layer 0)",
    f"the paired change of top-1 is within {SLIGHTLY:.0%} of the baseline's mean in every layer but the last; "
    f"intervals {TOGETHER}",
)
def layers_hardly_change(measured: Measured) -> Judged:
    results = measured.without_heads.results
    before, after = results.conditions["baseline"].layers[:-1], results.changes["all_heads_off"][:-1]
    if not before:
        raise CannotTellError("the model has one layer")
    changes = {
        layer.layer: in_parts_of(layer.top1.mean, change.top1) for layer, change in zip(before, after, strict=True)
    }
    changes = together(changes, documents(measured.without_heads))
    worst = largest_of(changes)
    return all_within("change of top-1, layer", changes, up_to(SLIGHTLY)), {
        f"largest change (layer {worst})": changes[worst]
    }


@claim(
    "4",
    "Massive activations collapse without MLPs",
    f"experiment 2A at the largest place: {COLLAPSES[0]} to {COLLAPSES[1]} retained, exact over first tokens where "
    "it is position 0",
)
def collapse_without_mlps(measured: Measured) -> Judged:
    return _retained(measured.without_mlps, COLLAPSES)


@claim(
    "4b",
    "Without MLPs about 61 % of the massive value is lost (GPT-2: compared across layers and signs)",
    f"at the same layer, position and dim, signed, {LOST[0]:.0%} to {LOST[1]:.0%} is lost",
)
def how_much_is_lost(measured: Measured) -> Judged:
    lost = less(evidence.exact(1.0), retained(of_something(measured.without_mlps.conclusion)))
    return within("lost", lost, LOST), {"lost": lost}
