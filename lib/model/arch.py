"""One model's blocks and their parts, by role: modules, weights, how many there are."""

from functools import cached_property
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from transformers import PreTrainedModel

from lib.model import discovery, experts, families, parts
from lib.model.layer import Layer
from lib.model.trace import first_output
from lib.run.errors import LackingError, UserError

ATTENTION = ("attention_module", "head_projection", "attention_write")
MISSING = dict.fromkeys(ATTENTION, "attention") | {
    "head_projection": "heads that can be told apart",
    "mlp_write": "MLP that is one module",
    "experts": "experts",
    "experts_sum": "experts",
    "shared_expert": "shared expert",
    "mlp_norm": "norm before its MLP",
    "down": "neurons that can be told apart",
    "up": "first projection of an MLP",
    "gate": "gate projection",
    "activation": "activation function that is a module",
}
OTHER, SHARED = "other ", "shared "  # what roles begin with
LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")  # fields of configurations


class Architecture:
    """One model's blocks and their parts, by role, as lib/model/discovery.py finds them.

    Raises UserError if they cannot be found, or transformers builds this variant wrongly.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        families.require_right(model.config)
        text = model.config.get_text_config()
        longest = (getattr(text, name, None) for name in LONGEST)
        self.n_positions: int | None = next((n for n in longest if isinstance(n, int) and n > 0), None)
        self.n_short = _short(getattr(text, "rope_parameters", None) or {})
        found = discovery.discover(model, self.n_positions)
        base = model.base_model
        self.blocks = list(cast(torch.nn.ModuleList, base.get_submodule(found.blocks)))
        self.layers = found.layers
        self.n_layers = len(self.blocks)
        self.n_heads: int = max(layer.n_heads for layer in self.layers)
        self.seen = found.seen
        self.hidden_size = found.seen.given[0].shape[-1]
        self.token_embedding = model.get_input_embeddings()
        path = found.position_embedding
        self.position_embedding = None if path is None else base.get_submodule(path)
        # whether block outputs stay as they are until the end of a pass
        self.outputs_stay = all(map(parts.same, map(first_output, found.seen.returned), found.seen.given))
        # as verify.py finds it: the implementation that looks attention up by name (see attention.around_calls)
        self.looks_up: str | None = None

    def prefix(self, n: int, length: int) -> int:
        """How many tokens of so many tell what is at the first n: by causality these; all, where rotary embeddings of
        longer sequences are others."""
        return length if self.n_short is not None and n <= self.n_short < length else n

    @cached_property
    def head_dims(self) -> dict[int, int]:
        """The width of one head, in every layer whose heads can be told apart."""
        layers = self.with_role("head_projection")
        return {layer: self.weight(layer, "head_projection").shape[1] // self.layers[layer].n_heads for layer in layers}

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Every (layer, head). Raises LackingError if there are none, or a layer's cannot be told apart."""
        self.require_attention()
        layers = [layer for layer, parts in enumerate(self.layers) if parts.n_heads]
        for layer in layers:
            self.module(layer, "head_projection")
        return [(layer, head) for layer in layers for head in range(self.layers[layer].n_heads)]

    @property
    def mlps(self) -> list[int]:
        """Every layer with an MLP. Raises LackingError if there are none, or a layer's is not one module."""
        layers = [layer for layer, parts in enumerate(self.layers) if parts.mlp_write or parts.inner or parts.others]
        if not layers:
            raise LackingError("this model has no MLPs")
        for layer in layers:
            self.module(layer, "mlp_write")
        return layers

    def is_gated(self, layer: int, shared: str = "") -> bool:
        """Whether its MLP is, or with SHARED its shared expert."""
        return self._path(layer, f"{shared}gate") is not None

    def n_neurons(self, layer: int) -> int:
        """Of its MLP; in a mixture those of expert 0, of expert 1, and so on, and of the shared expert at last."""
        if self.layers[layer].experts is None:
            return self.weight(layer, "down").shape[1]
        n, width = experts.sizes(self.module(layer, "experts"))
        return n * width + self.n_shared(layer)

    def n_shared(self, layer: int) -> int:
        """Neurons of its shared expert."""
        return 0 if self.layers[layer].shared is None else self.weight(layer, f"{SHARED}down").shape[1]

    def with_role(self, role: str) -> list[int]:
        """The layers that have a module in this role."""
        return [layer for layer in range(self.n_layers) if self._path(layer, role) is not None]

    def _path(self, layer: int, role: str) -> str | None:
        if role == "block":
            return ""
        if role.startswith(OTHER):
            others, i = self.layers[layer].others, int(role.removeprefix(OTHER))
            return others[i] if i < len(others) else None
        parts, role = self._of(layer, role)
        return None if parts is None else getattr(parts, role)

    def _of(self, layer: int, role: str) -> tuple[Layer | None, str]:
        """Where the part of that name is: in the layer, or in its shared expert."""
        if role.startswith(SHARED):
            return self.layers[layer].shared, role.removeprefix(SHARED)
        return self.layers[layer], role

    def module(self, layer: int, role: str) -> torch.nn.Module:
        """The module of `layer` in a `role`: "block", the name of a field of Layer, for example "down", "shared down"
        for that of its shared expert, or "other 0" for the first of its `others`.

        Raises LackingError if the layer has none.
        """
        path = self._path(layer, role)
        if path is None:
            raise self._missing(layer, role)
        return self.blocks[layer].get_submodule(path)

    def _missing(self, layer: int, role: str) -> LackingError:
        """Says which part the layer lacks, and why."""
        parts = self.layers[layer]
        if role in ATTENTION:
            missing, why = MISSING[role] if parts.n_heads else "attention heads", parts.heads
        elif parts.mlp_write is None and parts.inner is None:
            missing, why = "MLP", f"{', '.join(parts.others)} may be one" if parts.others else None
        else:
            missing, why = MISSING[role], parts.inner
        return LackingError(f"layer {layer} has no {missing}" + ("" if why is None else f": {why}"))

    def require_attention(self) -> None:
        """Raise LackingError if no layer has attention heads."""
        if not self.n_heads:
            why = next((f" that can be measured: {parts.heads}" for parts in self.layers if parts.heads), None)
            raise LackingError("this model has no attention heads" + (why or ": nothing attends to the first token"))

    def require_experts(self) -> None:
        """Raise LackingError if no layer has a mixture of experts."""
        if not self.with_role("experts"):
            unknown = [parts for parts in self.layers if parts.inner or (parts.others and parts.mlp_write is None)]
            why = [parts.inner or f"{', '.join(parts.others)} may be one" for parts in unknown]
            known = f" whose experts can be told apart: {why[0]}" if why else ""
            raise LackingError(f"this model has no mixture of experts{known}")

    def require_neurons(self, layer: int) -> None:
        """Raise UserError if the layer is out of range, LackingError if it has no MLP whose neurons are known."""
        self.check_layer(layer)
        if self.layers[layer].inner is not None:
            raise self._missing(layer, "down")
        self.module(layer, "down" if self.layers[layer].experts is None else "experts")

    def require_in_every_layer(self, role: str) -> None:
        """Raise LackingError if a layer has no module in this role."""
        for layer in range(self.n_layers):
            self.module(layer, role)

    def part(self, layer: int, role: str, value: torch.Tensor) -> torch.Tensor:
        """What belongs to `role` in the (..., out) output of its module: all, unless projections are fused."""
        parts, role = self._of(layer, role)
        part = None if parts is None else parts.slices.get(role)
        return value if part is None else value[..., part]

    def scale(self, layer: int, role: str) -> float:
        """What the output of a write is multiplied by before it is added to the residual stream."""
        return self.layers[layer].scales.get(self._path(layer, role) or "", 1.0)

    def weight(self, layer: int, role: str) -> torch.Tensor:
        """(out, in) weight of a projection, whichever way the module stores it."""
        module = self.module(layer, role)
        with align_module_device(module):  # it may be on disk
            weight = parts.weight_of(module)
            of_layer, name = self._of(layer, role)
            is_transposed = of_layer is not None and name in of_layer.transposed
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
        self.module(layer, "head_projection")
        n_heads = self.layers[layer].n_heads
        if not 0 <= head < n_heads:
            raise UserError(f"head {head} is out of range: layer {layer} has heads 0 to {n_heads - 1}")

    def check_dim(self, dim: int) -> None:
        if not 0 <= dim < self.hidden_size:
            raise UserError(f"dim {dim} is out of range: this model has dims 0 to {self.hidden_size - 1}")


def _short(ropes: dict[str, Any]) -> int | None:
    """How many tokens a sequence has at most that is rotated as a short one; None where the length makes no difference.

    ropes: a configuration's rope_parameters, or those of each kind of layer.
    """
    every = ropes.values() if all(isinstance(rope, dict) for rope in ropes.values()) else [ropes]
    ends = [rope["original_max_position_embeddings"] for rope in every if rope.get("rope_type") == "longrope"]
    return min(ends, default=None)
