"""Statistics over sequences, against loops."""

import math
import random
import statistics

import numpy as np
import pytest

from lib import stats
from lib.stats import Samples, averages, perplexity


def slow_bootstrap(values, draws=4000, seed=1):
    """95 % percentile interval of the mean, one resample at a time."""
    generator = random.Random(seed)
    means = sorted(statistics.fmean(generator.choices(values, k=len(values))) for _ in range(draws))
    return means[round(0.025 * draws)], means[round(0.975 * draws) - 1]


def test_averages_of_a_known_sample():
    values = np.random.default_rng(0).lognormal(size=25).tolist()  # skewed: the interval is not symmetric
    got = averages(values, seed=3)
    assert got["n"] == 25
    assert got["mean"] == pytest.approx(statistics.fmean(values))
    assert got["std"] == pytest.approx(statistics.stdev(values))
    low, high = slow_bootstrap(values)
    assert got["ci95"] == pytest.approx([low, high], abs=0.05 * (high - low))
    assert got["mean"] - low < 0.9 * (high - got["mean"])


def test_averages_keep_the_other_axes():
    values = np.random.default_rng(0).normal(size=(6, 2, 3))
    got = averages(values)
    assert [len(row) for row in got] == [3, 3]
    for i in range(2):
        for j in range(3):
            alone = averages(values[:, i, j])
            assert got[i][j] == {**alone, "ci95": pytest.approx(alone["ci95"]), "std": pytest.approx(alone["std"])}


def test_drawing_in_parts_gives_the_same_interval(monkeypatch):
    values = np.random.default_rng(0).normal(size=(30, 4))
    whole = averages(values)
    monkeypatch.setattr(stats, "DRAWN_AT_ONCE", 30 * 333)
    for got, expected in zip(averages(values), whole, strict=True):
        assert got["ci95"] == pytest.approx(expected["ci95"], rel=1e-12)


def test_interval_covers_the_true_mean():
    """Of 400 samples of 30 normal numbers about 95 % of the intervals hold the mean (a bootstrap's: a few less)."""
    samples = np.random.default_rng(0).normal(loc=2, size=(30, 400))
    covered = np.mean([cell["ci95"][0] <= 2 <= cell["ci95"][1] for cell in averages(samples)])
    assert 0.90 <= covered <= 0.97


def test_seed():
    values = np.random.default_rng(0).normal(size=20)
    assert averages(values, seed=5) == averages(values, seed=5)
    assert averages(values, seed=5)["ci95"] != averages(values, seed=6)["ci95"]


@pytest.mark.parametrize("shape", [(1,), (1, 2)])
def test_one_sequence_has_no_spread(shape):
    got = averages(np.full(shape, 3.5))
    cell = {"mean": 3.5, "std": None, "ci95": None, "n": 1}
    assert got == (cell if shape == (1,) else [cell, cell])


def test_merge_is_exact():
    rows = np.random.default_rng(0).normal(size=(7, 3, 2))
    whole, first, second = Samples(), Samples(), Samples()
    whole.extend(rows)
    first.extend(rows[:2])
    second.extend(rows[2:])
    first.merge(second)
    assert np.array_equal(first.array, whole.array)
    assert np.array_equal(whole.array, rows)
    assert averages(first.array) == averages(whole.array)


def test_perplexity():
    losses = [2.0, 2.5, 3.5, 2.25]
    got = perplexity(losses, seed=1)
    assert got["value"] == pytest.approx(math.exp(statistics.fmean(losses)))
    assert got["ci95"] == pytest.approx([math.exp(x) for x in averages(losses, seed=1)["ci95"]])
    assert got["n"] == 4
    assert perplexity([2.0]) == {"value": pytest.approx(math.e**2), "ci95": None, "n": 1}
