"""The births of planted courses of training are found where they are, and nothing where nothing is born; each step's
numbers are those of eager attention and of transformers' own hidden states."""

import itertools
import json
import shutil
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from lib.model import models, series
from lib.planted import planting
from tests import golden
from tests import series as courses
from tests.conftest import exhaustive_unless, save, tiny_model
from tests.scripts.test_scripts import SMALL, files, run

FACTORS = {"step0": 0.0, "step5": 1e-3, "step10": 0.01, "step100": 1.0, "step1000": 1.1}
BORN, NOT_YET = 100, 10

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_draws")]


COURSES = [("gpt2", "mlp"), ("llama", "head")]


@pytest.fixture(scope="module", params=COURSES[:1], ids="-".join)
def course(request, tmp_path_factory):
    """A planted course in a folder, its flags, and what was planted."""
    planted = planting.build(*request.param, seed=0)
    return in_folder(planted, FACTORS, tmp_path_factory.mktemp("course"))


def in_folder(planted, factors, folder):
    written = golden.write_text(planted, folder)
    flags = ["--dataset", written, "--nsamples", "8", "--seqlen", "32", "--device", "cpu"]
    return SimpleNamespace(folder=courses.saved(folder / "toy", planted, factors), flags=flags, planted=planted)


def measured(course, out, *flags):
    """The JSON of a run of the script, which must end well."""
    arguments = ["--model", course.folder, *course.flags, "--savedir", out, *flags]
    assert run("exp14_training.py", *arguments) == 0
    return json.loads((out / "exp14_results.json").read_text())


@pytest.mark.parametrize("course", COURSES, ids="-".join, indirect=True)
def test_the_planted_birth_is_found(course, tmp_path, undrawn):
    payload = measured(course, tmp_path)
    conclusion, truth = payload["results"]["conclusion"], course.planted.truth
    massive = conclusion["values"]["massive"]
    assert (massive["after"], massive["at"], massive["had"], massive["unclear"]) == (NOT_YET, BORN, [], [])
    assert massive["verdict"] == f"between steps {NOT_YET} and {BORN}"
    part = f"head {truth.layer}.{truth.head}" if truth.head is not None else f"mlp {truth.layer}"
    assert conclusion["values"]["writer"] == part
    for step in payload["results"]["steps"]:
        assert step["name"] == f"step{step['step']}"
        seen = by_hand(courses.with_writes(course.planted, FACTORS[step["name"]]), course.planted.windows.ids)
        assert_as_by_hand(step, seen)
        assert step["followed"]["massive"] == (step["step"] >= BORN)
    assert payload["provenance"]["model"]["folder"] == "toy"
    assert "weights_sha256" not in payload["provenance"]["model"]


def by_hand(model, ids):
    """What transformers itself says of a model: block outputs (layers, windows, seq, dims), attention on the first
    token (layers, windows, heads, seq), loss of each window."""
    model = model.double()
    model.config._attn_implementation = "eager"
    seen = {}
    stack = model.transformer.h if model.config.model_type == "gpt2" else model.model.layers
    handles = [
        block.register_forward_hook(lambda _m, _a, out, i=i: seen.update({i: out if torch.is_tensor(out) else out[0]}))
        for i, block in enumerate(stack)
    ]
    with torch.no_grad():
        output = model(ids, output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    losses = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    return SimpleNamespace(
        hidden=np.abs(np.stack([seen[i].numpy() for i in range(len(stack))])),
        first=np.stack([one[..., 0].numpy() for one in output.attentions]),
        losses=losses.view(len(ids), -1).mean(1).numpy(),
    )


def assert_as_by_hand(step, seen):
    top1 = seen.hidden.max((2, 3))
    medians = np.sort(seen.hidden.reshape(*top1.shape, -1))[..., (seen.hidden[0, 0].size - 1) // 2]
    for layer, found in enumerate(step["layers"]):
        assert found["top1"]["mean"] == pytest.approx(top1[layer].mean(), rel=1e-4)
        assert found["ratio"]["mean"] == pytest.approx((top1 / medians)[layer].mean(), rel=1e-4)
    massive = (seen.hidden > 100) & (seen.hidden > 1000 * medians[..., None, None])
    assert step["massive"]["mean"] == massive.any((0, 2, 3)).mean()
    assert step["loss"]["mean"] == pytest.approx(seen.losses.mean(), rel=1e-4)
    assert np.allclose(step["scores"], seen.first.mean((1, 3)), atol=1e-4)
    per_window = (seen.first.mean(3) > 0.3).mean((0, 2))
    assert step["sink_rate"]["mean"] == pytest.approx(per_window.mean(), abs=1e-6)


def test_the_order_of_names_does_not_matter(course, tmp_path, undrawn):
    names = list(FACTORS)
    first = measured(course, tmp_path / "sorted", "--revisions", *names)
    other = measured(course, tmp_path / "other", "--revisions", *reversed(names))
    every = measured(course, tmp_path / "all", "--revisions", "all")
    assert first["results"] == other["results"] == every["results"] == measured(course, tmp_path)["results"]
    assert [step["step"] for step in first["results"]["steps"]] == [0, 5, 10, 100, 1000]


def test_steps_sorted_as_text_are_caught(course, tmp_path, undrawn, monkeypatch):
    """step0, step10, step100, step1000, step5: what is born would be gone again."""
    find = series.find
    monkeypatch.setattr(series, "find", lambda *args: sorted(find(*args), key=lambda of: str(of.step)))
    with pytest.raises(AssertionError):
        test_the_planted_birth_is_found(course, tmp_path, None)


@pytest.mark.parametrize("architecture", ["gpt2", exhaustive_unless(False, "llama")])
def test_nothing_is_born_where_nothing_is_planted(architecture, tmp_path, undrawn):
    planted = planting.build(architecture, "mlp", seed=1)
    payload = measured(in_folder(planted, dict.fromkeys(FACTORS, 0.001), tmp_path), tmp_path / "out")
    massive = payload["results"]["conclusion"]["values"]["massive"]
    assert (massive["verdict"], massive["at"], massive["had"]) == ("none found", None, [])


def test_born_and_gone_again(tmp_path, undrawn):
    planted = planting.build("gpt2", "mlp", seed=1)
    payload = measured(in_folder(planted, {"step1": 0.0, "step2": 1.0, "step3": 0.0}, tmp_path), tmp_path / "out")
    massive = payload["results"]["conclusion"]["values"]["massive"]
    assert (massive["verdict"], massive["at"], massive["had"]) == ("gone again", None, [2])


# one after another


def test_one_model_is_in_memory_at_a_time(course, tmp_path, undrawn, monkeypatch):
    load, alive, most = models.load, weakref.WeakSet(), []

    def counted(options):
        most.append(len(alive))
        lm = load(options)
        alive.add(lm.model)
        lm.model.__dict__["held"] = [lm.model]  # as by accelerate's hooks
        return lm

    monkeypatch.setattr(models, "load", counted)
    measured(course, tmp_path)
    assert most == [0] * len(FACTORS)


def test_what_is_measured_is_kept(course, tmp_path, undrawn, monkeypatch, capsys):
    """After an error, with further steps, with other flags, and where a checkpoint was written anew."""
    broken = shutil.copytree(course.folder, tmp_path / "toy")
    other = SimpleNamespace(folder=broken, flags=course.flags)
    loaded = []
    load = models.load
    monkeypatch.setattr(
        models, "load", lambda options: loaded.append(options.model.rpartition("/")[2]) or load(options)
    )
    (broken / "step5" / "model.safetensors").rename(tmp_path / "away")
    assert run("exp14_training.py", "--model", broken, *course.flags, "--savedir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: step5: ")
    assert "what 2 checkpoints gave is kept for the next run" in error
    assert not (tmp_path / "out").exists()
    assert loaded == ["step1000", "step0", "step5"]
    (tmp_path / "away").rename(broken / "step5" / "model.safetensors")
    loaded.clear()
    first = measured(other, tmp_path / "out")
    assert loaded == ["step5", "step10", "step100"]
    loaded.clear()
    assert measured(other, tmp_path / "out")["results"] == first["results"]
    assert loaded == []
    assert measured(course, tmp_path / "whole")["results"] == first["results"]
    loaded.clear()
    (broken / "step10" / "config.json").touch()
    measured(other, tmp_path / "out", "--revisions", "step5", "step10")
    assert loaded == ["step10"]
    loaded.clear()
    measured(other, tmp_path / "out", "--seed", "1", "--revisions", "step5")
    assert loaded == ["step5"]


def test_a_text_that_changed_is_measured_anew(course, tmp_path, undrawn):
    path = golden.write_text(course.planted, tmp_path)
    written = path.read_text()
    flags = ["--dataset", path, *course.flags[2:]]
    other = SimpleNamespace(folder=course.folder, flags=flags)
    before = measured(other, tmp_path / "out", "--revisions", "step0", "step5")
    path.write_text(" ".join(reversed(written.split())))
    after = measured(other, tmp_path / "out", "--revisions", "step0", "step5")
    assert before["provenance"]["data"]["token_ids_sha256"] != after["provenance"]["data"]["token_ids_sha256"]
    assert before["results"]["steps"][0]["loss"] != after["results"]["steps"][0]["loss"]


def test_checkpoints_of_another_model(course, tmp_path, capsys):
    mixed = shutil.copytree(course.folder, tmp_path / "toy")
    architecture = course.planted.truth.architecture
    another = next(
        built
        for seed in itertools.count(1)
        if (built := planting.build(architecture, "mlp", seed)).lm.arch.n_layers != course.planted.lm.arch.n_layers
    )
    courses.saved(mixed, another, {"step50": 1.0})
    assert run("exp14_training.py", "--model", mixed, *course.flags, "--savedir", tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: step50: it has ")
    assert "but step1000 has" in error
    assert not (tmp_path / "out").exists()


def test_figures_are_redrawn_without_a_model(course, tmp_path):
    out = tmp_path / "out"
    measured(course, out, *SMALL)
    drawn = files(out)
    assert drawn == [
        "EXPERIMENT_14_SUMMARY.txt",
        "exp14_layers.png",
        "exp14_results.json",
        "exp14_sinks.png",
        "exp14_writers.png",
    ]
    assert (
        run("exp14_training.py", "--replot", out / "exp14_results.json", *SMALL, "--savedir", tmp_path / "again") == 0
    )
    assert files(tmp_path / "again") == [name for name in drawn if not name.endswith("json")]
    told = (out / "EXPERIMENT_14_SUMMARY.txt").read_text()
    assert f"Massive activations: between steps {NOT_YET} and {BORN}" in told


def test_a_single_layer_and_a_single_step(tokenizer, text_file, tmp_path):
    for name in ("step0", "best"):
        save(tmp_path / "run" / name, tiny_model("gpt2", n_layer=1), tokenizer)
    flags = ["--model", tmp_path / "run", "--dataset", text_file, "--nsamples", "2", "--seqlen", "2"]
    assert run("exp14_training.py", *flags, "--savedir", tmp_path / "out") == 0
    payload = json.loads((tmp_path / "out" / "exp14_results.json").read_text())
    assert [step["name"] for step in payload["results"]["steps"]] == ["step0"]


def test_what_a_trainer_leaves(tokenizer, text_file, tmp_path, undrawn):
    """Optimiser, scheduler and random states beside the weights; the tokenizer only where the training ended."""
    ids = torch.randint(300, (8, 16), generator=torch.Generator().manual_seed(0))
    arguments = transformers.TrainingArguments(
        tmp_path / "run", max_steps=6, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=100
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    model = tiny_model("llama").requires_grad_(True)
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    tokenizer.save_pretrained(tmp_path / "run")
    flags = ["--model", tmp_path / "run", "--dataset", text_file, "--nsamples", "2", "--seqlen", "16"]
    assert run("exp14_training.py", *flags, "--savedir", tmp_path / "out") == 0
    steps = json.loads((tmp_path / "out" / "exp14_results.json").read_text())["results"]["steps"]
    assert [(step["step"], step["name"]) for step in steps] == [(n, f"checkpoint-{n}") for n in (2, 4, 6)]
    assert steps[0]["loss"] != steps[2]["loss"]


def test_a_result_of_another_course_is_not_overwritten(
    course, tiny_series_folder, text_file, tmp_path, capsys, undrawn
):
    measured(course, tmp_path / "out")
    before = (tmp_path / "out" / "exp14_results.json").read_bytes()
    flags = ["--model", tiny_series_folder, "--dataset", text_file, "--nsamples", "2", "--seqlen", "16"]
    assert run("exp14_training.py", *flags, "--savedir", tmp_path / "out") == 2
    assert "is of another model" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "out" / "exp14_results.json").read_bytes() == before
