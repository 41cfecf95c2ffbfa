"""Inside one layer's MLP: its checkpoints, the place of its largest output, and what each neuron contributes.

A mixture of experts counts as one MLP with the neurons of all experts, and of the shared expert at last: what enters
the down projection is the activation times the routing weight, 0 in an expert that the token is not sent to.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np
import torch
from msgspec import UNSET

from lib.core.results import SHARED_EXPERT, ContributionCheck, Mixture, Neuron, NeuronName, OfExpert, ReachedExpert
from lib.model import experts, hooks
from lib.model.arch import SHARED, Architecture
from lib.model.experts import Chosen

OUTPUT = "mlp_output"
WEIGHTED, ROUTING, BIASES = "weighted", "routing", "biases"  # of a mixture: see Routed
DOWN = f"{SHARED}down"


def checkpoints_of(arch: Architecture, layer: int) -> list[tuple[str, str, str, str]]:
    """[(name, label, role, side)] of the tensors to watch with `watch`, in the order of computation.

    What an activation function gives that is no module is not among them, in a gated MLP, nor what is inside of
    experts. `mlp_output` is the output of the down projection, or of the mixture; models with a norm after it add
    `mlp_write`.
    """
    mixture = arch.layers[layer].experts is not None
    first, last = ("experts_sum", "experts_sum") if mixture else ("up", "down")
    if arch.layers[layer].mlp_norm is None:
        points = [("residual", "residual stream, which is the MLP input", first, "input")]
    else:
        points = [
            ("residual", "residual stream before the norm", "mlp_norm", "input"),
            ("mlp_input", "MLP input, after the norm", "mlp_norm", "output"),
        ]
    if not mixture:
        points += _projections(arch, layer)
    else:
        points.append((ROUTING, "routing weights, 0 of experts not chosen", "experts", ROUTING))
        if arch.layers[layer].shared_expert is not None:
            points.append(("experts_output", "output of the routed experts", "experts", "output"))
            points += [
                (f"shared_{name}", f"shared expert: {label}", role, side)
                for name, label, role, side in _projections(arch, layer, SHARED)
            ]
            points.append(("shared_output", "output of the shared expert", "shared_expert", "output"))
    label = "MLP output, of all experts" if mixture else "MLP output, after the down projection"
    points.append((OUTPUT, label, last, "output"))
    if arch.layers[layer].mlp_write != getattr(arch.layers[layer], last):
        points.append(("mlp_write", "added to the residual stream, after a norm", "mlp_write", "output"))
    return [*points, ("block_output", "block output", "block", "output")]


def _projections(arch: Architecture, layer: int, shared: str = "") -> list[tuple[str, str, str, str]]:
    """From the first projections to what enters the down projection; with SHARED those of the shared expert."""
    activation = activation_name(arch, layer, shared)
    has_module = layer in arch.with_role(f"{shared}activation")
    if arch.is_gated(layer, shared):
        return [
            ("gate", "gate projection", f"{shared}gate", "output"),
            *([("after_activation", f"after {activation}", f"{shared}activation", "output")] * has_module),
            ("up", "up projection", f"{shared}up", "output"),
            ("product", f"product {activation}(gate) x up", f"{shared}down", "input"),
        ]
    return [
        ("after_linear1", "after the first projection", f"{shared}up", "output"),
        ("after_activation", f"after {activation}", f"{shared}down", "input"),
    ]


def watch(
    arch: Architecture, layer: int, role: str, side: str, see: Callable[[int, torch.Tensor], None]
) -> AbstractContextManager[None]:
    """Call `see` with a checkpoint."""
    if side == ROUTING:
        module = arch.module(layer, role)
        return hooks.watch_experts(arch, lambda _layer, chosen: see(layer, experts.routing(module, chosen)), [layer])
    return (hooks.watch_inputs if side == "input" else hooks.watch_outputs)(arch, role, see, [layer])


class Routed:
    """What one layer's mixture of experts does in a pass, to be looked at where it is followed.

    names: of what `at` gives; none of a dense MLP.
    """

    def __init__(self, arch: Architecture, layer: int) -> None:
        self.arch, self.layer, self.parts = arch, layer, arch.layers[layer]
        self.names = () if self.parts.experts is None else (WEIGHTED, BIASES)
        self.chosen: Chosen | None = None
        self.seen: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        if self.parts.experts is None:
            yield
            return

        def choose(_layer: int, chosen: Chosen) -> None:
            self.chosen = chosen

        def keep(role: str) -> Callable[[int, torch.Tensor], None]:
            return lambda _layer, value: self.seen.update({role: value.reshape(-1, value.shape[-1]).clone()})

        with ExitStack() as stack:
            stack.enter_context(hooks.watch_experts(self.arch, choose, [self.layer]))
            if self.parts.shared is not None:
                for role in ("experts", "shared_expert", "experts_sum"):
                    stack.enter_context(hooks.watch_outputs(self.arch, role, keep(role), [self.layer]))
                stack.enter_context(hooks.watch_inputs(self.arch, DOWN, keep(DOWN), [self.layer]))
            yield

    def at(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of these of the batch x seq tokens, float32: WEIGHTED: (n, neurons) routing weight x activation. BIASES: (n,
        hidden) what biases of down projections give."""
        if self.chosen is None:
            return {}
        with torch.inference_mode():
            module, here = self.arch.module(self.layer, "experts"), self.chosen.at(tokens)
            weighted, biases = experts.weighted(module, here), experts.biases(module, here)
            if self.parts.shared is not None:
                seen = {role: value[tokens.to(value.device)].float() for role, value in self.seen.items()}
                left, shared = seen["experts_sum"] - seen["experts"], seen["shared_expert"]
                factor = (left * shared).sum(1, keepdim=True) / shared.square().sum(1, keepdim=True).clamp_min(1e-30)
                weighted = torch.cat([weighted, factor * seen[DOWN]], dim=1)
                bias = self.arch.bias(self.layer, DOWN)
                biases = biases if bias is None else biases + factor * bias.float()
            return {WEIGHTED: weighted, BIASES: biases}


def activation_name(arch: Architecture, layer: int, shared: str = "") -> str:
    """The activation function's name as transformers has it, for example NewGELU or SiLU; with SHARED that of the
    shared expert."""
    parts = arch.layers[layer].shared if shared else arch.layers[layer]
    assert parts is not None
    if parts.function is not None:
        return parts.function
    if parts.experts is not None and parts.activation is None:
        return f"gate of {type(arch.module(layer, 'experts')).__name__}"
    return type(arch.module(layer, f"{shared}activation")).__name__.removesuffix("Activation")


def neuron_output(arch: Architecture, layer: int) -> str:
    """The checkpoint that is the input of the down projection."""
    if arch.layers[layer].experts is not None:
        return WEIGHTED
    return "product" if arch.is_gated(layer) else "after_activation"


def down_row(arch: Architecture, layer: int, dim: int) -> torch.Tensor:
    """(neurons,) float64 weights of every neuron to a dim, on the host."""
    if arch.layers[layer].experts is None:
        return arch.weight(layer, "down")[dim].detach().cpu().double()
    rows = [experts.down_row(arch.module(layer, "experts"), dim)]
    if arch.layers[layer].shared is not None:
        rows.append(arch.weight(layer, DOWN)[dim].detach())
    return torch.cat([row.cpu().double() for row in rows])


def name_of(arch: Architecture, layer: int, neuron: int) -> NeuronName:
    """Of a neuron that is counted as by Architecture.n_neurons."""
    if arch.layers[layer].experts is None:
        return neuron
    n, width = experts.sizes(arch.module(layer, "experts"))
    return OfExpert(*divmod(neuron, width)) if neuron < n * width else OfExpert(SHARED_EXPERT, neuron - n * width)


def number_of(arch: Architecture, layer: int, name: NeuronName) -> int:
    """What name_of makes the name of."""
    if not isinstance(name, OfExpert):
        return name
    n, width = experts.sizes(arch.module(layer, "experts"))
    return (n if name.expert == SHARED_EXPERT else int(name.expert)) * width + name.neuron


def mixture(arch: Architecture, layer: int, routing: np.ndarray) -> Mixture:
    """routing: (windows, experts) routing weights where the layer is followed."""
    n, width = experts.sizes(arch.module(layer, "experts"))
    reached = [
        ReachedExpert(expert, int((weights != 0).sum()), float(weights[weights != 0].mean()))
        for expert, weights in enumerate(routing.T)
        if weights.any()
    ]
    return Mixture(
        experts=n,
        width=width,
        shared=arch.n_shared(layer),
        neurons=arch.n_neurons(layer),
        reached=sorted(reached, key=lambda row: -row.windows * row.weight),
    )


def contributions(arch: Architecture, layer: int, dim: int, activation: torch.Tensor, output: float) -> list[Neuron]:
    """Every neuron's, the largest along the output's sign first; in a mixture without experts that do nothing.

    activation: (neurons,), the input of the down projection; output: what that projection gives in `dim`.
    """
    weight = down_row(arch, layer, dim)
    contribution = activation * weight
    order = (contribution * (1 if output >= 0 else -1)).argsort(descending=True).tolist()
    activations, weights, contributed = activation.tolist(), weight.tolist(), contribution.tolist()
    if arch.layers[layer].experts is not None:
        n, width = experts.sizes(arch.module(layer, "experts"))
        active = activation[: n * width].view(n, width).any(1).tolist()
        order = [number for number in order if number >= n * width or active[number // width]]

    def row(number: int) -> Neuron:
        name, given = name_of(arch, layer, number), contributed[number]
        expert, neuron = name if isinstance(name, OfExpert) else (UNSET, name)
        share = given / output if output else None
        return Neuron(neuron, activations[number], weights[number], given, share, expert=expert)

    return [*map(row, order)]


def contribution_check(
    arch: Architecture, layer: int, dim: int, contributions: list[Neuron], output: float, bias: float | None
) -> ContributionCheck:
    """Sum of `contributions` + bias against `output`, the down projection's own in `dim`. bias: what those of a mixture
    give there; None of a dense MLP."""
    if bias is None:
        biases = arch.bias(layer, "down")
        bias = 0.0 if biases is None else biases[dim].item()
    total = sum(row.contribution for row in contributions)
    error = abs(total + bias - output) / abs(output) if output else None
    return ContributionCheck(total, bias, output, error)


def at_place(
    arch: Architecture, layer: int, dim: int, values: Mapping[str, torch.Tensor]
) -> tuple[list[Neuron], ContributionCheck]:
    """All contributions and their sum, by means over the windows of neurons.checkpoints_at_place."""
    output = values[OUTPUT][:, dim].mean().item()
    bias = values[BIASES][:, dim].mean().item() if BIASES in values else None
    rows = contributions(arch, layer, dim, values[neuron_output(arch, layer)].mean(0), output)
    return rows, contribution_check(arch, layer, dim, rows, output, bias)
