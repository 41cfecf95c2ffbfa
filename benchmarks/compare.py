"""From what entries measured, and how long that took, to what is reported. numpy only.

Rows are those of benchmarks.results, by name.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.stats import binom

from benchmarks.results import Difference, Judged, Spread
from lib.run.cli import UserError

TOLERANCE = 1e-4
LEAST = 0.1  # of the largest value of an entry: what is smaller is compared by this


def require_equal(values):
    """{key: Difference}, the largest, of {entry: {key: array}}.

    An entry may give fewer layers (axis 1) than another: the first ones. Raises UserError if two entries differ by
    more than TOLERANCE, or one gives another number of values.
    """
    largest: dict[str, Difference] = {}
    for one, other in combinations(values, 2):
        for key in sorted(values[one].keys() & values[other].keys()):
            relative = _difference(np.asarray(values[one][key]), np.asarray(values[other][key]))
            if not relative <= TOLERANCE:
                raise UserError(f"no time is reported: '{key}' of {one} and of {other} differ by {relative:.1e}")
            if key not in largest or relative > largest[key].relative:
                largest[key] = Difference(relative, (one, other))
    return largest


def _difference(a, b):
    if a.ndim == b.ndim > 1:
        n = min(a.shape[1], b.shape[1])
        a, b = a[:, :n], b[:, :n]
    if a.shape != b.shape or not a.size:
        return np.inf
    size = np.maximum(np.abs(a), np.abs(b))
    size = np.maximum(size, LEAST * size.max())
    return float(np.divide(np.abs(a - b), size, out=np.zeros(a.shape), where=size != 0).max())


def spread(values):
    return Spread(float(np.median(values)), float(min(values)), float(max(values)))


def spreads(rows):
    """The rows with `seconds` and `ratio`."""
    return {
        name: replace(
            row,
            seconds=None if row.error or not row.times else spread(row.times),
            ratio=ratios(row, rows["bare"]),
        )
        for name, row in rows.items()
    }


def by_round(row, other):
    """One entry's times over another's, each pair of the same round."""
    return np.divide(row.times, other.times)


def ratios(row, other):
    """`spread` of them; None where there are none."""
    if row.error or other.error or not row.times:
        return None
    return spread(by_round(row, other))


def median_with_interval(values):
    """(median, low, high): its 95 % interval by order statistics (sign test); of fewer than six the whole range."""
    ordered = np.sort(values)
    beyond = max(int(binom.ppf(0.025, len(ordered), 0.5)), 1)
    return float(np.median(ordered)), float(ordered[beyond - 1]), float(ordered[-beyond])


@dataclass(frozen=True)
class AtMost:
    """`entry` takes at most `bound` x the time of entry `other`."""

    entry: str
    other: str
    bound: float

    def judge(self, rows):
        return _judged(
            f"{rows[self.entry].label}: at most {self.bound:g} x {rows[self.other].label}",
            [rows[self.entry], rows[self.other]],
            lambda: median_with_interval(by_round(rows[self.entry], rows[self.other])),
            lambda ratio: ratio <= self.bound,
        )


@dataclass(frozen=True)
class Faster:
    """`entry` is at least `bound` x as fast as each of `tool`'s entries that give what it gives."""

    entry: str
    tool: str
    bound: float

    def judge(self, rows):
        ours = rows[self.entry]
        peers = [row for row in rows.values() if row.tool == self.tool and row.gives == ours.gives]
        return _judged(
            f"{ours.label}: at least {self.bound:.3g} x as fast as {self.tool}",
            [ours, *peers],
            lambda: min(median_with_interval(by_round(peer, ours)) for peer in peers),
            lambda ratio: ratio >= self.bound,
        )


@dataclass(frozen=True)
class LeastMemory:
    """`entry` has a lower peak than every entry of another tool that gives one of `gives`."""

    entry: str
    gives: tuple

    def judge(self, rows):
        ours = rows[self.entry]
        peers = [row for row in rows.values() if row.tool != ours.tool and row.gives in self.gives]
        return _judged(
            f"{ours.label}: lower peak memory than any other tool (value: the lowest of theirs over it)",
            [ours, *peers],
            lambda: (min(peer.peak_mib for peer in peers) / ours.peak_mib,) * 3,
            lambda ratio: ratio > 1,
        )


@dataclass(frozen=True)
class FlatMemory:
    """`entry` has a peak of at most `bound` x that of entry `other`."""

    entry: str
    other: str
    bound: float

    def judge(self, rows):
        return _judged(
            f"peak memory of {rows[self.entry].label}: at most {self.bound:g} x that of {rows[self.other].label}",
            [rows[self.entry], rows[self.other]],
            lambda: (rows[self.entry].peak_mib / rows[self.other].peak_mib,) * 3,
            lambda ratio: ratio <= self.bound,
        )


@dataclass(frozen=True)
class Within:
    """`entry` takes less than `seconds`."""

    entry: str
    seconds: float

    def judge(self, rows):
        return _judged(
            f"{rows[self.entry].label}: in less than {self.seconds:g} seconds",
            [rows[self.entry]],
            lambda: median_with_interval(rows[self.entry].times),
            lambda seconds: seconds < self.seconds,
        )


def _judged(text, needed, measured, met):
    """`measured() -> (value, low, high)`, judged by `met` at both ends, if nothing that it needs has an error."""
    failed = [row for row in needed if row.error]
    if failed:
        return Judged(text, None, None, "unknown: " + "; ".join(f"{row.name} failed" for row in failed))
    value, low, high = measured()
    verdict = ("not met", "cannot tell", "met")[met(low) + met(high)]
    return Judged(text, value, (low, high), verdict)
