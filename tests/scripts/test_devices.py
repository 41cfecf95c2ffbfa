"""Where a model is, in what dtype and how many windows at once: results are the same, or it is said."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import main_llm
from lib import experiment
from lib.model import hooks, models, next_token
from lib.run import cli
from lib.run.checkout import ROOT
from lib.run.cli import Options
from tests.conftest import planted_model, save, tiny_model
from tests.scripts.test_ranks import exact, experiment_of, spiked_windows
from tests.scripts.test_scripts import SAMPLE, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_cuda_then_mps_then_cpu(cuda, mps, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "ones", lambda _size, device: asked.append(device) or torch.zeros(1))
    models.chosen_device("auto")
    assert asked == [expected]


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", lambda _size, device: asked.append(device) or torch.zeros(1))
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        models.chosen_device("auto")
        assert models._device_map("auto", torch.device("cuda")) is None
    assert asked == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert models._device_map("auto", torch.device("cuda")) == "sequential"
    assert models._device_map("cuda", torch.device("cuda")) is None
    assert models._device_map("auto", torch.device("cpu")) is None


def test_float32_is_not_rounded_to_tf32():
    """Whatever the environment says; NVIDIA's containers say it."""
    asked = "torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32"
    script = f"import torch; print({asked}); import lib.model.models; print({asked})"
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    told = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=environment, text=True)
    assert told.splitlines() == ["high True", "highest False"]


SPREAD = {
    "gpt2": {f"transformer.{part}": "cpu" for part in ("wte", "wpe", "h.0", "ln_f")}
    | {"transformer.h.1": "disk", "transformer.h.2": "disk", "lm_head": "cpu"},
    "llama": {"model.embed_tokens": "disk", "model.layers.0": "disk", "model.layers.1": "cpu", "model.layers.2": "disk"}
    | {"model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"},
}


@pytest.mark.parametrize(
    ("family", "scripts"),
    [
        ("gpt2", ("exp1_feasibility_test.py", "exp3_lifecycle_ledger.py", "exp7_head_sweep.py")),
        ("llama", ("exp2c_mlp_internal_analysis.py", "exp4_neuron_sets.py", "exp5_interventions.py")),
    ],
)
def test_a_model_spread_by_accelerate_gives_the_same(family, scripts, tokenizer, tmp_path, monkeypatch):
    """Part of it is on disk, and comes into memory only while accelerate's hooks run it."""
    options = Options(model=str(save(tmp_path / "model", planted_model(family), tokenizer)), device="cpu")
    plain = models.load(options)
    monkeypatch.setattr(models, "_device_map", lambda *_args: SPREAD[family])
    spread = models.load(options)
    assert plain.devices == ["cpu"]
    assert set(spread.devices) == {"cpu", "disk"}
    assert spread.arch.module(2, "down").weight.is_meta
    windows = spiked_windows()
    for script in scripts:
        experiment, options = experiment_of(script)
        assert exact(experiment.run(spread, windows, options)) == exact(experiment.run(plain, windows, options)), script


def layerwise(folder, text_file, out, *arguments):
    """(exit code, payload or None) of main_llm.py --exp2."""
    code = run("main_llm.py --exp2", "--model", folder, "--dataset", text_file, *SAMPLE, *arguments, "--savedir", out)
    result = out / f"{folder.name}_layerwise.json"
    return code, json.loads(result.read_text()) if result.exists() else None


def numbers(value):
    """All numbers in a nested value; what is not known is 0."""
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif not isinstance(value, str):
        yield value or 0


@pytest.mark.usefixtures("undrawn")
def test_batch_size_auto_is_recorded_and_changes_no_more_than_rounding(tiny_llama_folder, text_file, tmp_path):
    _code, one = layerwise(tiny_llama_folder, text_file, tmp_path / "one", "--batch_size", "1")
    _code, auto = layerwise(tiny_llama_folder, text_file, tmp_path / "auto", "--batch_size", "auto")
    assert (one["config"]["batch_size"], auto["config"]["batch_size"]) == (1, experiment.CPU_TOKENS // 32)
    assert [*numbers(auto["results"])] == pytest.approx([*numbers(one["results"])], rel=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_batch_size_auto_halves_when_memory_is_short(tiny_llama_folder, text_file, tmp_path, monkeypatch, capsys):
    _code, one = layerwise(tiny_llama_folder, text_file, tmp_path / "one", "--batch_size", "1")
    forward, tried = hooks.forward, []

    def short_of_memory(lm, ids):
        tried.append(len(ids))
        if ids.numel() > 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        forward(lm, ids)

    def no_memory(_lm, _ids):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(hooks, "forward", short_of_memory)
    monkeypatch.setattr(next_token, "losses", no_memory)  # of the first look at the text, without which it goes on
    _code, auto = layerwise(tiny_llama_folder, text_file, tmp_path / "auto", "--batch_size", "auto")
    assert tried == [2, 2, 3, 3, 3, 3, 2, 1, 1, 1]  # the first two when the loaded model is verified
    assert auto["config"]["batch_size"] == 1
    assert auto["results"] == one["results"]
    assert layerwise(tiny_llama_folder, text_file, tmp_path / "two", "--batch_size", "2") == (2, None)
    assert "error: out of memory with --batch_size 2" in capsys.readouterr().err


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_no_misfit(loss, monkeypatch):
    """Where the values themselves are not finite, the run ends with the layer's name."""
    windows = replace(spiked_windows(), chance=2.0)
    for of, expected in ((loss, False), (3.0, True)):
        monkeypatch.setattr(next_token, "losses", lambda *_args, of=of: torch.tensor([of, of]))
        assert (experiment._misfit(None, windows) is not None) == expected


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("value", "dtype", "warned"), [(40_000, "float16", True), (30_000, "float16", False)])
def test_float16_warns_when_it_is_about_to_end(
    value, dtype, warned, tokenizer, text_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(experiment, "_misfit", lambda *_: None)  # random weights fit no text
    model = tiny_model("gpt2")
    model.transformer.h[1].mlp.c_proj.bias.data[3] = -value
    folder = save(tmp_path / "high", model, tokenizer)
    code, payload = layerwise(folder, text_file, tmp_path / "out", "--dtype", dtype)
    assert code == 0
    warning = payload["provenance"].get("warning")
    text = (tmp_path / "out" / "high_layerwise.txt").read_text()
    if warned:
        assert f"where {dtype} ends at 65,504" in warning
        assert "|value| up to 40,000 at layer" in warning
        assert warning in text
        assert capsys.readouterr().err.strip() == f"warning: {warning}"
    else:
        assert warning is None
        assert "warning" not in text
        assert not capsys.readouterr().err


@pytest.mark.parametrize(("argv", "expected"), [([], "auto"), (["--batch_size", "1"], 1)])
def test_as_many_windows_as_fit_are_the_default(argv, expected):
    assert cli.parse(main_llm.Options, main_llm.__doc__, ["--exp2", *argv]).batch_size == expected
