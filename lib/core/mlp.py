"""Inside one layer's MLP: its checkpoints, the place of its largest output, and what each neuron contributes."""

import torch

from lib.core.results import ContributionCheck, Neuron
from lib.model.arch import Architecture

OUTPUT = "mlp_output"


def checkpoints_of(arch: Architecture, layer: int) -> list[tuple[str, str, str, str]]:
    """[(name, label, role, side)] of the tensors to watch, in the order of computation.

    What an activation function gives that is no module is not among them, in a gated MLP. `mlp_output` is the output
    of the down projection; models with a norm after it add `mlp_write`.
    """
    activation, has_module = activation_name(arch, layer), arch.layers[layer].function is None
    if arch.layers[layer].mlp_norm is None:
        points = [("residual", "residual stream, which is the MLP input", "up", "input")]
    else:
        points = [
            ("residual", "residual stream before the norm", "mlp_norm", "input"),
            ("mlp_input", "MLP input, after the norm", "mlp_norm", "output"),
        ]
    if arch.is_gated(layer):
        points += [
            ("gate", "gate projection", "gate", "output"),
            *([("after_activation", f"after {activation}", "activation", "output")] if has_module else []),
            ("up", "up projection", "up", "output"),
            ("product", f"product {activation}(gate) x up", "down", "input"),
        ]
    else:
        points += [
            ("after_linear1", "after the first projection", "up", "output"),
            ("after_activation", f"after {activation}", "down", "input"),
        ]
    points.append((OUTPUT, "MLP output, after the down projection", "down", "output"))
    if arch.layers[layer].mlp_write != arch.layers[layer].down:
        points.append(("mlp_write", "added to the residual stream, after a norm", "mlp_write", "output"))
    return [*points, ("block_output", "block output", "block", "output")]


def activation_name(arch: Architecture, layer: int) -> str:
    """The activation function's name as transformers has it, for example NewGELU or SiLU."""
    function = arch.layers[layer].function
    if function is not None:
        return function
    return type(arch.module(layer, "activation")).__name__.removesuffix("Activation")


def neuron_output(arch: Architecture, layer: int) -> str:
    """The checkpoint that is the input of the down projection."""
    return "product" if arch.is_gated(layer) else "after_activation"


def contributions(arch: Architecture, layer: int, dim: int, activation: torch.Tensor, output: float) -> list[Neuron]:
    """Every neuron's, the largest along the output's sign first.

    activation: (neurons,), the input of the down projection; output: what that projection gives in `dim`.
    """
    weight = arch.weight(layer, "down")[dim].cpu().double()
    contribution = activation * weight
    order = (contribution * (1 if output >= 0 else -1)).argsort(descending=True).tolist()
    return [
        Neuron(n, activation[n].item(), weight[n].item(), c := contribution[n].item(), c / output if output else None)
        for n in order
    ]


def contribution_check(
    arch: Architecture, layer: int, dim: int, contributions: list[Neuron], output: float
) -> ContributionCheck:
    """Sum of `contributions` + bias against `output`, the down projection's own in `dim`."""
    biases = arch.bias(layer, "down")
    bias = 0.0 if biases is None else biases[dim].item()
    total = sum(row.contribution for row in contributions)
    error = abs(total + bias - output) / abs(output) if output else None
    return ContributionCheck(total, bias, output, error)
