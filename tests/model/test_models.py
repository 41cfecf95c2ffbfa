"""What `--model` may name, and how it fails."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lib.model import hub, models
from lib.run.cli import Options, UserError
from tests.conftest import (
    HEADS,
    LAYERS,
    logits,
    save,
    tiny_model,
    token_ids,
)

ROOT = Path(__file__).parents[2]


def load(name, **options):
    return models.load(Options(model=str(name), device="cpu", **options))


@pytest.fixture
def broken(tiny_gpt2_folder, tmp_path):
    """A copy of a model folder, to be damaged."""
    return Path(shutil.copytree(tiny_gpt2_folder, tmp_path / "model"))


def test_local_folder(family, tokenizer, tmp_path):
    model = tiny_model(family)
    lm = load(save(tmp_path / "model", model, tokenizer))
    assert (lm.arch.n_layers, lm.arch.n_heads) == (LAYERS, HEADS)
    assert not lm.model.training
    assert lm.model.config._attn_implementation == "sdpa"
    assert lm.source["folder"] == "model"
    ids = token_ids(2, 12)
    assert torch.equal(logits(lm, ids), logits(models.LanguageModel(model, None, None, {}), ids))
    assert lm.tokenizer.encode("Some text") == tokenizer.encode("Some text")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(tiny_llama_folder, dtype):
    assert load(tiny_llama_folder, dtype=dtype).model.dtype == getattr(torch, dtype)


def test_tokenizer_from_elsewhere(broken, tiny_llama_folder):
    for path in broken.glob("tokenizer*"):
        path.unlink()
    assert len(load(broken, tokenizer=str(tiny_llama_folder)).tokenizer) == 300


def test_no_tokenizer(broken):
    for path in broken.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="--tokenizer"):
        load(broken)


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "missing/some/model", "missing.gguf"])
def test_unknown_folder(name):
    with pytest.raises(UserError, match=r"no such (model folder|file)"):
        load(name)


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"holds no model: it has no config\.json"):
        load(tmp_path)


TINY = {"vocab_size": 320, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (
            transformers.BertLMHeadModel,
            transformers.BertConfig(**TINY, intermediate_size=8, is_decoder=True),
            "unsupported architecture 'bert': layer 0: .*post-norm",
        ),
        (
            transformers.T5ForConditionalGeneration,
            transformers.T5Config(vocab_size=320, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
            "is_encoder_decoder",
        ),
    ],
)
def test_unsupported_architecture(model, config, message, tmp_path, tokenizer):
    with pytest.raises(UserError, match=message):
        load(save(tmp_path / "model", model(config), tokenizer))


def test_corrupt_weights(broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot load") as error:
        load(broken)
    assert "\n" not in str(error.value)


def test_missing_weights(broken):
    """transformers would fill them with random numbers and go on."""
    tensors = load_file(broken / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"c_proj\.weight"):
        load(broken)


def test_corrupt_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match="cannot load"):
        load(path)


def test_unusable_device(tiny_gpt2_folder):
    for name, why in (("cuda:99", ""), ("meta", ""), ("xla", ": PyTorch has nothing for it on this machine")):
        with pytest.raises(UserError, match=f"device '{name}' cannot be used{why}"):
            models.load(Options(model=str(tiny_gpt2_folder), device=name))


@pytest.mark.parametrize("offline", [False, True])
def test_hub_id_offline(offline):
    with pytest.raises(UserError, match="cannot reach the Hugging Face hub") as error:
        load("example-org/example-model", offline=offline)
    assert hub.RUN_OFFLINE in str(error.value)
    assert "--model smollm2-135m" in hub.RUN_OFFLINE


def test_provenance_names_the_weights(tiny_gpt2_folder, broken):
    same, changed = load(tiny_gpt2_folder).source, broken / "model.safetensors"
    tensors = load_file(changed)
    tensors["transformer.wte.weight"][0, 0] += 1
    save_file(tensors, changed, metadata={"format": "pt"})
    assert list(same["weights_sha256"]) == ["model.safetensors"]
    assert load(broken).source["weights_sha256"] != same["weights_sha256"]


@pytest.mark.real
def test_packaged_model(smollm2):
    assert (smollm2.arch.n_layers, smollm2.arch.n_heads, smollm2.arch.hidden_size) == (30, 9, 576)
    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert smollm2.tokenizer.decode(logits(smollm2, ids)[0, -1].argmax()) == " Paris"
