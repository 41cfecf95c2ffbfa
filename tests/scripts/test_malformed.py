"""Files that are cut short, altered or of the wrong shape: one line and exit code 2, never a traceback, never a figure
of what the file does not say. Seeded; the seed that failed is in the test's message."""

import copy
import json
import random
import shutil
import struct

import pytest

import main_llm
from experiments.layerwise import measure
from lib.core import data
from lib.model import models
from lib.report import result_files
from lib.run.cli import UserError
from tests.scripts.test_scripts import SAMPLE, SMALL, files, run

pytestmark = pytest.mark.slow
WRONG = [None, True, "", "x\ny", [], {}, [[]], 0, -1, 3, 1.5, -1e300, 10**30, float("nan"), float("inf"), "../../x"]


def places(value, path=()):
    """Every path in a tree of dicts and lists, the root's too."""
    yield path
    for key, branch in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(branch, (*path, key))


def altered(tree, rng):
    """A copy with one place removed, or holding something else."""
    tree = copy.deepcopy(tree)
    path = rng.choice([path for path in places(tree) if path])
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    if rng.random() < 0.3:
        del parent[path[-1]]
    elif rng.random() < 0.2:
        parent[path[-1]] = [parent[path[-1]]]
    else:
        parent[path[-1]] = rng.choice(WRONG)
    return tree


def damaged(content, rng, within=None):
    """Bytes cut short, flipped, or with a number of 4 or 8 bytes overwritten; of the first `within`."""
    end = min(len(content), within or len(content))
    at = rng.randrange(end)
    kind = rng.random()
    if kind < 0.2:
        return content[:at]
    if kind < 0.6:
        return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    number = struct.pack(*rng.choice([("<Q", 2**64 - 1), ("<Q", 2**40), ("<I", 0), ("<I", 2**31), ("<q", -1)]))
    return content[:at] + number + content[at + len(number) :]


def measured(model, text_file):
    """Whether a model could be loaded and measured; whatever else is raised is a traceback to the user."""
    options = main_llm.Options(
        model=str(model), dataset=str(text_file), nsamples=2, seqlen=16, batch_size=1, device="cpu"
    )
    try:
        lm = models.load(options)
        measure.run(lm, data.load(options, lm), options)
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        *(("config.json", folder) for folder in ("tiny_gpt2_folder", "tiny_llama_folder")),
        *((name, "tiny_gpt2_folder") for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors")),
    ],
)
def test_model_folder(name, folder, text_file, tmp_path, request):
    whole, done = request.getfixturevalue(folder), []
    content = (whole / name).read_bytes()
    for seed in range(25):
        rng = random.Random(seed)
        broken = shutil.copytree(whole, tmp_path / str(seed))
        if name.endswith("json") and seed % 4:
            (broken / name).write_text(json.dumps(altered(json.loads(content), rng)))
        else:
            (broken / name).write_bytes(damaged(content, rng, rng.choice([12, 2000, None])))
        done.append(measured(broken, text_file))
        shutil.rmtree(broken)
    assert measured(whole, text_file)
    assert set(done) >= {False}


def test_gguf(tiny_gguf, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content, done = tiny_gguf.read_bytes(), []
    for seed in range(30):
        rng = random.Random(seed)
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(damaged(content, rng, rng.choice([30, 500, 5000, None])))
        done.append(measured(broken, text_file))
    assert measured(tiny_gguf, text_file)
    assert set(done) == {True, False}


@pytest.mark.parametrize("count", [b"\xff" * 8, struct.pack("<Q", 2**40)])
def test_a_gguf_whose_arrays_go_beyond_its_end(count, tiny_gguf, tmp_path):
    """Its reader would fill the memory with empty numbers."""
    key = b"tokenizer.ggml.tokens"
    content = bytearray(tiny_gguf.read_bytes())
    at = content.index(key) + len(key)
    assert struct.unpack("<II", content[at : at + 8]) == (9, 8)  # an array of strings
    content[at + 4 : at + 16] = struct.pack("<I", 5) + count  # of int32
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    with pytest.raises(UserError, match="the file ends within its metadata"):
        models.load(main_llm.Options(model=str(broken), device="cpu"))


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_configuration_of_more_weights_than_there_are(name, tiny_llama_folder, tmp_path):
    broken = shutil.copytree(tiny_llama_folder, tmp_path / "model")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {name: 10**8}))
    with pytest.raises(UserError, match=r"configured for .* weights"):
        models.load(main_llm.Options(model=str(broken), device="cpu"))


def test_fewer_layers_than_weights_is_an_error(tiny_llama_folder, tmp_path):
    """transformers would run the first layers only."""
    broken = shutil.copytree(tiny_llama_folder, tmp_path / "model")
    config = json.loads((broken / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    config.pop("layer_types", None)
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has no place for: model\.layers\.2\."):
        models.load(main_llm.Options(model=str(broken), device="cpu"))


def test_a_model_that_cannot_run(tiny_gpt2_folder, tmp_path):
    broken = shutil.copytree(tiny_gpt2_folder, tmp_path / "model")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"n_head": -1}))
    with pytest.raises(UserError, match="cannot run"):
        models.load(main_llm.Options(model=str(broken), device="cpu"))


REPLOTTED = {"main_llm.py --exp2": "{}_layerwise.json", "analyze_heads_simple.py": "{}_head_analysis.json"}


@pytest.fixture(scope="module", params=REPLOTTED)
def result(request, tiny_gpt2_folder, text_file, tmp_path_factory):
    """(script, path of the JSON of a whole run)."""
    out = tmp_path_factory.mktemp("whole")
    arguments = ["--model", tiny_gpt2_folder, "--dataset", text_file, *SAMPLE, *SMALL, "--savedir", out]
    assert run(request.param, *arguments) == 0
    return request.param.split()[0], out / REPLOTTED[request.param].format(tiny_gpt2_folder.name)


def redrawn(script, content, folder, capsys):
    """The figures that --replot makes of a JSON, or None after one line and exit code 2."""
    path, out = folder / "result.json", folder / "out"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    shutil.rmtree(out, ignore_errors=True)
    code, error = run(script, "--replot", path, "--savedir", out, *SMALL), capsys.readouterr().err
    assert sorted(p.name for p in folder.iterdir() if p != out) == ["result.json"]
    if code == 0:
        return {name: (out / name).read_bytes() for name in files(out) if name.endswith(".png")}
    assert (code, error.count("\n"), error[:7]) == (2, 1, "error: ")
    return None


def test_a_result_that_no_run_wrote_is_not_drawn(result, tmp_path, capsys):
    script, path = result
    content, wrong = path.read_bytes(), 0
    expected = {name: (path.parent / name).read_bytes() for name in json.loads(content)["files"]["figures"]}
    for seed in range(32):
        rng = random.Random(seed)
        broken = altered(json.loads(content), rng) if seed % 4 else damaged(content, rng)
        figures = redrawn(script, broken, tmp_path, capsys)
        wrong += figures is None
        assert figures in (None, expected), seed
    assert wrong > 20
    assert redrawn(script, content, tmp_path, capsys) == expected


def test_a_result_without_its_hash_never_ends_in_a_traceback(result, tmp_path, capsys):
    """As results of older versions are."""
    script, path = result
    payload = json.loads(path.read_text())
    del payload["provenance"]["sha256"]
    done = set()
    for seed in range(12):
        rng = random.Random(seed)
        part = rng.choice(["results", "config", "provenance", "files"])
        broken = payload | {part: altered(payload[part], rng)}
        done.add(redrawn(script, broken, tmp_path, capsys) is None)
    assert True in done


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "sub/../../../x", "x\0y", "\ud800"])
def test_figures_stay_in_their_folder(name, result, tmp_path, capsys):
    script, path = result
    payload = json.loads(path.read_text().replace("tiny-gpt2", "NAME"))
    for part in ("config", "files"):
        payload[part] = json.loads(json.dumps(payload[part]).replace('"NAME', json.dumps(name)[:-1]))
    payload["config"]["model_name"] = name
    payload["provenance"]["sha256"] = result_files._sha256(payload)
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    assert redrawn(script, payload, inside, capsys) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b"]
