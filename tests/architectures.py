"""One tiny configuration of each supported architecture and of its variants, and where the parts of the real model are.

The paths are those of the whole model, written down again from transformers' sources: tests compare what
lib/model/families.py says with them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch.nn import functional

LAYERS = 3
WINDOW = 6
GELU_TANH = partial(functional.gelu, approximate="tanh")
TOKENS = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


@dataclass(frozen=True)
class Tested:
    """A family, its well-known models, its parts in the whole model and in a block, and what is tested of it."""

    models: str
    config: dict
    blocks: str
    after_blocks: tuple[str, ...]
    """The modules between the last block and the head of the language model."""
    attention_out: str
    mlp_in: tuple[str, ...]
    """The first projection; of a gated MLP the gate and then the other one, or both in one."""
    act: Callable
    mlp_out: str
    gated: bool = False
    variants: dict[str, dict] = field(default_factory=dict)
    """{what is tested: changes to the configuration}; "parallel", "sliding" and "local" are checked to be so."""


GPT2_CONFIG = {"n_layer": LAYERS, "n_head": 4, "n_embd": 32, "n_positions": 64}
GPT2_PARTS = {
    "blocks": "transformer.h",
    "after_blocks": ("transformer.ln_f",),
    "attention_out": "attn.c_proj",
    "mlp_in": ("mlp.c_fc",),
    "act": GELU_TANH,
    "mlp_out": "mlp.c_proj",
}
PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
SINGLE = {**PLAIN, "num_key_value_heads": 4}
LLAMA_PARTS = {
    "blocks": "model.layers",
    "after_blocks": ("model.norm",),
    "attention_out": "self_attn.o_proj",
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
    "act": functional.silu,
    "mlp_out": "mlp.down_proj",
    "gated": True,
}
NEOX_PARTS = {
    "attention_out": "attention.dense",
    "mlp_in": ("mlp.dense_h_to_4h",),
    "mlp_out": "mlp.dense_4h_to_h",
}
BLOOM_PARTS = {
    **NEOX_PARTS,
    "blocks": "transformer.h",
    "after_blocks": ("transformer.ln_f",),
    "attention_out": "self_attention.dense",
}
SLIDING_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {**GROUPED, "head_dim": 16, "sliding_window": WINDOW, "layer_types": SLIDING_TYPES, "tie_word_embeddings": True}

TESTED = {
    "gpt2": Tested(
        "GPT-2, DistilGPT-2",
        GPT2_CONFIG,
        **GPT2_PARTS,
        variants={
            "sequential blocks, tied head": {},
            "attention scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
        },
    ),
    "gpt_neo": Tested(
        "GPT-Neo, TinyStories",
        {
            "hidden_size": 32,
            "num_layers": LAYERS,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1], [["global"], 1]],
            "window_size": WINDOW,
        },
        **{**GPT2_PARTS, "attention_out": "attn.attention.out_proj"},
        variants={"global and local attention": {}},
    ),
    "gptj": Tested(
        "GPT-J",
        {**GPT2_CONFIG, "rotary_dim": 4},
        **{**GPT2_PARTS, "attention_out": "attn.out_proj", "mlp_in": ("mlp.fc_in",), "mlp_out": "mlp.fc_out"},
        variants={"parallel blocks with one norm": {}},
    ),
    "gpt_neox": Tested(
        "Pythia, GPT-NeoX-20B",
        PLAIN,
        **NEOX_PARTS,
        blocks="gpt_neox.layers",
        after_blocks=("gpt_neox.final_layer_norm",),
        act=functional.gelu,
        variants={
            "parallel blocks with two norms": {},
            "sequential blocks": {"use_parallel_residual": False},
            "no attention bias, tied head": {
                "attention_bias": False,
                "use_parallel_residual": False,
                "tie_word_embeddings": True,
            },
        },
    ),
    "opt": Tested(
        "OPT, but not OPT-350M",
        {
            "hidden_size": 32,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
        blocks="model.decoder.layers",
        after_blocks=("model.decoder.final_layer_norm", "model.decoder.project_out"),
        attention_out="self_attn.out_proj",
        mlp_in=("fc1",),
        act=functional.relu,
        mlp_out="fc2",
        variants={
            "sequential blocks, tied head": {},
            "projected embeddings": {"word_embed_proj_dim": 16},
            "no biases": {"enable_bias": False},
        },
    ),
    "bloom": Tested(
        "BLOOM, BLOOMZ",
        {"hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
        **BLOOM_PARTS,
        act=GELU_TANH,
        variants={"ALiBi": {}, "ALiBi of 6 heads": {"hidden_size": 48, "n_head": 6}},
    ),
    "mpt": Tested(
        "MPT",
        {"d_model": 32, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 64},
        blocks="transformer.blocks",
        after_blocks=("transformer.norm_f",),
        attention_out="attn.out_proj",
        mlp_in=("ffn.up_proj",),
        act=functional.gelu,
        mlp_out="ffn.down_proj",
        variants={
            "ALiBi": {},
            "ALiBi of 6 heads": {"d_model": 48, "n_heads": 6},
            "clipped queries": {"attn_config": {"clip_qkv": 0.5}},
        },
    ),
    "falcon": Tested(
        "Falcon, Falcon-RW, Falcon2",
        {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": 64},
        **BLOOM_PARTS,
        act=functional.gelu,
        variants={
            "multi-query, parallel blocks": {},
            "grouped queries, parallel blocks with two norms": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "grouped queries, parallel blocks with one norm": {
                "new_decoder_architecture": True,
                "num_kv_heads": 2,
                "num_ln_in_parallel_attn": 1,
            },
            "ALiBi, sequential blocks, biases": {
                "alibi": True,
                "multi_query": False,
                "parallel_attn": False,
                "bias": True,
            },
        },
    ),
    "phi": Tested(
        "Phi-1, Phi-1.5, Phi-2",
        SINGLE,
        blocks="model.layers",
        after_blocks=("model.final_layernorm",),
        attention_out="self_attn.dense",
        mlp_in=("mlp.fc1",),
        act=GELU_TANH,
        mlp_out="mlp.fc2",
        variants={
            "parallel blocks with one norm": {},
            "grouped queries, parallel blocks, normed queries": {"num_key_value_heads": 2, "qk_layernorm": True},
        },
    ),
    "phi3": Tested(
        "Phi-3, Phi-3.5-mini, Phi-4",
        {**GROUPED, "original_max_position_embeddings": 64},
        **{**LLAMA_PARTS, "mlp_in": ("mlp.gate_up_proj",)},
        variants={
            "grouped queries, fused gate and up": {},
            "sliding windows": {"sliding_window": WINDOW, "num_key_value_heads": 4},
        },
    ),
    "llama": Tested(
        "Llama 1 to 3, SmolLM, TinyLlama",
        GROUPED,
        **LLAMA_PARTS,
        variants={
            "grouped queries": {},
            "biases, tied head": {
                "num_key_value_heads": 4,
                "attention_bias": True,
                "mlp_bias": True,
                "tie_word_embeddings": True,
            },
            "multi-query": {"num_key_value_heads": 1},
        },
    ),
    "mistral": Tested(
        "Mistral 7B",
        GROUPED,
        **LLAMA_PARTS,
        variants={
            "grouped queries, sliding windows": {"sliding_window": WINDOW},
            "full attention": {"sliding_window": None},
        },
    ),
    "qwen2": Tested(
        "Qwen1.5, Qwen2, Qwen2.5",
        GROUPED,
        **LLAMA_PARTS,
        variants={
            "grouped queries, biases": {},
            "some sliding windows": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        },
    ),
    "qwen3": Tested(
        "Qwen3, dense",
        {**GROUPED, "head_dim": 16},
        **LLAMA_PARTS,
        variants={
            "grouped queries, normed queries, heads wider than the residual stream": {},
            "some sliding windows": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        },
    ),
    "smollm3": Tested(
        "SmolLM3",
        {**GROUPED, "no_rope_layers": [1, 0, 1]},
        **LLAMA_PARTS,
        variants={
            "grouped queries, layers without positions": {},
            "some sliding windows, biases": {
                "use_sliding_window": True,
                "sliding_window": WINDOW,
                "attention_bias": True,
                "mlp_bias": True,
            },
        },
    ),
    "granite": Tested(
        "Granite 3, dense",
        {
            **GROUPED,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "logits_scaling": 4.0,
        },
        **LLAMA_PARTS,
        variants={
            "grouped queries, scaled residual writes": {},
            "biases, tied head": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        },
    ),
    "stablelm": Tested(
        "StableLM 2, StableLM 3B",
        SINGLE,
        **LLAMA_PARTS,
        variants={
            "sequential blocks": {},
            "grouped queries, parallel blocks, normed queries": {
                "num_key_value_heads": 2,
                "use_parallel_residual": True,
                "qk_layernorm": True,
                "use_qkv_bias": True,
            },
        },
    ),
    "cohere": Tested(
        "Command R",
        {**GROUPED, "tie_word_embeddings": True},
        **LLAMA_PARTS,
        variants={
            "grouped queries, parallel blocks with one norm": {},
            "parallel blocks, normed queries, biases": {"use_qk_norm": True, "attention_bias": True},
        },
    ),
    "olmo2": Tested(
        "OLMo 2",
        GROUPED,
        **LLAMA_PARTS,
        variants={
            "grouped queries, norms after attention and MLP": {},
            "biases": {"attention_bias": True, "num_key_value_heads": 4},
        },
    ),
    "gemma2": Tested(
        "Gemma 2",
        {**GEMMA, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        **{**LLAMA_PARTS, "act": GELU_TANH},
        variants={
            "grouped queries, some sliding windows, capped logits": {},
            "biases": {"attention_bias": True, "layer_types": ["full_attention"] * LAYERS},
        },
    ),
    "gemma3_text": Tested(
        "Gemma 3 1B and 270M",
        {**GEMMA, "query_pre_attn_scalar": 8},
        **{**LLAMA_PARTS, "act": GELU_TANH},
        variants={
            "grouped queries, some sliding windows, normed queries": {},
            "biases": {"attention_bias": True, "layer_types": ["full_attention"] * LAYERS},
        },
    ),
}
CASES = [(family, variant) for family, tested in TESTED.items() for variant in tested.variants]
FIRSTS = [(family, next(iter(tested.variants))) for family, tested in TESTED.items()]
SOME = [  # of each way in which blocks, positions and projections differ, for what is the same in all
    *(of for of in FIRSTS if of[0] in ("gpt2", "gpt_neox", "bloom", "granite", "cohere", "gemma2")),
    ("opt", "projected embeddings"),
    ("phi3", "sliding windows"),
]

REFUSED = [
    ("opt", {"do_layer_norm_before": False}, "unsupported architecture 'opt': layer 0: .*post-norm"),
    (
        "bloom",
        {"apply_residual_connection_post_layernorm": True},
        "unsupported architecture 'bloom': layer 0: its output is not its input plus",
    ),
    ("gemma2", {"use_bidirectional_attention": True}, "see ahead"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "see ahead"),
]
BUILT_WRONGLY = [
    ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact"),
    ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}, "sequential"),
    ("mpt", {"attn_config": {"alibi": False}}, "position biases"),
    ("mpt", {"attn_config": {"alibi_bias_max": 16}}, "position biases"),
    ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "multi-query"),
    ("mpt", {"attn_config": {"qk_ln": True}}, "norms"),
    ("mpt", {"attn_config": {"prefix_lm": True}}, "prefix"),
    ("mpt", {"no_bias": False}, "biases"),
    ("mpt", {"expansion_ratio": 2}, "expansion_ratio"),
]


def table():
    """The README's table of supported architectures, its heading first."""
    rows = [(f"`{family}`", of.models, "; ".join(of.variants)) for family, of in TESTED.items()]
    return [("family", "models", "variants tested"), *rows]
