"""What a block adds to the residual stream: which outputs of its modules, by what they are multiplied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from lib.model.trace import Block, Call

ROUNDINGS = 4  # of each term of a sum
SUM_OF = 3  # writes of a block, at most
FITTED = 512  # values that a scale is fitted to
LEAST_SCALE = 1e-2
SAME_SCALE = 1e-3  # a fitted scale and the number of the configuration that it is
Kind = tuple[str, ...]  # paths


def is_sum(total: Tensor, parts: Iterable[Tensor], epsilon: float) -> bool:
    """Whether a flat tensor is the sum of others within their roundings."""
    parts = list(parts)
    for some in (slice(0, 64), slice(None)):
        rest, bound = total[some].clone(), total[some].abs()
        for part in parts:
            rest -= part[some]
            bound += part[some].abs()
        if not (rest.abs_() <= bound.mul_(ROUNDINGS * epsilon)).all():
            return False
    return True


@dataclass
class Found:
    """Outputs of one value: the calls that gave it, the innermost first; in float64."""

    calls: list[Call]
    value: Tensor


@dataclass(frozen=True)
class Writes:
    """keep: what the block's input is multiplied by; outputs: (what it is multiplied by, output) of what it adds."""

    keep: float
    outputs: tuple[tuple[float, Found], ...]


class Values:
    """A block's run, by value."""

    def __init__(self, block: Block) -> None:
        assert block.taken is not None
        assert block.given is not None
        self.block = block
        own = (value for module in block.module.modules() for value in vars(module).values())
        self.numbers = [1.0, *dict.fromkeys(value for value in own if isinstance(value, float))]
        self.epsilon = torch.finfo(block.given.dtype).eps
        self.before, self.after = (x.detach().flatten().cpu().double() for x in (block.taken, block.given))
        self.outputs: list[Found] = []
        self.is_post_norm = False
        for call in block.calls:
            if call.given is None or call.given.numel() != self.before.numel():
                continue
            value = call.given.detach().flatten().cpu().double()
            if torch.equal(value, self.before):
                continue
            self.is_post_norm |= is_norm(call.module) and torch.equal(value, self.after)
            same = next((found for found in self.outputs if torch.equal(found.value, value)), None)
            if same is None:
                self.outputs.append(Found([call], value))
            else:
                same.calls.append(call)

    def is_block(self, parts: list[Tensor], keep: float = 1.0) -> bool:
        """Whether the block adds the sum of these to its input, multiplied by `keep`."""
        return is_sum(self.after, [keep * self.before, *parts], self.epsilon)

    def writes(self, known: Iterable[Kind]) -> Writes | None:
        """What the block adds; None if it is not found. known: paths of what other blocks add."""
        by_path = {path_of(found): found for found in self.outputs}
        for paths in known:
            chosen = tuple(by_path[path] for path in paths if path in by_path)
            if len(chosen) == len(paths) and (writes := self._sum(chosen, fit=False) or self._sum(chosen, fit=True)):
                return writes
        for fit in (False, True):
            if fit and self.is_post_norm:
                break
            for n in range(1, SUM_OF + 1):
                for some in combinations(self.outputs, n):
                    if writes := self._sum(some, fit):
                        return writes
        return None

    def _sum(self, some: tuple[Found, ...], fit: bool) -> Writes | None:
        """The outputs with what they and the block's input are multiplied by; None if this is not what it gives."""
        values = [found.value for found in some]
        if not fit:
            return Writes(1.0, tuple((1.0, found) for found in some)) if self.is_block(values) else None
        for parts, total in ((values, self.after - self.before), ([*values, self.before], self.after)):
            least = fitted(parts, total)
            for scales in (self._own(least), least):
                keep = scales[len(some)] if len(scales) > len(some) else 1.0
                scaled = [scale * value for scale, value in zip(scales, values, strict=False)]
                if min(map(abs, (*scales, keep))) > LEAST_SCALE and self.is_block(scaled, keep):
                    return Writes(keep, tuple(zip(scales, some, strict=False)))
        return None

    def _own(self, scales: list[float]) -> list[float]:
        """The numbers that the block keeps, where the fitted ones are these."""
        return [
            next((own for own in self.numbers if abs(own - scale) <= SAME_SCALE * abs(own)), scale) for scale in scales
        ]


def fitted(parts: list[Tensor], total: Tensor) -> list[float]:
    """What to multiply `parts` by for the least squares of `total`."""
    some = torch.stack(parts, dim=1)[:FITTED], total[:FITTED, None]
    return torch.linalg.lstsq(*some).solution[:, 0].tolist()


def is_norm(module: torch.nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def path_of(found: Found) -> str:
    """Of the innermost module that gives this in the shape of the residual stream."""
    whole = (call for call in found.calls if call.given is not None and call.given.ndim == 3)
    return next(whole, found.calls[0]).path
