"""A mask from one script to the next, as a user types it."""

import json

import pytest

from lib.run import checkout
from tests.conftest import SPIKE_TOKEN, planted_model, save
from tests.scripts.test_scripts import files, nothing_loaded, run

pytestmark = pytest.mark.slow
SAMPLE = ["--nsamples", "6", "--seqlen", "32"]
TRACKED = checkout.ROOT / "results" / "smollm2-135m" / "main_llm"


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    return save(tmp_path_factory.mktemp("models") / "planted", planted_model("llama"), tokenizer)


@pytest.fixture(scope="module")
def spiked_file(tmp_path_factory, tokenizer, text_file):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text_file.read_text().replace(" the", f" {tokenizer.decode([SPIKE_TOKEN])}"))
    return path


def test_from_the_export_to_the_interventions(model, spiked_file, tmp_path, capsys):
    shared = ["--model", model, "--dataset", spiked_file, *SAMPLE]
    path, out = tmp_path / "masks" / "mask.json", tmp_path / "out"
    assert run("main_llm.py --exp2", *shared, "--savedir", out, "--export", path) == 0
    assert capsys.readouterr().out.endswith(f"{path}\n")
    assert files(tmp_path / "masks") == ["mask.json"]
    mask = json.loads(path.read_text())
    assert mask["places"]
    assert mask["model"]["weights_sha256"]
    with nothing_loaded():
        again = ["--replot", out / "planted_layerwise.json", "--export", tmp_path / "again.json"]
        assert run("main_llm.py", *again) == 0
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert run("exp5_interventions.py", *shared, "--mask", path, "--savedir", tmp_path / "5") == 0
    results = json.loads((tmp_path / "5" / "exp5_results.json").read_text())["results"]
    assert {pair["dim"] for pair in results["sites"]["dims"]} <= {place["dim"] for place in mask["places"]}
    assert f"what {path} (sha256" in (tmp_path / "5" / "EXPERIMENT_5_SUMMARY.txt").read_text()


def test_a_model_without_massive_activations_gives_an_empty_one(tiny_llama_folder, text_file, tmp_path, capsys):
    shared = ["--model", tiny_llama_folder, "--dataset", text_file, *SAMPLE]
    path = tmp_path / "mask.json"
    assert run("main_llm.py --exp2", *shared, "--savedir", tmp_path / "out", "--export", path) == 0
    assert json.loads(path.read_text())["places"] == []
    capsys.readouterr()
    assert run("exp5_interventions.py", *shared, "--mask", path, "--savedir", tmp_path / "5") == 2
    error = capsys.readouterr().err
    assert "is empty" in error
    assert not (tmp_path / "5").exists()


def test_a_mask_of_another_model(model, spiked_file, tiny_llama_folder, tmp_path, capsys):
    shared = ["--dataset", spiked_file, *SAMPLE]
    path = tmp_path / "mask.json"
    assert run("main_llm.py --exp2", "--model", model, *shared, "--savedir", tmp_path / "out", "--export", path) == 0
    capsys.readouterr()
    refused = ["--model", tiny_llama_folder, *shared, "--mask", path, "--savedir", tmp_path / "5"]
    assert run("exp5_interventions.py", *refused) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # after a warning that the text does not fit this model
    assert error.startswith("error: ")
    assert "is of another model: " in error
    assert "planted" in error
    assert "tiny-llama" in error
    assert not (tmp_path / "5").exists()


REFUSED = {
    "a folder": ("main_llm.py --exp2 --model ./nowhere --export {folder}", "it is a folder"),
    "below a file": ("main_llm.py --exp2 --model ./nowhere --export {file}/mask.json", "is not a writable folder"),
    "another file": ("main_llm.py --exp2 --model ./nowhere --export {file}", "there is a file that is none"),
    "nowhere": ("main_llm.py --exp2 --model ./nowhere --export {folder}\0/mask.json", "cannot write"),
    "an empty path": ("main_llm.py --exp2 --export ", "a path is empty"),
    "one window": ("main_llm.py --exp2 --nsamples 1 --export {folder}/mask.json", "--nsamples 2 or more"),
    "of another experiment": (
        f"main_llm.py --replot {TRACKED / 'smollm2-135m_layer11_3d.json'} --export {{folder}}/mask.json",
        "no result of --exp2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path, capsys):
    line, message = REFUSED[case]
    (tmp_path / "file").touch()
    script, *arguments = line.format(folder=tmp_path, file=tmp_path / "file").split(" ")
    assert run(script, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "mask.json").exists()
