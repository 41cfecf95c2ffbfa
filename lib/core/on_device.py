"""What hooks see, kept on the model's device during a pass and taken to the host at its end, in one copy.

A copy to the host, `.item()`, `nonzero` or a boolean index inside a pass makes the host wait for the device, which on a
GPU costs more than the pass. So hooks keep small tensors here, and float64 and Python begin behind `take`. And each
operation costs time of its own, which in a short window is more than its work: layers are looked at together.
"""

from collections.abc import Callable, Hashable, Iterable

import numpy as np
import torch

Taken = dict[Hashable, np.ndarray]
FLOAT64 = ("cpu", "cuda")  # types of devices that have it; MPS has none
TOGETHER, ON_ACCELERATOR = 2**20, 2**24  # values that are looked at together: on a CPU, more would leave its cache


class OnDevice:
    """Tensors by key, since the last `take`."""

    def __init__(self) -> None:
        self.kept: dict[Hashable, torch.Tensor] = {}
        self.stacks: list[Stack] = []

    def stack(self, look: Callable[..., None]) -> "Stack":
        """A Stack whose `look` keeps here what it finds; it has seen all when `take` copies."""
        self.stacks.append(Stack(look))
        return self.stacks[-1]

    def keep(self, key: Hashable, value: torch.Tensor) -> None:
        """A tensor of floats, truth values or whole numbers below 2**31, on any device; a later one replaces it."""
        self.kept[key] = value

    def take(self) -> Taken:
        """All that was kept, on the host: floats (half precision as float32), truth values and whole numbers."""
        for stack in self.stacks:
            stack.look_at_rest()
        taken: Taken = {}
        for device in dict.fromkeys(value.device for value in self.kept.values()):
            taken |= _copied({key: value for key, value in self.kept.items() if value.device == device})
        self.kept = {}
        return taken


class Stack:
    """What successive layers give, until there is enough to call `look(layers, *values)`.

    layers: their numbers; values: of each value that was added, all layers in one (layers, ...) tensor.
    """

    def __init__(self, look: Callable[..., None]) -> None:
        self.look = look
        self.layers: list[int] = []
        self.values: list[tuple[torch.Tensor, ...]] = []  # by layer
        self.like: list[tuple[torch.Size, torch.dtype, torch.device]] = []  # of one layer's values
        self.at_once = 0  # layers

    def add(self, layer: int, *values: torch.Tensor) -> None:
        """The values are looked at later: nothing may change them until then."""
        like = [(value.shape, value.dtype, value.device) for value in values]
        if like != self.like:
            self.look_at_rest()
            most = TOGETHER if values[0].device.type == "cpu" else ON_ACCELERATOR
            self.like, self.at_once = like, most // max(value.numel() for value in values)
        self.layers.append(layer)
        self.values.append(values)
        if len(self.layers) >= self.at_once:
            self.look_at_rest()

    def look_at_rest(self) -> None:
        if self.layers:
            layers, values = tuple(self.layers), self.values
            self.layers, self.values = [], []
            self.look(
                layers, *(each[0][None] if len(each) == 1 else torch.stack(each) for each in zip(*values, strict=True))
            )


def _copied(values: dict[Hashable, torch.Tensor]) -> Taken:
    """Of tensors of one device, which travel as the bits of one vector of floats."""
    double = any(value.dtype == torch.float64 for value in values.values())
    floats, integers = (torch.float64, torch.int64) if double else (torch.float32, torch.int32)
    bits = [
        value.to(floats) if value.is_floating_point() else value.to(integers).view(floats) for value in values.values()
    ]
    vector = torch.cat([part.flatten() for part in bits]).cpu()
    parts = vector.split([value.numel() for value in values.values()])
    taken: Taken = {}
    for (key, value), part in zip(values.items(), parts, strict=True):
        as_kept = part if value.is_floating_point() else part.view(integers)
        array = as_kept.view(value.shape).numpy()
        taken[key] = array.astype(bool) if value.dtype == torch.bool else array
    return taken


def by_layer(taken: Taken, name: str, layers: Iterable[int]) -> np.ndarray:
    """(..., layers) float64 values of what was kept as (name, layer)."""
    return np.stack([taken[name, layer] for layer in layers], axis=-1).astype(np.float64)


def exact(value: torch.Tensor) -> torch.Tensor:
    """To be summed up: in float64 where the device has it. PyTorch adds float32 in pairs, so that a mean of n numbers
    of one sign is off by at most about log2(n) of its last digit's half (Higham 1993)."""
    return value.double() if value.device.type in FLOAT64 else value.float()


def summed(rows: torch.Tensor) -> torch.Tensor:
    """(parts, ...) which the host is to add up in float64, for the sum of (n, ...) rows.

    Without float64 there are two: the rows' leading digits, so few that float32 adds them exactly in any order, and the
    rest (Rump, Ogita & Oishi 2008). Off by at most n^2 x 2^-44 x log2(n) of the largest |value|: of n below 2^20, less
    than a sum in pairs.
    """
    if rows.device.type in FLOAT64:
        return rows.double().sum(0)[None]
    rows = rows.float()
    coarse = 4 * len(rows) * rows.abs().amax()
    leading = (coarse + rows) - coarse
    return torch.stack([leading.sum(0), (rows - leading).sum(0)])
