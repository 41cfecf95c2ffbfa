"""How each architecture is written in a GGUF file: its metadata -> a configuration, its tensors -> transformers' own.

What is read is taken out of the metadata; whatever of the architecture is left and not neutral is refused. Names are
those of ggml's docs/gguf.md; how each architecture is written is to be seen in llama.cpp's converter.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import gguf
import torch
import transformers

from lib.run.errors import UserError

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
Tensors = Mapping[str, gguf.ReaderTensor]  # by their names in the file
Fields = dict[str, Any]  # of a configuration
REQUIRED = object()
ONE_IS_NEUTRAL = ("rope.scaling.factor", "rope.scaling.attn_factor", "logit_scale", "residual_scale", "embedding_scale")


class Metadata:
    """What a file says of its architecture. `take` reads a number; `require_all_read` refuses what nobody took."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.architecture: str = metadata["general.architecture"]
        prefix = f"{self.architecture}."
        self.left = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}

    def take(self, key: str, default: object = REQUIRED) -> Any:
        value = self.left.pop(key, default)
        if value is REQUIRED:
            raise UserError(f"its metadata has no {self.architecture}.{key}")
        if isinstance(value, list) and value and set(value) == {value[0]}:  # one for each layer, all the same
            return value[0]
        if isinstance(value, list):
            raise UserError(f"its {self.architecture}.{key} differs between layers, which is not supported")
        return value

    def expect(self, key: str, *expected: object) -> Any:
        """Take what may only be one of `expected`, the first of which it is where it is absent."""
        value = self.take(key, expected[0])
        if value not in expected:
            raise UserError(f"its {self.architecture}.{key} = {value} is not supported (only {expected[0]})")
        return value

    def require_all_read(self) -> None:
        for key, value in self.left.items():
            if not (value in (None, 0, "", "none", []) or (value == 1 and key in ONE_IS_NEUTRAL)):
                raise UserError(f"its {self.architecture}.{key} = {_short(value)} is not supported")


def _short(value: object) -> object:
    return f"{str(value)[:40]} ..." if len(str(value)) > 44 else value


def configuration(metadata: Mapping[str, Any], tensors: Tensors) -> transformers.PreTrainedConfig:
    """The transformers configuration of a file. Raises UserError for whatever cannot be said in it."""
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UserError(f"it holds no model but an {kind}")
    meta = Metadata(metadata)
    if meta.architecture not in FORMATS:
        raise UserError(f"unsupported GGUF architecture '{meta.architecture}'; supported: {', '.join(FORMATS)}")
    if "token_embd.weight" not in tensors:
        raise UserError("it has no tensor token_embd.weight")
    rows, width = (int(n) for n in reversed(tensors["token_embd.weight"].shape))
    if meta.take("embedding_length", width) != width or meta.take("vocab_size", rows) != rows:
        raise UserError(f"its token_embd.weight is {rows} x {width}, its metadata says otherwise")
    meta.expect("attention.causal", True)
    special = {f"{token}_token_id": metadata.get(f"tokenizer.ggml.{token}_token_id") for token in ("bos", "eos")}
    config = FORMATS[meta.architecture].config(meta, tensors, width, {"vocab_size": rows, **special})
    config.tie_word_embeddings = "output.weight" not in tensors
    model: type[transformers.PreTrainedModel] = cast(Any, transformers.AutoModelForCausalLM)._model_mapping[
        type(config)
    ]
    config.architectures = [model.__name__]
    meta.require_all_read()
    return config


def _decoder(
    meta: Metadata,
    width: int,
    special: Fields,
    epsilon: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
) -> Fields:
    """The fields that Llama's and later configurations share."""
    heads = meta.take("attention.head_count")
    return {
        **special,
        "hidden_size": width,
        "num_hidden_layers": meta.take("block_count"),
        "intermediate_size": meta.take("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.take("attention.head_count_kv", heads),
        "max_position_embeddings": meta.take("context_length"),
        epsilon[1]: meta.take(epsilon[0]),
    }


def _head_width(meta: Metadata, fields: Fields) -> int:
    """Width of a head, the same for keys and values, all of it rotated."""
    width = meta.take("attention.key_length", fields["hidden_size"] // fields["num_attention_heads"])
    meta.expect("attention.value_length", width)
    meta.expect("rope.dimension_count", width)
    return width


def _rope(meta: Metadata, tensors: Tensors, head_width: int, base: float = 10_000.0) -> Fields:
    """The rope_parameters of a file's metadata and of its tensor of frequency factors."""
    rope = {"rope_type": "default", "rope_theta": meta.take("rope.freq_base", base)}
    factor = meta.take("rope.scaling.factor", meta.take("rope.scale_linear", 1.0)) or 1.0
    kind = meta.take("rope.scaling.type", "linear")
    original = meta.take("rope.scaling.original_context_length", None)
    meta.take("rope.scaling.finetuned", None)
    if "rope_freqs.weight" in tensors:
        if kind == "yarn" or (kind == "linear" and factor != 1):
            raise UserError("it has both rope.scaling and rope_freqs.weight, which is not supported")
        return rope | _llama3(dequantised(tensors["rope_freqs.weight"]), rope["rope_theta"], head_width)
    if kind == "yarn" and original is None:
        raise UserError(f"its metadata has no {meta.architecture}.rope.scaling.original_context_length")
    if kind == "yarn":
        beta = {f"beta_{end}": meta.take(f"rope.scaling.yarn_beta_{end}", None) for end in ("fast", "slow")}
        given = {name: value for name, value in beta.items() if value is not None}
        yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        return rope | yarn | given
    if kind not in ("linear", "none"):
        raise UserError(f"its {meta.architecture}.rope.scaling.type = {kind} is not supported")
    return rope if factor == 1 or kind == "none" else rope | {"rope_type": "linear", "factor": factor}


def _llama3(factors: torch.Tensor, base: float, head_width: int) -> Fields:
    """Llama 3.1's scaling, of which a file holds only the factors that it comes to. {} where all are 1."""
    factor = factors.max().item()
    if factor == 1:
        return {}
    scaling = {"rope_type": "llama3", "factor": factor, **LLAMA3}
    wavelengths = 2 * math.pi * base ** (torch.arange(0, head_width, 2).double() / head_width)
    low, high = (LLAMA3["original_max_position_embeddings"] / LLAMA3[f"{end}_freq_factor"] for end in ("low", "high"))
    blend = (LLAMA3["original_max_position_embeddings"] / wavelengths - LLAMA3["low_freq_factor"]) / (
        LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"]
    )
    between = 1 / ((1 - blend) / factor + blend)
    expected = torch.where(wavelengths > low, factor, torch.where(wavelengths < high, 1.0, between))
    if factors.shape != expected.shape or not torch.allclose(factors.double(), expected, rtol=1e-4):
        raise UserError("the factors of its rope_freqs.weight are not those of Llama 3.1, which alone are supported")
    return scaling


def _llama(meta: Metadata, tensors: Tensors, width: int, special: Fields) -> transformers.LlamaConfig:
    fields = _decoder(meta, width, special)
    fields["head_dim"] = _head_width(meta, fields)
    meta.expect("tensor_data_layout", "", "Meta AI original pth")
    return transformers.LlamaConfig(
        **fields,
        rope_parameters=_rope(meta, tensors, fields["head_dim"]),
        attention_bias="blk.0.attn_q.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
    )


def _qwen2(meta: Metadata, tensors: Tensors, width: int, special: Fields) -> transformers.Qwen2Config:
    fields = _decoder(meta, width, special)
    fields["head_dim"] = _head_width(meta, fields)
    return transformers.Qwen2Config(**fields, rope_parameters=_rope(meta, tensors, fields["head_dim"]))


def _qwen3(meta: Metadata, tensors: Tensors, width: int, special: Fields) -> transformers.Qwen3Config:
    fields = _decoder(meta, width, special)
    fields["head_dim"] = _head_width(meta, fields)
    rope = _rope(meta, tensors, fields["head_dim"])
    return transformers.Qwen3Config(**fields, rope_parameters=rope, attention_bias="blk.0.attn_q.bias" in tensors)


def _gemma(meta: Metadata, width: int, special: Fields, largest: int) -> Fields:
    """largest: number of layers of the one size whose attention is scaled by the residual stream's width."""
    fields = _decoder(meta, width, special)
    fields["head_dim"] = _head_width(meta, fields)
    whole = width // fields["num_attention_heads"]
    fields["query_pre_attn_scalar"] = whole if fields["num_hidden_layers"] == largest else fields["head_dim"]
    fields["final_logit_softcapping"] = meta.take("final_logit_softcapping", None)
    return fields


def _gemma2(meta: Metadata, tensors: Tensors, width: int, special: Fields) -> transformers.Gemma2Config:
    fields = _gemma(meta, width, special, largest=46)
    return transformers.Gemma2Config(
        **fields | {"final_logit_softcapping": fields["final_logit_softcapping"] or 30.0},
        attn_logit_softcapping=meta.take("attn_logit_softcapping", 50.0),
        sliding_window=meta.take("attention.sliding_window", 4096),
        rope_parameters=_rope(meta, tensors, fields["head_dim"]),
    )


def _gemma3(meta: Metadata, tensors: Tensors, width: int, special: Fields) -> transformers.Gemma3TextConfig:
    fields = _gemma(meta, width, special, largest=62)
    every = meta.take("attention.sliding_window_pattern", 6)
    window = meta.take("attention.sliding_window", 0)
    local = {"rope_type": "default", "rope_theta": meta.take("rope.freq_base_swa", 10_000.0)}
    layers = range(1, fields["num_hidden_layers"] + 1)
    return transformers.Gemma3TextConfig(
        **fields,
        attn_logit_softcapping=None,
        sliding_window=window or fields["max_position_embeddings"],
        layer_types=["sliding_attention" if window and layer % every else "full_attention" for layer in layers],
        rope_parameters={
            "full_attention": _rope(meta, tensors, fields["head_dim"], base=1_000_000.0),
            "sliding_attention": local,
        },
    )


def _gpt2(meta: Metadata, tensors: Tensors, width: int, special: Fields) -> transformers.GPT2Config:
    return transformers.GPT2Config(
        **special,
        n_embd=width,
        n_layer=meta.take("block_count"),
        n_head=meta.take("attention.head_count"),
        n_inner=meta.take("feed_forward_length"),
        n_positions=meta.take("context_length"),
        layer_norm_epsilon=meta.take("attention.layer_norm_epsilon"),
    )


def _phi3(meta: Metadata, tensors: Tensors, width: int, special: Fields) -> transformers.Phi3Config:
    fields = _decoder(meta, width, special)
    head_width = width // fields["num_attention_heads"]
    rotated = meta.take("rope.dimension_count", head_width)
    rope = _rope(meta, tensors, rotated) | {"partial_rotary_factor": rotated / head_width}
    window = meta.take("attention.sliding_window", 0) or None
    return transformers.Phi3Config(**fields, rope_parameters=rope, sliding_window=window, pad_token_id=None)


def _stablelm(meta: Metadata, tensors: Tensors, width: int, special: Fields) -> transformers.StableLmConfig:
    fields = _decoder(meta, width, special, ("attention.layer_norm_epsilon", "layer_norm_eps"))
    head_width = width // fields["num_attention_heads"]
    rotated = meta.take("rope.dimension_count", head_width)
    return transformers.StableLmConfig(
        **fields,
        rope_parameters=_rope(meta, tensors, rotated) | {"partial_rotary_factor": rotated / head_width},
        use_parallel_residual=meta.take("use_parallel_residual", True),
        use_qkv_bias="blk.0.attn_q.bias" in tensors,
    )


def _bloom(meta: Metadata, tensors: Tensors, width: int, special: Fields) -> transformers.BloomConfig:
    meta.take("context_length")  # ALiBi has none
    meta.expect("feed_forward_length", 4 * width)
    heads = meta.take("attention.head_count")
    meta.expect("attention.head_count_kv", heads)
    return transformers.BloomConfig(
        **special,
        hidden_size=width,
        n_layer=meta.take("block_count"),
        n_head=heads,
        layer_norm_epsilon=meta.take("attention.layer_norm_epsilon"),
    )


def _as_it_is(_name: str, value: torch.Tensor, _config: transformers.PreTrainedConfig) -> torch.Tensor:
    return value


def _rotary_halves(name: str, value: torch.Tensor, config: transformers.PreTrainedConfig) -> torch.Tensor:
    """Llama's queries and keys: rotated pairs stand side by side in the file, in halves in transformers."""
    if ".q_proj." in name or ".k_proj." in name:
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return value.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(value.shape)
    return value


def _norms_from_zero(name: str, value: torch.Tensor, _config: transformers.PreTrainedConfig) -> torch.Tensor:
    """Gemma's norms multiply by 1 + weight; the file has the sum."""
    return value - 1 if name.endswith("norm.weight") else value


def _input_first(name: str, value: torch.Tensor, _config: transformers.PreTrainedConfig) -> torch.Tensor:
    """GPT-2's Conv1D."""
    return value.T if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name) else value


def _by_head(name: str, value: torch.Tensor, config: transformers.PreTrainedConfig) -> torch.Tensor:
    """Bloom's queries, keys and values: all queries first in the file, head by head in transformers."""
    if "query_key_value" in name:
        return value.unflatten(0, (3, config.n_head, -1)).transpose(0, 1).reshape(value.shape)
    return value


@dataclass(frozen=True)
class Format:
    """How one architecture is written. config: (metadata, tensors, hidden size, further fields) -> configuration;
    undo: (name in transformers, tensor of the file, configuration) -> the tensor as transformers has it."""

    config: Callable[[Metadata, Tensors, int, Fields], transformers.PreTrainedConfig]
    undo: Callable[[str, torch.Tensor, transformers.PreTrainedConfig], torch.Tensor] = _as_it_is


FORMATS = {
    "llama": Format(_llama, _rotary_halves),
    "qwen2": Format(_qwen2),
    "qwen3": Format(_qwen3),
    "gemma2": Format(_gemma2, _norms_from_zero),
    "gemma3": Format(_gemma3, _norms_from_zero),
    "gpt2": Format(_gpt2, _input_first),
    "phi3": Format(_phi3),
    "stablelm": Format(_stablelm),
    "bloom": Format(_bloom, _by_head),
}


def dequantised(tensor: gguf.ReaderTensor) -> torch.Tensor:
    try:
        return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
    except NotImplementedError as error:
        raise UserError(
            f"its {tensor.name} is of the type {tensor.tensor_type.name}, which is not supported"
        ) from error
