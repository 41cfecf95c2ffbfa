"""Checkpoints of nanoGPT give what its own arithmetic gives, read by its own tokens; or a refusal in one line."""

import json
import pickle

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from lib.model import models
from lib.run.cli import Options, UserError
from tests.scripts.test_scripts import SMALL, run

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 12, "dropout": 0.1}
CHARACTERS = "\n !abcdefgh\u00e9"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def checkpoint(bias=True, prefix="", seed=0, **sizes):
    """What nanoGPT's train.py saves, of random weights."""
    sizes = SIZES | {"bias": bias} | sizes
    width, generator = sizes["n_embd"], torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator) / 4

    linears = {"attn.c_attn": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
    state = {
        "transformer.wte.weight": random(sizes["vocab_size"], width),
        "transformer.wpe.weight": random(sizes["block_size"], width),
    }
    for layer in range(sizes["n_layer"]):
        for name, (out, into) in linears.items():
            state[f"transformer.h.{layer}.{name}.weight"] = random(out * width, into * width)
            if bias:
                state[f"transformer.h.{layer}.{name}.bias"] = random(out * width)
    norms = [f"h.{layer}.ln_{i}" for layer in range(sizes["n_layer"]) for i in (1, 2)]
    for norm in (*norms, "ln_f"):
        state[f"transformer.{norm}.weight"] = 1 + random(width)
        if bias:
            state[f"transformer.{norm}.bias"] = random(width)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return {
        "model": {prefix + name: value for name, value in state.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(5.0), "exp_avg": random(4)}}, "param_groups": [{"lr": 1e-3}]},
        "model_args": sizes,
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.7),
        "config": {"dataset": "play", "out_dir": "out-play", "compile": bool(prefix)},
    }


def logits(saved, ids):
    """By the formulas, of (seq,) ids."""
    state, n_heads = saved["model"], saved["model_args"]["n_head"]
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][: len(ids)]

    def norm(x, name):
        return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state.get(f"{name}.bias"), 1e-5)

    def project(x, name):
        return linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    for layer in range(saved["model_args"]["n_layer"]):
        block = f"transformer.h.{layer}"
        by_head = project(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").unflatten(1, (3, n_heads, -1))
        query, key, value = by_head.permute(1, 2, 0, 3)
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + project(seen.transpose(0, 1).flatten(1), f"{block}.attn.c_proj")
        x = x + project(gelu(project(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["lm_head.weight"].T


def meta(folder, characters=CHARACTERS):
    """As its data/*/prepare.py writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    stoi = {character: i for i, character in enumerate(characters)}
    content = {"vocab_size": len(stoi), "itos": {i: character for character, i in stoi.items()}, "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(content))


def saved(folder, name="ckpt.pt", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint(**changes), folder / name)
    return folder / name


def load(path, **options):
    return models.load(Options(model=str(path), device="cpu", **options))


def refused(path, message, **options):
    with pytest.raises(UserError, match=message) as error:
        load(path, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_logits_are_nanogpts(tmp_path, bias, prefix):
    meta(tmp_path / "data" / "play")
    lm = load(saved(tmp_path / "out-play", bias=bias, prefix=prefix))
    ids = lm.tokenizer("bad feed\n\u00e9!").input_ids
    assert ids == [CHARACTERS.index(character) for character in "bad feed\n\u00e9!"]
    assert lm.tokenizer.decode(ids) == "bad feed\n\u00e9!"
    with torch.inference_mode():
        own = lm.model(torch.tensor([ids])).logits[0]
    assert torch.allclose(own, logits(checkpoint(bias=bias), torch.tensor(ids)), atol=1e-5)
    assert lm.source["nanogpt"] == "ckpt.pt"
    assert list(lm.source["weights_sha256"]) == ["ckpt.pt"]


def test_the_old_activation_would_be_seen(tmp_path):
    """The tanh approximation is further away than the bound above."""
    path, ids = saved(tmp_path), torch.arange(12)
    meta(tmp_path)
    lm = load(path)
    for block in lm.model.transformer.h:
        block.mlp.act = torch.nn.GELU(approximate="tanh")
    with torch.inference_mode():
        assert not torch.allclose(lm.model(ids[None]).logits[0], logits(checkpoint(), ids), atol=1e-5)


def test_a_causal_mask_of_old_versions_is_no_weight(tmp_path):
    found = checkpoint()
    found["model"]["transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    torch.save(found, tmp_path / "ckpt.pt")
    meta(tmp_path)
    assert load(tmp_path / "ckpt.pt").arch.n_layers == 2


@pytest.mark.parametrize(
    ("model", "name"),
    [("out-play", "out-play"), ("out-play/ckpt.pt", "out-play"), ("out-play/step_500.pt", "step_500")],
)
def test_the_command_line(model, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    meta(tmp_path / "data" / "play")
    for file in ("ckpt.pt", "step_500.pt"):
        saved(tmp_path / "out-play", file)
    (tmp_path / "text.txt").write_text("a bad cafe\n" * 40)
    run("main_llm.py --exp2", "--model", model, "--dataset", "text.txt", "--nsamples", "4", "--seqlen", "16")
    assert (tmp_path / "results" / name / "main_llm").is_dir()
    assert "converting" in capsys.readouterr().out
    assert Options(model=model).idle() == {"revision": f"'{model}' is not on the hub"}


def test_a_course_of_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    meta(tmp_path / "data" / "play")
    for step, file in ((0, "ckpt_0.pt"), (200, "ckpt_200.pt"), (1000, "ckpt_1k.pt")):
        saved(tmp_path / "out-play", file, seed=step)
    torch.save({}, tmp_path / "out-play" / "optimizer.pt")
    (tmp_path / "text.txt").write_text("a bad cafe\n" * 40)
    sample = ["--nsamples", "4", "--seqlen", "16", "--savedir", "results", *SMALL]
    assert run("exp14_training.py", "--model", "out-play", "--dataset", "text.txt", *sample) == 0
    assert "optimizer" not in capsys.readouterr().err
    [path] = (tmp_path / "results").glob("*.json")
    stored = json.loads(path.read_text())
    steps = stored["results"]["steps"]
    assert [step["step"] for step in steps] == [0, 200, 1000]
    assert [step["source"]["nanogpt"] for step in steps] == ["ckpt_0.pt", "ckpt_200.pt", "ckpt_1k.pt"]
    assert stored["provenance"]["model"] == {"name": "out-play", "type": "gpt2", "folder": "out-play"}
    saved(tmp_path / "out-play")
    assert run("exp14_training.py", "--model", "out-play", "--revisions", "ckpt.pt", *sample) == 2
    assert "no step in the name ckpt.pt" in capsys.readouterr().err
    assert run("exp14_training.py", "--model", "out-play/ckpt.pt", *sample) == 2
    assert "'out-play/ckpt.pt' is one model, without checkpoints" in capsys.readouterr().err
    assert run("exp14_training.py", "--model", "out-play", "--revisions", "ckpt_300.pt", *sample) == 2
    assert "nanoGPT's .pt files" in capsys.readouterr().err


def test_a_text_of_other_characters(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    meta(tmp_path)
    saved(tmp_path)
    (tmp_path / "text.txt").write_text("a bad Zebra\n" * 40)
    code = run("main_llm.py --exp2", "--model", "ckpt.pt", "--dataset", "text.txt", "--nsamples", "4", "--seqlen", "8")
    assert code == 2
    assert "cannot tokenise the text: it has no token for 'Z'\n" in capsys.readouterr().err


class Planted:
    def __reduce__(self):
        return print, ("it ran",)


def other_meta(content):
    return lambda folder: (folder / "meta.pkl").write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, r"no tokenizer for .*ckpt\.pt': there is no meta\.pkl .*--tokenizer"),
        (other_meta({"stoi": Planted()}), r"cannot read .*meta\.pkl: it holds builtins\.print"),
        (other_meta([]), r"meta\.pkl has no stoi, a dict of ids by characters; name a tokenizer with --tokenizer"),
        (lambda folder: (folder / "meta.pkl").write_text("{'a': 0}"), r"cannot read .*meta\.pkl"),
        (other_meta({"stoi": {"ab": 0, "c": 1}}), r"meta\.pkl has tokens that are no characters"),
        (other_meta({"stoi": {"a": 0, "c": 2}}), r"meta\.pkl has ids that are not 0, 1, 2 and so on"),
        (lambda folder: meta(folder, "abcdefghijklm"), r"has 13 characters, the model 12; name a tokenizer"),
        (lambda folder: meta(folder, "abcdefghijk"), r"has 11 characters, the model 12; name a tokenizer"),
    ],
)
def test_tokens_that_are_not_understood(write, message, tmp_path, capsys):
    saved(tmp_path)
    write(tmp_path)
    refused(tmp_path / "ckpt.pt", message)
    assert "it ran" not in capsys.readouterr().out


def changed(**parts):
    """A checkpoint in which each of these keys of `model` is another value, or absent (None)."""

    def change(found):
        for name, value in parts.items():
            name = name.replace("__", ".")
            if value is None:
                del found["model"][name]
            else:
                found["model"][name] = value
        return found

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["model"], "is no checkpoint of nanoGPT"),
        (lambda found: [1, 2], "is no checkpoint of nanoGPT"),
        (lambda found: found | {"model": {"transformer": found["model"]}}, "is no checkpoint of nanoGPT"),
        (lambda found: found | {"model": {1: torch.zeros(2)}}, "is no checkpoint of nanoGPT"),
        (lambda found: found | {"model_args": {"n_layer": 2, "dim": 8}}, "model_args have no n_head, n_embd"),
        (lambda found: found | {"model_args": found["model_args"] | {"n_head": 3}}, "no multiple of its n_head 3"),
        (lambda found: found | {"model_args": found["model_args"] | {"n_layer": 3}}, r"it has no transformer\.h\.2\."),
        (lambda found: found | {"model_args": found["model_args"] | {"n_layer": 10**7}}, "configured for .* weights"),
        (lambda found: found | {"model_args": found["model_args"] | {"block_size": 8}}, r"wpe\.weight is \(32, 16\)"),
        (changed(lm_head__weight=torch.zeros(12, 16)), r"lm_head\.weight is not its transformer\.wte\.weight"),
        (changed(transformer__ln_f__bias=None), r"it has no transformer\.ln_f\.bias"),
        (changed(transformer__h__0__attn__rotary=torch.zeros(4)), "no place for its transformer.h.0.attn.rotary"),
        (changed(transformer__wte__weight=torch.full((12, 16), torch.nan)), "lm_head.weight is not"),
        (changed(transformer__ln_f__bias=torch.full((16,), torch.inf)), "infinite values or NaN"),
    ],
)
def test_other_checkpoints_are_refused(change, message, tmp_path):
    meta(tmp_path)
    torch.save(change(checkpoint()), tmp_path / "ckpt.pt")
    refused(tmp_path / "ckpt.pt", message)


@pytest.mark.parametrize("n_bytes", [0, 500])
def test_a_damaged_file(n_bytes, tmp_path):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    refused(path, r"cannot read .*ckpt\.pt: it is cut short, or not as torch\.save writes it")


def test_a_checkpoint_with_other_bytes_in_it(tmp_path):
    path = saved(tmp_path)
    meta(tmp_path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    refused(path, "it is damaged: the checksum of .* is another")


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    torch.save({"model": {}, "model_args": Planted()}, tmp_path / "ckpt.pt")
    refused(tmp_path / "ckpt.pt", r"cannot read .*ckpt\.pt: it holds more than tensors and plain values")
    assert "it ran" not in capsys.readouterr().out


def test_tokens_of_gpt2_where_no_characters_are_named(tmp_path, monkeypatch, tokenizer, capsys):
    asked = []
    monkeypatch.setattr(models.tokenizer, "load", lambda name, **_where: asked.append(name) or tokenizer)
    monkeypatch.setattr(models.hub, "reachable", lambda: True)
    load(saved(tmp_path, vocab_size=50_304, n_embd=4))
    assert asked == ["gpt2"]
    assert "has no meta.pkl: with GPT-2's tokenizer, or name one with --tokenizer\n" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    tokenizer.save_pretrained(other)
    load(tmp_path / "ckpt.pt", tokenizer=str(other))
    assert asked[1:] == [str(other)]
