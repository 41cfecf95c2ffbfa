"""One model's blocks and their parts, by role: modules, weights, how many there are."""

from functools import cached_property
from typing import cast

import torch
from accelerate.utils import align_module_device
from transformers import PreTrainedModel

from lib.model import discovery, families
from lib.run.errors import UserError

ATTENTION = ("attention_module", "head_projection", "attention_write")
MISSING = dict.fromkeys(ATTENTION, "attention") | {
    "head_projection": "heads that can be told apart",
    "mlp_write": "MLP",
    "mlp_norm": "norm before its MLP",
    "down": "neurons that can be told apart",
    "up": "first projection of an MLP",
    "gate": "gate projection",
    "activation": "activation function that is a module",
}
LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")  # fields of configurations


class Architecture:
    """One model's blocks and their parts, by role, as lib/model/discovery.py finds them.

    Raises UserError if they cannot be found, or transformers builds this variant wrongly.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        families.require_right(model.config)
        text = model.config.get_text_config()
        longest = (getattr(text, name, None) for name in LONGEST)
        self.n_positions: int | None = next((n for n in longest if isinstance(n, int)), None)
        found = discovery.discover(model, self.n_positions)
        base = model.base_model
        self.blocks = list(cast(torch.nn.ModuleList, base.get_submodule(found.blocks)))
        self.layers = found.layers
        self.n_layers = len(self.blocks)
        self.n_heads: int = max(layer.n_heads for layer in self.layers)
        self.hidden_size = found.hidden_size
        path = found.position_embedding
        self.position_embedding = None if path is None else base.get_submodule(path)

    @cached_property
    def head_dim(self) -> int:
        """Raises UserError if there are no heads, or heads of several widths."""
        layers = self.with_role("head_projection")
        widths = {self.weight(layer, "head_projection").shape[1] // self.layers[layer].n_heads for layer in layers}
        if len(widths) != 1:
            raise UserError("no layer has heads that can be told apart" if not widths else "heads of several widths")
        return widths.pop()

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Every (layer, head) that there is."""
        return [(i, head) for i, layer in enumerate(self.layers) for head in range(layer.n_heads)]

    def is_gated(self, layer: int) -> bool:
        return self.layers[layer].gate is not None

    def with_role(self, role: str) -> list[int]:
        """The layers that have a module in this role."""
        return [i for i, layer in enumerate(self.layers) if role == "block" or getattr(layer, role) is not None]

    def module(self, layer: int, role: str) -> torch.nn.Module:
        """The module of `layer` in a `role`: "block", or the name of a field of Layer, for example "down".

        Raises UserError if the layer has none.
        """
        block = self.blocks[layer]
        path = "" if role == "block" else getattr(self.layers[layer], role)
        if path is None:
            raise UserError(f"layer {layer} has no {MISSING[role]}{self._why(layer, role)}")
        return block.get_submodule(path)

    def _why(self, layer: int, role: str) -> str:
        why = self.layers[layer].heads if role in ATTENTION else self.layers[layer].inner
        return "" if why is None else f": {why}"

    def part(self, layer: int, role: str, value: torch.Tensor) -> torch.Tensor:
        """What belongs to `role` in the (..., out) output of its module: all, unless projections are fused."""
        part = self.layers[layer].slices.get(role)
        return value if part is None else value[..., part]

    def scale(self, layer: int, role: str) -> float:
        """What the output of a write is multiplied by before it is added to the residual stream."""
        of = self.layers[layer]
        return of.scales.get(getattr(of, role), 1.0)

    def weight(self, layer: int, role: str) -> torch.Tensor:
        """(out, in) weight of a projection, whichever way the module stores it."""
        module = self.module(layer, role)
        with align_module_device(module):  # it may be on disk
            weight = discovery.weight_of(module)
            is_transposed = role in self.layers[layer].transposed
            return self.part(layer, role, weight if is_transposed else weight.T).T

    def bias(self, layer: int, role: str) -> torch.Tensor | None:
        """(out,) bias of a projection."""
        module = self.module(layer, role)
        with align_module_device(module):
            bias = cast(torch.Tensor | None, getattr(module, "bias", None))
            return None if bias is None else self.part(layer, role, bias)

    def check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise UserError(f"layer {layer} is out of range: this model has layers 0 to {self.n_layers - 1}")

    def check_head(self, layer: int, head: int) -> None:
        self.check_layer(layer)
        if not 0 <= head < self.n_heads:
            raise UserError(f"head {head} is out of range: this model has heads 0 to {self.n_heads - 1}")

    def check_dim(self, dim: int) -> None:
        if not 0 <= dim < self.hidden_size:
            raise UserError(f"dim {dim} is out of range: this model has dims 0 to {self.hidden_size - 1}")
