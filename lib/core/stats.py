"""Statistics over windows. Nothing here knows about models; NumPy and SciPy only.

A mean over windows stands for texts that were not measured, so what is drawn again is what was drawn at random:
documents. Two windows of one document are no two independent looks at the model (cluster bootstrap; Davison and Hinkley
1997, section 3.8).
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from msgspec import UNSET
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri
from scipy.stats import beta, rankdata, spearmanr, t

from lib.core.definitions import FEWEST, LEVEL, RESAMPLES
from lib.core.evidence import Average, Interval, Perplexity

CELLS_AT_ONCE = 2**22  # resampled values held at the same time
DRAWS_AT_ONCE = 512
LEAST_ERROR = 1 / 3
ANYTHING: Interval = (-np.inf, np.inf)
SHARE: Interval = (0.0, 1.0)  # what a mean can be: of shares and probabilities
SIZE: Interval = (0.0, np.inf)  # of what is never negative
TIED = 1e-5  # of the range of all draws: windows that are alike but for rounding tie, whichever machine rounds

Averages: TypeAlias = Any  # an Average, or lists of them, as deep as the values have further axes
Rows: TypeAlias = slice | Sequence[int] | np.ndarray  # which windows: a slice, a mask or indices


class Samples:
    """One row of numbers a sequence, so that merging two runs is exact."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    def extend(self, rows: Iterable[ArrayLike]) -> None:
        """Add equally shaped rows."""
        self.rows.extend(np.asarray(row, dtype=np.float64) for row in rows)

    def merge(self, other: "Samples") -> None:
        self.rows.extend(other.rows)

    @property
    def array(self) -> np.ndarray:
        """(sequences, ...)."""
        return np.stack(self.rows)


@dataclass(frozen=True, eq=False)
class Draws:
    """How intervals are drawn. groups: (windows,) labels, equal for windows of one document. seed: of the draws.

    Intervals are by definitions.INTERVALS; of a single document there is none.
    """

    groups: np.ndarray
    seed: int = 0

    @property
    def effective(self) -> float:
        """Kish's effective number of documents, (sum of sizes)^2 / sum of sizes^2: of equally large ones, how many."""
        sizes = np.unique(self.groups, return_counts=True)[1]
        return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0

    def of(self, rows: Rows) -> "Draws":
        """The Draws of some of the windows."""
        return Draws(np.asarray(self.groups)[rows], self.seed)

    def redrawn(self, times: int) -> np.ndarray:
        """(times, windows) how often each window is there when documents are drawn with replacement."""
        labels, document = np.unique(self.groups, return_inverse=True)
        return _counts(len(labels), times, self.seed)[:, document]

    def averages(self, values: ArrayLike, family: bool = False, within: Interval = ANYTHING) -> Averages:
        """Means over axis 0 of (windows, ...) `values`, as Averages nested like the other axes.

        family: as in `ratios`. within: what such a mean can be; an interval ends there.
        """
        values = np.asarray(values, dtype=np.float64)
        return self._cells(values, np.ones((len(values), 1)), _spreads(values), family, within)

    def ratios(self, numerators: ArrayLike, denominators: ArrayLike, family: bool = False) -> Averages:
        """Sums of (windows, ...) `numerators` over sums of `denominators`, which may be (windows,), as Averages.

        A ratio of sums weighs each window by what there is to lose, and no window with hardly anything of it decides.
        family: they are looked at together, for example to name the largest; each has its simultaneous interval
        beside the single one.
        Where a document's denominators sum to 0, there is no interval; where all do, there is no ratio: mean nan.
        """
        numerators = np.asarray(numerators, dtype=np.float64)
        denominators = np.asarray(denominators, dtype=np.float64).reshape(len(numerators), -1)
        return self._cells(numerators, denominators, None, family, ANYTHING)

    def share(self, hits: ArrayLike) -> Average:
        """The share of (windows,) truth values, with the exact binomial interval of as many effective documents."""
        hits = np.asarray(hits, dtype=np.float64)
        n = self.effective
        return Average(float(hits.mean()), binomial_interval(hits.mean() * n, n), None, len(hits))

    def shares(self, hits: ArrayLike) -> list[Average]:
        """`share` of each column of (windows, n) truth values, as a family: at Bonferroni's level."""
        columns, n = np.asarray(hits, dtype=np.float64).T, self.effective
        return [
            replace(self.share(column), family95=binomial_interval(column.mean() * n, n, len(columns)))
            for column in columns
        ]

    def perplexity(self, losses: ArrayLike) -> Perplexity:
        """Of (windows,) losses, in nats a token."""
        loss: Average = self.averages(losses, within=SIZE)
        ci95 = None if loss.ci95 is None else tuple(np.exp(loss.ci95).tolist())
        return Perplexity(float(np.exp(loss.mean)), ci95, loss.n)

    def _cells(
        self,
        numerators: np.ndarray,
        denominators: np.ndarray,
        spreads: list[float | None] | None,
        family: bool,
        within: Interval,
    ) -> Averages:
        n, shape = len(numerators), numerators.shape[1:]
        labels, groups = np.unique(self.groups, return_inverse=True)
        if len(groups) != n:
            raise ValueError(f"{n} windows, but {len(groups)} labels of documents")
        above, below = (_sums(part.reshape(n, -1), groups, len(labels)) for part in (numerators, denominators))
        below = np.broadcast_to(below, above.shape)
        means = np.divide(above.sum(0), below.sum(0), out=np.full(above.shape[1], np.nan), where=below.any(0))
        single: list[Interval | None] = [None] * len(means)
        together: list[Interval | None] = [None] * len(means)
        told = np.flatnonzero(below.all(0))
        if len(labels) > 1 and len(told):
            limits, family_limits = _intervals(above[:, told], below[:, told], means[told], self.seed, family)
            for i, cell in enumerate(told):
                single[cell] = _inside(limits[i], within)
                together[cell] = _inside(family_limits[i], within) if family else None
        cells = np.empty(len(means), dtype=object)
        for i, mean in enumerate(means.tolist()):
            spread = None if spreads is None else spreads[i]
            cells[i] = Average(mean, single[i], spread, n, together[i] if family else UNSET)
        return cells.reshape(shape).tolist() if shape else cells[0]


def independent(n: int, seed: int = 0) -> Draws:
    """The Draws of `n` windows of which each is a document."""
    return Draws(np.arange(n), seed)


def percentile_interval(values: Sequence[float]) -> Interval:
    """What the middle LEVEL of the values lies between."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _spreads(values: np.ndarray) -> list[float | None]:
    if len(values) == 1:
        return [None] * values[0].size
    return values.reshape(len(values), -1).std(0, ddof=1).tolist()


def _sums(values: np.ndarray, groups: np.ndarray, n: int) -> np.ndarray:
    """(n, cells) sums of the rows of each group."""
    sums = np.zeros((n, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums


def _intervals(
    above: np.ndarray, below: np.ndarray, means: np.ndarray, seed: int, family: bool
) -> tuple[list[Interval], list[Interval]]:
    """(interval of each cell, simultaneous intervals if they are a family) of (documents, cells) sums."""
    n, cells = above.shape
    if n < FEWEST:
        single, together = (_student(above, below, means, of_many) for of_many in (1, cells))
        return _limits(single), _limits(together) if family else []
    counts, wide = _drawn(n, RESAMPLES, seed)
    limits: list[np.ndarray] = []
    each_error: list[np.ndarray] = []
    highest, lowest = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    step = max(1, CELLS_AT_ONCE // RESAMPLES)
    for start in range(0, cells, step):
        some = slice(start, start + step)
        over, under = above[:, some], below[:, some]
        drawn = _resampled(counts, over) / _resampled(counts, under)
        limits.append(_bca(drawn, over, under, means[some], wide))
        if family:
            error, studentised = _studentised(counts, drawn, over, under, means[some])
            each_error.append(error)
            highest, lowest = np.maximum(highest, studentised.max(1)), np.minimum(lowest, studentised.min(1))
    single = np.concatenate(limits)
    if not family:
        return _limits(single), []
    tail, errors = (1 - LEVEL) / 2, np.concatenate(each_error)
    low = np.minimum(means - np.quantile(highest, 1 - tail) * errors, single[:, 0])
    high = np.maximum(means - np.quantile(lowest, tail) * errors, single[:, 1])
    return _limits(single), _limits(np.stack([low, high], axis=1))


def _student(above: np.ndarray, below: np.ndarray, means: np.ndarray, of_many: int) -> np.ndarray:
    """(cells, 2) limits of (documents, cells) sums by Student's t, at Bonferroni's level where they are `of_many`."""
    n = len(above)
    error = np.sqrt(n / (n - 1) * ((above - means * below) ** 2).sum(0)) / abs(below.sum(0))
    reach = t.ppf(1 - (1 - LEVEL) / 2 / of_many, n - 1) * np.where(error <= 1e-12 * abs(means), 0, error)
    return np.stack([means - reach, means + reach], axis=1)


def _inside(interval: Interval, within: Interval) -> Interval:
    """Student's t and studentised deviations know nothing of what a mean can be."""
    return max(interval[0], within[0]), min(interval[1], within[1])


def _limits(pairs: np.ndarray) -> list[Interval]:
    return [(low, high) for low, high in pairs.tolist()]


@functools.lru_cache(maxsize=1)  # every table of an experiment asks for the same
def _drawn(n: int, times: int, seed: int) -> tuple[np.ndarray, float]:
    """(`_counts`, the normal quantile that intervals reach to)."""
    counts = _counts(n, times, seed)
    counts.flags.writeable = False
    return counts, np.sqrt(n / (n - 1)) * t.ppf((1 + LEVEL) / 2, n - 1)


def _counts(n: int, times: int, seed: int) -> np.ndarray:
    """(times, n) how often each of n documents is drawn."""
    rng, counts = np.random.default_rng(seed), np.empty((times, n), np.min_scalar_type(n))
    for part in _parts(counts):
        part[:] = rng.multinomial(n, np.full(n, 1 / n), size=len(part))
    return counts


def _parts(counts: np.ndarray) -> list[np.ndarray]:
    return [counts[start : start + DRAWS_AT_ONCE] for start in range(0, len(counts), DRAWS_AT_ONCE)]


def _resampled(counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """(draws, cells) of (documents, cells) sums, without all `counts` in float64: memory hardly grows with windows."""
    return np.concatenate([part.astype(np.float64) @ sums for part in _parts(counts)])


def _studentised(
    counts: np.ndarray, drawn: np.ndarray, above: np.ndarray, below: np.ndarray, means: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """((cells,) standard errors, (RESAMPLES, cells) deviations of resampled ratios in their own standard errors).

    A ratio's standard error by linearisation. That of a resample counts as at least LEAST_ERROR of the whole's: where a
    few documents make all the difference, resamples without them would deviate without bound.
    """
    total = below.sum(0)
    error = np.sqrt(((above - means * below) ** 2).sum(0)) / abs(total)
    of_above, mixed, of_below = (_resampled(counts, part) for part in (above**2, above * below, below**2))
    own = np.sqrt(np.maximum(of_above - 2 * drawn * mixed + drawn**2 * of_below, 0)) / abs(_resampled(counts, below))
    flat = error <= 1e-12 * abs(means)
    return np.where(flat, 0, error), np.where(flat, 0, drawn - means) / np.maximum(
        own, np.where(flat, 1, LEAST_ERROR * error)
    )


def _bca(drawn: np.ndarray, above: np.ndarray, below: np.ndarray, means: np.ndarray, wide: float) -> np.ndarray:
    """(cells, 2) limits of (RESAMPLES, cells) resampled ratios; wide: the normal quantile that they reach to."""
    left_out = (above.sum(0) - above) / (below.sum(0) - below)
    deviation = left_out.mean(0) - left_out
    squares = (deviation**2).sum(0)
    flat = squares <= (1e-12 * means) ** 2  # nothing but rounding
    acceleration = (deviation**3).sum(0) / (6 * np.where(flat, 1, squares) ** 1.5)
    same = np.abs(drawn - means) <= TIED * np.ptp(drawn, axis=0)
    lower = ((drawn < means) & ~same).mean(0) + same.mean(0) / 2
    bias = ndtri(np.clip(lower, 0.5 / RESAMPLES, 1 - 0.5 / RESAMPLES))
    ordered, cells = np.sort(drawn, axis=0), np.arange(len(means))
    limits = []
    for z in (-wide, wide):
        level = ndtr(bias + (bias + z) / np.maximum(1 - acceleration * (bias + z), 1e-9))
        position = level * (RESAMPLES - 1)
        under = np.minimum(position.astype(int), RESAMPLES - 2)
        limit = ordered[under, cells] + (position - under) * (ordered[under + 1, cells] - ordered[under, cells])
        limits.append(np.where(flat, means, limit))
    return np.stack(limits, axis=1)


def binomial_interval(hits: float, n: float, of_many: int = 1) -> Interval:
    """Of a share of `hits` of `n`, by Clopper and Pearson (1934); they need be no whole numbers.
    of_many: of how many shares that are looked at together this is one (Bonferroni)."""
    tail = (1 - LEVEL) / 2 / of_many
    low = 0.0 if hits <= 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits >= n else float(beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Rank correlation (Spearman 1904) of two equally long lists, ties at their mean rank; None if one is constant."""
    constant = any(len(np.unique(values)) < 2 for values in (x, y))
    return None if constant else float(spearmanr(x, y).statistic)


def stratified_spearman(
    x: ArrayLike, y: ArrayLike, strata: ArrayLike, seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """(rank correlation within strata, its p) of two equally long lists; strata: labels, equal within a stratum.

    The ranks are those within a stratum, about their mean there, and pooled, so that nothing in which whole strata
    differ has a part in it. p: two-sided, by shuffling y within its strata RESAMPLES times, (k + 1) / (n + 1) where k
    shuffles correlate at least as much (Phipson and Smyth 2010); SciPy's permutation tests shuffle pairs in one stratum
    only. (None, None) if x or y is constant in every stratum.
    """
    both, labels = (np.asarray(x), np.asarray(y)), np.asarray(strata)
    rng = np.random.default_rng(seed)
    product, shuffled, squares = 0.0, np.zeros(RESAMPLES), np.zeros(2)
    for stratum in np.unique(labels):
        here = labels == stratum
        a, b = (rankdata(values[here]) - (here.sum() + 1) / 2 for values in both)
        product += a @ b
        squares += a @ a, b @ b
        shuffled += rng.permuted(np.tile(b, (RESAMPLES, 1)), axis=1) @ a
    if not squares.all():
        return None, None
    as_large = np.abs(shuffled) >= abs(product) - 1e-9 * np.sqrt(squares.prod())
    return float(product / np.sqrt(squares.prod())), float((as_large.sum() + 1) / (RESAMPLES + 1))
