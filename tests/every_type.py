"""A tiny model of every type that transformers' AutoModelForCausalLM builds, with random weights.

    python -m tests.every_type [TYPE ...]

prints what lib/model finds in each; --write keeps for the README of which layers heads and neurons are measured.
"""

import functools
import inspect
import json
import sys
from copy import deepcopy
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lib.model import verify
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.run.errors import UserError

FOUND = Path(__file__).with_name("every_type.json")
LAYERS, WINDOW = 3, 6
COMMON = {
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    # width
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff", "d_inner", "dim_ff"), 96),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "feed_forward_size", "dense_intermediate_size"), 96),
    # depth
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_decoder_layers", "num_blocks", "encoder_layers", "num_encoder_layers"), LAYERS),
    # attention
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "dim_head", "swa_head_dim", "kv_channels", "attention_head_size"), 16),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "window_size", "local_attention"), WINDOW),
    **dict.fromkeys(("attention_window_size", "attention_chunk_size"), WINDOW),
    "use_sliding_window": True,
    "max_window_layers": 1,
    "rotary_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"), 128),
    "original_max_position_embeddings": 128,
    # latent attention, its index
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "index_topk": 4,
    "index_head_dim": 16,
    "index_n_heads": 2,
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "n_group", "topk_group"), 1),
    # state spaces and linear attention
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    "linear_num_value_heads": 4,
    "time_step_rank": 4,
}
"""For every configuration that has these fields."""


def mixed(*kinds, field="layer_types"):
    """What the layers are, one after the other."""
    return {field: list(kinds)}


def alike(model_types, settings):
    return dict.fromkeys(model_types.split(), settings)


def text(model_type, **changed):
    """The part of a model of several kinds of input that reads text."""
    return {"text_config": {"model_type": model_type, **changed}}


def vision(model_type, **changed):
    return {"vision_config": {"model_type": model_type, **ENCODER, **changed}}


SLIDING = mixed("sliding_attention", "full_attention", "sliding_attention")
LINEAR = mixed("linear_attention", "full_attention", "linear_attention")
HYBRID = mixed("linear_attention", "hybrid", "hybrid", field="layers_block_type")
DENSE_FIRST = mixed("dense", "sparse", "sparse", field="mlp_layer_types")
UNGROUPED = {"num_key_value_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
RELATIVE = {**mixed("hybrid_sliding", "hybrid", "hybrid_sliding"), "d_rel": 4, "rel_extent": 16}
SCALED = {"residual_multiplier": 0.3}
PER_LAYER_INPUTS = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128}
ENCODER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL_IMAGE = {"image_size": 32, "patch_size": 16}
INDEXED = {
    **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16},
    **{"indexer_budget": 4, "indexer_compress_ratio": 2},
}
HASHED = {
    **{"ple_layer_ids": [1], "ple_embed_dim": 32, "ngram_size": 2, "heads_per_ngram": 2},
    **{"ngram_vocab_size_base": 64, "make_ngram_vocab_size_divisible_by": 4, "split_ngram_parts": 2},
}
BYTES = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 128}
CODER = {**BYTES, "hidden_size": 32, "hidden_size_global": 64}

SPECIAL = {
    **alike(
        "afmoe cohere2 cwm dots1 exaone4 exaone_moe flint gemma2 gemma3_text gpt_oss kolibri1 ministral "
        "modernbert-decoder olmo3 vaultgemma",
        SLIDING,
    ),
    **alike("beam cohere2_moe laguna mellum mimo_v2_flash", SLIDING | DENSE_FIRST),
    **alike("olmo_hybrid qwen3_5_text qwen3_5_moe_text qwen3_next", LINEAR),
    **alike("axk1 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite minicpm3 youtu", UNGROUPED),
    "hy_v3": DENSE_FIRST,
    **alike("granite granitemoe granitemoeshared hyperclovax", SCALED),
    **alike("granite_swa granitemoe_swa", SLIDING | SCALED),
    "axk2": {**UNGROUPED, "gated_norm_rank": 4},
    "bailing_hybrid": {**UNGROUPED, **LINEAR},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {**SLIDING, "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), ROPE)},
    "cpmant": {"prompt_length": 4, "prompt_types": 4, "segment_types": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        **mixed("heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"),
        **mixed("hash_moe", "moe", "moe", field="mlp_layer_types"),
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        **{"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 16, "hc_mult": 2},
    },
    "dots3_note_text": {
        **UNGROUPED,
        **SLIDING,
        **DENSE_FIRST,
        "head_dim": 16,
        **{f"swa_{name}": COMMON[name] for name in ("num_attention_heads", "head_dim", "q_lora_rank", "kv_lora_rank")},
        **{f"swa_{name}": COMMON[name] for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")},
        "swa_num_key_value_heads": 4,
        "shared_experts_intermediate_size": 48,
    },
    "falcon_h1": {
        "mamba_d_ssm": 64,
        **{"ssm_out_multiplier": 0.5, "attention_out_multiplier": 0.7, "mlp_multipliers": [0.6, 0.8]},
    },
    "gemma3n_text": {
        **SLIDING,
        **PER_LAYER_INPUTS,
        **{"num_kv_shared_layers": 0, "altup_num_inputs": 2, "laurel_rank": 8},
        "activation_sparsity_pattern": [0.5, 0.0, 0.0],
    },
    "gemma4_text": {**SLIDING, **PER_LAYER_INPUTS, "global_head_dim": 32},
    "gemma4_unified_text": {**SLIDING, "global_head_dim": 32},
    "glm_moe_dsa": {**UNGROUPED, **mixed("full", "shared", "full", field="indexer_types")},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    "granitemoehybrid": {**LINEAR, **SCALED},
    "hy_v4": {**UNGROUPED, **DENSE_FIRST, "hc_mult": 2},
    "inkling_text": {**RELATIVE, **DENSE_FIRST},
    "inkling2_text": {**RELATIVE, "n_layers_per_attn_res_block": 2, "unpadded_vocab_size": 120},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1},
    "kimi_linear": {**UNGROUPED, **LINEAR, "q_lora_rank": None},
    "lfm2": {**mixed("conv", "full_attention", "conv"), "block_multiple_of": 8},
    "lfm2_moe": mixed("conv", "full_attention", "conv"),
    "lfm3": mixed("conv", "full_attention", "sliding_attention"),
    "llama4_text": {
        **mixed("chunked_attention", "full_attention", "chunked_attention"),
        **{"no_rope_layers": [1, 0, 1], "moe_layers": [0, 2], "num_experts_per_tok": 1, "intermediate_size_mlp": 96},
    },
    "longcat_flash": {**UNGROUPED, "head_dim": 8, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "minimax": {
        **LINEAR,
        "block_size": 8,
        **dict.fromkeys(("full_attn_alpha_factor", "linear_attn_alpha_factor", "mlp_alpha_factor"), 1.5),
    },
    "minimax_m3_vl_text": {
        **mixed("full_attention", "minimax_m3_sparse", "minimax_m3_sparse"),
        **DENSE_FIRST,
        **{"index_block_size": 2, "index_topk_blocks": 2},
    },
    "nemotron_h": {
        **mixed("mamba", "moe", "attention", "mlp", field="layers_block_type"),
        "mamba_head_dim": 16,
        "mamba_n_groups": 2,
    },
    "qwen4_exp_text": {**LINEAR, "hc_count": 2, "hc_lowrank": 8, **INDEXED, **HASHED},
    "recurrent_gemma": {"lru_width": 64, "block_types": ["recurrent", "attention"]},
    "reformer": {
        "attn_layers": ["local", "lsh", "local"],
        **dict.fromkeys(("local_attn_chunk_length", "lsh_attn_chunk_length"), 8),
        **{"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 48], "num_buckets": 4, "hash_seed": 0},
    },
    "rembert": {"input_embedding_size": 32},
    "roc_bert": {
        **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), 16),
        **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim"), 8),
    },
    "rwkv": {"attention_hidden_size": 64, "rescale_every": 2},
    "smollm3": {**SLIDING, "no_rope_layers": [1, 0, 1]},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**HYBRID, **UNGROUPED, "mamba_dt_rank": 4},
    "zamba2": {**HYBRID, **UNGROUPED, "use_shared_attention_adapter": True, "adapter_rank": 4},
    "zaya": {**mixed("hybrid_sliding", "hybrid", "hybrid_sliding"), "num_experts_per_tok": 1, "router_hidden_size": 16},
    # with other inputs than text
    "blt": {
        **dict.fromkeys(("encoder_config", "decoder_config"), CODER),
        "global_config": {**BYTES, "hidden_size": 64, "num_hidden_layers": LAYERS},
        "patcher_config": {**BYTES, "hidden_size": 32},
        "encoder_hash_byte_group_vocab": 128,
        "encoder_hash_byte_group_size": [3, 4],
    },
    "dots3_note": {
        **text("dots3_note_text"),
        **vision("dots3_note_vision_encoder", mlp_layer_types=["dense"], adapter_out_dim=64, adapter_in_dim=32),
        "audio_config": {**ENCODER, "adapter_input_size": 32, "adapter_out_dim": 64},
    },
    "emu3": text("emu3_text_model"),
    "fuyu": text("persimmon"),
    "gemma3": {**text("gemma3_text"), **vision("siglip_vision_model", **SMALL_IMAGE)},
    "gemma4": {
        **text("gemma4_text", hidden_size_per_layer_input=0, enable_moe_block=True),
        **vision("gemma4_vision", num_key_value_heads=2, position_embedding_size=16),
        "audio_config": None,
    },
    "gemma4_unified": {
        **text("gemma4_unified_text"),
        **vision("gemma4_unified_vision", patch_size=4, mm_embed_dim=32, mm_posemb_size=16, output_proj_dims=32),
        "audio_config": None,
    },
    "git": {"vision_config": {**ENCODER, **SMALL_IMAGE}},
    "got_ocr2": {
        **text("qwen2"),
        **vision("got_ocr2_vision", output_channels=16, global_attn_indexes=[0], mlp_dim=32, **SMALL_IMAGE),
    },
    "llama4": text("llama4_text"),
    "mllama": text("mllama_text_model", cross_attention_layers=[1]),
    "moss_transcribe_diarize": {**text("qwen3"), "audio_config": {**ENCODER, "max_source_positions": 16}},
    "phi4_multimodal": {
        "vision_config": {**ENCODER, **SMALL_IMAGE, "crop_size": 32, "feature_layer": 0},
        "audio_config": {
            **dict.fromkeys(("hidden_size", "intermediate_size", "ext_pw_out_channel"), 32),
            **dict.fromkeys(("depthwise_separable_out_channel", "nemo_conv_channels"), 32),
            **{"num_blocks": 1, "num_attention_heads": 2, "feature_layer": 0},
        },
    },
    "qwen3_5": text("qwen3_5_text"),
    "qwen3_5_moe": text("qwen3_5_moe_text"),
    "qwen4_exp": text("qwen4_exp_text"),
}
LEFT_OUT = {
    "gemma3n": "its vision encoder needs timm",
    "gemma4_assistant": "a draft model: it reads the keys and values of another model, not text",
    "gemma4_unified_assistant": "a draft model: it reads the keys and values of another model, not text",
    "musicgen": "AutoModelForCausalLM cannot build it: its decoder wants a part of the configuration",
    "musicgen_melody": "AutoModelForCausalLM cannot build it: its decoder wants a part of the configuration",
}
"""{type: why it is not tested}."""
TYPES = [model_type for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if model_type not in LEFT_OUT]


def configuration(model_type, **changed):
    """A tiny one: what it takes of the common settings, what is special in its type, `changed`."""
    config_class = CONFIG_MAPPING[model_type]
    fields = {*inspect.signature(config_class.__init__).parameters, *getattr(config_class, "__dataclass_fields__", ())}
    settings = {name: value for name, value in COMMON.items() if name in fields}
    settings |= deepcopy(SPECIAL.get(model_type, {})) | changed  # configurations change lists that they get
    for name, value in settings.items():
        if isinstance(value, dict) and "model_type" in value:
            settings[name] = configuration(**value).to_dict()
    return config_class(**settings)


def build(model_type, **changed):
    """In eval mode, with the same random weights every time."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration(model_type, **changed)).eval()
    parameters = dict(model.named_parameters())
    noise = torch.Generator().manual_seed(0)
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            random = 0.2 * torch.randn(weight.shape, generator=noise)
            keeps_own = weight.ndim < 2 or name not in parameters
            weight.copy_(weight + random if keeps_own else random)
    return model


def kind(layer):
    """One line on where a Layer has its parts."""
    parts = []
    if layer.attention_module is not None:
        heads = layer.head_projection or "heads cannot be told apart"
        parts.append(f"{layer.n_heads} heads: {heads}, written by {layer.attention_write}")
    elif layer.attention_write is not None:
        parts.append(f"mixer written by {layer.attention_write}")
    if layer.mlp_write is not None or layer.inner is not None:
        first = layer.up if layer.gate is None else f"{layer.gate} x {layer.up}"
        last = layer.down or " + ".join(path for path in (layer.experts, layer.shared_expert) if path)
        neurons = layer.inner or " > ".join(path for path in (layer.mlp_norm, first, last) if path)
        parts.append(f"MLP: {neurons}, written by {layer.mlp_write}")
    parts += [f"also written by {path}" for path in layer.others]
    return "; ".join(parts) + (f"; scaled {layer.scales}" if layer.scales else "")


def report(model_type):
    """Lines on what is found, or why nothing is."""
    try:
        arch = Architecture(build(model_type))
    except UserError as error:
        return [f"{model_type}: REFUSED, {str(error).partition(': ')[2]}"]
    except Exception as error:
        return [f"{model_type}: FAILED, {type(error).__name__}: {error}"]
    layers = {}
    for i, layer in enumerate(arch.layers):
        layers.setdefault(kind(layer), []).append(i)
    return [f"{model_type}: OK", *(f"    {where}: {what}" for what, where in layers.items())]


def measured(lm):
    """(of which layers heads are measured, of which neurons): "all", "some" or "none" of those with attention, with an
    MLP; of a loaded model."""
    arch = lm.arch
    heads = [layer.head_projection is not None for layer in arch.layers if layer.attention_write or layer.heads]
    neurons = [layer.inner is None for layer in arch.layers if layer.mlp_write or layer.inner]
    return tuple("all" if found and all(found) else "some" if any(found) else "none" for found in (heads, neurons))


def loaded(model_type, **changed):
    """The LanguageModel as a script has it. Raises UserError if it is refused."""
    model = build(model_type, **changed)
    lm = LanguageModel(model, Architecture(model), None, {})
    verify.verify(lm)
    return lm


@functools.lru_cache(maxsize=1)
def attempted(model_type):
    """The LanguageModel, or the UserError by which it is refused."""
    try:
        return loaded(model_type)
    except UserError as error:
        return error


def found(model_type):
    """`measured`, or why it is refused."""
    outcome = attempted(model_type)
    if isinstance(outcome, UserError):
        return str(outcome).removeprefix(f"unsupported architecture '{model_type}': ")
    return list(measured(outcome))


def main():
    logging.set_verbosity_error()
    if sys.argv[1:] == ["--write"]:
        FOUND.write_text(json.dumps({model_type: found(model_type) for model_type in TYPES}, indent=0) + "\n")
        return
    for model_type in sys.argv[1:] or TYPES:
        print("\n".join(report(model_type)), flush=True)


if __name__ == "__main__":
    main()
