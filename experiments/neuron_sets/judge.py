"""Experiment 4: whether the smallest set of neurons carries the massive activation, and no random set does."""

from msgspec import UNSET

from experiments.neuron_sets.results import Results, SuperWeight, Values, Verdict
from lib.core.definitions import CARRIED, COLLAPSES, COST, PERSISTS, REMAINS, WRITTEN
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Average, Test, conclusion, every, reasons, within

NAMED = 50
GIVE = f"they give at least {CARRIED:.0%} of the MLP's output"
RULE = (
    "the smallest number of neurons, largest contributions along the output's sign first, that give at least "
    f"{CARRIED:.0%} of the output of the down projection at the place, by means over the windows where it is massive. "
    "Confirmed if, of the massive value, sums over these windows along its sign, the set alone keeps "
    f"{PERSISTS[0]} to {PERSISTS[1]}, {COLLAPSES[0]} to {COLLAPSES[1]} is left without it, and of the random sets none "
    f"keeps {PERSISTS[0]} and none leaves {COLLAPSES[1]} or less (simultaneous intervals of all random sets): 'N of M "
    "neurons'; 'not confirmed' if one of this is refuted with all of its interval. "
    f"{NONE_FOUND!r}: the block output there is massive in no window; 'not mostly by this MLP': it adds less than "
    f"{WRITTEN:.0%} of it; 'no set of neurons': all without the bias give less than {CARRIED:.0%}; {CANNOT_TELL!r}: an "
    "interval holds its threshold"
)
SUPER_RULE = (
    f"a scalar is a super weight if without it alone less than {REMAINS} of the massive value is left and the loss "
    f"rises by more than {COST} nats a token, and without no random scalar of those nearest in size it does "
    "(simultaneous intervals)"
)
WORDS = {True: "yes", False: "no", None: CANNOT_TELL}


def judge(results: Results) -> Verdict:
    verdict, confirmed, tests = _verdict(results)
    values = Values(
        share=CARRIED,
        layer=results.layer,
        neurons=[row.name for row in results.minimal_set][:NAMED],
        written_share=results.written.share,
        note=None if confirmed is None else GIVE,
        why=reasons(tests) if verdict == CANNOT_TELL else None,
        confirmed=confirmed,
        super_weights=UNSET
        if results.super_weights is UNSET
        else {one.neuron: WORDS[every(super_tests(one))] for one in results.super_weights if one.doses[0].share},
    )
    return conclusion(verdict, RULE, values, tests)


def super_tests(scalar: SuperWeight) -> list[Test]:
    """Whether it is a super weight."""
    zero = scalar.doses[0]
    assert zero.share is not None, "massive somewhere"
    name = f"down[{zero.dim}, {zero.neuron}]"
    return [
        Test(f"left without {name}", zero.share, "below", REMAINS, "family95"),
        Test(f"loss without {name}", zero.loss_change, "above", COST, "family95"),
        *(
            Test(f"loss without down[{other.dim}, {other.neuron}]", other.loss_change, "below", COST, "family95")
            for other in scalar.random
        ),
    ]


def _verdict(results: Results) -> tuple[str, bool | None, list[Test]]:
    """(verdict, whether the runs confirm the set, tests)."""
    kept, left, share = results.keep_only_share, results.remove_share, results.written.share
    if kept is None or left is None or share is None:
        return NONE_FOUND, None, []
    written = Test("the MLP's part of the block output", share, "above", WRITTEN)
    if not written.answer:
        return CANNOT_TELL if written.answer is None else "not mostly by this MLP", None, [written]
    if not results.minimal_set:
        return "no set of neurons", None, [written]
    tests = [*within("kept by the set alone", kept, PERSISTS), *within("left without the set", left, COLLAPSES)]
    alone, without = results.null.shares
    if alone and without:
        most, least = max(alone, key=_mean), min(without, key=_mean)
        tests += [
            Test("kept by the random set that keeps most", most, "below", PERSISTS[0], "family95"),
            Test("left without the random set that leaves least", least, "above", COLLAPSES[1], "family95"),
        ]
    confirmed, named = every(tests), f"{len(results.minimal_set)} of {results.width} neurons"
    verdict = {True: named, False: f"{named}, not confirmed", None: CANNOT_TELL}[confirmed]
    return verdict, confirmed, [written, *tests]


def _mean(cell: Average) -> float:
    return cell.mean
