"""Checkpoints by the names that trainers give them, in the order of their steps."""

import shutil

import pytest

from lib.model import series
from lib.run.cli import Options, UserError

NAMES = {
    "step0": 0,
    "step1000": 1000,
    "step143000": 143000,
    "checkpoint-500": 500,
    "global_step1000": 1000,
    "step1000-tokens4B": 1000,
    "stage1-step2000-tokens5B": 2000,
    "seed3-step700": 700,
    "epoch=3-step=1200": 1200,
    "iter_0001000": 1000,
    "iteration-20": 20,
    "ckpt_30": 30,
    "step-40k": 40000,
    "Step_5": 5,
    "1000": 1000,
    "main": None,
    "v1.0": None,
    "best": None,
    "tokens4B": None,
    "2024-01-01": None,
    "llama-7b": None,
    "": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_step_of_a_name(name):
    assert series.step_of(name) == NAMES[name]


@pytest.fixture
def trained(tmp_path, tiny_gpt2_folder):
    """As a Trainer leaves it: the model and its tokenizer, checkpoints without one, and what is none."""
    folder = shutil.copytree(tiny_gpt2_folder, tmp_path / "run")
    for name in ("checkpoint-500", "checkpoint-1000", "checkpoint-90"):
        (folder / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(tiny_gpt2_folder / file, folder / name)
    (folder / "runs").mkdir()
    (folder / "checkpoint-7").mkdir()  # not written yet
    shutil.copytree(tiny_gpt2_folder, folder / "best")
    return folder


def test_a_folder_of_checkpoints(trained):
    for names in ((), ("all",)):
        found = series.find(Options(model=str(trained)), names)
        assert [(one.step, one.name) for one in found] == [
            (90, "checkpoint-90"),
            (500, "checkpoint-500"),
            (1000, "checkpoint-1000"),
        ]
        assert [one.options.model for one in found] == [str(trained / one.name) for one in found]
    chosen = series.find(Options(model=str(trained)), ("checkpoint-1000", "checkpoint-90"))
    assert [one.step for one in chosen] == [90, 1000]


def test_what_is_left_out_of_a_folder_is_said(trained, capsys):
    series.find(Options(model=str(trained)), ())
    assert capsys.readouterr().err == (
        f"note: without checkpoint-7 of '{trained}': no config.json there\n"
        f"note: without best of '{trained}': no step in the name\n"
    )
    series.find(Options(model=str(trained)), ("checkpoint-500",))
    assert capsys.readouterr().err == ""


def test_the_tokenizer_is_the_checkpoints_own_or_the_folders_or_the_users(trained, tiny_llama_folder):
    first, *_others = series.find(Options(model=str(trained)), ())
    assert first.options.tokenizer == str(trained)
    shutil.copy(trained / "tokenizer.json", trained / "checkpoint-90")
    first, second, _last = series.find(Options(model=str(trained)), ())
    assert (first.options.tokenizer, second.options.tokenizer) == (None, str(trained))
    given = Options(model=str(trained), tokenizer=str(tiny_llama_folder))
    assert {one.options.tokenizer for one in series.find(given, ())} == {str(tiny_llama_folder)}
    (trained / "tokenizer.json").unlink()
    (trained / "tokenizer_config.json").unlink()
    assert {one.options.tokenizer for one in series.find(Options(model=str(trained)), ())} == {None}


def test_a_checkpoint_that_was_written_anew_is_another(trained):
    before = series.find(Options(model=str(trained)), ())
    assert before == series.find(Options(model=str(trained)), ())
    with open(trained / "checkpoint-90" / "model.safetensors", "ab") as file:
        file.write(b"\0")
    after = series.find(Options(model=str(trained)), ())
    assert [a.identity == b.identity for a, b in zip(after, before, strict=True)] == [False, True, True]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("checkpoint-8",), "no checkpoint checkpoint-8"),
        (("best",), "no step in the name best"),
        (("checkpoint-90", "all"), "no checkpoint all"),
    ],
)
def test_names_that_cannot_be(names, message, trained):
    with pytest.raises(UserError, match=message):
        series.find(Options(model=str(trained)), names)


def test_two_of_the_same_step(trained):
    shutil.copytree(trained / "checkpoint-90", trained / "step90")
    with pytest.raises(UserError, match=r"checkpoint-90 and step90|step90 and checkpoint-90"):
        series.find(Options(model=str(trained)), ())


def test_a_folder_without_any(tiny_gpt2_folder):
    with pytest.raises(UserError, match=r"has no checkpoints, which are subfolders .*; names are as step1000"):
        series.find(Options(model=str(tiny_gpt2_folder)), ())


def test_a_hub_model_needs_names():
    with pytest.raises(UserError, match=r"--revisions step0 step1000 \.\.\., or all"):
        series.find(Options(model="EleutherAI/pythia-14m"), ())


@pytest.mark.parametrize("model", ["smollm2-135m", "x.gguf"])
def test_what_has_no_checkpoints(model):
    with pytest.raises(UserError, match=f"'{model}' is one model, without checkpoints"):
        series.find(Options(model=model), ("all",))


def test_another_tokenizer_is_another_checkpoint(trained, tiny_llama_folder):
    def identities(**options):
        of_folder = series.find(Options(model=str(trained), **options), ("checkpoint-90",))
        return [one.identity for one in (*of_folder, *series.find(Options(model="org/x", **options), ("step1",)))]

    every = [identities(), identities(tokenizer=str(tiny_llama_folder)), identities(tokenizer="org/y")]
    for of in zip(*every, strict=True):
        assert len({repr(one) for one in of}) == 3


def test_the_home_folder(trained, monkeypatch):
    monkeypatch.setenv("HOME", str(trained.parent))
    [found] = series.find(Options(model="~/run"), ("checkpoint-90",))
    assert found.options.model == str(trained / "checkpoint-90")
