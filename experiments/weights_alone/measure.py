"""First the forecast, from the weights alone; then what the model does."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from msgspec import UNSET

from experiments.weights_alone.results import (
    ERASER,
    GENERATOR,
    Carrier,
    Compared,
    DimNorm,
    Forecast,
    LeftOut,
    Measured,
    Pointing,
    Results,
    ScreenedLayer,
    Singular,
)
from experiments.weights_alone.screen import DIMS, NEURONS, Mlp, Screened, mlps, screened
from lib.core import attribution, mlp, neurons
from lib.core.ablation import Condition
from lib.core.births import birth
from lib.core.data import Windows
from lib.core.definitions import CARRIED, OWN_DIM
from lib.core.on_device import OnDevice
from lib.core.place import Place, find
from lib.core.results import OF_MLP, NeuronName, OfExpert
from lib.model import hooks
from lib.model.arch import Architecture
from lib.model.attention_rows import wide
from lib.model.models import LanguageModel
from lib.model.tokens import known_ids, text_of
from lib.run import processes
from lib.run.errors import LackingError, UserError

LISTED = 40
TOKENS = 5  # of each direction
IN_FIGURE = 12  # dims
AT_ONCE = 512  # tokens

ROUNDING = 1e-6  # of a largest singular value, what float32 leaves of one that is 0


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    """Raises LackingError for a model whose MLPs tell no forecast, UserError for non-finite values."""
    foreseen = foresee(lm)
    if not foreseen.screened:
        raise LackingError(f"no MLP of this model tells a forecast: {foreseen.left_out[0].why}")
    best = foreseen.best[:LISTED]
    forecast = [one.told(foreseen.role(one), tokens) for one, tokens in zip(best, pointing(lm, best), strict=True)]
    return Results(
        hidden=lm.arch.hidden_size,
        forecast=forecast,
        n_forecast=len(foreseen.best),
        n_generators=len(foreseen.generators),
        layers=foreseen.layers(),
        times_mean=foreseen.by_dim(),
        left_out=foreseen.left_out,
        measured=measure(lm, windows, options, foreseen),
    )


@dataclass(frozen=True)
class Candidate:
    """One of the dims of a Screened: its index there. mean: of the norms of all dims of its layer."""

    screened: Screened
    index: int
    mean: float

    @property
    def layer(self) -> int:
        return self.screened.layer

    @property
    def dim(self) -> int:
        return int(self.screened.dims[self.index])

    @property
    def norm(self) -> float:
        return float(self.screened.norms[self.dim])

    @property
    def times_mean(self) -> float:
        return self.norm / self.mean

    @property
    def value(self) -> float:
        return float(self.screened.values[self.index])

    @property
    def sign(self) -> str:
        return "-" if self.value < 0 else "+"

    @property
    def direction(self) -> np.ndarray:
        """(hidden,) unit vector."""
        return self.screened.directions[self.index]

    @property
    def own(self) -> float:
        return float(self.direction[self.dim] ** 2 * len(self.direction))

    @property
    def carriers(self) -> list[Carrier]:
        """The fewest that carry it, if they are among those that are known."""
        shares = self.screened.shares[self.index]
        n = int((shares.cumsum() < CARRIED).sum()) + 1
        return [
            Carrier(int(i), float(share))
            for i, share in zip(self.screened.neurons[self.index][:n], shares[:n], strict=True)
            if share > 0
        ]

    @property
    def neurons(self) -> list[NeuronName]:
        expert = self.screened.expert
        numbers = [carrier.neuron for carrier in self.carriers]
        return [*numbers] if expert is None else [OfExpert(expert, number) for number in numbers]

    def told(self, role: str, tokens: list[Pointing]) -> Forecast:
        return Forecast(
            layer=self.layer,
            dim=self.dim,
            role=role,
            norm=self.norm,
            times_mean=self.times_mean,
            eigenvalue=self.value,
            sign=self.sign,
            own=self.own,
            neurons=self.carriers,
            tokens=tokens,
            expert=UNSET if self.screened.expert is None else self.screened.expert,
        )


@dataclass(frozen=True)
class Foreseen:
    """Of every MLP, and every expert, whose neurons are known."""

    arch: Architecture
    screened: list[Screened]
    left_out: list[LeftOut]

    @cached_property
    def best(self) -> list[Candidate]:
        """What stands out most of its layer first; nothing where all weights are 0."""
        every = [
            Candidate(found, index, self.means[found.layer])
            for found in self.screened
            for index in range(len(found.dims))
        ]
        return sorted((one for one in every if one.norm), key=lambda one: (-one.times_mean, one.layer, one.dim))

    @cached_property
    def generators(self) -> list[Candidate]:
        return [candidate for candidate in self.best if self.role(candidate) == GENERATOR]

    def role(self, candidate: Candidate) -> str:
        """As judge.RULE has it."""
        opposite = "-" if candidate.sign == "+" else "+"
        follows = self._earliest.get((candidate.dim, opposite), candidate.layer) < candidate.layer
        return ERASER if follows and candidate.own > OWN_DIM else GENERATOR

    @cached_property
    def _earliest(self) -> dict[tuple[int, str], int]:
        """{(dim, sign): the first layer that is forecast to write it so}."""
        deepest_first = sorted(self.best, key=lambda one: -one.layer)
        return {(one.dim, one.sign): one.layer for one in deepest_first}

    @cached_property
    def norms(self) -> dict[int, np.ndarray]:
        """{layer: (hidden,)}, of a mixture the largest of any expert."""
        found: dict[int, np.ndarray] = {}
        for one in self.screened:
            found[one.layer] = np.maximum(found.get(one.layer, 0), one.norms)
        return found

    @cached_property
    def means(self) -> dict[int, float]:
        return {layer: float(norms.mean()) for layer, norms in self.norms.items()}

    @cached_property
    def times_mean(self) -> dict[int, np.ndarray]:
        """{layer: (hidden,)}."""
        return {layer: norms / (self.means[layer] or 1) for layer, norms in self.norms.items()}

    def by_dim(self) -> dict[int, list[float | None]]:
        dims = [*dict.fromkeys(candidate.dim for candidate in self.best)][:IN_FIGURE]
        layers = range(self.arch.n_layers)
        return {dim: [float(self.times_mean[i][dim]) if i in self.times_mean else None for i in layers] for dim in dims}

    def layers(self) -> list[ScreenedLayer]:
        found = []
        for layer in self.norms:
            here = [candidate for candidate in self.best if candidate.layer == layer]
            of_layer = [one for one in self.screened if one.layer == layer]
            first = max(of_layer, key=lambda one: one.singular[0])
            unique = {candidate.dim: candidate for candidate in reversed(here)}
            largest = sorted(unique.values(), key=lambda one: -one.norm)[:DIMS]
            found.append(
                ScreenedLayer(
                    layer=layer,
                    form="quadratic" if first.gated else "linear",
                    mean=self.means[layer],
                    largest=[DimNorm(one.dim, one.norm, self.role(one)) for one in largest],
                    singular=[
                        Singular(float(value), int(dim), float(vector[dim] ** 2), int(neuron))
                        for value, vector, neuron in zip(first.singular, first.left, first.right, strict=True)
                        if value > ROUNDING * first.singular[0]  # else its vectors are any
                        for dim in [np.abs(vector).argmax()]
                    ],
                    experts=UNSET if first.expert is None else len(of_layer),
                )
            )
        return found


def foresee(lm: LanguageModel) -> Foreseen:
    """From the weights alone. Each process takes some of the layers."""
    arch, left_out = lm.arch, []
    layers = range(arch.n_layers)[processes.own(arch.n_layers, 1)]

    def known() -> Iterator[Mlp]:
        with processes.progress(arch.n_layers, 1, "weights", unit="layer") as progress:
            for layer in layers:
                try:
                    arch.require_neurons(layer)
                except UserError as error:
                    left_out.append(LeftOut(layer, str(error)))
                else:
                    yield from mlps(arch, layer)
                progress.update()

    found = [*screened(known())]
    left_out += dict.fromkeys(LeftOut(one.layer, why) for one in found if (why := one.why_not))
    told = [one for one in found if not one.why_not]
    return Foreseen(arch, processes.gather(told), sorted(processes.gather(left_out), key=lambda left: left.layer))


def pointing(lm: LanguageModel, candidates: list[Candidate]) -> list[list[Pointing]]:
    """Of each candidate the TOKENS whose stream, as the first token and before any block, points most along it."""
    if not candidates:
        return []
    ids = torch.from_numpy(known_ids(lm.tokenizer, lm.n_embeddings))
    directions = torch.from_numpy(np.stack([one.direction for one in candidates], 1).astype(np.float32)).to(lm.device)
    centred = torch.tensor([bool(one.screened.centred) for one in candidates]).to(lm.device)
    parts = []
    for _rows, batch in processes.batches(ids[:, None], AT_ONCE):
        kept = OnDevice()

        def see(_layer: int, hidden: torch.Tensor, kept: OnDevice = kept) -> None:
            stream = wide(hidden[:, 0])
            whole, rest = (
                x.square().sum(1, keepdim=True).sqrt() for x in (stream, stream - stream.mean(1, keepdim=True))
            )
            kept.keep("cosines", stream @ directions.to(stream) / torch.where(centred, rest, whole).clamp_min(1e-30))

        with hooks.watch_inputs(lm.arch, "block", see, [0]), hooks.stop_before(lm.arch, 0):
            hooks.forward(lm, batch)
        parts.append(kept.take()["cosines"])
    cosines = np.concatenate(processes.gather(parts))
    first = np.argsort(-cosines, axis=0, kind="stable")[:TOKENS]
    return [
        [Pointing(text_of(lm.tokenizer, int(ids[i])), float(cosines[i, column])) for i in rows]
        for column, rows in enumerate(first.T)
    ]


def measure(lm: LanguageModel, windows: Windows, options: Any, foreseen: Foreseen) -> Measured:
    place = find(lm, windows, options.batch_size, seed=options.seed)
    ledger = attribution.measure(lm, windows, place, Condition("ledger", "nothing off", (), ()), options.batch_size)
    writes = [write for write in ledger.listed() if write.order <= place.peak]
    largest = next(iter(birth(writes, place.peak).generators), None)
    compared = None
    if place.massive and largest and largest.layer in foreseen.norms and largest.kind in OF_MLP:
        compared = compare(lm, windows, options, foreseen, place, largest.layer)
    return Measured(place.described(), writes, compared)


def compare(
    lm: LanguageModel, windows: Windows, options: Any, foreseen: Foreseen, place: Place, layer: int
) -> Compared:
    """The forecast of the layer and the place's dim beside what is there, over the windows that have the spike."""
    values = neurons.checkpoints_at_place(lm, windows, place, layer, options.batch_size)
    there = {name: value[torch.from_numpy(place.spiking)] for name, value in values.items()}
    rows, _check = mlp.at_place(lm.arch, layer, place.dim, there)
    norm, times_mean = (float(of[layer][place.dim]) for of in (foreseen.norms, foreseen.times_mean))
    rank = 1 + sum(int((of_layer > times_mean).sum()) for of_layer in foreseen.times_mean.values())
    found = next((one for one in foreseen.best if (one.layer, one.dim) == (layer, place.dim)), None)
    if found is None:
        names = [str(row.name) for row in rows[:NEURONS]]
        return Compared(layer, place.dim, norm, times_mean, rank, None, None, [], names, None, None)
    stream = there["residual"].numpy()
    stream = stream - float(found.screened.centred) * stream.mean(1, keepdims=True)
    cosines = stream @ found.direction / np.linalg.norm(stream, axis=1).clip(1e-30)
    n = len(found.neurons)
    measured = [row.name for row in rows[:n]]
    return Compared(
        layer=layer,
        dim=place.dim,
        norm=norm,
        times_mean=times_mean,
        rank=rank,
        role=foreseen.role(found),
        generator=_rank(foreseen.generators, found),
        neurons=[*map(str, found.neurons)],
        measured=[*map(str, measured)],
        overlap=len({*measured} & {*found.neurons}) / n if n else None,
        cosine=place.draws.of(place.spiking).averages(cosines),
    )


def _rank(candidates: Iterable[Candidate], found: Candidate) -> int | None:
    return next((rank for rank, one in enumerate(candidates, 1) if one is found), None)
