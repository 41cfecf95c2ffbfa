"""A GGUF file as a folder that transformers loads: every tensor, every number of the metadata, or a refusal by name.

What is read is taken out of the metadata; whatever of the architecture is left and not neutral is refused. Format and
names: ggml's docs/gguf.md; how each architecture is written: llama.cpp's converter.
"""

import hashlib
import importlib.metadata
import math
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
import transformers
from safetensors.torch import save_file

from lib import gguf_tokenizer
from lib.errors import UserError, cause, listed

LOADERS = ("transformers", "tokenizers", "gguf", "safetensors", "torch")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def converter():
    """Digest of what decides how a file is converted: a converted file must not outlive it."""
    digest = hashlib.sha256(" ".join(importlib.metadata.version(name) for name in LOADERS).encode())
    for module in (__file__, gguf_tokenizer.__file__):
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()


def parts(path):
    """All files of the model that `path` belongs to: itself, or those it was split into.

    Raises UserError if some of these are absent.
    """
    split = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})", path.stem)
    if not split:
        return [path]
    stem, _number, count = split.groups()
    every = [path.with_name(f"{stem}-{i:05d}-of-{count}.gguf") for i in range(1, int(count) + 1)]
    absent = [part.name for part in every if not part.is_file()]
    if absent:
        raise UserError(f"'{path}' is one part of {len(every)}; absent: {', '.join(absent[:3])}")
    return every


def convert(files, folder, needs_tokenizer, require_room):
    """Write the configuration, the weights (dequantised to float32) and the tokenizer of `parts` into `folder`.

    require_room: (name, configuration, bytes), raises UserError for a model that is larger than its files.

    Raises UserError: a file that is cut short, an architecture, metadata, tensors or a tokenizer not understood.
    """
    name = files[0]
    for file in files:
        _require_whole_header(file)
    try:
        readers = [gguf.GGUFReader(file) for file in files]
        metadata = {key: field.contents() for key, field in readers[0].fields.items()}
        tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        if len(tensors) < sum(len(reader.tensors) for reader in readers):
            raise UserError("its parts have the same tensor more than once")
        if metadata.get("split.count", 1) > len(files):
            raise UserError(
                f"it is part {metadata['split.no'] + 1} of {metadata['split.count']}, and not named as such"
            )
        config = _configuration(metadata, tensors)
        require_room(name, config, sum(file.stat().st_size for file in files))
        weights = _weights(config, metadata["general.architecture"], tensors)
        tokenizer = gguf_tokenizer.build(metadata) if needs_tokenizer else None
    except UserError as error:
        raise UserError(f"cannot load '{name}': {error}") from error
    except Exception as error:
        raise UserError(f"cannot load '{name}': {cause(error)}") from error
    folder.mkdir()
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


REQUIRED = object()
ONE_IS_NEUTRAL = ("rope.scaling.factor", "rope.scaling.attn_factor", "logit_scale", "residual_scale", "embedding_scale")


class _Metadata:
    """What a file says of its architecture. `take` reads a number; `require_all_read` refuses what nobody took."""

    def __init__(self, metadata):
        self.architecture = metadata["general.architecture"]
        prefix = f"{self.architecture}."
        self.left = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}

    def take(self, key, default=REQUIRED):
        value = self.left.pop(key, default)
        if value is REQUIRED:
            raise UserError(f"its metadata has no {self.architecture}.{key}")
        if isinstance(value, list) and value and set(value) == {value[0]}:  # one for each layer, all the same
            return value[0]
        if isinstance(value, list):
            raise UserError(f"its {self.architecture}.{key} differs between layers, which is not supported")
        return value

    def expect(self, key, *expected):
        """Take what may only be one of `expected`, the first of which it is where it is absent."""
        value = self.take(key, expected[0])
        if value not in expected:
            raise UserError(f"its {self.architecture}.{key} = {value} is not supported (only {expected[0]})")
        return value

    def require_all_read(self):
        for key, value in self.left.items():
            if not (value in (None, 0, "", "none", []) or (value == 1 and key in ONE_IS_NEUTRAL)):
                raise UserError(f"its {self.architecture}.{key} = {_short(value)} is not supported")


def _short(value):
    return f"{str(value)[:40]} ..." if len(str(value)) > 44 else value


def _configuration(metadata, tensors):
    """The transformers configuration of a file. Raises UserError for whatever cannot be said in it."""
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UserError(f"it holds no model but an {kind}")
    of = _Metadata(metadata)
    if of.architecture not in FORMATS:
        raise UserError(f"unsupported GGUF architecture '{of.architecture}'; supported: {', '.join(FORMATS)}")
    if "token_embd.weight" not in tensors:
        raise UserError("it has no tensor token_embd.weight")
    rows, width = (int(n) for n in reversed(tensors["token_embd.weight"].shape))
    if of.take("embedding_length", width) != width or of.take("vocab_size", rows) != rows:
        raise UserError(f"its token_embd.weight is {rows} x {width}, its metadata says otherwise")
    of.expect("attention.causal", True)
    special = {f"{token}_token_id": metadata.get(f"tokenizer.ggml.{token}_token_id") for token in ("bos", "eos")}
    config = FORMATS[of.architecture].config(of, tensors, width, {"vocab_size": rows, **special})
    config.tie_word_embeddings = "output.weight" not in tensors
    config.architectures = [transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__]
    of.require_all_read()
    return config


def _decoder(of, width, special, epsilon=("attention.layer_norm_rms_epsilon", "rms_norm_eps")):
    """The fields that Llama's and later configurations share."""
    heads = of.take("attention.head_count")
    return {
        **special,
        "hidden_size": width,
        "num_hidden_layers": of.take("block_count"),
        "intermediate_size": of.take("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": of.take("attention.head_count_kv", heads),
        "max_position_embeddings": of.take("context_length"),
        epsilon[1]: of.take(epsilon[0]),
    }


def _head_width(of, fields):
    """Width of a head, the same for keys and values, all of it rotated."""
    width = of.take("attention.key_length", fields["hidden_size"] // fields["num_attention_heads"])
    of.expect("attention.value_length", width)
    of.expect("rope.dimension_count", width)
    return width


def _rope(of, tensors, head_width, base=10_000.0):
    """The rope_parameters of a file's metadata and of its tensor of frequency factors."""
    rope = {"rope_type": "default", "rope_theta": of.take("rope.freq_base", base)}
    factor = of.take("rope.scaling.factor", of.take("rope.scale_linear", 1.0)) or 1.0
    kind = of.take("rope.scaling.type", "linear")
    original = of.take("rope.scaling.original_context_length", None)
    of.take("rope.scaling.finetuned", None)
    if "rope_freqs.weight" in tensors:
        if kind == "yarn" or (kind == "linear" and factor != 1):
            raise UserError("it has both rope.scaling and rope_freqs.weight, which is not supported")
        return rope | _llama3(_dequantised(tensors["rope_freqs.weight"]), rope["rope_theta"], head_width)
    if kind == "yarn" and original is None:
        raise UserError(f"its metadata has no {of.architecture}.rope.scaling.original_context_length")
    if kind == "yarn":
        beta = {f"beta_{end}": of.take(f"rope.scaling.yarn_beta_{end}", None) for end in ("fast", "slow")}
        given = {name: value for name, value in beta.items() if value is not None}
        yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        return rope | yarn | given
    if kind not in ("linear", "none"):
        raise UserError(f"its {of.architecture}.rope.scaling.type = {kind} is not supported")
    return rope if factor == 1 or kind == "none" else rope | {"rope_type": "linear", "factor": factor}


def _llama3(factors, base, head_width):
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


def _llama(of, tensors, width, special):
    fields = _decoder(of, width, special)
    fields["head_dim"] = _head_width(of, fields)
    of.expect("tensor_data_layout", "", "Meta AI original pth")
    return transformers.LlamaConfig(
        **fields,
        rope_parameters=_rope(of, tensors, fields["head_dim"]),
        attention_bias="blk.0.attn_q.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
    )


def _qwen2(of, tensors, width, special):
    fields = _decoder(of, width, special)
    fields["head_dim"] = _head_width(of, fields)
    return transformers.Qwen2Config(**fields, rope_parameters=_rope(of, tensors, fields["head_dim"]))


def _qwen3(of, tensors, width, special):
    fields = _decoder(of, width, special)
    fields["head_dim"] = _head_width(of, fields)
    rope = _rope(of, tensors, fields["head_dim"])
    return transformers.Qwen3Config(**fields, rope_parameters=rope, attention_bias="blk.0.attn_q.bias" in tensors)


def _gemma(of, tensors, width, special, largest):
    """largest: number of layers of the one size whose attention is scaled by the residual stream's width."""
    fields = _decoder(of, width, special)
    fields["head_dim"] = _head_width(of, fields)
    whole = width // fields["num_attention_heads"]
    fields["query_pre_attn_scalar"] = whole if fields["num_hidden_layers"] == largest else fields["head_dim"]
    fields["final_logit_softcapping"] = of.take("final_logit_softcapping", None)
    return fields


def _gemma2(of, tensors, width, special):
    fields = _gemma(of, tensors, width, special, largest=46)
    return transformers.Gemma2Config(
        **fields | {"final_logit_softcapping": fields["final_logit_softcapping"] or 30.0},
        attn_logit_softcapping=of.take("attn_logit_softcapping", 50.0),
        sliding_window=of.take("attention.sliding_window", 4096),
        rope_parameters=_rope(of, tensors, fields["head_dim"]),
    )


def _gemma3(of, tensors, width, special):
    fields = _gemma(of, tensors, width, special, largest=62)
    every = of.take("attention.sliding_window_pattern", 6)
    window = of.take("attention.sliding_window", 0)
    local = {"rope_type": "default", "rope_theta": of.take("rope.freq_base_swa", 10_000.0)}
    layers = range(1, fields["num_hidden_layers"] + 1)
    return transformers.Gemma3TextConfig(
        **fields,
        attn_logit_softcapping=None,
        sliding_window=window or fields["max_position_embeddings"],
        layer_types=["sliding_attention" if window and layer % every else "full_attention" for layer in layers],
        rope_parameters={
            "full_attention": _rope(of, tensors, fields["head_dim"], base=1_000_000.0),
            "sliding_attention": local,
        },
    )


def _gpt2(of, tensors, width, special):
    return transformers.GPT2Config(
        **special,
        n_embd=width,
        n_layer=of.take("block_count"),
        n_head=of.take("attention.head_count"),
        n_inner=of.take("feed_forward_length"),
        n_positions=of.take("context_length"),
        layer_norm_epsilon=of.take("attention.layer_norm_epsilon"),
    )


def _phi3(of, tensors, width, special):
    fields = _decoder(of, width, special)
    head_width = width // fields["num_attention_heads"]
    rotated = of.take("rope.dimension_count", head_width)
    rope = _rope(of, tensors, rotated) | {"partial_rotary_factor": rotated / head_width}
    window = of.take("attention.sliding_window", 0) or None
    return transformers.Phi3Config(**fields, rope_parameters=rope, sliding_window=window, pad_token_id=None)


def _stablelm(of, tensors, width, special):
    fields = _decoder(of, width, special, ("attention.layer_norm_epsilon", "layer_norm_eps"))
    head_width = width // fields["num_attention_heads"]
    rotated = of.take("rope.dimension_count", head_width)
    return transformers.StableLmConfig(
        **fields,
        rope_parameters=_rope(of, tensors, rotated) | {"partial_rotary_factor": rotated / head_width},
        use_parallel_residual=of.take("use_parallel_residual", True),
        use_qkv_bias="blk.0.attn_q.bias" in tensors,
    )


def _bloom(of, tensors, width, special):
    of.take("context_length")  # ALiBi has none
    of.expect("feed_forward_length", 4 * width)
    heads = of.take("attention.head_count")
    of.expect("attention.head_count_kv", heads)
    return transformers.BloomConfig(
        **special,
        hidden_size=width,
        n_layer=of.take("block_count"),
        n_head=heads,
        layer_norm_epsilon=of.take("attention.layer_norm_epsilon"),
    )


def _as_it_is(_name, value, _config):
    return value


def _rotary_halves(name, value, config):
    """Llama's queries and keys: rotated pairs stand side by side in the file, in halves in transformers."""
    if ".q_proj." in name or ".k_proj." in name:
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return value.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(value.shape)
    return value


def _norms_from_zero(name, value, _config):
    """Gemma's norms multiply by 1 + weight; the file has the sum."""
    return value - 1 if name.endswith("norm.weight") else value


def _input_first(name, value, _config):
    """GPT-2's Conv1D."""
    return value.T if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name) else value


def _by_head(name, value, config):
    """Bloom's queries, keys and values: all queries first in the file, head by head in transformers."""
    if "query_key_value" in name:
        return value.unflatten(0, (3, config.n_head, -1)).transpose(0, 1).reshape(value.shape)
    return value


@dataclass(frozen=True)
class Format:
    """How one architecture is written. config: (metadata, tensors, hidden size, further fields) -> configuration;
    undo: (name in transformers, tensor of the file, configuration) -> the tensor as transformers has it."""

    config: Callable
    undo: Callable = _as_it_is


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


def _weights(config, architecture, tensors):
    """{name in transformers: float32 tensor}. Raises UserError unless file and model have each other's tensors."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    ends = (".weight", ".bias")
    source = {
        name: names.get_name(name, ends) or names.get_name(name.removeprefix("transformer."), ends) for name in shapes
    }
    absent = [of or name for name, of in source.items() if of not in tensors]
    if absent:
        raise UserError(f"it has no tensor {listed(absent)}")
    unused = tensors.keys() - set(source.values()) - {"rope_freqs.weight"}
    if unused:
        raise UserError(f"the model of its metadata has no place for its tensor {listed(sorted(unused))}")
    weights = {}
    for name, of in source.items():
        value = FORMATS[architecture].undo(name, _dequantised(tensors[of]), config).contiguous()
        if value.shape != shapes[name]:
            raise UserError(f"its {of} is {tuple(value.shape)}, its metadata says {shapes[name]}")
        weights[name] = value
    return weights


def _dequantised(tensor):
    try:
        return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
    except NotImplementedError as error:
        raise UserError(
            f"its {tensor.name} is of the type {tensor.tensor_type.name}, which is not supported"
        ) from error


def _require_whole_header(path):
    """Raise UserError if a length in a GGUF file's metadata goes beyond the file: its reader would fill the memory.

    Format: ggml's docs/gguf.md.
    """
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value of each type
    string, array = 8, 9
    end = path.stat().st_size

    def skip(n):
        if file.tell() + n > end:
            raise ValueError("the file ends within its metadata")
        file.seek(n, os.SEEK_CUR)

    def number(form):
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]

    def skip_value(kind):
        if kind == string:
            skip(number("<Q"))
        elif kind == array:
            of, n = number("<I"), number("<Q")
            if of in sizes:
                skip(n * sizes[of])
            else:
                for _ in range(n):
                    skip_value(of)
        elif kind in sizes:
            skip(sizes[kind])
        else:
            raise ValueError(f"no such type: {kind}")

    with open(path, "rb") as file:
        try:
            if file.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            skip(struct.calcsize("<I"))  # version
            n_tensors = number("<Q")
            for _ in range(number("<Q")):
                skip(number("<Q"))
                skip_value(number("<I"))
            needed = 0
            for _ in range(n_tensors):
                skip(number("<Q"))
                elements = math.prod(number("<Q") for _ in range(number("<I")))
                block, size = gguf.GGML_QUANT_SIZES[number("<I")]
                needed = max(needed, number("<Q") + elements // block * size)
            if file.tell() + needed > end:
                raise ValueError(f"the file is cut short: it has {end:,} bytes, its tensors end after {needed:,} more")
        except (ValueError, KeyError, struct.error, RecursionError) as error:
            raise UserError(f"cannot load '{path}': {cause(error)}") from error
