"""The published form of a ratio's course (arXiv 2508.03616), fitted by least squares. No torch.

t is a checkpoint's number of optimiser steps, in thousands, so that gamma is per thousand steps; what is fitted is the
natural logarithm of the mean top-1/median ratio, every step counting alike.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from experiments.training_course.results import DIVERGES, FITTED, NAMES, TOO_FEW, Fit, Parameter

LEAST = len(NAMES) + 1  # steps: more than there are parameters
UNIT = 1000  # steps
TRIES = 5  # of the grid's best, from which the search starts
FARTHEST = 1e6  # gamma x span or t0, or one over them: the best is at no finite place


def fit(layer: int, steps: Sequence[int], ratios: Sequence[float]) -> Fit:
    """Of one layer's ratios, all positive, at these steps."""
    if len(steps) < LEAST:
        return Fit(layer, TOO_FEW, {}, None, None)
    t, y = np.array(steps) / UNIT, np.log(np.array(ratios))
    found = [one for start in _starts(t, y) if (one := _searched(t, y, start)) is not None]
    if not found:
        return Fit(layer, DIVERGES, {}, None, None)
    best, covariance = min(found, key=lambda one: _squares(t, y, one[0]))
    squares, values = _squares(t, y, best), _natural(best)
    slopes = np.array([1, *values[1:4], 1])  # of the natural parameters by those that were searched
    errors = np.sqrt(np.diag(covariance)) * np.abs(slopes)
    parameters = {
        name: Parameter(float(value), float(error) if np.isfinite(error) else None)
        for name, value, error in zip(NAMES, values, errors, strict=True)
    }
    spread = ((y - y.mean()) ** 2).sum()
    return Fit(layer, FITTED, parameters, float(np.sqrt(squares / len(y))), 1 - squares / spread if spread else None)


def curve(steps: np.ndarray, parameters: dict[str, Parameter]) -> np.ndarray:
    """The fitted ratio at these steps."""
    return np.exp(_form(steps / UNIT, *(parameters[name].value for name in NAMES)))


def _form(t: np.ndarray, a: float, decay: float, gamma: float, t0: float, k: float) -> np.ndarray:
    x = gamma * t + t0
    return a * np.exp(-decay * x) * np.log(x) + k


def _natural(searched: np.ndarray) -> np.ndarray:
    """(A, lambda, gamma, t0, K) of what is searched, where the three that are positive are logarithms."""
    return np.array([searched[0], *np.exp(searched[1:4]), searched[4]])


def _searched(t: np.ndarray, y: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(parameters, their covariance) of the nearest minimum; None where it is not reached."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", OptimizeWarning)  # a covariance that cannot be told is inf
        try:
            best, covariance = curve_fit(lambda t, *p: _form(t, *_natural(np.array(p))), t, y, start, maxfev=2000)
        except (RuntimeError, ValueError):
            return None
        _a, _decay, gamma, t0, _k = _natural(best)
        finite = all(1 / FARTHEST < size < FARTHEST for size in (gamma * (t.max() - t.min()), t0))
        return (best, covariance) if finite and np.isfinite(_squares(t, y, best)) else None


def _squares(t: np.ndarray, y: np.ndarray, searched: np.ndarray) -> float:
    return float(((_form(t, *_natural(searched)) - y) ** 2).sum())


def _starts(t: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The best of a grid over the three parameters in which the form is not linear; A and K are exact there."""
    span = t.max() - t.min()
    grid = [
        (decay / (reach + t0), reach / span, t0)
        for reach in np.logspace(-1, 4, 11)
        for t0 in np.logspace(-3, 1, 5)
        for decay in np.logspace(-3, 1.5, 8)
    ]
    shapes = np.array([_form(t, 1.0, *one, 0.0) for one in grid])
    centred, wanted = shapes - shapes.mean(1, keepdims=True), y - y.mean()
    norms = (centred**2).sum(1)
    a = np.divide(centred @ wanted, norms, out=np.zeros(len(grid)), where=norms > 0)
    left = ((wanted - a[:, None] * centred) ** 2).sum(1)
    return [np.array([a[i], *np.log(grid[i]), y.mean() - a[i] * shapes[i].mean()]) for i in np.argsort(left)[:TRIES]]
