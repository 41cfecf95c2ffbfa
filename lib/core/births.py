"""Which component gives birth to a value, by its stored ledger. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from lib.core.definitions import WRITES
from lib.core.evidence import CANNOT_TELL, Test, lies_above
from lib.core.results import LedgerWrite

NO_SINGLE = "no single component"


@dataclass(frozen=True)
class Birth:
    """write: None where there is none, or it cannot be told; verdict says which. generators: the largest share first;
    possible: these and what may be some. tests: of each of the writes up to the peak."""

    write: LedgerWrite | None
    verdict: str
    generators: list[LedgerWrite]
    possible: list[LedgerWrite]
    tests: list[Test]


def birth(writes: Sequence[LedgerWrite], peak: int) -> Birth:
    """Of the writes up to the layer of the peak."""
    able = [write for write in writes if write.order <= peak]
    tests = [share_test(write, "above", WRITES) for write in able]
    generators = [write for write, test in zip(able, tests, strict=True) if test.answer]
    generators.sort(key=lambda write: -write.share.mean)
    unclear = [write for write, test in zip(able, tests, strict=True) if test.answer is None]
    possible = generators + unclear
    if not generators:
        return Birth(None, CANNOT_TELL if unclear else NO_SINGLE, generators, possible, tests)
    first, *others = generators
    if others and not lies_above(first.share.together, others[0].share.together):
        return Birth(None, f"{CANNOT_TELL}: {first.name} or {others[0].name}", generators, possible, tests)
    return Birth(first, first.name, generators, possible, tests)


def share_test(write: LedgerWrite, wanted: str, threshold: float) -> Test:
    return Test(f"share of {write.name}", write.share, wanted, threshold, "family95")
