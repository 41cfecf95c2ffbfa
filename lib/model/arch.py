"""One model's blocks and their parts, by role: modules, weights, how many there are."""

from functools import cached_property
from typing import cast

import torch
from accelerate.utils import align_module_device
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lib.model import families
from lib.run.errors import UserError


class Architecture:
    """One model's blocks and their parts, by role.

    Raises UserError if the model's architecture is not supported.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.family = families.family_of(model.config)
        self.blocks = list(cast(torch.nn.ModuleList, model.base_model.get_submodule(self.family.blocks)))
        self.n_layers = len(self.blocks)
        self.n_heads: int = model.config.num_attention_heads
        self.hidden_size: int = model.config.hidden_size
        self.n_positions: int | None = getattr(model.config, self.family.positions, None)
        path, scale = self.family.position_embedding, self.family.write_scale
        self.position_embedding = None if path is None else model.base_model.get_submodule(path)
        self.write_scale: float = 1.0 if scale is None else getattr(model.config, scale)

    @cached_property
    def head_dim(self) -> int:
        return self.weight(0, "head_projection").shape[1] // self.n_heads

    @property
    def is_gated(self) -> bool:
        return self.family.gate is not None

    def module(self, layer: int, role: str) -> torch.nn.Module:
        """The module of `layer` in a `role`: "block", or the name of a Family field or property, for example "down"."""
        block = self.blocks[layer]
        if role == "block":
            return block
        path = getattr(self.family, role)
        if isinstance(path, tuple):
            path = next(name for name in path if getattr(block, name, None) is not None)
        return block.get_submodule(path)

    def part(self, role: str, value: torch.Tensor) -> torch.Tensor:
        """What belongs to `role` in the (..., out) output of its module: all, unless projections are fused."""
        fused = self.family.fused
        return value.chunk(len(fused), dim=-1)[fused.index(role)] if role in fused else value

    def weight(self, layer: int, role: str) -> torch.Tensor:
        """(out, in) weight of a projection, whichever way the module stores it."""
        module = self.module(layer, role)
        with align_module_device(module):  # it may be on disk
            weight = cast(torch.Tensor, module.weight)
            return self.part(role, weight if isinstance(module, Conv1D) else weight.T).T

    def bias(self, layer: int, role: str) -> torch.Tensor | None:
        """(out,) bias of a projection."""
        module = self.module(layer, role)
        with align_module_device(module):
            bias = cast(torch.Tensor | None, module.bias)
            return None if bias is None else self.part(role, bias)

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
