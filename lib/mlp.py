"""Inside one layer's MLP: its checkpoints, the place of its largest output, and what each neuron contributes."""

from collections import Counter
from contextlib import ExitStack, nullcontext

import numpy as np
import torch

from lib import hooks, ranks
from lib.massive import medians
from lib.stats import Samples
from lib.tokens import text_of

REPLACEMENTS = {"identity": lambda x: x, "relu": torch.relu}
OUTPUT = "mlp_output"
NEURONS = ("gate", "up", "product", "after_linear1", "after_activation")  # checkpoints with one value a neuron


def checkpoints_of(arch, layer):
    """[(name, label, role, side)] of the tensors to watch, in the order of computation.

    `mlp_output` is the output of the down projection; families with a norm after it add `mlp_write`.
    """
    activation = activation_name(arch, layer)
    if arch.family.mlp_norm is None:
        points = [("residual", "residual stream, which is the MLP input", "up", "input")]
    else:
        points = [
            ("residual", "residual stream before the norm", "mlp_norm", "input"),
            ("mlp_input", "MLP input, after the norm", "mlp_norm", "output"),
        ]
    if arch.is_gated:
        points += [
            ("gate", "gate projection", "gate", "output"),
            ("after_activation", f"after {activation}", "activation", "output"),
            ("up", "up projection", "up", "output"),
            ("product", f"product {activation}(gate) x up", "down", "input"),
        ]
    else:
        points += [
            ("after_linear1", "after the first projection", "up", "output"),
            ("after_activation", f"after {activation}", "down", "input"),
        ]
    points.append((OUTPUT, "MLP output, after the down projection", "down", "output"))
    if arch.family.mlp_write != arch.family.down:
        points.append(("mlp_write", "added to the residual stream, after a norm", "mlp_write", "output"))
    return [*points, ("block_output", "block output", "block", "output")]


def activation_name(arch, layer):
    """The activation function's name as transformers has it, for example NewGELU or SiLU."""
    return type(arch.module(layer, "activation")).__name__.removesuffix("Activation")


class Internals:
    """Running measurements of one MLP over windows; activations are reduced batch by batch.

    position, dim: the place to follow; None: in each window the largest |output| of the MLP decides. Means are kept
    for each dim that was followed, so the dim to report may be chosen at the end.
    """

    def __init__(self, lm, layer, position=None, dim=None):
        self.lm, self.layer, self.position, self.dim = lm, layer, position, dim
        self.points = checkpoints_of(lm.arch, layer)
        self.maxima = {}
        self.medians = {name: Samples() for name, *_ in self.points}
        self.losses = {name: Samples() for name in ("actual", *REPLACEMENTS)}
        self.by_dim = {}
        self.sequences = 0

    def measure(self, rows, ids):
        """Run one (batch, seq) batch of the windows `rows`: as it is, then with each replacement of the activation
        function."""
        kept = {}
        with hooks.keep_block_outputs(self.lm.arch, kept):
            values = self._forward(ids, "actual", self.points)
        sites = [self._site(output) for output in values[OUTPUT]]
        for name, value in values.items():
            self._reduce(name, value, ids)
        for sequence, (position, dim) in enumerate(sites):
            vectors = {name: value[sequence, position] for name, value in values.items()}
            self._follow(rows.start + sequence, vectors, position, dim)
        self.sequences += len(ids)
        del values
        ends = [point for point in self.points if point[0] in (OUTPUT, "block_output")]
        for replacement in REPLACEMENTS:
            with hooks.resume_at(self.lm.arch, self.layer, kept):
                values = self._forward(ids, replacement, ends)
            for sequence, (position, dim) in enumerate(sites):
                for name, value in values.items():
                    self.by_dim[dim]["replaced"][replacement][name].extend([value[sequence, position, dim].item()])

    def _forward(self, ids, replacement, points):
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

    def _site(self, output):
        """(position, dim) to follow in a (seq, hidden_size) MLP output."""
        magnitude = output.abs()
        if self.dim is not None:
            magnitude = magnitude[:, self.dim : self.dim + 1]
        if self.position is not None:
            magnitude = magnitude[self.position : self.position + 1]
        position, dim = divmod(magnitude.argmax().item(), magnitude.shape[1])
        return position + (self.position or 0), dim + (self.dim or 0)

    def _reduce(self, name, value, ids):
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

    def _follow(self, window, vectors, position, dim):
        """Add one window's vectors at its followed position to the means of its dim."""
        of = self.by_dim.setdefault(
            dim,
            {
                "positions": Counter(),
                "windows": Samples(),
                "values": {name: Samples() for name in vectors if name not in NEURONS},
                "largest": Samples(),
                "sums": {name: ranks.Sum() for name in vectors if name in NEURONS},
                "replaced": {r: {OUTPUT: Samples(), "block_output": Samples()} for r in REPLACEMENTS},
            },
        )
        of["positions"][position] += 1
        of["windows"].extend([window])
        of["largest"].extend([vectors[neuron_output(self.lm.arch)].abs().max().item()])
        for name, vector in vectors.items():
            if name in NEURONS:
                of["sums"][name] += vector.double().cpu()
            else:
                of["values"][name].extend([vector[dim].item()])

    def gather(self):
        """Take in the windows of all processes; call it after the last batch."""
        self.medians, self.losses, self.by_dim = ranks.merged([self.medians, self.losses, self.by_dim])
        everyone = ranks.gather([(self.sequences, self.maxima)])
        self.sequences, self.maxima = 0, {}
        for sequences, maxima in everyone:
            for name, largest in maxima.items():
                if name not in self.maxima or largest["max"] > self.maxima[name]["max"]:
                    largest["at"]["sequence"] += self.sequences
                    self.maxima[name] = largest
            self.sequences += sequences

    def checkpoints(self):
        """results.checkpoints: maximum of |value| over all tokens and windows, mean of the windows' medians."""
        rows = []
        for name, label, *_ in self.points:
            largest = self.maxima[name]
            median = self.medians[name].array.mean()
            ratio = largest["max"] / median if median else float("inf")
            rows.append({"name": name, "label": label, **largest, "median": median, "ratio": ratio})
        return rows

    def followed(self, draws):
        """results.followed, for the dim whose outputs are largest in sum."""
        size = {dim: abs(of["values"][OUTPUT].array).sum() for dim, of in self.by_dim.items()}
        dim = max(size, key=size.get)
        of = self.by_dim[dim]
        labels = {name: label for name, label, *_ in self.points}
        draws = draws.of(of["windows"].array.astype(int))
        return {
            "dim": dim,
            "positions": dict(of["positions"].most_common()),
            "sequences": of["positions"].total(),
            "of": self.sequences,
            "activation_function": activation_name(self.lm.arch, self.layer),
            "neuron_checkpoints": list(of["sums"]),
            "values": [
                {"name": name, "label": labels[name], "value": draws.averages(samples.array)}
                for name, samples in of["values"].items()
            ],
        }

    def largest_activation(self, dim, draws):
        """results.largest_activation: of any neuron, in parts of |MLP output| at the followed place: ratio of sums."""
        of = self.by_dim[dim]
        return draws.of(of["windows"].array.astype(int)).ratios(of["largest"].array, abs(of["values"][OUTPUT].array))

    def _means(self, dim):
        of = self.by_dim[dim]
        return {name: of_windows.total / of["positions"].total() for name, of_windows in of["sums"].items()}

    def contributions(self, dim):
        """results.contributions: every neuron's {neuron, activation, weight, contribution, share}, the largest
        along the output's sign first. activation: mean input of the down projection at the followed place."""
        activation = self._means(dim)[neuron_output(self.lm.arch)]
        output = self.by_dim[dim]["values"][OUTPUT].array.mean()
        return contributions(self.lm.arch, self.layer, dim, activation, output)

    def check(self, dim, contributions):
        """results.contribution_check: contributions + bias against the down projection's own output."""
        output = self.by_dim[dim]["values"][OUTPUT].array.mean()
        return contribution_check(self.lm.arch, self.layer, dim, contributions, output)

    def neurons(self, dim, contributions):
        """results.neurons: these rows of `contributions`, with the neuron's mean at every checkpoint of its width."""
        means = self._means(dim)
        return [{**{name: mean[row["neuron"]].item() for name, mean in means.items()}, **row} for row in contributions]

    def replaced(self, dim, draws):
        """results.replaced: the followed place and perplexity with each activation function in this layer; changes are
        paired, with it - with the model's own, that of the output relative to the latter's size."""
        of = self.by_dim[dim]
        there = draws.of(of["windows"].array.astype(int))
        actual = {name: of["values"][name] for name in (OUTPUT, "block_output")}
        labels = {"actual": activation_name(self.lm.arch, self.layer), "identity": "identity", "relu": "ReLU"}
        before, losses = actual[OUTPUT].array, self.losses["actual"].array
        return {
            name: {
                "label": labels[name],
                **{key: there.averages(samples.array) for key, samples in places.items()},
                "mlp_output_change": there.ratios(places[OUTPUT].array - before, np.full_like(before, before.mean())),
                "perplexity": draws.perplexity(self.losses[name].array),
                "loss_change": draws.averages(self.losses[name].array - losses),
            }
            for name, places in {"actual": actual, **of["replaced"]}.items()
        }


def neuron_output(arch):
    """The checkpoint that is the input of the down projection."""
    return "product" if arch.is_gated else "after_activation"


def contributions(arch, layer, dim, activation, output):
    """Every neuron's {neuron, activation, weight, contribution, share}, the largest along the output's sign first.

    activation: (neurons,) tensor, the input of the down projection; output: what that projection gives in `dim`.
    share: of the output; nan where that is zero.
    """
    weight = arch.weight(layer, "down")[dim].double().cpu()
    contribution = activation * weight
    order = (contribution * (1 if output >= 0 else -1)).argsort(descending=True).tolist()
    return [
        {
            "neuron": n,
            "activation": activation[n].item(),
            "weight": weight[n].item(),
            "contribution": contribution[n].item(),
            "share": ratio(contribution[n].item(), output),
        }
        for n in order
    ]


def contribution_check(arch, layer, dim, contributions, output):
    """Sum of `contributions` + bias against `output`, the down projection's own in `dim`."""
    bias = arch.bias(layer, "down")
    bias = 0.0 if bias is None else bias[dim].item()
    total = sum(row["contribution"] for row in contributions)
    error = ratio(abs(total + bias - output), abs(output))
    return {"sum": total, "bias": bias, "output": output, "relative_error": error}


def ratio(part, whole):
    return part / whole if whole else float("nan")


def smallest_set(contributions, check, share):
    """How many of `contributions`, in their order, give `share` of the output; None if all do not reach it."""
    total = 0.0
    for count, row in enumerate(contributions, 1):
        total += row["contribution"]
        if ratio(total, check["output"]) >= share:
            return count
    return None
