"""Where each architecture keeps its parts: the only file that knows module names.

To support another family, add one entry to FAMILIES and one to tests/architectures.py. Paths are relative to
`model.base_model` (`blocks`) or to a block (all others).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lib.run.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture."""

    blocks: str
    """The list of transformer blocks."""
    head_projection: str
    """Attention's output projection; its input is the heads' outputs side by side."""
    attention_write: str
    """The module whose output attention adds to the residual stream: that projection, or a norm after it."""
    mlp_norm: str | tuple[str, ...] | None
    """The norm before the MLP, whose input is the residual stream: one path, or several of which the first that a
    block has is meant; None where the MLP reads the residual stream itself. In a parallel block, which feeds
    attention and MLP from the same stream, it may also be the norm before attention."""
    up: str
    """First projection of the MLP (of a gated MLP: the one without the activation function)."""
    gate: str | None
    """Projection that enters the activation function in a gated MLP; None in a plain one."""
    activation: str
    """The MLP's activation function."""
    down: str
    """Last projection of the MLP; its input is the activation of every neuron."""
    mlp_write: str
    """The module whose output the MLP adds to the residual stream: that projection, or a norm after it."""
    position_embedding: str | None = None
    """The learned position embeddings, relative to `model.base_model`; None where positions act in attention."""
    write_scale: str | None = None
    """Field of the configuration with the constant that multiplies all that attention and MLP add to the residual
    stream; None where nothing does."""
    fused: tuple[str, ...] = ()
    """Roles that are one projection, whose output is theirs side by side, in this order."""
    attention_adds_residual: bool = False
    """Whether the attention module returns the sum with the residual stream, which is its second argument."""
    attention: str = "sdpa"
    """Attention implementation to load the model with: "eager" where transformers has no other."""
    positions: str = "max_position_embeddings"
    """Field of the configuration that limits the length of a sequence."""
    refused: tuple[tuple[Callable[["PreTrainedConfig"], object], str], ...] = ()
    """(test of a configuration, description) of variants that this entry would describe wrongly."""

    @property
    def attention_module(self) -> str:
        """The attention: what holds its output projection."""
        return self.head_projection.rpartition(".")[0]


GPT2 = Family(
    blocks="h",
    head_projection="attn.c_proj",
    attention_write="attn.c_proj",
    mlp_norm="ln_2",
    up="mlp.c_fc",
    gate=None,
    activation="mlp.act",
    down="mlp.c_proj",
    mlp_write="mlp.c_proj",
    position_embedding="wpe",
)
GPT_NEOX = Family(
    blocks="layers",
    head_projection="attention.dense",
    attention_write="attention.dense",
    mlp_norm="post_attention_layernorm",
    up="mlp.dense_h_to_4h",
    gate=None,
    activation="mlp.act",
    down="mlp.dense_4h_to_h",
    mlp_write="mlp.dense_4h_to_h",
)
# Bloom's modules `self_attention` and `mlp` return the sum with the residual stream, MPT's `ffn` too
BLOOM = replace(
    GPT_NEOX,
    blocks="h",
    head_projection="self_attention.dense",
    attention_write="self_attention.dense",
    activation="mlp.gelu_impl",
    attention_adds_residual=True,
    attention="eager",
    refused=(
        (lambda c: c.apply_residual_connection_post_layernorm, "apply_residual_connection_post_layernorm"),
        (lambda c: c.slow_but_exact and c.pretraining_tp > 1, "slow_but_exact projections"),
    ),
)
FALCON = replace(
    BLOOM,
    mlp_norm=("ln_mlp", "post_attention_layernorm", "input_layernorm"),
    activation="mlp.act",
    attention_adds_residual=False,
    attention="sdpa",
    refused=(
        (lambda c: c.new_decoder_architecture and not c.parallel_attn, "a sequential new_decoder_architecture"),
        (lambda c: c.alibi and c._attn_implementation == "eager", "eager attention, which adds ALiBi twice"),
    ),
)
MPT = Family(
    blocks="blocks",
    head_projection="attn.out_proj",
    attention_write="attn.out_proj",
    mlp_norm="norm_2",
    up="ffn.up_proj",
    gate=None,
    activation="ffn.act",
    down="ffn.down_proj",
    mlp_write="ffn.down_proj",
    attention="eager",
    positions="max_seq_len",
    # transformers reads these fields and builds the usual MPT all the same
    refused=(
        (lambda c: not c.attn_config.alibi or c.attn_config.alibi_bias_max != 8, "other position biases than its own"),
        (lambda c: c.attn_config.attn_type != "multihead_attention", "multi-query attention"),
        (lambda c: c.attn_config.qk_ln, "norms of queries and keys"),
        (lambda c: c.attn_config.prefix_lm, "a prefix that sees ahead"),
        (lambda c: not c.no_bias, "biases"),
        (lambda c: c.expansion_ratio != 4, "an expansion_ratio other than 4"),
        (lambda c: c.logit_scale, "a logit_scale"),
        (lambda c: c.norm_type not in ("layernorm", "low_precision_layernorm"), "other norms"),
        (lambda c: c.embedding_fraction != 1, "an embedding_fraction"),
    ),
)
OPT = Family(
    blocks="decoder.layers",
    head_projection="self_attn.out_proj",
    attention_write="self_attn.out_proj",
    mlp_norm="final_layer_norm",
    up="fc1",
    gate=None,
    activation="activation_fn",
    down="fc2",
    mlp_write="fc2",
    position_embedding="decoder.embed_positions",
    refused=((lambda c: not c.do_layer_norm_before, "norms on the residual stream itself (as in opt-350m)"),),
)
PHI = Family(
    blocks="layers",
    head_projection="self_attn.dense",
    attention_write="self_attn.dense",
    mlp_norm="input_layernorm",
    up="mlp.fc1",
    gate=None,
    activation="mlp.activation_fn",
    down="mlp.fc2",
    mlp_write="mlp.fc2",
)
LLAMA = Family(
    blocks="layers",
    head_projection="self_attn.o_proj",
    attention_write="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    up="mlp.up_proj",
    gate="mlp.gate_proj",
    activation="mlp.act_fn",
    down="mlp.down_proj",
    mlp_write="mlp.down_proj",
)
OLMO2 = replace(
    LLAMA,
    attention_write="post_attention_layernorm",
    mlp_norm=None,
    mlp_write="post_feedforward_layernorm",
)
GEMMA = replace(
    OLMO2,
    mlp_norm="pre_feedforward_layernorm",
    refused=((lambda c: c.use_bidirectional_attention, "bidirectional attention"),),
)
FAMILIES = {
    "gpt2": GPT2,
    "gpt_neo": replace(
        GPT2,
        head_projection="attn.attention.out_proj",
        attention_write="attn.attention.out_proj",
        attention="eager",
    ),
    "gptj": replace(
        GPT2,
        head_projection="attn.out_proj",
        attention_write="attn.out_proj",
        mlp_norm="ln_1",
        up="mlp.fc_in",
        down="mlp.fc_out",
        mlp_write="mlp.fc_out",
        position_embedding=None,
        attention="eager",
    ),
    "gpt_neox": GPT_NEOX,
    "opt": OPT,
    "bloom": BLOOM,
    "mpt": MPT,
    "falcon": FALCON,
    "phi": PHI,
    "phi3": replace(
        LLAMA,
        up="mlp.gate_up_proj",
        gate="mlp.gate_up_proj",
        fused=("gate", "up"),
        activation="mlp.activation_fn",
    ),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "smollm3": LLAMA,
    "granite": replace(LLAMA, write_scale="residual_multiplier"),
    "stablelm": replace(LLAMA, mlp_norm=("post_attention_layernorm", "input_layernorm")),
    "cohere": replace(LLAMA, mlp_norm="input_layernorm"),
    "olmo2": OLMO2,
    "gemma2": replace(GEMMA, attention="eager"),  # SDPA cannot cap the attention logits
    "gemma3_text": replace(
        GEMMA, refused=(*GEMMA.refused, (lambda c: c.attn_logit_softcapping, "capped attention logits"))
    ),
}
PARTLY_ROTARY = {"gpt_neox", "phi", "phi3", "stablelm"}  # rotate a part of each head only


def family_of(config: "PreTrainedConfig") -> Family:
    """The Family of a model's configuration.

    Raises UserError, with the list of what is supported, if there is none, or if it would be wrong for this variant.
    """
    if config.model_type not in FAMILIES:
        raise UserError(f"unsupported architecture '{config.model_type}'; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[config.model_type]
    for applies, variant in family.refused:
        if applies(config):
            raise UserError(f"unsupported variant of '{config.model_type}': {variant}")
    return family
