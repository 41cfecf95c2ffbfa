"""To what it is changed: values set by hand, or their writer off.

A value set by hand may make a vector that the model never meets: all else that was written with the value is still
there. What the model would be in without the value is a counterfactual state: that in which its writer is off.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from experiments.interventions.results import (
    EVERYWHERE,
    LAYER,
    MEAN,
    MEDIAN,
    MLP_OFF,
    NEURONS_OFF,
    ONWARD,
    ORDINARY,
    PUT_BACK,
    RESAMPLED,
    THERE,
    ZERO,
    Writers,
)
from experiments.interventions.sites import Pair, Sites
from lib.core import mlp
from lib.core.results import NeuronName
from lib.model import edits, hooks
from lib.model.arch import Architecture
from lib.report import tables

QUESTIONS: dict[str | tuple[str, str], str] = {
    (NEURONS_OFF, THERE): "what if the neurons that write it had not done so there?",
    (NEURONS_OFF, EVERYWHERE): "what if the neurons that write it were not in the model?",
    (MLP_OFF, THERE): "what if that MLP had written nothing there?",
    (MLP_OFF, EVERYWHERE): "what if that MLP were not in the model?",
    PUT_BACK: "is it the value that is missed, or what else is written with it?",
    RESAMPLED: "does it matter from which window the values are?",
    MEAN: "is one constant for all windows enough?",
    ORDINARY: "zero's question, with what the dim has at ordinary positions",
    ZERO: "what does the model do with a vector it may never meet: the value gone, all written with it still there?",
    MEDIAN: "zero's question, with the size of an ordinary value",
}
FACTOR_QUESTION = "does the size matter?"
Wanted = tuple[str | float, str]  # what is set, or off, and where; a number: times what the model has


@dataclass(frozen=True)
class Intervention:
    """A change for lib.core.sweep: the sites' `values`, (sites, layers from theirs on), put there in the output of
    their layer (`where` is LAYER) or of that and all later ones (ONWARD). factor: times what the model has, if it is
    set to that."""

    set_to: str
    where: str
    question: str
    sites: Sites
    values: np.ndarray
    factor: float | None = None

    @property
    def name(self) -> str:
        return f"{self.set_to}_{self.where}".replace(" ", "_")

    @property
    def label(self) -> str:
        return (
            f"{self.set_to} "
            + (f"at layer {self.first_layer}", f"from layer {self.first_layer} on")[self.where == ONWARD]
        )

    @property
    def first_layer(self) -> int:
        return self.sites.layer

    def hooks(self, arch: Architecture, rows: slice) -> AbstractContextManager[None]:
        windows = self.sites.index[:, 0]
        here = (windows >= rows.start) & (windows < rows.stop)
        index = torch.from_numpy((self.sites.index[here] - [rows.start, 0, 0]).T)
        values = torch.from_numpy(self.values[here])

        def put(layer: int, hidden: torch.Tensor) -> torch.Tensor:
            new = hidden.clone()
            new[tuple(index.to(hidden.device))] = values[:, layer - self.first_layer].to(hidden)
            return new

        last = arch.n_layers - 1 if self.where == ONWARD else self.first_layer
        return hooks.watch_outputs(arch, "block", put, range(self.first_layer, last + 1))


@dataclass(frozen=True)
class WriterOff:
    """A change for lib.core.sweep: `neurons` of MLPs, {layer: neurons}, or all that the layer's MLP writes (None), are
    off at the positions `there`, (windows, seq) bool, or at all (None)."""

    layer: int
    neurons: dict[int, list[NeuronName]] | None
    there: np.ndarray | None
    factor = None

    @property
    def set_to(self) -> str:
        return MLP_OFF if self.neurons is None else NEURONS_OFF

    @property
    def where(self) -> str:
        return EVERYWHERE if self.there is None else THERE

    @property
    def question(self) -> str:
        return QUESTIONS[self.set_to, self.where]

    @property
    def name(self) -> str:
        return self.set_to.replace(" ", "_") + ("" if self.there is None else "_there")

    @property
    def what(self) -> str:
        return f"MLP {self.layer}" if self.neurons is None else "neurons"

    @property
    def label(self) -> str:
        label = f"{self.what} off {self.where}"
        if self.neurons is None:
            return label
        n = tables.counted(sum(map(len, self.neurons.values())), "neuron")
        return f"{label} ({n} of MLP{'s' * (len(self.neurons) > 1)} {tables.spans(self.neurons)})"

    @property
    def first_layer(self) -> int:
        return self.layer if self.neurons is None else min(self.neurons)

    @contextmanager
    def hooks(self, arch: Architecture, rows: slice) -> Iterator[None]:
        there = None if self.there is None else torch.from_numpy(self.there[rows])
        with ExitStack() as stack:
            if self.neurons is None:
                off = edits.mlps_off(arch, [self.layer]) if there is None else edits.mlp_off_at(arch, self.layer, there)
                stack.enter_context(off)
            for layer, names in (self.neurons or {}).items():
                numbers = [mlp.number_of(arch, layer, name) for name in names]
                stack.enter_context(edits.neurons_off(arch, layer, numbers, there))
            yield


@dataclass(frozen=True)
class PutBack:
    """A change for lib.core.sweep: the writer is off, and the sites have a value all the same."""

    off: WriterOff
    held: Intervention
    set_to = PUT_BACK
    where = THERE
    factor = None
    question = QUESTIONS[PUT_BACK]
    name = "put_back"

    @property
    def label(self) -> str:
        return f"{self.off.what} off there, {self.held.set_to} put back"

    @property
    def first_layer(self) -> int:
        return self.off.first_layer

    @contextmanager
    def hooks(self, arch: Architecture, rows: slice) -> Iterator[None]:
        with self.off.hooks(arch, rows), self.held.hooks(arch, rows):
            yield


Change = Intervention | WriterOff | PutBack


def changes_of(
    wanted: Iterable[Wanted],
    sites: Sites,
    estimation: Sites,
    sizes: np.ndarray,
    writers: Writers | None,
    shape: tuple[int, ...],
    seed: int,
) -> list[Change]:
    """What lib.core.sweep is to apply. sizes: (layers,) medians of |block output|; writers: of find_writers; shape: of
    the windows' ids."""
    there = sites.there(shape)
    writer = (writers.by_layer or None) if writers else None

    def held(set_to: str | float, where: str) -> Intervention:
        if not isinstance(set_to, str):
            values = set_to * sites.values
            return Intervention(f"times {set_to:.10g}", where, FACTOR_QUESTION, sites, values, set_to)
        if set_to == RESAMPLED:
            values = _resampled(sites, estimation, np.random.default_rng(seed))
        else:
            constants = _constants(set_to, estimation, sizes)
            values = np.stack([constants[pair] for pair in sites.pairs])
        return Intervention(set_to, where, QUESTIONS[set_to], sites, values)

    changes: list[Change] = []
    for set_to, where in dict.fromkeys(wanted):
        if set_to == PUT_BACK:
            changes.append(PutBack(WriterOff(sites.layer, writer, there), held(MEAN, LAYER)))
        elif set_to == MLP_OFF or (set_to == NEURONS_OFF and writer):
            neurons = writer if set_to == NEURONS_OFF else None
            changes.append(WriterOff(sites.layer, neurons, there if where == THERE else None))
        elif set_to != NEURONS_OFF:
            changes.append(held(set_to, where))
    return changes


def _constants(set_to: str, estimation: Sites, sizes: np.ndarray) -> dict[Pair, np.ndarray]:
    """(layers,) what to set at the sites of each pair."""
    means = estimation.means()
    return {
        ZERO: {pair: np.zeros_like(mean) for pair, mean in means.items()},
        MEAN: means,
        MEDIAN: {pair: np.sign(mean) * sizes for pair, mean in means.items()},
        ORDINARY: {(position, dim): estimation.ordinary[dim] for position, dim in means},
    }[set_to]


def _resampled(sites: Sites, estimation: Sites, rng: np.random.Generator) -> np.ndarray:
    """(sites, layers) values of a random estimation site of the same pair; the dims of one position take theirs from
    one window, where they have it in the same ones."""
    donors, drawn = estimation.by_pair(), {}
    chosen = []
    for (window, position, _dim), pair in zip(sites.index.tolist(), sites.pairs, strict=True):
        if (window, position) not in drawn:
            drawn[window, position] = rng.random()
        chosen.append(donors[pair][int(drawn[window, position] * len(donors[pair]))])
    return estimation.values[chosen]
