"""Where each architecture keeps its parts: the only file that knows module names.

To support another family, add one entry to FAMILIES. Paths are relative to `model.base_model` (`blocks`) or to
a block (all others).
"""

from dataclasses import dataclass, replace
from functools import cached_property

from transformers.pytorch_utils import Conv1D

from lib.cli import UserError


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture."""

    blocks: str
    """The list of transformer blocks."""
    head_projection: str
    """Attention's output projection; its input is the heads' outputs side by side."""
    attention_write: str
    """The module whose output attention adds to the residual stream."""
    mlp_norm: str
    """The norm before the MLP; its input is the residual stream, its output the MLP's input."""
    up: str
    """First projection of the MLP (of a gated MLP: the one without the activation function)."""
    gate: str | None
    """Projection that enters the activation function in a gated MLP; None in a plain one."""
    activation: str
    """The MLP's activation function."""
    down: str
    """Last projection of the MLP; its input is the activation of every neuron."""
    mlp_write: str
    """The module whose output the MLP adds to the residual stream."""


GPT2 = Family(
    blocks="h",
    head_projection="attn.c_proj",
    attention_write="attn",
    mlp_norm="ln_2",
    up="mlp.c_fc",
    gate=None,
    activation="mlp.act",
    down="mlp.c_proj",
    mlp_write="mlp",
)
LLAMA = Family(
    blocks="layers",
    head_projection="self_attn.o_proj",
    attention_write="self_attn",
    mlp_norm="post_attention_layernorm",
    up="mlp.up_proj",
    gate="mlp.gate_proj",
    activation="mlp.act_fn",
    down="mlp.down_proj",
    mlp_write="mlp",
)
FAMILIES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma3_text": replace(
        LLAMA,
        attention_write="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_write="post_feedforward_layernorm",
    ),
}


def check_supported(model_type):
    """Raise UserError, with the list of what is supported, for any other `config.model_type`."""
    if model_type not in FAMILIES:
        raise UserError(f"unsupported architecture '{model_type}'; supported: {', '.join(FAMILIES)}")


class Architecture:
    """One model's blocks and their parts, by role.

    Raises UserError if the model's architecture is not in FAMILIES.
    """

    def __init__(self, model):
        check_supported(model.config.model_type)
        self.family = FAMILIES[model.config.model_type]
        self.blocks = list(model.base_model.get_submodule(self.family.blocks))
        self.n_layers = len(self.blocks)
        self.n_heads = model.config.num_attention_heads
        self.hidden_size = model.config.hidden_size

    @cached_property
    def head_dim(self):
        return self.weight(0, "head_projection").shape[1] // self.n_heads

    @property
    def is_gated(self):
        return self.family.gate is not None

    def module(self, layer, role):
        """The module of `layer` in a `role`: "block", or the name of a Family field, for example "down"."""
        if role == "block":
            return self.blocks[layer]
        return self.blocks[layer].get_submodule(getattr(self.family, role))

    def weight(self, layer, role):
        """(out, in) weight of a projection, whichever way the module stores it."""
        module = self.module(layer, role)
        return module.weight.T if isinstance(module, Conv1D) else module.weight

    def bias(self, layer, role):
        """(out,) bias of a projection, or None."""
        return self.module(layer, role).bias

    def check_layer(self, layer):
        if not 0 <= layer < self.n_layers:
            raise UserError(f"layer {layer} is out of range: this model has layers 0 to {self.n_layers - 1}")

    def check_head(self, layer, head):
        self.check_layer(layer)
        if not 0 <= head < self.n_heads:
            raise UserError(f"head {head} is out of range: this model has heads 0 to {self.n_heads - 1}")

    def check_dim(self, dim):
        if not 0 <= dim < self.hidden_size:
            raise UserError(f"dim {dim} is out of range: this model has dims 0 to {self.hidden_size - 1}")
