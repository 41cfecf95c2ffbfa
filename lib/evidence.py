"""Judging a threshold by an interval: yes, no, or cannot tell. What verdicts are made of; no model, no torch.

An interval that holds the threshold is never a verdict, nor is a mean without an interval.
"""

from dataclasses import dataclass

CANNOT_TELL = "cannot tell"
NONE_FOUND = "none found"


@dataclass(frozen=True)
class Test:
    """Whether a measured number is above (or below) a threshold with all of its interval.

    what: of which quantity, in words. cell: of lib.stats.Draws, or of `exact`. wanted: "above" or "below".
    interval: the cell's key; "family95" where one of many is picked out.
    """

    what: str
    cell: dict
    wanted: str
    threshold: float
    interval: str = "ci95"

    @property
    def limits(self):
        """(low, high), or None without an interval."""
        return self.cell.get(self.interval)

    @property
    def side(self):
        """Where the whole interval lies: "above", "below"; "holds it", "no interval" where that cannot be told."""
        if self.limits is None:
            return "no interval"
        low, high = self.limits
        return "above" if low > self.threshold else "below" if high < self.threshold else "holds it"

    @property
    def answer(self):
        """True, False, or None: cannot tell."""
        return self.side == self.wanted if self.side in ("above", "below") else None

    @property
    def distance(self):
        """From the nearest end of the interval to the threshold, signed; 0 where the interval holds it."""
        if self.limits is None:
            return None
        low, high = self.limits
        return low - self.threshold if self.side == "above" else high - self.threshold if self.side == "below" else 0.0

    @property
    def reason(self):
        """Why there is no answer."""
        if self.limits is None:
            return f"{self.what} has no interval (one window or one document)"
        low, high = self.limits
        return f"the interval of {self.what}, {low:.4g} to {high:.4g}, holds {self.threshold:.4g}"

    def listed(self):
        """As a conclusion stores it."""
        cell = {"mean": self.cell["mean"], "interval": self.limits}
        asked = {"wanted": self.wanted, "threshold": self.threshold}
        return {"what": self.what, **cell, **asked, "side": self.side, "distance": self.distance}


def exact(value):
    """The cell of a number that no sampling has a part in."""
    return {"mean": value, "ci95": [value, value]}


def within(what, cell, bounds, interval="ci95"):
    """The two Tests of a number between `bounds`."""
    low, high = bounds
    return [Test(what, cell, "above", low, interval), Test(what, cell, "below", high, interval)]


def every(tests):
    """True if all answers are, False if one is, else None."""
    answers = [test.answer for test in tests]
    return False if False in answers else None if None in answers else True


def reasons(tests):
    """Why `every` cannot tell."""
    return "; ".join(test.reason for test in tests if test.answer is None)


def conclusion(verdict, rule, values, tests=()):
    """results.conclusion."""
    return {"verdict": verdict, "rule": rule, "values": values, "tests": [test.listed() for test in tests]}
