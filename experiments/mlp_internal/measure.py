"""The inside of one MLP: its checkpoints, its neurons, its activation function replaced."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lib.core import mlp
from lib.core.data import Windows
from lib.core.massive import medians
from lib.core.stats import Draws, Samples
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.run import processes
from lib.run.errors import UserError

SHARE = 0.9  # of the output, that the smallest set gives
REPLACEMENTS = {"identity": lambda x: x, "relu": torch.relu}
NEURONS = ("gate", "up", "product", "after_linear1", "after_activation")  # checkpoints with one value a neuron


class Internals:
    """Running measurements of one MLP over windows; activations are reduced batch by batch.

    position, dim: the place to follow; None: in each window the largest |output| of the MLP decides. Means are kept
    for each dim that was followed, so the dim to report may be chosen at the end.
    """

    def __init__(self, lm: LanguageModel, layer: int, position: int | None = None, dim: int | None = None) -> None:
        self.lm, self.layer, self.position, self.dim = lm, layer, position, dim
        self.points = mlp.checkpoints_of(lm.arch, layer)
        self.maxima: dict[str, dict[str, Any]] = {}
        self.medians = {name: Samples() for name, *_ in self.points}
        self.losses = {name: Samples() for name in ("actual", *REPLACEMENTS)}
        self.by_dim: dict[int, dict[str, Any]] = {}
        self.sequences = 0

    def measure(self, rows: slice, ids: torch.Tensor) -> None:
        """Run one (batch, seq) batch of the windows `rows`: as it is, then with each replacement of the activation
        function."""
        kept: dict[int, Any] = {}
        with hooks.keep_block_outputs(self.lm.arch, kept):
            values = self._forward(ids, "actual", self.points)
        sites = [self._site(output) for output in values[mlp.OUTPUT]]
        for name, value in values.items():
            self._reduce(name, value, ids)
        for sequence, (position, dim) in enumerate(sites):
            vectors = {name: value[sequence, position] for name, value in values.items()}
            self._follow(rows.start + sequence, vectors, position, dim)
        self.sequences += len(ids)
        del values
        ends = [point for point in self.points if point[0] in (mlp.OUTPUT, "block_output")]
        for replacement in REPLACEMENTS:
            with hooks.resume_at(self.lm.arch, self.layer, kept):
                values = self._forward(ids, replacement, ends)
            for sequence, (position, dim) in enumerate(sites):
                for name, value in values.items():
                    self.by_dim[dim]["replaced"][replacement][name].extend([value[sequence, position, dim].item()])

    def _forward(
        self, ids: torch.Tensor, replacement: str, points: Sequence[tuple[str, str, str, str]]
    ) -> dict[str, torch.Tensor]:
        """{checkpoint: (batch, seq, width)} of one forward pass; its losses are kept."""
        arch, values = self.lm.arch, {}
        batch, seq = ids.shape

        def keep(name):  # a copy: Falcon adds to its MLP's output in place
            return lambda _layer, value: values.update({name: value.clone().view(batch, seq, -1)})

        function = REPLACEMENTS.get(replacement)
        with ExitStack() as stack:
            stack.enter_context(hooks.activation_replaced(arch, self.layer, function) if function else nullcontext())
            for name, _label, role, side in points:
                watch = hooks.watch_inputs if side == "input" else hooks.watch_outputs
                stack.enter_context(watch(arch, role, keep(name), [self.layer]))
            self.losses[replacement].extend(hooks.token_losses(self.lm, ids).double().mean(1).tolist())
        return values

    def _site(self, output: torch.Tensor) -> tuple[int, int]:
        """Position and dim to follow in a (seq, hidden_size) MLP output."""
        magnitude = output.abs()
        if self.dim is not None:
            magnitude = magnitude[:, self.dim : self.dim + 1]
        if self.position is not None:
            magnitude = magnitude[self.position : self.position + 1]
        position, dim = divmod(magnitude.argmax().item(), magnitude.shape[1])
        return position + (self.position or 0), dim + (self.dim or 0)

    def _reduce(self, name: str, value: torch.Tensor, ids: torch.Tensor) -> None:
        magnitude = value.abs().float().flatten(1)
        hooks.require_finite(self.layer, magnitude)
        self.medians[name].extend(medians(magnitude).tolist())
        largest = magnitude.max().item()
        if name not in self.maxima or largest > self.maxima[name]["max"]:
            sequence, index = divmod(magnitude.argmax().item(), magnitude.shape[1])
            position, index = divmod(index, value.shape[2])
            self.maxima[name] = {
                "width": value.shape[2],
                "max": largest,
                "at": {
                    "sequence": self.sequences + sequence,
                    "position": position,
                    "token": text_of(self.lm.tokenizer, ids[sequence, position].item()),
                    "index": index,
                    "value": value[sequence, position, index].item(),
                },
            }

    def _follow(self, window: int, vectors: dict[str, torch.Tensor], position: int, dim: int) -> None:
        """Add one window's vectors at its followed position to the means of its dim."""
        of = self.by_dim.setdefault(
            dim,
            {
                "positions": Counter(),
                "windows": Samples(),
                "values": {name: Samples() for name in vectors if name not in NEURONS},
                "largest": Samples(),
                "sums": {name: processes.Sum() for name in vectors if name in NEURONS},
                "replaced": {r: {mlp.OUTPUT: Samples(), "block_output": Samples()} for r in REPLACEMENTS},
            },
        )
        of["positions"][position] += 1
        of["windows"].extend([window])
        of["largest"].extend([vectors[mlp.neuron_output(self.lm.arch)].abs().max().item()])
        for name, vector in vectors.items():
            if name in NEURONS:
                of["sums"][name] += vector.double().cpu()
            else:
                of["values"][name].extend([vector[dim].item()])

    def gather(self) -> None:
        """Take in the windows of all processes; call it after the last batch."""
        self.medians, self.losses = processes.merged(self.medians), processes.merged(self.losses)
        self.by_dim = processes.merged(self.by_dim)
        everyone = processes.gather([(self.sequences, self.maxima)])
        self.sequences, self.maxima = 0, {}
        for sequences, maxima in everyone:
            for name, largest in maxima.items():
                if name not in self.maxima or largest["max"] > self.maxima[name]["max"]:
                    largest["at"]["sequence"] += self.sequences
                    self.maxima[name] = largest
            self.sequences += sequences

    def checkpoints(self) -> list[dict[str, Any]]:
        """results.checkpoints: maximum of |value| over all tokens and windows, mean of the windows' medians."""
        rows = []
        for name, label, *_ in self.points:
            largest = self.maxima[name]
            median = self.medians[name].array.mean()
            ratio = largest["max"] / median if median else float("inf")
            rows.append({"name": name, "label": label, **largest, "median": median, "ratio": ratio})
        return rows

    def followed(self, draws: Draws) -> dict[str, Any]:
        """results.followed, for the dim whose outputs are largest in sum."""
        size = {dim: abs(of["values"][mlp.OUTPUT].array).sum() for dim, of in self.by_dim.items()}
        dim = max(size, key=size.__getitem__)
        of = self.by_dim[dim]
        labels = {name: label for name, label, *_ in self.points}
        draws = draws.of(of["windows"].array.astype(int))
        return {
            "dim": dim,
            "positions": dict(of["positions"].most_common()),
            "sequences": of["positions"].total(),
            "of": self.sequences,
            "activation_function": mlp.activation_name(self.lm.arch, self.layer),
            "neuron_checkpoints": list(of["sums"]),
            "values": [
                {"name": name, "label": labels[name], "value": draws.averages(samples.array)}
                for name, samples in of["values"].items()
            ],
        }

    def largest_activation(self, dim: int, draws: Draws) -> dict[str, Any]:
        """results.largest_activation: of any neuron, in parts of |MLP output| at the followed place: ratio of sums."""
        of = self.by_dim[dim]
        return draws.of(of["windows"].array.astype(int)).ratios(
            of["largest"].array, abs(of["values"][mlp.OUTPUT].array)
        )

    def _means(self, dim: int) -> dict[str, torch.Tensor]:
        of = self.by_dim[dim]
        return {name: of_windows.total / of["positions"].total() for name, of_windows in of["sums"].items()}

    def contributions(self, dim: int) -> list[dict[str, Any]]:
        """results.contributions: every neuron's {neuron, activation, weight, contribution, share}, the largest
        along the output's sign first. activation: mean input of the down projection at the followed place."""
        activation = self._means(dim)[mlp.neuron_output(self.lm.arch)]
        output = self.by_dim[dim]["values"][mlp.OUTPUT].array.mean()
        return mlp.contributions(self.lm.arch, self.layer, dim, activation, output)

    def check(self, dim: int, contributions: list[dict[str, Any]]) -> dict[str, Any]:
        """results.contribution_check: contributions + bias against the down projection's own output."""
        output = self.by_dim[dim]["values"][mlp.OUTPUT].array.mean()
        return mlp.contribution_check(self.lm.arch, self.layer, dim, contributions, output)

    def neurons(self, dim: int, contributions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """results.neurons: these rows of `contributions`, with the neuron's mean at every checkpoint of its width."""
        means = self._means(dim)
        return [{**{name: mean[row["neuron"]].item() for name, mean in means.items()}, **row} for row in contributions]

    def replaced(self, dim: int, draws: Draws) -> dict[str, dict[str, Any]]:
        """results.replaced: the followed place and perplexity with each activation function in this layer; changes are
        paired, with it - with the model's own, that of the output relative to the latter's size."""
        of = self.by_dim[dim]
        there = draws.of(of["windows"].array.astype(int))
        actual = {name: of["values"][name] for name in (mlp.OUTPUT, "block_output")}
        labels = {"actual": mlp.activation_name(self.lm.arch, self.layer), "identity": "identity", "relu": "ReLU"}
        before, losses = actual[mlp.OUTPUT].array, self.losses["actual"].array
        return {
            name: {
                "label": labels[name],
                **{key: there.averages(samples.array) for key, samples in places.items()},
                "mlp_output_change": there.ratios(
                    places[mlp.OUTPUT].array - before, np.full_like(before, before.mean())
                ),
                "perplexity": draws.perplexity(self.losses[name].array),
                "loss_change": draws.averages(self.losses[name].array - losses),
            }
            for name, places in {"actual": actual, **of["replaced"]}.items()
        }


@dataclass(frozen=True)
class MlpInternal:
    """checkpoints: maximum of |value| over all tokens of all windows, and the mean of the windows' medians.

    followed: the followed dim and its windows, averages of its value at each checkpoint with that width.
    contributions: every neuron's mean activation (the input of the down projection) x weight, largest first.
    largest_activation: in each window of any neuron there, in parts of the MLP's output, a ratio of sums. by_weight:
    the largest weights alone, for contrast. replaced: the same place with another activation function.
    """

    layer: int
    checkpoints: list[dict[str, Any]]
    followed: dict[str, Any]
    contributions: list[dict[str, Any]]
    contribution_check: dict[str, Any]
    largest_activation: dict[str, Any]
    neurons: list[dict[str, Any]]
    by_weight: list[dict[str, Any]]
    replaced: dict[str, dict[str, Any]]
    conclusion: dict[str, Any]


def run(lm: LanguageModel, windows: Windows, options: Any) -> MlpInternal:
    lm.arch.check_layer(options.layer_id)
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
    contributions = inside.contributions(followed["dim"])
    check = inside.check(followed["dim"], contributions)
    needed = mlp.smallest_set(contributions, check, SHARE)
    by_rank = {row["neuron"]: rank for rank, row in enumerate(contributions, 1)}
    heaviest = sorted(contributions, key=lambda row: -abs(row["weight"]))[:5]
    return MlpInternal(
        layer=options.layer_id,
        checkpoints=inside.checkpoints(),
        followed=followed,
        contributions=contributions,
        contribution_check=check,
        largest_activation=inside.largest_activation(followed["dim"], draws),
        neurons=inside.neurons(followed["dim"], contributions[:10]),
        by_weight=[row | {"rank_by_contribution": by_rank[row["neuron"]]} for row in heaviest],
        replaced=inside.replaced(followed["dim"], draws),
        conclusion={
            "verdict": "none" if needed is None else f"{needed} of {len(contributions)} neurons",
            "rule": "smallest number of neurons, largest contributions along the output's sign first, that give "
            f"{SHARE:.0%} of the output; none if all together do not",
            "values": {"neurons": [row["neuron"] for row in contributions[: needed or 0]][:50]},
        },
    )
