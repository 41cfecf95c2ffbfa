"""Judging a threshold by an interval: yes, no, or cannot tell. What verdicts are made of; no model, no torch.

An interval that holds the threshold is never a verdict, nor is a mean without an interval.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

Stored = dict[str, Any]  # of a JSON file of results: the whole, or an object in it
Cell = dict[str, Any]  # what lib.core.stats.Draws makes of samples

CANNOT_TELL = "cannot tell"
NONE_FOUND = "none found"


class Answer(Protocol):
    """What decides a verdict: Test, and what answers as it does."""

    @property
    def answer(self) -> bool | None: ...

    @property
    def reason(self) -> str: ...

    def listed(self) -> Stored: ...


@dataclass(frozen=True)
class Test:
    """Whether a measured number is above (or below) a threshold with all of its interval.

    what: of which quantity, in words. cell: of lib.core.stats.Draws, or of `exact`. wanted: "above" or "below".
    interval: the cell's key; "family95" where one of many is picked out.
    """

    what: str
    cell: Cell
    wanted: str
    threshold: float
    interval: str = "ci95"

    @property
    def limits(self) -> list[float] | None:
        """Low and high."""
        return self.cell.get(self.interval)

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

    def listed(self) -> Stored:
        """As a conclusion stores it."""
        cell = {"mean": self.cell["mean"], "interval": self.limits}
        asked = {"wanted": self.wanted, "threshold": self.threshold}
        return {"what": self.what, **cell, **asked, "side": self.side, "distance": self.distance}


def exact(value: float) -> Cell:
    """The cell of a number that no sampling has a part in."""
    return {"mean": value, "ci95": [value, value]}


def within(what: str, cell: Cell, bounds: tuple[float, float], interval: str = "ci95") -> list[Test]:
    """The two Tests of a number between `bounds`."""
    low, high = bounds
    return [Test(what, cell, "above", low, interval), Test(what, cell, "below", high, interval)]


def every(tests: Iterable[Answer]) -> bool | None:
    """True if all answers are, False if one is, else None."""
    answers = [test.answer for test in tests]
    return False if False in answers else None if None in answers else True


def reasons(tests: Iterable[Answer]) -> str:
    """Why `every` cannot tell."""
    return "; ".join(test.reason for test in tests if test.answer is None)


def conclusion(verdict: str, rule: str, values: dict[str, Any], tests: Iterable[Answer] = ()) -> Stored:
    """results.conclusion."""
    return {"verdict": verdict, "rule": rule, "values": values, "tests": [test.listed() for test in tests]}
