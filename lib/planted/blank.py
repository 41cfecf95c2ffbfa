"""Small models of nothing but noise, of a few architectures, and their tokenizer."""

from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

ARCHITECTURES = ("gpt2", "llama")
HIDDEN, HEADS, VOCABULARY, POSITIONS = 64, 4, 128, 64
HEAD_DIM = HIDDEN // HEADS
SEQLEN = 32  # of windows
EXPERT_WIDTH = 32
LIKE_LLAMA: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    # configuration, model, what it has beside Llama's settings
    "llama": (LlamaConfig, LlamaForCausalLM, {"intermediate_size": 2 * HIDDEN}),
    "qwen2": (  # it has biases of queries, and here two heads share keys and values
        Qwen2Config,
        Qwen2ForCausalLM,
        {"intermediate_size": 2 * HIDDEN, "num_key_value_heads": HEADS // 2},
    ),
    "mixtral": (
        MixtralConfig,
        MixtralForCausalLM,
        {"intermediate_size": EXPERT_WIDTH, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen3_moe": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {"moe_intermediate_size": EXPERT_WIDTH, "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True},
    ),
    "qwen2_moe": (  # its routing weights do not sum to 1, and it has a shared expert behind a gate
        Qwen2MoeConfig,
        Qwen2MoeForCausalLM,
        {
            "moe_intermediate_size": EXPERT_WIDTH,
            "shared_expert_intermediate_size": EXPERT_WIDTH,
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "qkv_bias": False,
        },
    ),
}
BOS, BOS_TEXT = 0, "<s>"
QUIET = 1e-4  # x the noise, of dims that carry a signal
NOISE = (
    # part of the parameter's name, standard deviation, the axis along which it writes to the residual stream or
    # scales it (None: it only reads)
    ("wte", 0.05, -1),
    ("wpe", 0.02, -1),
    ("ln_", 0.05, -1),
    ("c_attn", 0.05, None),
    ("attn.c_proj", 0.01, -1),
    ("c_fc", 0.05, None),
    ("mlp.c_proj", 0.005, -1),
    ("embed_tokens", 0.05, -1),
    ("q_norm", 0.05, None),
    ("k_norm", 0.05, None),
    ("norm", 0.05, -1),
    ("q_proj", 0.05, None),
    ("k_proj", 0.05, None),
    ("v_proj", 0.05, None),
    ("o_proj", 0.01, 0),
    ("gate_proj", 0.05, None),
    ("up_proj", 0.05, None),
    ("experts.down_proj", 0.01, 1),
    ("down_proj", 0.01, 0),
    ("mlp.gate.", 0.05, None),
    ("shared_expert_gate", 0.05, None),
    ("lm_head", 0.02, None),
)


def token_text(token: int) -> str:
    return BOS_TEXT if token == BOS else f"t{token}"


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: `<s> t1 t2 ...`."""
    words = Tokenizer(models.WordLevel({token_text(t): t for t in range(VOCABULARY)}, unk_token=BOS_TEXT))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=BOS_TEXT, eos_token=BOS_TEXT)


def zeros(architecture: str, n_layers: int) -> PreTrainedModel:
    """A model whose parameters are zero, but for the norms' weights, which are one."""
    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "bos_token_id": BOS,
        "eos_token_id": BOS,
        "tie_word_embeddings": False,
    }
    model: PreTrainedModel
    if architecture == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(n_layer=n_layers, n_head=HEADS, n_embd=HIDDEN, n_positions=POSITIONS, **shared)
        )
    else:
        of_config, of_model, own = LIKE_LLAMA[architecture]
        config = of_config(
            num_hidden_layers=n_layers,
            num_attention_heads=HEADS,
            hidden_size=HIDDEN,
            max_position_embeddings=POSITIONS,
            **{"num_key_value_heads": HEADS} | own,
            **shared,
        )
        model = of_model(config)
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.zero_()
    return model


def add_noise(model: PreTrainedModel, rng: np.random.Generator, private: list[int]) -> None:
    """Add noise to every parameter; QUIET times as much to what writes to the `private` dims or scales them."""
    (of_logits,) = rng.spawn(1)
    for name, parameter in model.named_parameters():
        std, axis = noise_of(name)
        noise = std * (of_logits if "lm_head" in name else rng).standard_normal(parameter.shape, dtype=np.float32)
        if axis is not None:
            np.moveaxis(noise, axis, 0)[private] *= QUIET
        parameter.add_(torch.from_numpy(noise))


def noise_of(name: str) -> tuple[float, int | None]:
    """(standard deviation, axis) of NOISE."""
    return next((std, axis) for part, std, axis in NOISE if part in name)
