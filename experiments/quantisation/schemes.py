"""Quantised values as the numbers that they stand for: symmetric, rounded half to even."""

import torch
from torch import Tensor

from experiments.quantisation.results import DYNAMIC, LEVELS, STATIC, TOKEN, Scheme
from lib.core.definitions import GROUP

TINY = torch.finfo(torch.float32).tiny  # a scale at least, so that zeros stay zeros


def quantised(value: Tensor, scheme: Scheme, largest: float) -> Tensor:
    """A (windows, seq, width) float value; `largest` is what a static scale reaches to.

    What lies beyond the scale becomes the largest number; float16 makes inf of what is beyond its own.
    """
    if scheme.scaling is None:
        return value.to(torch.float16).to(value.dtype)
    levels = LEVELS[scheme.format]
    if scheme.scaling == STATIC:
        return _rounded(value, max(largest / levels, TINY), levels)
    if scheme.scaling == DYNAMIC:
        return _rounded(value, _scale(value, (1, 2), levels), levels)
    if scheme.scaling == TOKEN:
        return _rounded(value, _scale(value, 2, levels), levels)
    groups = value.unflatten(2, (-1, group_of(value.shape[2])))
    return _rounded(groups, _scale(groups, 3, levels), levels).flatten(2)


def group_of(width: int) -> int:
    """Dims that share a scale: the largest divisor of the width up to GROUP."""
    return max(n for n in range(1, GROUP + 1) if width % n == 0)


def _scale(value: Tensor, dims: int | tuple[int, int], levels: int) -> Tensor:
    largest = torch.linalg.vector_norm(value, torch.inf, dims, keepdim=True)
    return (largest / levels).clamp(min=TINY)


def _rounded(value: Tensor, scale: Tensor | float, levels: int) -> Tensor:
    return (value / scale).round_().clamp_(-levels, levels).mul_(scale)
