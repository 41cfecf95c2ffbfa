"""GGUF files: all of them is in the model, in the file's own tokens, or they are refused by name.

Checked by hand against llama.cpp: its tokens for every pre-tokenizer here and for three real models, its next-token
probabilities for these, and every architecture written by its own converter.
"""

import json
import subprocess
import sys
import time

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lib.model import converted, gguf_file, gguf_formats, gguf_tokenizer, models, packaged
from lib.run.checkout import ROOT
from lib.run.cli import Options, UserError
from tests.conftest import HEADS, HIDDEN, gguf_name, logits, make_tokenizer, tiny_model, token_ids


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(path, **options):
    return models.load(Options(model=str(path), device="cpu", **options))


def metadata(path):
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def rewritten(path, out, values=(), without=(), tensors=None):
    """A GGUF file with other metadata (None: left out) and without some tensors, or with other ones."""
    reader, values = gguf.GGUFReader(path), dict(values)
    old = metadata(path)
    writer = gguf.GGUFWriter(out, values.pop("general.architecture", old["general.architecture"]))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in values:
            kinds = field.types
            writer.add_key_value(key, old[key], kinds[0], kinds[1] if len(kinds) > 1 else None)
    for key, value in values.items():
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(
                key, value, kind, gguf.GGUFValueType.get_type(value[0]) if kind == gguf.GGUFValueType.ARRAY else None
            )
    for tensor in reader.tensors:
        if tensor.name not in without and tensor.name not in (tensors or {}):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def refused(path, match):
    with pytest.raises(UserError, match=match) as error:
        load(path)
    assert "\n" not in str(error.value)


# --- weights -----------------------------------------------------------------


def gguf_tensors(path, head_dim):
    """{name in GGUF: dequantised tensor}, rotary dims in the order of transformers: halves, not pairs."""
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        value = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        if "attn_q." in tensor.name or "attn_k." in tensor.name:
            value = value.view(-1, head_dim // 2, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        tensors[tensor.name] = value
    return tensors


def holds(folder, expected):
    """Whether a folder's weights are those of gguf_tensors."""
    cached = load_file(folder / "model.safetensors")
    assert len(cached) == len(expected)
    for name, value in cached.items():
        assert torch.equal(value, expected[gguf_name(name)]), name
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    return True


@pytest.mark.real
@pytest.mark.slow
def test_the_packaged_model_is_what_is_in_its_gguf_file(monkeypatch, smollm2):
    monkeypatch.undo()  # the cache that the model was loaded from
    folder = models._from_gguf("smollm2-135m", smollm2.source["gguf_sha256"], list)
    assert holds(folder, gguf_tensors(packaged.gguf("smollm2-135m"), smollm2.arch.head_dims[0]))


@pytest.mark.slow
def test_two_processes_dequantise_at_once(tiny_gguf, tmp_path, monkeypatch):
    """This one and another: both succeed, one complete folder remains, and it holds what is in the GGUF file. Neither
    begins alone."""
    script = """
import sys, time
from pathlib import Path
from lib.model import gguf_file, models

own, other, gguf = map(Path, sys.argv[1:])
convert = gguf_file.convert

def together(*arguments):
    own.touch()
    while not other.exists():
        time.sleep(0.01)
    convert(*arguments)

gguf_file.convert = together
print(models._from_gguf("m", "x", lambda: [gguf]))
"""
    own, other, convert = tmp_path / "own", tmp_path / "other", gguf_file.convert
    started = subprocess.Popen(
        [sys.executable, "-c", script, other, own, tiny_gguf], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )

    def together(*arguments):
        own.touch()
        while not other.exists():
            assert started.poll() is None
            time.sleep(0.01)
        convert(*arguments)

    monkeypatch.setattr(gguf_file, "convert", together)
    made = models._from_gguf("m", "x", lambda: [tiny_gguf])
    said = started.communicate()[0]
    assert started.returncode == 0
    (folder,) = (tmp_path / "cache" / "massive-activations").iterdir()
    assert said.splitlines()[-1] == str(made) == str(folder)
    assert holds(folder, gguf_tensors(tiny_gguf, HIDDEN // HEADS))


def cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-200])


def flip(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 64
    (folder / "model.safetensors").write_bytes(content)


def replace(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("")


@pytest.mark.parametrize("damage", [cut, flip, lambda folder: (folder / "config.json").unlink(), replace])
def test_a_damaged_folder_in_the_cache_is_made_anew(damage, tiny_gguf):
    made = models._from_gguf("m", "x", lambda: [tiny_gguf])
    damage(made)
    assert models._from_gguf("m", "x", lambda: [tiny_gguf]) == made
    assert holds(made, gguf_tensors(tiny_gguf, HIDDEN // HEADS))


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "output_norm.weight", "token_embd.weight"])
def test_a_missing_tensor(name, tiny_gguf, tmp_path):
    refused(rewritten(tiny_gguf, tmp_path / "m.gguf", without=[name]), name)


@pytest.mark.parametrize("name", ["blk.0.attn_q_norm.weight", "blk.3.attn_norm.weight", "blk.0.attn_sinks.weight"])
def test_a_tensor_too_many(name, tiny_gguf, tmp_path):
    path = rewritten(tiny_gguf, tmp_path / "m.gguf", tensors={name: np.ones(HIDDEN, "float32")})
    refused(path, rf"no place for its tensor {name}")


def test_a_bias_is_loaded_not_dropped(tiny_gguf, tmp_path):
    """transformers knows Llama files without."""
    biases = {
        f"blk.{layer}.{part}.bias": np.full(width, 1 + layer, "float32")
        for layer in range(3)
        for part, width in (("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32))
    }
    lm = load(rewritten(tiny_gguf, tmp_path / "m.gguf", tensors=biases))
    assert all((block.self_attn.o_proj.bias == 1 + i).all() for i, block in enumerate(lm.arch.blocks))
    del biases["blk.2.attn_v.bias"]
    refused(rewritten(tiny_gguf, tmp_path / "n.gguf", tensors=biases), r"no tensor blk\.2\.attn_v\.bias")


def test_a_tensor_of_another_shape(tiny_gguf, tmp_path):
    path = rewritten(tiny_gguf, tmp_path / "m.gguf", tensors={"blk.0.attn_norm.weight": np.ones(8, "float32")})
    refused(path, r"blk\.0\.attn_norm\.weight is \(8,\), its metadata says \(32,\)")


def test_split_files(tiny_gguf, tmp_path):
    """All parts together are the model; one that is absent is named."""
    names = [tensor.name for tensor in gguf.GGUFReader(tiny_gguf).tensors]
    paths = [tmp_path / f"m-{i:05d}-of-00002.gguf" for i in (1, 2)]
    rewritten(tiny_gguf, paths[0], {"split.count": 2, "split.no": 0}, without=names[10:])
    rewritten(tiny_gguf, paths[1], {"split.count": 2, "split.no": 1}, without=names[:10])
    whole, ids = load(tiny_gguf), token_ids(1, 8)
    assert torch.equal(logits(load(paths[0]), ids), logits(whole, ids))
    paths[1].unlink()
    refused(paths[0], r"one part of 2; absent: m-00002-of-00002\.gguf")


def test_a_part_under_another_name(tiny_gguf, tmp_path):
    names = [tensor.name for tensor in gguf.GGUFReader(tiny_gguf).tensors]
    values = {"split.count": 2, "split.no": 0}
    refused(rewritten(tiny_gguf, tmp_path / "m.gguf", values, without=names[10:]), "part 1 of 2")


def test_an_adapter(tiny_gguf, tmp_path):
    refused(rewritten(tiny_gguf, tmp_path / "m.gguf", {"general.type": "adapter"}), "no model but an adapter")


def test_infinite_weights_are_told_as_such(tiny_gguf, tmp_path):
    damaged = {"blk.0.attn_norm.weight": np.full(32, np.inf, "float32")}
    path = rewritten(tiny_gguf, tmp_path / "m.gguf", tensors=damaged)
    with pytest.raises(UserError, match=r"layers\.0\.input_layernorm\.weight .* infinite") as error:
        load(path)
    assert "float16" not in str(error.value)


def test_a_pointer_of_git_lfs(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(path, "Git LFS")


# --- metadata ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.attn_factor", 1.5),
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("rope.dimension_count", 4),
        ("attention.scale", 0.5),
        ("attention.scale", 1.0),
        ("attention.key_length", 16),
        ("attention.value_length", 16),
        ("attention.sliding_window", 8),
        ("attention.causal", False),
        ("attention.max_alibi_bias", 8.0),
        ("attention.clamp_kqv", 8.0),
        ("attention.head_count_kv", [2, 1, 2]),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.1),
        ("residual_scale", 0.2),
        ("embedding_scale", 12.0),
        ("expert_count", 8),
        ("tensor_data_layout", "somehow else"),
        ("vocab_size", 12),
        ("something.not.yet.invented", 3),
    ],
)
def test_metadata_that_is_not_carried_out_is_refused_by_name(key, value, tiny_gguf, tmp_path):
    named = {"vocab_size": "token_embd", "attention.key_length": "rope.dimension_count = 8"}.get(key, key)
    refused(rewritten(tiny_gguf, tmp_path / "m.gguf", {f"llama.{key}": value}), named.replace(".", r"\."))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.type", "none"),
        ("rope.scaling.factor", 1.0),
        ("rope.scaling.finetuned", False),
        ("attention.causal", True),
        ("attention.sliding_window", 0),
        ("expert_count", 0),
        ("attention.scale", 0.0),
        ("attention.head_count_kv", [2, 2, 2]),
        ("tensor_data_layout", "Meta AI original pth"),
    ],
)
def test_metadata_that_means_nothing_is_no_error(key, value, tiny_gguf, tmp_path):
    ids = token_ids(1, 8)
    lm = load(rewritten(tiny_gguf, tmp_path / "m.gguf", {f"llama.{key}": value}))
    assert torch.equal(logits(lm, ids), logits(load(tiny_gguf), ids))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rope.freq_base": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        ),
    ],
)
def test_rotary_scaling_is_carried_out(values, expected, tiny_gguf, tmp_path):
    """As by a Llama of the same weights that is configured so in transformers."""
    lm = load(rewritten(tiny_gguf, tmp_path / "m.gguf", {f"llama.{key}": value for key, value in values.items()}))
    parameters = {"rope_theta": 10_000.0, **expected}
    reference = tiny_model("llama", rope_parameters=parameters)
    reference.load_state_dict(lm.model.state_dict())
    ids = token_ids(1, 48)
    with torch.inference_mode():
        ours, theirs = logits(lm, ids), reference(ids).logits
        plain = tiny_model("llama")
        plain.load_state_dict(lm.model.state_dict())
        assert not torch.allclose(theirs, plain(ids).logits, atol=1e-3)
    torch.testing.assert_close(ours, theirs)


def test_factors_of_rotary_frequencies(tiny_gguf, tmp_path):
    """Llama 3.1's, which a file has as a tensor, are recognised; others are refused."""
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, **gguf_formats.LLAMA3},
    )
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    plain = 5e5 ** -(torch.arange(0, 8, 2) / 8)
    factors = (plain / rotary.inv_freq).numpy()
    values = {"llama.rope.freq_base": 5e5}
    lm = load(rewritten(tiny_gguf, tmp_path / "m.gguf", values, tensors={"rope_freqs.weight": factors}))
    torch.testing.assert_close(lm.model.model.rotary_emb.inv_freq, rotary.inv_freq)
    factors[-1] += 1
    path = rewritten(tiny_gguf, tmp_path / "n.gguf", values, tensors={"rope_freqs.weight": factors})
    refused(path, r"rope_freqs\.weight are not those of Llama 3\.1")


@pytest.mark.parametrize("key", ["attention.head_count", "block_count", "context_length", "feed_forward_length"])
def test_metadata_that_is_missing_is_named(key, tiny_gguf, tmp_path):
    refused(rewritten(tiny_gguf, tmp_path / "m.gguf", {f"llama.{key}": None}), rf"has no llama\.{key}")


@pytest.mark.parametrize("key", ["tokens", "merges"])
def test_a_vocabulary_that_is_missing_is_named(key, tiny_gguf, tmp_path):
    refused(rewritten(tiny_gguf, tmp_path / "m.gguf", {f"tokenizer.ggml.{key}": None}), rf"no tokenizer\.ggml\.{key}")


def test_a_download_that_broke_off(tiny_gguf, tmp_path):
    (tmp_path / "m.gguf").write_bytes(tiny_gguf.read_bytes()[:-5000])
    refused(tmp_path / "m.gguf", "the file is cut short")


def test_parts_that_hold_the_same_tensor(tiny_gguf, tmp_path):
    names = [tensor.name for tensor in gguf.GGUFReader(tiny_gguf).tensors]
    paths = [tmp_path / f"m-{i:05d}-of-00002.gguf" for i in (1, 2)]
    rewritten(tiny_gguf, paths[0], without=names[10:])
    rewritten(tiny_gguf, paths[1], without=names[:9])
    refused(paths[0], "the same tensor more than once")


def test_an_architecture_that_is_not_known(tiny_gguf, tmp_path):
    refused(
        rewritten(tiny_gguf, tmp_path / "m.gguf", {"general.architecture": "mamba"}), "GGUF architecture 'mamba'.*llama"
    )


# what llama.cpp's converter does to the tensors of each architecture, said in other words than in gguf_formats.py
def llama_rows(name, value, config):
    if "attn_q." in name or "attn_k." in name:
        heads = config.num_attention_heads if "attn_q." in name else config.num_key_value_heads
        return torch.cat([h.view(2, -1, h.shape[1]).permute(1, 0, 2).flatten(0, 1) for h in value.chunk(heads)])
    return value


WRITTEN = {
    "llama": llama_rows,
    "qwen2": lambda _name, value, _config: value,
    "qwen3": lambda _name, value, _config: value,
    "gemma3_text": lambda name, value, _config: value + 1 if "norm" in name else value,
    "gpt2": lambda name, value, _config: value.T if value.ndim == 2 and "embd" not in name else value,
}


def written(path, family, tokenizer, **overrides):
    """A tiny model of a family as a GGUF file, and the model."""
    model = tiny_model(family, **overrides)
    config = model.config
    name = "gemma3" if family == "gemma3_text" else family
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if family == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_head_count_kv(config.num_key_value_heads)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if family == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    for of, value in model.state_dict().items():
        if of == "lm_head.weight" and config.tie_word_embeddings:
            continue
        short = of.removeprefix("transformer.")
        theirs = names.get_name(of, (".weight", ".bias")) or names.get_name(short, (".weight", ".bias"))
        writer.add_tensor(theirs, WRITTEN[family](theirs, value, config).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("family", WRITTEN)
def test_every_architecture_is_the_model_that_was_written(family, tokenizer, tmp_path):
    """Gemma 3: seven layers, of which the sixth sees everything; scores scaled by the head's width."""
    overrides = {}
    if family == "gemma3_text":
        kinds = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
        overrides = {"num_hidden_layers": 7, "layer_types": kinds, "query_pre_attn_scalar": 8}
    model = written(tmp_path / "m.gguf", family, tokenizer, **overrides)
    ids = token_ids(2, 40)
    with torch.inference_mode():
        torch.testing.assert_close(logits(load(tmp_path / "m.gguf"), ids), model(ids).logits, atol=1e-5, rtol=1e-5)


# --- tokens ------------------------------------------------------------------

TEXTS = (
    "x  5",
    "I'M  here, you'll see 12345 (and) 0.5\n\n  end",
    "Ünïcode — “quotes” 日本語 🙂 ½",
    "a_b+=3;\r\n\tif x:",
)


@pytest.mark.real
def test_digits_stand_alone_in_the_packaged_model(smollm2):
    """Its tokenizer.json splits digits first; by GPT-2's rule the second space would go to the digit."""
    assert smollm2.tokenizer("x  5", add_special_tokens=False)["input_ids"] == [104, 256, 37]


@pytest.fixture(scope="module")
def described():
    """The metadata of a byte-level tokenizer that has merged across whatever its splitter would have kept apart."""
    own = make_tokenizer()
    backend = own.backend_tokenizer
    merges = json.loads(backend.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": own.convert_ids_to_tokens(range(len(own))),
        "tokenizer.ggml.token_type": [3] + [1] * (len(own) - 1),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 0,
    }


def pieces(pre, text):
    backend = gguf_tokenizer._byte_level(
        {"pre": pre, "merges": [], "tokens": []}, {c: i for i, c in enumerate("abc")}, []
    )
    return [text[start:end] for _piece, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "x  5 it's 123", ["x", " ", " 5", " it", "'s", " 123"]),
        ("smollm", "x  5 it's 123", ["x", "  ", "5", " it", "'s", " ", "1", "2", "3"]),
        ("llama-bpe", "x  5 IT'S 12345\n\n", ["x", " ", " ", "5", " IT", "'S", " ", "123", "45", "\n\n"]),
        ("qwen2", "x  5 IT'S 123\n\n", ["x", " ", " ", "5", " IT", "'S", " ", "1", "2", "3", "\n\n"]),
        ("tekken", "camelCase ABCdef 12", ["camel", "Case", " ABCdef", " ", "1", "2"]),
        ("gpt-4o", "camelCase can't 12345", ["camel", "Case", " can't", " ", "123", "45"]),
        ("falcon", "a,b 12345", ["a", ",", "b", " ", "123", "45"]),
        ("bloom", "a, b(c", ["a", ",", " b", "(", "c"]),
        ("default", "a,b 12345", ["a", ",", "b", " ", "123", "45"]),
    ],
)
def test_pre_tokenizers(pre, text, expected):
    assert pieces(pre, text) == expected


@pytest.mark.parametrize("pre", ["chatglm-bpe", "kimi-k2", "", "brand-new"])
def test_a_pre_tokenizer_that_is_not_known_is_refused_by_name(pre, tiny_gguf, tmp_path):
    refused(rewritten(tiny_gguf, tmp_path / "m.gguf", {"tokenizer.ggml.pre": pre}), f"pre-tokenizer '{pre}'.*gpt-2")


def test_a_file_that_names_no_pre_tokenizer(tiny_gguf, tiny_llama_folder, tmp_path):
    path = rewritten(tiny_gguf, tmp_path / "m.gguf", {"tokenizer.ggml.pre": None})
    refused(path, "does not name its pre-tokenizer.*--tokenizer")
    assert load(path, tokenizer=str(tiny_llama_folder)).tokenizer("Some text")["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "plamo2"])
def test_a_kind_of_tokenizer_that_is_not_known(kind, tiny_gguf, tmp_path):
    refused(rewritten(tiny_gguf, tmp_path / "m.gguf", {"tokenizer.ggml.model": kind}), f"of the kind '{kind}'")


def test_bos_is_put_first_where_the_file_says_so(described):
    for pre, flag, first in [("gpt-2", None, False), ("gpt-2", True, True), ("llama-bpe", None, True)]:
        of = described | {"tokenizer.ggml.pre": pre}
        of |= {} if flag is None else {"tokenizer.ggml.add_bos_token": flag}
        assert (gguf_tokenizer.build(of)("some text")["input_ids"][0] == 0) is first


def test_the_cached_tokenizer_is_the_one_that_was_built(described, tiny_gguf):
    for _ in range(2):
        lm = load(tiny_gguf)
        built = gguf_tokenizer.build(metadata(tiny_gguf))
        for text in TEXTS:
            assert lm.tokenizer(text)["input_ids"] == built(text)["input_ids"]
            assert lm.tokenizer.decode(lm.tokenizer(text)["input_ids"]) == text


def sentencepiece(tokens, scores, prefix=True):
    n = len(tokens)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), *tokens],
        "tokenizer.ggml.scores": [0.0] * 258 + scores,
        "tokenizer.ggml.token_type": [2, 3] + [6] * 256 + [1] * n,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def merged_by_score(of, text):
    """SentencePiece's rule, step by step: of all neighbours that a token joins, the leftmost of the highest score."""
    tokens, scores = of["tokenizer.ggml.tokens"], of["tokenizer.ggml.scores"]
    ids = {token: i for i, token in enumerate(tokens)}
    symbols = list((" " * of["tokenizer.ggml.add_space_prefix"] + text).replace(" ", "\u2581"))
    while True:
        joined = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(zip(symbols, symbols[1:])) if a + b in ids]  # noqa: B905, RUF007
        if not joined:
            break
        i = -max(joined)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    out = []
    for symbol in symbols:
        out += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return out


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_sentencepiece_merges_by_score(seed, prefix):
    rng = np.random.default_rng(seed)
    letters = list("abcd\u2581")
    longer = sorted({"".join(rng.choice(letters, rng.integers(2, 5))) for _ in range(60)})
    of = sentencepiece(letters + longer, list(-rng.permutation(len(letters) + len(longer)).astype(float)), prefix)
    tokenizer = gguf_tokenizer.build(of)
    for _ in range(40):
        text = "".join(rng.choice([*"abcd ", "é", "z"], rng.integers(1, 30)))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == merged_by_score(of, text), text
        assert tokenizer.decode(ids) == text


def test_pieces_of_the_same_score_are_refused():
    """Neighbours are then joined in the order of their places, which merges cannot say."""
    gguf_tokenizer.build(sentencepiece(["a", "b", "ab"], [0.0, -1.0, -2.0]))
    with pytest.raises(UserError, match="pieces of the same score"):
        gguf_tokenizer.build(sentencepiece(["a", "b", "ab", "ba"], [0.0, -1.0, -2.0, -2.0]))


def test_user_defined_tokens_are_taken_whole_and_control_tokens_are_not_text(tiny_gguf):
    of = sentencepiece(["a", "<b>", "\u2581"], [0.0, -1.0, -2.0], prefix=False)
    of["tokenizer.ggml.token_type"][-2] = 4
    tokenizer = gguf_tokenizer.build(of)
    ids = tokenizer("a<b><s>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids[:2] == [258, 259]
    assert 1 not in ids


# --- the cache ---------------------------------------------------------------


def test_the_cache_does_not_outlive_the_converter(tiny_gguf, monkeypatch, capsys):
    said = []
    for converter in ("one", "one", "two"):
        monkeypatch.setattr(converted, "_digest", lambda _code, converter=converter: converter)
        load(tiny_gguf)
        said.append("dequantising" in capsys.readouterr().out)
    assert said == [True, False, True]


@pytest.mark.parametrize("module", [gguf_formats, gguf_file, gguf_tokenizer, converted])
def test_the_converter_is_its_code_and_its_libraries(tiny_gguf, monkeypatch, tmp_path, module):
    def made():
        return models._from_gguf("m", "x", lambda: [tiny_gguf]).name

    before = made()
    with monkeypatch.context() as other:
        other.setattr(converted.importlib.metadata, "version", lambda name: "0")
        versions = made()
    changed = tmp_path / "changed.py"
    changed.write_text("# changed")
    monkeypatch.setattr(module, "__file__", str(changed))
    assert len({before, versions, made()}) == 3


def test_without_a_cache(tiny_gguf, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    ids = token_ids(1, 8)
    model = load(tiny_gguf)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert torch.equal(logits(model, ids), logits(load(tiny_gguf), ids))


def test_upper_case_endings(tiny_gguf, tmp_path):
    path = tmp_path / "M.GGUF"
    path.write_bytes(tiny_gguf.read_bytes())
    assert load(path).source["gguf"] == "M.GGUF"
