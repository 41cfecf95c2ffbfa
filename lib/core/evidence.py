"""Judging a threshold by an interval: yes, no, or cannot tell. What verdicts are made of; no model, no torch.

An interval that holds the threshold is never a verdict, nor is a mean without an interval.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from msgspec import UNSET, UnsetType

Stored = dict[str, Any]  # of a JSON file of results: the whole, or an object in it
Values = TypeVar("Values")
OfValues = TypeVar("OfValues", covariant=True)

CANNOT_TELL = "cannot tell"
NONE_FOUND = "none found"

Interval = tuple[float, float]  # low, high


@dataclass(frozen=True)
class Cell:
    """A number with its 95 % interval; None where none can be told."""

    mean: float
    ci95: Interval | None

    @property
    def in_family(self) -> bool:
        """Whether it has a simultaneous interval, too, as one of several looked at together."""
        return False

    @property
    def together(self) -> Interval | None:
        """The simultaneous interval; None where none can be told, and where it is not one of several."""
        return None


@dataclass(frozen=True)
class Average(Cell):
    """Over n windows, by lib.core.stats.Draws.

    std: sample standard deviation over windows (n - 1); None of one window, and of a ratio. family95: `together`, where
    it is in a family.
    """

    std: float | None
    n: int
    family95: Interval | UnsetType | None = UNSET

    @property
    def in_family(self) -> bool:
        return not isinstance(self.family95, UnsetType)

    @property
    def together(self) -> Interval | None:
        return None if isinstance(self.family95, UnsetType) else self.family95


@dataclass(frozen=True)
class Perplexity:
    """exp of a mean loss, and of the ends of its interval."""

    value: float
    ci95: Interval | None
    n: int


class Answer(Protocol):
    """What decides a verdict: Test, and what answers as it does."""

    @property
    def answer(self) -> bool | None: ...

    @property
    def reason(self) -> str: ...

    def listed(self) -> "StoredTest": ...


@dataclass(frozen=True)
class StoredTest:
    """An Answer, as it is stored. distance: from the nearest end of the interval to the threshold, signed; 0 where the
    interval holds it."""

    what: str
    mean: float | None
    interval: Interval | None
    wanted: str
    threshold: float | None
    side: str
    distance: float | None


@dataclass(frozen=True)
class Conclusion(Generic[OfValues]):
    """A verdict, the rule that it follows, the values it rests on, and its tests."""

    verdict: str
    rule: str
    values: OfValues
    tests: list[StoredTest]


@dataclass(frozen=True)
class Test:
    """Whether a measured number is above (or below) a threshold with all of its interval.

    what: of which quantity, in words. wanted: "above" or "below". interval: which of the cell's; "family95" where one
    of many is picked out.
    """

    what: str
    cell: Cell
    wanted: str
    threshold: float
    interval: Literal["ci95", "family95"] = "ci95"

    @property
    def limits(self) -> Interval | None:
        return self.cell.ci95 if self.interval == "ci95" else self.cell.together

    @property
    def side(self) -> str:
        """Where the whole interval lies: "above", "below"; "holds it", "no interval" where that cannot be told."""
        if self.limits is None:
            return "no interval"
        low, high = self.limits
        return "above" if low > self.threshold else "below" if high < self.threshold else "holds it"

    @property
    def answer(self) -> bool | None:
        """None: cannot tell."""
        return self.side == self.wanted if self.side in ("above", "below") else None

    @property
    def distance(self) -> float | None:
        """From the nearest end of the interval to the threshold, signed; 0 where the interval holds it."""
        if self.limits is None:
            return None
        low, high = self.limits
        return low - self.threshold if self.side == "above" else high - self.threshold if self.side == "below" else 0.0

    @property
    def reason(self) -> str:
        """Why there is no answer."""
        if self.limits is None:
            return f"{self.what} has no interval (one window or one document)"
        low, high = self.limits
        return f"the interval of {self.what}, {low:.4g} to {high:.4g}, holds {self.threshold:.4g}"

    def listed(self) -> StoredTest:
        return StoredTest(
            self.what,
            self.cell.mean,
            self.limits,
            self.wanted,
            self.threshold,
            self.side,
            self.distance,
        )


def exact(value: float) -> Cell:
    """The cell of a number that no sampling has a part in."""
    return Cell(value, (value, value))


def within(
    what: str, cell: Cell, bounds: tuple[float, float], interval: Literal["ci95", "family95"] = "ci95"
) -> list[Test]:
    """The two Tests of a number between `bounds`."""
    low, high = bounds
    return [Test(what, cell, "above", low, interval), Test(what, cell, "below", high, interval)]


def lies_above(first: Interval | None, other: Interval | None) -> bool:
    """Whether all of the first is above all of the other."""
    return first is not None and other is not None and first[0] > other[1]


def every(tests: Iterable[Answer]) -> bool | None:
    """True if all answers are, False if one is, else None."""
    answers = [test.answer for test in tests]
    return False if False in answers else None if None in answers else True


def reasons(tests: Iterable[Answer]) -> str:
    """Why `every` cannot tell."""
    return "; ".join(test.reason for test in tests if test.answer is None)


def note_of(conclusion: Conclusion[Any]) -> str | None:
    """What the verdict alone would hide."""
    return getattr(conclusion.values, "note", None)


def conclusion(verdict: str, rule: str, values: Values, tests: Iterable[Answer] = ()) -> Conclusion[Values]:
    return Conclusion(verdict, rule, values, [test.listed() for test in tests])
