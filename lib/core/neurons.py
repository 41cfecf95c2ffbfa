"""Sets of neurons of one MLP: what they do at a place, random sets to compare with, and what they read."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch

from lib.core import mlp
from lib.core.data import Windows
from lib.core.on_device import OnDevice
from lib.core.place import Place, tokens_at, vectors_at
from lib.model import edits, hooks
from lib.model.arch import Architecture
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.run import processes


@dataclass(frozen=True)
class NeuronsOff:
    """These neurons of one layer's MLP are off, in every position. neurons: as Architecture.n_neurons counts them."""

    name: str
    label: str
    layer: int
    neurons: tuple[int, ...]

    @property
    def first_layer(self) -> int:
        return self.layer

    def hooks(self, arch: Architecture, _rows: slice | None = None) -> AbstractContextManager[None]:
        return edits.neurons_off(arch, self.layer, self.neurons)


@dataclass(frozen=True)
class WeightScaled:
    """One scalar of a dense MLP's down projection counts `factor` times, in every position."""

    name: str
    label: str
    layer: int
    dim: int
    neuron: int
    factor: float

    @property
    def first_layer(self) -> int:
        return self.layer

    def hooks(self, arch: Architecture, _rows: slice | None = None) -> AbstractContextManager[None]:
        return edits.down_weight_scaled(arch, self.layer, self.dim, self.neuron, self.factor)


def checkpoints_at_place(
    lm: LanguageModel, windows: Windows, place: Place, layer: int, batch_size: int
) -> dict[str, torch.Tensor]:
    """{checkpoint of mlp.checkpoints_of, or of mlp.Routed: (windows, width) float64} of one layer, at the place's
    positions.

    Windows are cut after the place where no later token can change it (Architecture.prefix). Raises UserError for inf
    or nan.
    """
    points, routed = mlp.checkpoints_of(lm.arch, layer), mlp.Routed(lm.arch, layer)
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in (*(name for name, *_ in points), *routed.names)}
    length = lm.arch.prefix(int(place.positions.max()) + 1, windows.ids.shape[1])
    for rows, ids in processes.batches(windows.ids[:, :length], batch_size):
        positions, here = torch.from_numpy(place.positions[rows]).to(lm.device), OnDevice()

        def keep(
            name: str, positions: torch.Tensor = positions, here: OnDevice = here
        ) -> Callable[[int, torch.Tensor], None]:
            return lambda _layer, value: here.keep(name, vectors_at(value, positions))

        with ExitStack() as stack:
            for name, _label, role, side in points:
                stack.enter_context(mlp.watch(lm.arch, layer, role, side, keep(name)))
            stack.enter_context(routed.watching())
            stack.enter_context(hooks.stop_after(lm.arch, layer))
            hooks.forward(lm, ids)
        for name, at_place in routed.at(tokens_at(positions, ids.shape[1])).items():
            here.keep(name, at_place)
        taken = here.take()
        for name, parts in kept.items():
            require_finite(layer, taken[name])
            parts.append(torch.from_numpy(taken[name]).double())
    return {name: torch.cat(processes.gather(parts)) for name, parts in kept.items()}
