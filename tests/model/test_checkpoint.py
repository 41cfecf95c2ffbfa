"""Model folders: what runs is what their files say, or one line says why not."""

import io
import json
import math
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import main_llm
from experiments.layerwise import measure
from lib import experiment
from lib.core import data
from lib.model import hub, models
from lib.model.discovery import require_causal
from lib.run.cli import Options, UserError
from tests import every_type, mixtures
from tests.cases import close
from tests.conftest import END, POSITIONS, logits, make_tokenizer, save, tiny_model, token_ids
from tests.conftest import TEXT as TEXT_TO_LEARN
from tests.scripts.test_scripts import run

MASK = torch.ones(POSITIONS, POSITIONS).tril()[None, None]


def load(name, **options):
    return models.load(Options(model=str(name), device="cpu", **options))


def refused(folder, match, **options):
    with pytest.raises(UserError, match=match) as error:
        load(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def gpt2(tiny_gpt2_folder, tmp_path):
    return shutil.copytree(tiny_gpt2_folder, tmp_path / "gpt2-copy")


@pytest.fixture
def llama(tiny_llama_folder, tmp_path):
    return shutil.copytree(tiny_llama_folder, tmp_path / "llama-copy")


def change_weights(folder, change):
    """change: gets {name: tensor}, to be altered in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(path, **values):
    """Other values in a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# --- 1: tokens ---------------------------------------------------------------

TEXT = "x  5 it's 12345 (and)  0.5\n\n  end Ünïcode"


@pytest.fixture
def digits_first(llama):
    """A folder whose tokenizer.json splits digits off; its configuration names a class that does not."""
    path = llama / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, content["pre_tokenizer"]],
    }
    path.write_text(json.dumps(content))
    return llama


@pytest.mark.parametrize(
    "named",
    [
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"tokenizer_class": "GemmaTokenizer"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"tokenizer_class": "NoSuchTokenizer"},
        {"tokenizer_class": None},
        {"add_prefix_space": True},
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
        {"do_lower_case": True, "tokenizer_class": "BertTokenizer"},
        {"model_max_length": 4},
    ],
)
def test_ids_are_those_of_tokenizer_json(named, digits_first):
    change_json(digits_first / "tokenizer_config.json", **named)
    own = Tokenizer.from_file(str(digits_first / "tokenizer.json"))
    ids = load(digits_first).tokenizer(TEXT, add_special_tokens=False, verbose=False)["input_ids"]
    assert ids == own.encode(TEXT, add_special_tokens=False).ids


def test_a_length_in_tokenizer_json_cuts_nothing(llama):
    own = Tokenizer.from_file(str(llama / "tokenizer.json"))
    own.enable_truncation(5)
    own.enable_padding(length=100)
    own.save(str(llama / "tokenizer.json"))
    ids = load(llama).tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    own.no_truncation()
    own.no_padding()
    assert ids == own.encode(TEXT, add_special_tokens=False).ids


def test_dropout_of_merges_is_for_training(llama):
    path = llama / "tokenizer.json"
    content = json.loads(path.read_text())
    expected = load(llama).tokenizer(TEXT)["input_ids"]
    content["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content))
    lm = load(llama)
    assert all(lm.tokenizer(TEXT)["input_ids"] == expected for _ in range(3))


def test_a_tokenizer_of_vocabulary_and_merges(gpt2):
    """As GPT-2's and OPT's repositories have it; without the merges it would cut words into letters."""
    own = make_tokenizer()
    content = json.loads(own.backend_tokenizer.to_str())["model"]
    (gpt2 / "tokenizer.json").unlink()
    vocabulary = content["vocab"] | {f"filler{i}": 300 + i for i in range(20)}
    (gpt2 / "vocab.json").write_text(json.dumps(vocabulary))
    (gpt2 / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in content["merges"]))
    change_json(gpt2 / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    assert load(gpt2).tokenizer(TEXT, add_special_tokens=False)["input_ids"] == own(TEXT)["input_ids"]
    (gpt2 / "merges.txt").unlink()
    refused(gpt2, "no merges|merges")


@pytest.mark.parametrize(
    ("end", "named", "expected"),
    [
        ("<|endoftext|>", {}, "<|endoftext|>"),
        ("<|endoftext|>", {"bos_token": None}, None),
        ("<|endoftext|>", {"bos_token": "a"}, "a"),
        ("<|other|>", {}, None),
    ],
)
def test_a_bos_token_that_the_class_of_the_type_names(end, named, expected, gpt2):
    """GPT-2's own files tell no more than the length. What they tell stands, and no token is made up."""
    path = gpt2 / "tokenizer.json"
    path.write_text(path.read_text().replace(END, end))
    (gpt2 / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024, **named}))
    tokenizer = load(gpt2).tokenizer
    assert (tokenizer.bos_token, len(tokenizer)) == (expected, 300)


SPLITS_LIKE_LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}


@pytest.mark.parametrize(
    ("kind", "how", "fits"), [("bpe", SPLITS_LIKE_LLAMA, True), ("bpe", {}, False), ("unigram", {}, False)]
)
def test_a_tokenizer_of_a_sentencepiece_file(kind, how, fits, llama, capfd):
    """Llama's class fits files that are made as Llama's was, and is refused for others."""
    written = io.BytesIO()
    sentences = iter(TEXT_TO_LEARN.split("\n"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=written,
        vocab_size=318,
        character_coverage=0.99,
        model_type=kind,
        **how,
    )
    (llama / "tokenizer.model").write_bytes(written.getvalue())
    (llama / "tokenizer.json").unlink()
    change_json(llama / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", add_bos_token=True)
    if not fits:
        refused(llama, r"LlamaTokenizer does not give .* the ids of tokenizer\.model|no tokenizer")
        return
    own = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    lm = load(llama)
    for text in (TEXT, "  a  b\n\nc ", "日本 🙂"):
        assert lm.tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text)


def test_a_tokenizer_that_knows_no_latin_letters(llama):
    content = json.loads((llama / "tokenizer.json").read_text())
    letters = {letter: i for i, letter in enumerate(["<|end|>", "あ", "い", "う", "え", "お"])}
    content["model"] |= {"vocab": letters, "merges": [], "unk_token": None}
    content["pre_tokenizer"], content["decoder"] = {"type": "Whitespace"}, None
    (llama / "tokenizer.json").write_text(json.dumps(content))
    assert load(llama).tokenizer("いろあ", add_special_tokens=False)["input_ids"] == [2, 1]


def test_an_unused_entry_beyond_the_model_is_no_error(llama):
    own = transformers.AutoTokenizer.from_pretrained(llama)
    own.add_tokens([f"<extra {i}>" for i in range(50)])
    own.save_pretrained(llama)
    assert len(load(llama).tokenizer) == 350


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_of_a_tokenizer_is_named(name, gpt2):
    content = (gpt2 / name).read_text()
    (gpt2 / name).write_text(content[: len(content) // 2])
    refused(gpt2, f"cannot read .*/{name}: ")


def test_an_empty_vocabulary(gpt2):
    for path in gpt2.glob("tokenizer*"):
        path.unlink()
    refused(gpt2, "--tokenizer")


# --- 2: weights --------------------------------------------------------------


def test_old_gpt2_checkpoints_load_as_they_are(gpt2):
    """Names without the class's prefix, causal masks and their fill value among the weights."""
    before = logits(load(gpt2), token_ids(1, 8))

    def as_published(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(3):
            tensors[f"h.{layer}.attn.bias"] = MASK.clone()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    change_weights(gpt2, as_published)
    assert torch.equal(logits(load(gpt2), token_ids(1, 8)), before)


def test_a_mask_that_is_not_causal(gpt2):
    change_weights(gpt2, lambda tensors: tensors.update({"transformer.h.0.attn.bias": torch.ones_like(MASK)}))
    refused(gpt2, r"no place for: transformer\.h\.0\.attn\.bias")


def test_masks_of_local_attention_among_the_weights(tokenizer, tmp_path):
    """As GPT-Neo's repositories have them."""
    config = {"attention_types": [[["global", "local"], 1]], "window_size": 4, "max_position_embeddings": 16}
    config = transformers.GPTNeoConfig(vocab_size=320, hidden_size=16, num_layers=2, num_heads=2, **config)
    model = transformers.GPTNeoForCausalLM(config)
    folder = save(tmp_path / "neo", model, tokenizer)
    masks = {of: buffer.clone() for of, buffer in model.named_buffers() if of.endswith("attention.bias")}
    assert len({mask.sum().item() for mask in masks.values()}) == 2
    change_weights(folder, lambda tensors: tensors.update(masks))
    load(folder)
    change_weights(folder, lambda tensors: tensors.update({name: ~mask for name, mask in masks.items()}))
    refused(folder, "no place for: .*attention.bias")


def test_rotary_frequencies_among_the_weights(llama):
    own = load(llama).model.model.rotary_emb.inv_freq
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(llama, lambda tensors: tensors.update({name: own.clone()}))
    load(llama)
    change_weights(llama, lambda tensors: tensors.update({name: own / 4}))
    refused(llama, r"no place for: .*inv_freq")


@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.0.self_attn.q_proj.bias"],
        ["model.layers.1.mlp.down_proj.bias"],
        ["model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.k_norm.weight"],
        ["model.layers.0.post_feedforward_layernorm.weight"],
        ["model.layers.3.input_layernorm.weight"],
        ["score.weight"],
        ["v_head.summary.weight"],
        ["vision_tower.patch_embedding.weight"],
        ["model.layers.0.self_attn.sinks"],
        ["model.layers.0.self_attn.q_proj.lora_A.weight"],
        ["something.else"],
    ],
)
def test_weights_that_the_configuration_leaves_out(names, llama):
    change_weights(llama, lambda tensors: tensors.update({name: torch.ones(32) for name in names}))
    refused(llama, f"no place for: .*{names[0]}")


def test_prefixes_of_wrappers(llama):
    """As torch.compile and DistributedDataParallel leave them."""

    def wrapped(tensors):
        for name in list(tensors):
            tensors[f"_orig_mod.{name}"] = tensors.pop(name)

    change_weights(llama, wrapped)
    refused(llama, r"has no weights for .*; it has _orig_mod\.")


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.layers.2.mlp.up_proj.weight"])
def test_weights_that_are_missing(name, llama):
    change_weights(llama, lambda tensors: tensors.pop(name))
    refused(llama, f"no weights for {name}")


def test_a_shape_mismatch_names_the_tensor_and_both_shapes(llama):
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(llama, lambda tensors: tensors.update({name: torch.ones(40, 32)}))
    refused(llama, rf"{name} of .* is \(40, 32\) in its files, \(48, 32\) by its configuration")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_infinite_weights_are_told_as_such(value, llama):
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(llama, lambda tensors: tensors[name][0].fill_(value))
    assert "float16" not in refused(llama, f"{name} .* infinite values or NaN")


def test_float16_is_blamed_where_it_is_the_cause(llama):
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(llama, lambda tensors: tensors[name][0].fill_(1e5))
    refused(llama, f"{name} .* too large for float16", dtype="float16")
    load(llama)


def test_a_head_of_its_own_in_a_model_that_is_configured_to_tie(gpt2):
    def add(tensors, noise):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + noise

    change_weights(gpt2, lambda tensors: add(tensors, 0))
    load(gpt2)
    change_weights(gpt2, lambda tensors: add(tensors, 1))
    refused(gpt2, r"lm_head\.weight that differs from its embedding")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights(dtype, llama):
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(llama, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refused(llama, "quantised weights")


@pytest.mark.parametrize(
    "scales", ["weight_scale", "weight_scale_inv", "scales", "qzeros", "weight.absmax", "weight.quant_state"]
)
def test_scaled_weights(scales, llama):
    name = f"model.layers.1.mlp.up_proj.{scales}"
    change_weights(llama, lambda tensors: tensors.update({name: torch.ones(4)}))
    refused(llama, f"no place for: {name}")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "invented"])
def test_a_configuration_of_quantised_weights(method, llama):
    change_json(llama / "config.json", quantization_config={"quant_method": method, "bits": 4})
    refused(llama, rf"quantised \({method}\)")


def test_shards(llama):
    tensors = load_file(llama / "model.safetensors")
    before = logits(load(llama), token_ids(1, 8))
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, llama / file, metadata={"format": "pt"})
    (llama / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    lm = load(llama)
    assert torch.equal(logits(lm, token_ids(1, 8)), before)
    assert list(lm.source["weights_sha256"]) == list(parts)
    (llama / "b.safetensors").unlink()
    refused(llama, r"lacks b\.safetensors")


def test_the_files_that_were_read_are_the_ones_in_the_provenance(llama):
    shutil.copy(llama / "model.safetensors", llama / "consolidated.safetensors")
    assert list(load(llama).source["weights_sha256"]) == ["model.safetensors"]


def test_pickled_weights(llama):
    before = logits(load(llama), token_ids(1, 8))
    torch.save(load_file(llama / "model.safetensors"), llama / "pytorch_model.bin")
    (llama / "model.safetensors").unlink()
    assert torch.equal(logits(load(llama), token_ids(1, 8)), before)
    state = torch.load(llama / "pytorch_model.bin", weights_only=True)
    torch.save(state | {"model.layers.0.mlp.up_proj.bias": torch.ones(48)}, llama / "pytorch_model.bin")
    refused(llama, r"no place for: model\.layers\.0\.mlp\.up_proj\.bias")


def test_a_tensor_in_two_files(llama):
    tensors = load_file(llama / "model.safetensors")
    first = dict(list(tensors.items())[:5])
    rest = {name: value for name, value in tensors.items() if name not in first}
    save_file(first, llama / "a.safetensors", metadata={"format": "pt"})
    save_file(rest | {"model.norm.weight": torch.ones(32)}, llama / "b.safetensors", metadata={"format": "pt"})
    (llama / "model.safetensors").rename(llama / "kept")
    names = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(rest, "b.safetensors")
    (llama / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    if "model.norm.weight" in rest:
        save_file(first | {"model.norm.weight": torch.ones(32)}, llama / "a.safetensors", metadata={"format": "pt"})
    refused(llama, r"model\.norm\.weight is in two files")
    (llama / "kept").rename(llama / "model.safetensors")
    refused(llama, "has its weights twice")


@pytest.mark.parametrize("name", ["training_args.bin", "old.safetensors", "vocab.txt"])
def test_what_is_beside_a_model_does_not_matter(name, llama):
    (llama / name).symlink_to("nowhere")
    (llama / f"a {name}").mkdir()
    load(llama)


@pytest.mark.parametrize(
    ("name", "told"),
    [*((name, "it has ") for name in ("model.fp16.safetensors", "consolidated.00.pth")), ("m.gguf", "give one of: .*")],
)
def test_weights_of_another_kind_are_named(name, told, llama):
    (llama / "model.safetensors").rename(llama / name)
    refused(llama, f"has no weights.*{told}{name}")


@pytest.mark.parametrize("content", ["", "<html>", "[]", "{"])
def test_a_configuration_that_is_none(content, llama):
    (llama / "config.json").write_text(content)
    refused(llama, r"cannot read .*config\.json")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("./nowhere", "^no such tokenizer folder: "),
        ("nowhere and no id", "^no such tokenizer folder: .* no hub id"),
        ("tokenizer.json", r"is a file; a tokenizer is a folder with its files \(--tokenizer "),
        ("alone/config.json", "is a file; a tokenizer is a folder with its files, or a hub id$"),
        ("alone", "^no tokenizer for '"),
    ],
)
def test_a_tokenizer_that_is_not_there(given, match, llama, monkeypatch):
    (llama / "alone").mkdir()
    (llama / "alone" / "config.json").write_text("{}")
    monkeypatch.chdir(llama)
    assert "a model is" not in refused(llama, match, tokenizer=given)


def test_a_tokenizer_at_home(llama, monkeypatch):
    monkeypatch.setenv("HOME", str(llama.parent))
    assert len(load(llama, tokenizer=f"~/{llama.name}").tokenizer) == 300


def test_a_tokenizer_of_the_hub_is_asked_for_once_the_hub_answered(llama, monkeypatch):
    """Otherwise the libraries ask again and again, for minutes, where there is no network."""
    asked = []
    monkeypatch.setattr(hub, "reachable", lambda: asked.append("hub"))
    refused(llama, "cannot reach the Hugging Face hub", tokenizer="example-org/example")
    assert asked == ["hub"]


def test_an_adapter_alone(tmp_path):
    content = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.2-1B"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, r"adapter of meta-llama/Llama-3\.2-1B; merge it .*merge_and_unload")


def test_an_adapter_beside_a_model(llama):
    (llama / "adapter_model.safetensors").touch()
    refused(llama, "adapter of a model that it does not name; merge it")
    (llama / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x"}))
    refused(llama, "adapter of x; merge it")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs(name, llama):
    (llama / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(llama, f"{name} is a pointer of Git LFS.*git lfs pull")


# --- 3: configuration --------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"is_causal": False}, "not causal"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"transformers_weights": "model.safetensors"}, "transformers_weights"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"residual_multiplier": 0.22}, "residual_multiplier"),
        ({"logits_scaling": 8}, "logits_scaling"),
        ({"query_pre_attn_scalar": 16}, "query_pre_attn_scalar"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"sliding_window": 8}, "sliding_window = 8"),
        ({"alibi": True}, "alibi"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rotary_pct": 0.25}, "rotary_pct"),
        ({"rope_scaling": {"type": "dynamic", "alpha": 8.0, "factor": 1.0}}, "alpha"),
        ({"rope_scaling": {"linear": 4.0}}, "linear"),
        ({"hidden_activation": "gelu"}, "hidden_activation = gelu"),
        ({"attn_logit_soft_cap": 50.0}, "attn_logit_soft_cap"),
        ({"attention_multiplier": 1.0}, "attention_multiplier = 1.0"),
        ({"softmax_scale": 0.5}, "softmax_scale"),
        ({"attention_chunk_size": 4}, "attention_chunk_size"),
        ({"causal": False}, "causal"),
        ({"is_causal": 0}, "is_causal|causal"),
        ({"norm_eps": 0.5}, "norm_eps = 0.5"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type"),
        ({"use_rope": False}, "use_rope"),
        ({"n_heads": 8}, "n_heads = 8"),
        ({"rope_scaling": {"type": "brand-new", "factor": 2.0}}, "brand-new"),
        ({"rope_scaling": {"factor": 2.0}}, "factor"),
        ({"use_return_dict": False}, "take it out .*'use_return_dict'"),
    ],
)
def test_what_a_configuration_says_and_transformers_ignores(values, match, llama):
    change_json(llama / "config.json", **values)
    refused(llama, match)


@pytest.mark.parametrize(
    "values",
    [
        {"return_dict": False},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"torchscript": True},
        {"use_cache": True},
        {"torch_dtype": "float16"},
        {"is_llama_config": True, "rope_interleaved": False},
        {"sliding_window": None, "use_sliding_window": False},
        {"task_specific_params": {"text-generation": {"max_length": 50}}},
        {"unsloth_version": "2025.1", "_flash_attn_2_enabled": True},
        {"pretraining_tp": 1, "mlp_bias": False},
        {"sliding_window": 4096, "use_sliding_window": False, "layer_types": ["full_attention"] * 3},
        {"norm_type": "rmsnorm", "residual_multiplier": 1.0, "logit_scale": None, "position_embedding_type": "rope"},
        {"flash_rotary": True, "fused_rotary": True, "use_rotary": True, "n_heads": 4, "norm_eps": 1e-6},
        {"is_decoder": True, "attention_softmax_in_fp32": True, "partial_rotary_factor": 1.0, "causal": True},
        {"gradient_checkpointing": True},
        {"quantization_config": {}},
        {"quantization_config": None},
    ],
)
def test_what_changes_nothing(values, llama):
    ids = token_ids(1, 8)
    before = logits(load(llama), ids)
    change_json(llama / "config.json", **values)
    lm = load(llama)
    with torch.inference_mode():
        after = lm.model(ids, use_cache=False)
    assert torch.equal(after.logits, before)
    assert lm.model.dtype == torch.float32


@pytest.mark.parametrize("given", ["rope_scaling", "rope_parameters"])
def test_rotary_scaling_is_carried_out(given, llama):
    ids, before = token_ids(1, 48), logits(load(llama), token_ids(1, 48))
    change_json(llama / "config.json", rope_parameters=None, rope_scaling=None)
    change_json(llama / "config.json", **{given: {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}})
    lm = load(llama)
    assert lm.model.config.rope_parameters["factor"] == 4.0
    assert not torch.allclose(logits(lm, ids), before, atol=1e-3)


AS_PUBLISHED = {  # as the authors' own files have it: {model type: (what is moved or added, frequencies of a head)}
    "glm": ({"partial_rotary_factor": 0.5, "rope_theta": 10_000.0, "rope_parameters": None}, 4),
    "gpt_neox": ({"rotary_pct": 0.25, "rotary_emb_base": 10_000, "rope_parameters": None}, 2),
    "stablelm": ({"partial_rotary_factor": 0.25, "rope_theta": 10_000, "rope_parameters": None}, 2),
    "qwen3_next": ({"partial_rotary_factor": 0.25, "rope_theta": 10_000_000, "rope_parameters": None}, 2),
    "qwen3_5_text": (
        {
            "rope_parameters": {
                **{"mrope_interleaved": True, "mrope_section": [1, 1, 0], "rope_type": "default"},
                **{"rope_theta": 10_000_000, "partial_rotary_factor": 0.25},
            }
        },
        2,
    ),
    "ministral3": ({}, 8),
    "gemma4_text": ({}, 8),
    "gemma3": ({}, 8),  # within "text_config", beside images
}


def published(model_type, folder):
    """The folder of a tiny model, its configuration as its authors' files have it; and the model."""
    model = every_type.build(model_type)
    model.save_pretrained(folder)
    mixtures.tokenizer(128).save_pretrained(folder)
    values, n = AS_PUBLISHED[model_type]
    change_json(folder / "config.json", **values)
    return folder, model, n


@pytest.mark.parametrize("model_type", AS_PUBLISHED)
def test_rotary_positions_are_those_of_the_files(model_type, tmp_path):
    folder, model, n = published(model_type, tmp_path)
    lm = load(folder)
    found = {len(buffer) for name, buffer in lm.model.named_buffers() if name.endswith("inv_freq")}
    assert n in found
    if not AS_PUBLISHED[model_type][0]:
        ids = torch.arange(3, 11)[None]
        assert torch.equal(logits(lm, ids), logits(SimpleNamespace(model=model), ids))


@pytest.mark.parametrize(
    ("model_type", "changes", "match"),
    [
        ("gemma3", {"rope_scaling": {"type": "brand-new", "factor": 2.0}}, "brand-new"),
        ("gemma3", {"residual_multiplier": 0.22}, "residual_multiplier"),
        ("gemma3", {"use_bidirectional_attention": True}, "not causal"),
    ],
)
def test_what_a_decoder_beside_images_says_and_transformers_ignores(model_type, changes, match, tmp_path):
    folder, _model, _n = published(model_type, tmp_path)
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_json(folder / "config.json", text_config=text | changes)
    refused(folder, match)


@pytest.fixture(params=["llama4", "qwen3_5"])
def with_images(request, tmp_path):
    """A folder of a tiny model that sees images, too, of which transformers loads the decoder alone; and the model."""
    config = every_type.configuration(request.param)
    width = {"hidden_size": 32, "num_attention_heads": 2, "num_heads": 2, "intermediate_size": 32}
    depth = {"num_hidden_layers": 1, "depth": 1, "out_hidden_size": 64, "num_position_embeddings": 16}
    images = {"image_size": 28, "patch_size": 14, "projector_input_dim": 32, "projector_output_dim": 32}
    of_images = {"llama4": transformers.Llama4VisionConfig, "qwen3_5": transformers.Qwen3_5VisionConfig}
    config.vision_config = of_images[request.param](**width, **depth, **images, vision_output_dim=32)
    both = {
        "llama4": transformers.Llama4ForConditionalGeneration,
        "qwen3_5": transformers.Qwen3_5ForConditionalGeneration,
    }
    model = both[request.param](config).eval()
    for weight in model.parameters():
        weight.data = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return save(tmp_path / "both", model, mixtures.tokenizer(128)), model


def test_a_decoder_without_what_sees_images(with_images, capsys):
    folder, model = with_images
    ids = torch.arange(3, 11)[None]
    close(logits(load(folder), ids), logits(SimpleNamespace(model=model), ids))
    assert "has weights beside its decoder, left out: m" in capsys.readouterr().err


def test_a_decoder_without_what_sees_images_lacks_nothing_else(with_images):
    folder, _model = with_images
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith("0.input_layernorm.weight"))
    extra = name.replace("weight", "bias")
    change_weights(folder, lambda tensors: tensors.update({extra: torch.ones(64)}))
    refused(folder, f"no place for: .*{extra.partition('layers')[2]}")


@pytest.mark.parametrize("values", [{"rotary_pct": 0.5}, {"rope_pct": 0.5}, {"rotary_emb_base": 500}])
def test_rotary_values_beside_others(values, tmp_path):
    """stablelm reads none of these names."""
    folder, _model, _n = published("stablelm", tmp_path)
    change_json(folder / "config.json", **values)
    refused(folder, next(iter(values)))


def test_a_part_of_each_head_that_is_not_rotated(llama):
    rope = json.loads((llama / "config.json").read_text())["rope_parameters"]
    change_json(llama / "config.json", rope_parameters=rope | {"partial_rotary_factor": 0.5})
    refused(llama, "rotates a part of each head .*partial_rotary_factor")


# --- 4: code -----------------------------------------------------------------

CODE = """
import pathlib, transformers
pathlib.Path({marker!r}).touch()
class Config(transformers.{config}):
    model_type = {kind!r}
class Model(transformers.{model}):
    config_class = Config
class Tokenizer(transformers.PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def with_code(gpt2, tmp_path, monkeypatch):
    """A folder that brings code, which leaves a mark when it runs."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "it ran"
    code = CODE.format(marker=str(marker), config="GPT2Config", model="GPT2LMHeadModel", kind="gpt2")
    (gpt2 / "own.py").write_text(code)
    return gpt2, marker


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
        {"AutoModelForCausalLM": "own.Model"},
        {"AutoConfig": "own.Config"},
        {"AutoModelForCausalLM": "somebody/elses--own.Model"},
    ],
)
@pytest.mark.parametrize("kind", ["gpt2", "brand_new"])
def test_code_of_a_model_does_not_run(auto_map, kind, with_code):
    folder, marker = with_code
    change_json(folder / "config.json", auto_map=auto_map, model_type=kind)
    refused(folder, "code of its own .* only with --trust_remote_code")
    assert not marker.exists()


def test_code_that_transformers_took_over_does_not_run_either(with_code, capsys):
    """Falcon's, MPT's and Phi-3's repositories have it still; their classes have the names of transformers' own."""
    folder, marker = with_code
    ids, before = token_ids(1, 8), logits(load(folder), token_ids(1, 8))
    own = {"AutoConfig": "own.GPT2Config", "AutoModelForCausalLM": "own.GPT2LMHeadModel"}
    change_json(folder / "config.json", auto_map=own)
    lm = load(folder)
    assert "measured as transformers' own GPT2LMHeadModel" in capsys.readouterr().err
    assert torch.equal(logits(lm, ids), before)
    assert lm.source["own_code"] == "not run"
    assert not marker.exists()


def test_code_of_a_tokenizer_does_not_run(with_code):
    folder, marker = with_code
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    refused(folder, "code of its own .* only with --trust_remote_code")
    assert not marker.exists()


@pytest.mark.parametrize("answer", ["y\n", "n\n", ""])
def test_nothing_is_asked(answer, with_code, text_file, monkeypatch, capfd):
    folder, marker = with_code
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    change_json(folder / "config.json", auto_map=auto_map, model_type="brand_new")
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert run("main_llm.py --exp2", "--model", folder, "--dataset", text_file) == 2
    printed, error = capfd.readouterr()
    assert (printed, error.count("\n")) == ("", 1)
    assert "--trust_remote_code" in error
    assert not marker.exists()


def test_trusted_code_runs(with_code, monkeypatch):
    folder, marker = with_code
    change_json(folder / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    lm = load(folder, trust_remote_code=True)
    assert marker.exists()
    assert type(lm.model).__name__ == "Model"


# --- 5: a look ---------------------------------------------------------------


def test_a_model_that_sees_ahead(llama, monkeypatch):
    """Whatever makes it: here attention without its mask."""
    from transformers.models.llama import modeling_llama

    def sees_all(inputs_embeds, **_others):
        length = inputs_embeds.shape[1]
        return torch.zeros(1, 1, length, length)

    load(llama)
    monkeypatch.setattr(modeling_llama, "create_causal_mask", sees_all)
    refused(llama, "sees ahead: the output of layer 0")


@pytest.mark.parametrize(("difference", "sees_ahead"), [(4.7e-6, False), (0.036 * 0.33, True)])
def test_rounding_is_not_seeing_ahead(difference, sees_ahead):
    """4.7e-6 of 0.33: seen of GPT-2's shape; 0.036: the least of 18 layers of Gemma 3 without a mask."""
    output = torch.full((2, 7, 4), 0.33)
    output[1, 0, 2] += difference
    with pytest.raises(UserError, match=r"sees ahead.* by 0\.012 of 0\.33") if sees_ahead else nullcontext():
        require_causal(0, output)


def test_a_model_whose_outputs_are_not_finite(llama):
    """Finite weights that overflow in float16 when they meet."""
    name = "model.layers.1.mlp.down_proj.weight"
    change_weights(llama, lambda tensors: tensors[name].mul_(6e4 / tensors[name].abs().max()))
    change_weights(llama, lambda tensors: tensors[name.replace("down", "up")].mul_(1e3))
    load(llama)
    refused(llama, "non-finite values at layer 1", dtype="float16")


@pytest.mark.parametrize("named", ["flash_attention_2", "flex_attention"])
def test_another_way_to_compute_attention_is_that_of_everyone(named, llama):
    """Not every machine has it, and it cannot be watched."""
    change_json(llama / "config.json", attn_implementation=named)
    assert load(llama).model.config._attn_implementation == "sdpa"


# --- what is no model --------------------------------------------------------


@pytest.mark.parametrize("end", ["openai-community/gpt2", "x/y/resolve/main/model.gguf"])
def test_an_address(end, llama):
    refused(f"https://example.org/{end}", "is an address; a model of the hub is named by its id")
    refused(llama, "is an address; a tokenizer of the hub", tokenizer=f"https://example.org/{end}")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_a_model(name, llama):
    refused(llama / name, r"is a file; a model is a folder with config\.json and its weights \(--model ")


def test_a_file_beside_no_model(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    refused(
        tmp_path / "model.bin", "is a file; a model is a folder with config.json and its weights, a .gguf file, nano"
    )


def test_a_folder_around_models(llama, tmp_path):
    refused(llama.parent, "holds no model: .*give one of: .*llama-copy")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "m.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "only", r"give one of: .*m\.gguf")


@pytest.mark.parametrize("above", ["", "models--org--name"])
def test_a_folder_of_the_hubs_cache(above, tmp_path):
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refused(tmp_path / "hub" / above, f"give one of: {snapshot}$")


def test_a_folder_without_weights(llama):
    (llama / "model.safetensors").unlink()
    refused(llama, r"has no weights: no model\.safetensors")


def test_every_supported_family_passes_the_door(family, tokenizer, tmp_path):
    load(save(tmp_path / "m", tiny_model(family), tokenizer))


def look(lm, **options):
    """(what is said of the first window, chance) for a model on Python's documentation."""
    options = Options(**{"dataset": "python-docs", "nsamples": 2, "seqlen": 64} | options)
    windows = data.load(options, lm)
    return experiment._misfit(lm, windows), windows.chance


@pytest.mark.real
def test_a_model_that_fits_its_text_is_not_warned_of(smollm2, tmp_path):
    assert look(smollm2)[0] is None
    assert look(smollm2, seqlen=1024)[0] is None
    (tmp_path / "short.txt").write_text("The capital of France is Paris. The capital of Italy is Rome, as you know.")
    assert look(smollm2, dataset=str(tmp_path / "short.txt"), seqlen=8)[0] is None


@pytest.mark.real
def test_tokens_that_mean_something_else_are_warned_of(smollm2):
    """The same weights, every token of the text taken for another one."""
    shuffled = torch.randperm(49152, generator=torch.Generator().manual_seed(0))
    windows = data.load(Options(dataset="python-docs", nsamples=2, seqlen=64), smollm2)
    warning = experiment._misfit(smollm2, replace(windows, ids=shuffled[windows.ids]))
    assert "weights, tokenizer or text may not belong together" in warning


def test_random_weights_are_warned_of_before_anything_is_measured(llama, text_file, tmp_path, capsys):
    seen = []
    options = main_llm.Options(
        model=str(llama), dataset=str(text_file), nsamples=2, seqlen=32, savedir=tmp_path / "out", device="cpu"
    )
    watched = replace(main_llm.LAYERWISE, run=lambda *of: (seen.append(capsys.readouterr().err), measure.run(*of))[1])
    experiment.execute(watched, options)
    assert seen[0].startswith("warning: the loss of the first window")
    assert seen[0].count("\n") == 1
    payload = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert "no better than chance" in payload["provenance"]["warning"]


def test_chance_is_what_the_rest_of_the_text_says(llama, tmp_path):
    (tmp_path / "t.txt").write_text("a b " * 300 + "q" * 100)
    lm = load(llama)
    windows = data.load(Options(dataset=str(tmp_path / "t.txt"), nsamples=1, seqlen=8), lm)
    ids = lm.tokenizer("a b " * 300 + "q" * 100, add_special_tokens=False)["input_ids"]
    window = windows.ids[0].tolist()
    rest = Counter(ids) - Counter(window)
    expected = [-math.log((rest[token] + 1) / (rest.total() + 320)) for token in window]
    assert windows.chance == pytest.approx(sum(expected) / len(expected))
