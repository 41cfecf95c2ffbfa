"""Numbers with intervals, as claims look at them: many at once, one in parts of another.

Where one of many is picked out, its simultaneous interval counts: the stored one (family95), or, where there is none,
the single one widened as Bonferroni's correction does, by Student's t for the documents there are.
"""

from collections.abc import Hashable, Iterable, Mapping, Sized
from typing import Protocol, TypeVar

from scipy.stats import t

from lib.core import evidence
from lib.core.definitions import LEVEL
from lib.core.evidence import Average, Cell, Test
from lib.core.results import FirstTokens, FollowedPlace, Head

Name = TypeVar("Name", bound=Hashable)

LOWEST, HIGHEST = 5, 10  # heads
TOGETHER = "simultaneous over all that are looked at"


def together(cells: Mapping[Name, Cell], documents: float) -> dict[Name, Cell]:
    """Cells with simultaneous intervals in place of single ones; documents: how many there are, effectively."""
    return {
        name: Cell(cell.mean, cell.together) if cell.in_family else one_of(len(cells), cell, documents)
        for name, cell in cells.items()
    }


def one_of(many: int, cell: Cell, documents: float) -> Cell:
    """A cell with its single interval widened for `many` that are looked at."""
    if cell.ci95 is None or many == 1:
        return Cell(cell.mean, cell.ci95)
    tail, freedom = (1 - LEVEL) / 2, max(documents - 1, 1)
    wider = float(t.isf(tail / many, freedom) / t.isf(tail, freedom))
    low, high = (cell.mean + wider * (limit - cell.mean) for limit in cell.ci95)
    return Cell(cell.mean, (low, high))


def all_of(what: str, cells: Mapping[Name, Cell], wanted: str, threshold: float) -> list[Test]:
    """The Tests that decide whether all cells are `wanted`: of the one whose interval begins furthest on the
    other side, and of the one whose interval ends furthest there."""
    tests = [Test(f"{what} {name}", cell, wanted, threshold) for name, cell in cells.items()]
    limits = [test.limits for test in tests if test.limits is not None]
    if len(limits) < len(tests):
        return [test for test in tests if test.limits is None][:1]
    other_side = 1 if wanted == "below" else -1
    ends = ([other_side * interval[end] for interval in limits] for end in (0, 1))
    return [tests[i] for i in dict.fromkeys(end.index(max(end)) for end in ends)]


def all_within(what: str, cells: Mapping[Name, Cell], bounds: tuple[float, float]) -> list[Test]:
    return all_of(what, cells, "above", bounds[0]) + all_of(what, cells, "below", bounds[1])


def up_to(bound: float) -> tuple[float, float]:
    return -bound, bound


def in_parts_of(size: float, cell: Cell) -> Cell:
    """A cell divided by a number; of one of many, after `together`."""
    if cell.ci95 is None:
        return Cell(cell.mean / size, None)
    low, high = sorted(limit / size for limit in cell.ci95)
    return Cell(cell.mean / size, (low, high))


def less(cell: Cell, other: Cell) -> Cell:
    """The difference of two cells that were not paired: its interval reaches from one's low to the other's high end."""
    mean = cell.mean - other.mean
    if cell.ci95 is None or other.ci95 is None:
        return Cell(mean, None)
    return Cell(mean, (cell.ci95[0] - other.ci95[1], cell.ci95[1] - other.ci95[0]))


def counted(sure: Sized, open_: Sized) -> Cell:
    """The cell of how many things are so, of which some are sure and others open."""
    return Cell(len(sure), (len(sure), len(sure) + len(open_)))


def largest_of(cells: Mapping[Name, Cell]) -> Name:
    """The name of the cell whose mean is largest in size."""
    return max(cells, key=lambda name: abs(cells[name].mean))


def highest_of(cells: Mapping[Name, Cell]) -> Name:
    """The name of the cell whose mean is highest."""
    return max(cells, key=lambda name: cells[name].mean)


class AtLargestPlace(Protocol):
    """What an ablation did at its largest place."""

    @property
    def retained(self) -> Average: ...

    @property
    def absolute_change(self) -> Average: ...

    @property
    def first_tokens(self) -> FirstTokens | None: ...


def retained(values: AtLargestPlace) -> Cell:
    """Exact over first tokens, where that is known."""
    return evidence.exact(values.first_tokens.retained) if values.first_tokens else values.retained


def absolute_change(values: AtLargestPlace) -> Cell:
    """Exact over first tokens, where that is known."""
    return evidence.exact(values.first_tokens.absolute_change) if values.first_tokens else values.absolute_change


def peak_size(place: FollowedPlace) -> float:
    return abs(place.values[place.peak_layer].mean)


def head_names(heads: Iterable[Head]) -> str:
    return " ".join(map(str, heads)) or "none"
