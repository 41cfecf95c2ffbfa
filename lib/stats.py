"""Statistics over sequences. Nothing here knows about models; numpy only."""

import numpy as np

RESAMPLES = 2000
DRAWN_AT_ONCE = 2**20  # of the counts that resampling draws, one for each sequence and resample


class Samples:
    """One row of numbers a sequence, so that merging two runs is exact."""

    def __init__(self):
        self.rows = []

    def extend(self, rows):
        """Add rows, an iterable of equally shaped arrays or numbers."""
        self.rows.extend(np.asarray(row, dtype=np.float64) for row in rows)

    def merge(self, other):
        self.rows.extend(other.rows)

    @property
    def array(self):
        """(sequences, ...) array."""
        return np.stack(self.rows)


def averages(values, seed=0):
    """Means over axis 0 of (sequences, ...) `values`, each as {"mean", "std", "ci95", "n"}, nested like the other axes.

    std: sample standard deviation (n - 1). ci95: percentile bootstrap of the mean over sequences (Efron 1979),
    RESAMPLES draws, seeded. One sequence carries no spread: both are None.
    """
    values = np.asarray(values, dtype=np.float64)
    n, shape = len(values), values.shape[1:]
    flat = values.reshape(n, -1)
    mean = flat.mean(0)
    if n == 1:
        cells = [{"mean": m, "std": None, "ci95": None, "n": 1} for m in mean.tolist()]
    else:
        std = flat.std(0, ddof=1)
        rng, rows = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // n)
        sizes = [min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows)]
        means = [rng.multinomial(n, np.full(n, 1 / n), size=size) / n @ flat for size in sizes]
        low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
        columns = zip(mean.tolist(), std.tolist(), low.tolist(), high.tolist(), strict=True)
        cells = [{"mean": m, "std": s, "ci95": [lo, hi], "n": n} for m, s, lo, hi in columns]
    return np.array(cells, dtype=object).reshape(shape).tolist() if shape else cells[0]


def perplexity(losses, seed=0):
    """exp of the mean of per-sequence losses (nats a token), as {"value", "ci95", "n"}."""
    loss = averages(losses, seed)
    ci95 = loss["ci95"] and np.exp(loss["ci95"]).tolist()
    return {"value": float(np.exp(loss["mean"])), "ci95": ci95, "n": loss["n"]}


def spearman(x, y):
    """Rank correlation (Spearman 1904) of two equally long lists, ties at their mean rank; None if one is constant."""
    x, y = _ranks(x), _ranks(y)
    return float(np.corrcoef(x, y)[0, 1]) if len(x) and np.ptp(x) and np.ptp(y) else None


def _ranks(values):
    _unique, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
