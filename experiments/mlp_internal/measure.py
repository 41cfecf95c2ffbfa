"""The inside of one MLP: its checkpoints, its neurons, its activation function replaced."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec import UNSET, UnsetType

from experiments.mlp_internal.results import (
    Checkpoint,
    Followed,
    FollowedValue,
    HeavyNeuron,
    Largest,
    NeuronInside,
    Replaced,
    Results,
)
from lib.core import mlp
from lib.core.data import Windows
from lib.core.evidence import Average
from lib.core.massive import medians
from lib.core.on_device import OnDevice, Taken, exact
from lib.core.place import tokens_at, vectors_at
from lib.core.results import ContributionCheck, Mixture, Neuron
from lib.core.stats import Draws, Samples
from lib.model import edits, hooks, next_token
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.run import processes
from lib.run.errors import UserError

REPLACEMENTS = {"identity": lambda x: x, "relu": torch.relu}
ENDS = (mlp.OUTPUT, "block_output")  # checkpoints that are followed with the activation function replaced
FIRST, HEAVIEST = 10, 5  # neurons that are listed with all their checkpoints, and by weight alone
NEURONS = ("gate", "up", "product", "after_linear1", "after_activation")  # checkpoints with one value a neuron
AT_DIM = (  # with one value a dim
    *("residual", "mlp_input", "experts_output", "shared_output"),
    *(mlp.OUTPUT, "mlp_write", "block_output", mlp.BIASES),
)


class Maximum(NamedTuple):
    """A checkpoint's width, and its largest |value| so far."""

    width: int
    size: float
    at: Largest


class Internals:
    """Running measurements of one MLP over windows; activations are reduced batch by batch.

    position, dim: the place to follow; None: in each window the largest |output| of the MLP decides. Means are kept
    for each dim that was followed, so the dim to report may be chosen at the end.
    """

    def __init__(self, lm: LanguageModel, layer: int, position: int | None = None, dim: int | None = None) -> None:
        self.lm, self.layer, self.position, self.dim = lm, layer, position, dim
        self.points = mlp.checkpoints_of(lm.arch, layer)
        self.routed = mlp.Routed(lm.arch, layer)
        self.replacements = REPLACEMENTS if edits.can_replace_activation(lm.arch, layer) else {}
        self.maxima: dict[str, Maximum] = {}
        self.medians = {name: Samples() for name, *_ in self.points}
        self.losses = {name: Samples() for name in ("actual", *self.replacements)}
        self.by_dim: dict[int, dict[str, Any]] = {}
        self.sequences = 0

    def measure(self, rows: slice, ids: torch.Tensor) -> None:
        """Run one (batch, seq) batch of the windows `rows`: as it is, then with each replacement of the activation
        function."""
        arch, kept = self.lm.arch, OnDevice()
        outputs: dict[int, Any] = {}
        with hooks.keep_block_outputs(arch, outputs), self.routed.watching():
            values = self._forward(ids, "actual", self.points, kept)
        positions, dims = self._sites(values[mlp.OUTPUT])
        kept.keep("positions", positions)
        kept.keep("dims", dims)
        at_sites = {name: vectors_at(value, positions) for name, value in values.items()}
        at_sites |= self.routed.at(tokens_at(positions, ids.shape[1]))
        for name, at_site in at_sites.items():
            kept.keep((name, "at site"), _entries(at_site, dims) if name in AT_DIM else at_site)
        for name, value in values.items():
            magnitude = value.abs().float().flatten(1)
            places = magnitude.argmax(1)
            kept.keep((name, "medians"), medians(magnitude))
            kept.keep((name, "largest"), _entries(magnitude, places))
            kept.keep((name, "places"), places)
            kept.keep((name, "signed"), _entries(value.flatten(1), places))
        widths = {name: value.shape[2] for name, value in values.items()}
        del values
        ends = [point for point in self.points if point[0] in ENDS]
        for replacement in self.replacements:
            with hooks.resume_at(arch, self.layer, outputs):
                values = self._forward(ids, replacement, ends, kept)
            for name, value in values.items():
                kept.keep((name, replacement), _entries(vectors_at(value, positions), dims))
        self._take_in(rows, ids, kept.take(), widths, at_sites)

    def _forward(
        self, ids: torch.Tensor, replacement: str, points: Sequence[tuple[str, str, str, str]], kept: OnDevice
    ) -> dict[str, torch.Tensor]:
        """{checkpoint: (batch, seq, width)} of one forward pass; its losses are kept."""
        arch, values = self.lm.arch, {}
        batch, seq = ids.shape

        def keep(name):  # a copy: Falcon adds to its MLP's output in place
            return lambda _layer, value: values.update({name: value.clone().view(batch, seq, -1)})

        function = self.replacements.get(replacement)
        with ExitStack() as stack:
            stack.enter_context(edits.activation_replaced(arch, self.layer, function) if function else nullcontext())
            for name, _label, role, side in points:
                stack.enter_context(mlp.watch(arch, self.layer, role, side, keep(name)))
            kept.keep(("losses", replacement), exact(next_token.losses(self.lm, ids)).mean(1))
        return values

    def _sites(self, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch,) positions and dims to follow in a (batch, seq, hidden_size) MLP output."""
        first_position, first_dim = self.position or 0, self.dim or 0
        magnitude = output.abs()
        if self.dim is not None:
            magnitude = magnitude[:, :, self.dim : self.dim + 1]
        if self.position is not None:
            magnitude = magnitude[:, self.position : self.position + 1]
        places, width = magnitude.flatten(1).argmax(1), magnitude.shape[2]
        return first_position + places // width, first_dim + places % width

    def _take_in(
        self, rows: slice, ids: torch.Tensor, taken: Taken, widths: dict[str, int], at_sites: Iterable[str]
    ) -> None:
        """Raises UserError for inf or nan."""
        for name, width in widths.items():
            require_finite(self.layer, taken[name, "largest"])
            self.medians[name].extend(taken[name, "medians"])
            self._find_maximum(name, width, ids, taken)
        for replacement, losses in self.losses.items():
            losses.extend(taken["losses", replacement])
        for row, (position, dim) in enumerate(zip(taken["positions"].tolist(), taken["dims"].tolist(), strict=True)):
            followed = self.by_dim.setdefault(dim, self._nothing_followed(at_sites))
            followed["positions"][position] += 1
            followed["windows"].extend([rows.start + row])
            followed["largest"].extend([abs(taken[mlp.neuron_output(self.lm.arch, self.layer), "at site"][row]).max()])
            for name, sums in followed["sums"].items():
                sums += torch.from_numpy(taken[name, "at site"][row]).double()
            for name, samples in (followed["values"] | followed["routing"]).items():
                samples.extend([taken[name, "at site"][row]])
            for replacement, ends in followed["replaced"].items():
                for name, samples in ends.items():
                    samples.extend([taken[name, replacement][row]])
        self.sequences += len(ids)

    def _find_maximum(self, name: str, width: int, ids: torch.Tensor, taken: Taken) -> None:
        sequence = int(taken[name, "largest"].argmax())
        size = float(taken[name, "largest"][sequence])
        if name not in self.maxima or size > self.maxima[name].size:
            position, index = divmod(int(taken[name, "places"][sequence]), width)
            place = Largest(
                sequence=self.sequences + sequence,
                position=position,
                token=text_of(self.lm.tokenizer, int(ids[sequence, position])),
                index=index,
                value=float(taken[name, "signed"][sequence]),
            )
            self.maxima[name] = Maximum(width, size, place)

    def _nothing_followed(self, names: Iterable[str]) -> dict[str, Any]:
        """What is kept of a dim at these checkpoints, before its first window."""
        return {
            "positions": Counter(),
            "windows": Samples(),
            "values": {name: Samples() for name in AT_DIM if name in names},
            "routing": {mlp.ROUTING: Samples()} if mlp.ROUTING in names else {},
            "largest": Samples(),
            "sums": {name: processes.Sum() for name in names if name in (*NEURONS, mlp.WEIGHTED)},
            "replaced": {replacement: {name: Samples() for name in ENDS} for replacement in self.replacements},
        }

    def gather(self) -> None:
        """Take in the windows of all processes; call it after the last batch."""
        self.medians, self.losses = processes.merged(self.medians), processes.merged(self.losses)
        self.by_dim = processes.merged(self.by_dim)
        everyone = processes.gather([(self.sequences, self.maxima)])
        self.sequences, self.maxima = 0, {}
        for sequences, maxima in everyone:
            for name, largest in maxima.items():
                if name not in self.maxima or largest.size > self.maxima[name].size:
                    place = replace(largest.at, sequence=self.sequences + largest.at.sequence)
                    self.maxima[name] = largest._replace(at=place)
            self.sequences += sequences

    def checkpoints(self) -> list[Checkpoint]:
        rows = []
        for name, label, *_ in self.points:
            width, largest, place = self.maxima[name]
            median = self.medians[name].array.mean().item()
            rows.append(Checkpoint(name, label, width, largest, place, median, largest / median if median else None))
        return rows

    def followed(self, draws: Draws) -> Followed:
        """The dim whose outputs are largest in sum."""
        size = {dim: abs(followed["values"][mlp.OUTPUT].array).sum() for dim, followed in self.by_dim.items()}
        dim = max(size, key=size.__getitem__)
        followed, there = self.by_dim[dim], self._draws(dim, draws)
        labels = {name: label for name, label, *_ in self.points} | {mlp.BIASES: "biases of the down projections"}
        return Followed(
            dim=dim,
            positions=dict(followed["positions"].most_common()),
            sequences=followed["positions"].total(),
            of=self.sequences,
            activation_function=mlp.activation_name(self.lm.arch, self.layer),
            neuron_checkpoints=["activation" if name == mlp.WEIGHTED else name for name in followed["sums"]],
            values=[
                FollowedValue(name, labels[name], there.averages(samples.array))
                for name, samples in followed["values"].items()
                if name != mlp.BIASES or samples.array.any()
            ],
        )

    def _draws(self, dim: int, draws: Draws) -> Draws:
        """Of the windows in which this dim is followed."""
        return draws.of(self.by_dim[dim]["windows"].array.astype(int))

    def largest_activation(self, dim: int, draws: Draws) -> Average | None:
        """Of any neuron, in parts of |MLP output| at the followed place: ratio of sums."""
        followed = self.by_dim[dim]
        sizes = abs(followed["values"][mlp.OUTPUT].array)
        return self._draws(dim, draws).ratios(followed["largest"].array, sizes) if sizes.any() else None

    def _means(self, dim: int) -> dict[str, torch.Tensor]:
        followed = self.by_dim[dim]
        return {name: vectors.total / followed["positions"].total() for name, vectors in followed["sums"].items()}

    def contributions(self, dim: int) -> list[Neuron]:
        """Every neuron's, the largest along the output's sign first; its activation is the mean input of the down
        projection at the followed place."""
        activation = self._means(dim)[mlp.neuron_output(self.lm.arch, self.layer)]
        return mlp.contributions(self.lm.arch, self.layer, dim, activation, self._output(dim))

    def check(self, dim: int, contributions: list[Neuron]) -> ContributionCheck:
        biases = self.by_dim[dim]["values"].get(mlp.BIASES)
        bias = None if biases is None else biases.array.mean().item()
        return mlp.contribution_check(self.lm.arch, self.layer, dim, contributions, self._output(dim), bias)

    def mixture(self, dim: int) -> Mixture | UnsetType:
        """UNSET of a dense MLP."""
        routing = self.by_dim[dim]["routing"]
        return mlp.mixture(self.lm.arch, self.layer, routing[mlp.ROUTING].array) if routing else UNSET

    def _output(self, dim: int) -> float:
        """Mean output of the down projection at the followed place."""
        return self.by_dim[dim]["values"][mlp.OUTPUT].array.mean().item()

    def neurons(self, dim: int, contributions: list[Neuron]) -> list[NeuronInside]:
        """These `contributions`, with the neuron's mean at every checkpoint of its width."""
        means = {name: mean.tolist() for name, mean in self._means(dim).items() if name in NEURONS}

        def inside(row: Neuron) -> NeuronInside:
            own: dict[str, Any] = {name: mean[row.neuron] for name, mean in means.items()}
            return NeuronInside(**vars(row), **own)

        return [*map(inside, contributions)]

    def replaced(self, dim: int, draws: Draws) -> dict[str, Replaced]:
        """The followed place and perplexity with each activation function in this layer, "actual" first."""
        followed, there = self.by_dim[dim], self._draws(dim, draws)
        labels = {"actual": mlp.activation_name(self.lm.arch, self.layer), "identity": "identity", "relu": "ReLU"}
        before, losses = followed["values"][mlp.OUTPUT].array, self.losses["actual"].array
        sizes = np.full_like(before, before.mean())
        return {
            name: Replaced(
                label=labels[name],
                mlp_output=there.averages(values[mlp.OUTPUT].array),
                block_output=there.averages(values["block_output"].array),
                mlp_output_change=there.ratios(values[mlp.OUTPUT].array - before, sizes) if sizes.any() else None,
                perplexity=draws.perplexity(self.losses[name].array),
                loss_change=draws.averages(self.losses[name].array - losses),
            )
            for name, values in {"actual": followed["values"], **followed["replaced"]}.items()
        }


def _entries(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(batch,) the entry of each of the (batch, width) rows in its one of the (batch,) columns."""
    return rows.gather(1, columns.to(rows.device)[:, None])[:, 0]


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    lm.arch.require_neurons(options.layer_id)
    if options.dim is not None:
        lm.arch.check_dim(options.dim)
    if options.position is not None and not 0 <= options.position < windows.ids.shape[1]:
        raise UserError(f"position {options.position} is out of range: a window has 0 to {windows.ids.shape[1] - 1}")
    inside = Internals(lm, options.layer_id, options.position, options.dim)
    with processes.progress(len(windows.ids), options.batch_size, "MLP") as progress:
        for rows, ids in windows.batches(options.batch_size):
            inside.measure(rows, ids)
            progress.update(len(ids))
    inside.gather()
    draws = windows.draws(options.seed)
    followed = inside.followed(draws)
    contributions = inside.contributions(followed.dim)
    by_rank = {row.name: rank for rank, row in enumerate(contributions, 1)}
    heaviest = sorted(contributions, key=lambda row: -abs(row.weight))[:HEAVIEST]
    return Results(
        layer=options.layer_id,
        checkpoints=inside.checkpoints(),
        followed=followed,
        contributions=contributions,
        contribution_check=inside.check(followed.dim, contributions),
        largest_activation=inside.largest_activation(followed.dim, draws),
        neurons=inside.neurons(followed.dim, contributions[:FIRST]),
        by_weight=[HeavyNeuron(**vars(row), rank_by_contribution=by_rank[row.name]) for row in heaviest],
        replaced=inside.replaced(followed.dim, draws),
        mixture=inside.mixture(followed.dim),
    )
