"""kill -9 at any moment, two writers at once, no space, no folder: files are complete or not there."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import main_llm
from lib import experiment
from lib.model import models
from lib.report import figures, result_files
from lib.run import atomic, checkout, unfinished
from lib.run.cli import UserError
from tests import killed
from tests.scripts.test_scripts import SAMPLE, files, run

pytestmark = pytest.mark.slow
NAMES = ["tiny-gpt2.png", "tiny-gpt2_layerwise.json", "tiny-gpt2_layerwise.txt"]


@pytest.fixture(scope="module")
def result(tiny_gpt2_folder, text_file, tmp_path_factory):
    """The folder of a whole run."""
    out = tmp_path_factory.mktemp("whole")
    arguments = ["--model", tiny_gpt2_folder, "--dataset", text_file, *SAMPLE, "--savedir", out]
    assert run("main_llm.py --exp2", *arguments) == 0
    assert files(out) == NAMES
    return out


def killed_writers(what, path, folder):
    """The folders of the killed writers, and that of the two at once."""
    arguments = [sys.executable, "-m", "tests.killed", what, path, folder]
    subprocess.run(list(map(str, arguments)), cwd=checkout.ROOT, check=True, capture_output=True)
    return [folder / str(kill) for kill in range(killed.KILLS)], folder / "both"


def split(folder):
    """(names of files, names of leftovers) of what is directly in a folder."""
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    left = [name for name in names if name.startswith(atomic.UNFINISHED)]
    return [name for name in names if name not in left], left


def test_killed_while_it_writes_results(result, tmp_path):
    folders, both = killed_writers("results", result / NAMES[1], tmp_path)
    expected = {name: (tmp_path / "whole" / name).read_bytes() for name in NAMES}
    assert expected == {name: (result / name).read_bytes() for name in NAMES}
    unfinished = 0
    for folder in folders:
        found, left = split(folder)
        unfinished += len(left)
        assert set(found) <= set(NAMES)
        for name in found:
            assert (folder / name).read_bytes() == expected[name]
    assert unfinished, "no writer was killed while it wrote"
    assert split(both) == (NAMES, [])
    assert {name: (both / name).read_bytes() for name in NAMES} == expected


def test_killed_while_it_dequantises(tiny_gguf, tmp_path):
    folders, both = killed_writers("cache", tiny_gguf, tmp_path)
    whole = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    names = files(tmp_path / "whole" / "model")
    unfinished = 0
    for folder in (*folders, both):
        found, left = split(folder)
        unfinished += len(left)
        if found:
            assert found == ["model"]
            assert files(folder / "model") == names
            weights = load_file(folder / "model" / "model.safetensors")
            assert weights.keys() == whole.keys()
            assert all(torch.equal(weights[name], whole[name]) for name in whole)
    assert split(both) == (["model"], [])
    assert unfinished, "no writer was killed while it wrote"


def test_leftovers_are_removed_when_they_are_old(tmp_path):
    old, young, folder = (tmp_path / f"{atomic.UNFINISHED}{name}" for name in ("old", "young", "folder"))
    old.touch(), young.touch(), folder.mkdir()
    (folder / "model").touch()
    for path in (old, folder):
        os.utime(path, (0, time.time() - 25 * 3600))
    result_files.write_text(tmp_path / "a.txt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "a.txt"]


def test_sweeps_that_nobody_goes_on_with_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "folder", lambda: tmp_path)
    for name, days in (("old", 31), ("young", 29)):
        (tmp_path / f"{name}.npz").touch()
        os.utime(tmp_path / f"{name}.npz", (0, time.time() - days * 24 * 3600))
    sweep = unfinished.Unfinished("another")
    sweep.save({"a": np.ones(2)})
    assert {path.name for path in tmp_path.iterdir()} == {"young.npz", sweep.path.name}


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free", [0, 4096, 20_480])
def test_a_full_disk_leaves_whole_files(free, result, small_disk, tiny_gpt2_folder, text_file, capsys):
    (small_disk / "filler").write_bytes(bytes(65536 - free))
    arguments = ["--model", tiny_gpt2_folder, "--dataset", text_file, *SAMPLE, "--savedir", small_disk]
    assert run("main_llm.py --exp2", *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: cannot write")
    assert "No space left" in error
    found, left = split(small_disk)
    assert not left
    assert len(found) < 4
    for name in set(found) & set(NAMES[1:]):
        if name.endswith("json"):
            json.loads((small_disk / name).read_text())
        else:
            assert (small_disk / name).read_text().splitlines()[-1] == (result / name).read_text().splitlines()[-1]


def test_no_space_for_the_dequantised_model(small_disk, tiny_gguf, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    with pytest.raises(UserError, match=r"cannot keep tiny in .*: .*No space left") as error:
        models._resolve(str(tiny_gguf), needs_tokenizer=True)
    assert "\n" not in str(error.value)
    assert split(small_disk / "massive-activations") == ([], [])


@pytest.mark.parametrize("becomes", ["nothing", "a file"])
def test_a_savedir_that_vanishes(becomes, result, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    payload = json.loads((result / NAMES[1]).read_text())
    monkeypatch.setattr(experiment, "_measure", lambda *_: payload)
    save = figures.save

    def vanish(figure, path, dpi):
        shutil.rmtree(out)
        if becomes == "a file":
            out.touch()
        save(figure, path, dpi)

    monkeypatch.setattr(figures, "save", vanish)
    with pytest.raises(UserError, match="cannot write"):
        experiment.execute(main_llm.LAYERWISE, main_llm.Options(savedir=out))
    assert out.exists() == (becomes == "a file")
    monkeypatch.setattr(figures, "save", save)
    if becomes == "nothing":  # gone between two files, it is made anew
        experiment.execute(main_llm.LAYERWISE, main_llm.Options(savedir=out))
        assert files(out) == NAMES
