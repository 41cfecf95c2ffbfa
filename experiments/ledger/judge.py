"""Experiment 3: which component gives birth to the value at the place, and which take it away."""

from experiments.ledger.results import NamedWrite, Peak, Results, Values, Verdict
from lib.core.births import birth as birth_of
from lib.core.births import share_test
from lib.core.definitions import WRITES
from lib.core.evidence import NONE_FOUND, Test, conclusion
from lib.core.results import LedgerWrite

RULE = (
    "size = mean |block output| at the place over the windows that have the spike; peak and plateau by the rule of the "
    "place, of what is massive under this condition; s = the sign in each window in the layer of the peak; share of a "
    "write = sum of s x write over sum of |block output| at the peak, over these windows. generators: "
    f"components whose share lies above {WRITES:.0%}, in layers up to the peak's; birth: the largest of them, if its "
    f"interval lies above that of the next; erasers: components whose share lies below -{WRITES:.0%}, in layers after "
    "the birth's (without one, after the peak's). Intervals are simultaneous over all components; cannot tell: one "
    "holds the threshold. verdict: the birth, no single component where nothing reaches a generator's size, none found "
    "where no window is massive"
)


def judge(results: Results) -> Verdict:
    profile, writes = results.profile, results.writes
    layer = profile.peak
    peak = Peak(layer, profile.sign * profile.size[layer])
    if not profile.spiking.mean:
        return conclusion(NONE_FOUND, RULE, Values(None, [], None, [], [], peak))
    able = [write for write in writes if write.order <= layer]
    found = birth_of(writes, layer)
    birth, tests = found.write, found.tests
    later = [write for write in writes if write.order > (birth.order if birth else layer)]
    erasing = [share_test(write, "below", -WRITES) for write in later]
    erasers = [write for write, test in zip(later, erasing, strict=True) if test.answer]
    unclear = [w for w, test in zip(able + later, tests + erasing, strict=True) if test.answer is None]
    values = Values(
        birth=None if birth is None else _named(birth),
        generators=[*map(_named, found.generators)],
        plateau=profile.plateau,
        erasers=[_named(write) for write in sorted(erasers, key=lambda write: write.share.mean)],
        cannot_tell=[*map(_named, unclear)],
        peak=peak,
    )
    decisive = [test for test in tests + erasing if test.answer is not False]
    return conclusion(found.verdict, RULE, values, decisive + _nearest(tests + erasing, decisive))


def _nearest(tests: list[Test], decisive: list[Test]) -> list[Test]:
    """The one of the others whose threshold is nearest."""
    others = [test for test in tests if test not in decisive]
    return sorted(others, key=lambda test: abs(test.distance or 0))[:1]


def _named(write: LedgerWrite) -> NamedWrite:
    return NamedWrite(write.layer, write.kind, write.head, write.name, write.value)
