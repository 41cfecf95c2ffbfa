"""Every script end to end: its files, its errors, and its figures for real models against an eager forward."""

import dataclasses
import importlib
import json
import runpy
import subprocess
import sys
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import main_llm
from lib import catalogue
from lib.experiment import all_written, already_there, execute
from lib.model import models
from lib.report import figures
from lib.run import checkout
from tests import undrawn
from tests.conftest import MASSIVE_DIM, SPIKE_TOKEN, exhaustive_unless, planted_model, save

pytestmark = pytest.mark.slow
ABLATION_FIGURES = ("top1_comparison", "critical_dimensions", "percentage_change_heatmap")
# script: (its own arguments, its files, the JSON)
SCRIPTS = {
    "main_llm.py --exp1": (
        ["--layer_id", "1"],
        ["{m}_layer1_3d.png", "{m}_layer1_3d.txt"],
        "{m}_layer1_3d.json",
    ),
    "main_llm.py --exp2": ([], ["{m}.png", "{m}_layerwise.txt"], "{m}_layerwise.json"),
    "main_llm.py --exp3": (
        ["--layer_id", "1", "--reset_type", "set_mean"],
        ["{m}_layer1_set_mean.png", "{m}_layer1_set_mean.txt"],
        "{m}_layer1_set_mean.json",
    ),
    "main_llm.py --exp4": (
        ["--layer_id", "1"],
        ["{m}_layer1_attention_logits.png", "{m}_layer1_attention_logits.txt"],
        "{m}_layer1_attention_logits.json",
    ),
    "analyze_heads_simple.py": (
        [],
        ["{m}_head_analysis.png", "{m}_head_ranking.png", "{m}_pruning_config.txt", "{m}_head_analysis.txt"],
        "{m}_head_analysis.json",
    ),
    "test_head_pruning_on_massive.py": (
        ["--n_random", "2", "--top", "0.1", "1.2", "--bottom", "1.0", "2.3"],
        [
            "Prune_TOP_Heads_comparison.png",
            "Prune_BOTTOM_Heads_comparison.png",
            "summary_comparison.png",
            "pruning_summary.txt",
        ],
        "pruning_results.json",
    ),
    "exp1_feasibility_test.py": (
        ["--dims", "5", "9"],
        [f"comparison/exp1_{name}.png" for name in ABLATION_FIGURES] + ["comparison/EXPERIMENT_1_SUMMARY.txt"],
        "comparison/exp1_results.json",
    ),
    "exp2a_mlp_feasibility_test.py": (
        [],
        [f"comparison/exp2a_{name}.png" for name in ABLATION_FIGURES] + ["comparison/EXPERIMENT_2A_SUMMARY.txt"],
        "comparison/exp2a_results.json",
    ),
    "exp2b_mlp_layer_sweep.py": (
        [],
        ["exp2b_layer_sweep.png", "exp2b_cost.png", "EXPERIMENT_2B_SUMMARY.txt"],
        "exp2b_results.json",
    ),
    "exp2c_mlp_internal_analysis.py": (
        ["--layer_id", "1"],
        [
            "exp2c_activation_flow.png",
            "exp2c_dimension_analysis.png",
            "exp2c_gelu_impact.png",
            "EXPERIMENT_2C_SUMMARY.txt",
        ],
        "exp2c_detailed_results.json",
    ),
    "exp3_lifecycle_ledger.py": (
        ["--mlps_off", "2", "--heads_off", "0.1", "1.2"],
        ["exp3_ledger.png", "exp3_writes.png", "EXPERIMENT_3_SUMMARY.txt"],
        "exp3_results.json",
    ),
    "exp6_trigger_census.py": (
        [],
        ["exp6_vocabulary.png", "exp6_triggers.png", "EXPERIMENT_6_SUMMARY.txt"],
        "exp6_results.json",
    ),
    "exp4_neuron_sets.py": (
        ["--layer_id", "1", "--n_random", "2"],
        ["exp4_neuron_sets.png", "exp4_neurons_read.png", "exp4_super_weights.png", "EXPERIMENT_4_SUMMARY.txt"],
        "exp4_results.json",
    ),
    "exp5_interventions.py": (
        ["--factors", "0.5", "--epsilons", "0.1", "0.3"],
        ["exp5_perplexity_and_sinks.png", "exp5_comes_back.png", "EXPERIMENT_5_SUMMARY.txt"],
        "exp5_results.json",
    ),
    "exp7_head_sweep.py": (
        ["--n_random", "2"],
        [
            "exp7_place_heatmap.png",
            "exp7_model_heatmap.png",
            "exp7_cumulative.png",
            "EXPERIMENT_7_SUMMARY.txt",
        ],
        "exp7_results.json",
    ),
    "exp8_experts.py": (
        ["--n_random", "1"],
        ["exp8_experts.png", "exp8_off.png", "EXPERIMENT_8_SUMMARY.txt"],
        "experts_results.json",
    ),
    "compare_3d_before_after_pruning.py": (
        ["--layer_id", "1"],
        ["layer1_3d_comparison.png", "layer1_difference_analysis.png", "layer1_comparison.txt"],
        "layer1_comparison.json",
    ),
}


def as_it_says(entry):
    """The same of an experiment that is not above: the flags that a study gives it, the files that it names."""
    experiment = importlib.import_module(entry.command.removesuffix(".py")).EXPERIMENT
    flags = "".join(entry.study[:1]).format(born=1, read=1).split()
    json_name, *names = (
        name.format(model_name="{m}", layer_id=1)
        for name in (experiment.json, experiment.txt, *experiment.figures(), *experiment.extra)
    )
    return flags, names, json_name


def test_what_a_script_says_is_what_stands_above():
    for entry in catalogue.EXPERIMENTS.values():
        if not entry.command.startswith("main_llm.py"):
            _flags, names, json_name = as_it_says(entry)
            _own, listed, listed_json = SCRIPTS[entry.command]
            assert {name.format(m="{m}") for name in names} >= set(listed)
            assert json_name == listed_json


SCRIPTS |= {of.command: as_it_says(of) for of in catalogue.EXPERIMENTS.values() if of.command not in SCRIPTS}
NEEDS_EXPERTS = [of.command for of in catalogue.EXPERIMENTS.values() if of.needs == "experts"]
OF_CHECKPOINTS = ("exp14_training.py",)
DENSE, MIXTURE, SERIES = ("tiny_gpt2_folder", "tiny_llama_folder"), ("tiny_mixture_folder",), ("tiny_series_folder",)
SAMPLE = ["--nsamples", "3", "--seqlen", "32"]
SMALL = ["--dpi", "40"]  # figures


def folders(script):
    """The fixtures of models that it takes."""
    return SERIES if script in OF_CHECKPOINTS else MIXTURE if script in NEEDS_EXPERTS else DENSE


def run(script, *arguments):
    """Run a script as `python SCRIPT ARGUMENTS` would, in this process; returns its exit code."""
    name, *flags = script.split()
    before = sys.argv
    sys.argv = [name, *flags, *map(str, arguments)]
    try:
        runpy.run_path(str(checkout.ROOT / name), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    ("script", "folder"),
    [exhaustive_unless(of != "tiny_llama_folder", script, of) for script in SCRIPTS for of in folders(script)],
    indirect=["folder"],
)
@pytest.mark.usefixtures("few_draws")
def test_script_writes_its_files_and_redraws_them(script, folder, text_file, tmp_path, capsys, monkeypatch):
    drawn = folder.name != "tiny-llama"  # to look at once; what is redrawn is a JSON, whatever model it is of
    if not drawn:
        monkeypatch.setattr(figures, "save", undrawn.put_away)
    own, names, json_name = SCRIPTS[script]
    names = [name.format(m=folder.name) for name in names]
    json_name = json_name.format(m=folder.name)
    out = tmp_path / "out"
    assert run(script, "--model", folder, "--dataset", text_file, *SAMPLE, *own, *SMALL, "--savedir", out) == 0
    assert files(out) == sorted([*names, json_name])
    printed = capsys.readouterr().out
    assert all(str(out / name) in printed for name in [*names, json_name])
    payload = json.loads((out / json_name).read_text())
    assert list(payload) == ["schema_version", "experiment", "provenance", "config", "results", "files"]
    loaded = [step["source"] for step in payload["results"]["steps"]] if script in OF_CHECKPOINTS else []
    assert all(source["weights_sha256"] for source in loaded or [payload["provenance"]["model"]])
    for name in names:
        if name.endswith(".png") and drawn:
            assert len(Image.open(out / name).convert("RGB").getcolors(1 << 24)) > 20, "an empty figure"
        elif not name.endswith(".png"):
            assert folder.name in (out / name).read_text()

    if not drawn:
        return
    with nothing_loaded():
        assert run(script.split()[0], "--replot", out / json_name, *SMALL, "--savedir", tmp_path / "again") == 0
    for name in (name for name in names if name.endswith(".png")):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_a_figure_that_is_new_is_drawn_from_stored_results(tiny_gpt2_folder, text_file, tmp_path):
    """Without a model; and a study does not measure again for it."""
    sample = {"model": str(tiny_gpt2_folder), "dataset": str(text_file), "nsamples": 3, "seqlen": 32, "device": "cpu"}
    options = main_llm.Options(**sample, savedir=tmp_path)
    lm = models.load(options)
    execute(main_llm.LAYERWISE, options, lm)
    drawn = main_llm.LAYERWISE.figures()
    more = dataclasses.replace(main_llm.LAYERWISE, figures=lambda: drawn | {"new.png": drawn["{model_name}.png"]})
    assert already_there(more, options, lm)
    assert not all_written(more, options)
    execute(more, main_llm.Options(replot=tmp_path / "tiny-gpt2_layerwise.json"))
    assert (tmp_path / "new.png").read_bytes() == (tmp_path / "tiny-gpt2.png").read_bytes()
    assert all_written(more, options)


def test_same_command_same_json(tiny_gpt2_folder, text_file, tmp_path, undrawn):
    texts = []
    for _ in range(2):
        arguments = ["--model", tiny_gpt2_folder, "--dataset", text_file, *SAMPLE, "--savedir", tmp_path]
        assert run("exp1_feasibility_test.py", *arguments) == 0
        payload = json.loads((tmp_path / "comparison" / "exp1_results.json").read_text())
        del payload["provenance"]["time"], payload["provenance"]["seconds"]
        texts.append(json.dumps(payload))
    assert texts[0] == texts[1]


def test_help_needs_no_torch():
    code = (
        "import glob, runpy, sys\n"
        "scripts = sorted(glob.glob('*.py'))\n"
        "for script in scripts:\n"
        "    sys.argv = [script, '--help']\n"
        "    try:\n        runpy.run_path(script, run_name='__main__')\n"
        "    except SystemExit as stop:\n        assert not stop.code, script\n"
        "    assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), script\n"
        "print(len(scripts))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=checkout.ROOT, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) >= len({script.split()[0] for script in SCRIPTS})


@contextmanager
def nothing_loaded():
    """Scripts import lib/ anew, and torch and transformers cannot be imported."""
    ours = [name for name in sys.modules if name.split(".")[0] == "lib"]
    blocked = dict.fromkeys(("torch", "transformers", "datasets"))
    with mock.patch.dict(sys.modules, blocked):
        for name in ours:
            del sys.modules[name]
        yield


def test_pruning_takes_the_configuration_that_the_head_analysis_wrote(tiny_llama_folder, text_file, tmp_path, undrawn):
    shared = ["--model", tiny_llama_folder, "--dataset", text_file, *SAMPLE, "--savedir", tmp_path]
    assert run("analyze_heads_simple.py", *shared) == 0
    analysis = json.loads((tmp_path / "tiny-llama_head_analysis.json").read_text())
    scores = np.array([[cell["mean"] for cell in row] for row in analysis["results"]["scores"]])
    order = np.argsort(-scores, axis=None)
    top = [list(divmod(int(i), scores.shape[1])) for i in order[:3]]
    bottom = [list(divmod(int(i), scores.shape[1])) for i in order[::-1][:3]]
    by_config = [*shared, "--config", tmp_path / "tiny-llama_pruning_config.txt", "--n_random", "0"]
    for arguments in (by_config, [*shared, "--n_random", "0"]):
        assert run("test_head_pruning_on_massive.py", *arguments) == 0
        results = json.loads((tmp_path / "pruning_results.json").read_text())["results"]
        assert results["sets"]["top"] == top == results["conditions"]["top"]["heads_off"]
        assert results["sets"]["bottom"] == bottom == results["conditions"]["bottom"]["heads_off"]


def test_random_heads_match_the_layers_and_avoid_the_sets(tiny_gpt2_folder, text_file, tmp_path, undrawn):
    own, _names, json_name = SCRIPTS["test_head_pruning_on_massive.py"]
    arguments = ["--model", tiny_gpt2_folder, "--dataset", text_file, *SAMPLE, *own, "--savedir", tmp_path]
    assert run("test_head_pruning_on_massive.py", *arguments) == 0
    results = json.loads((tmp_path / json_name).read_text())["results"]
    taken = [*results["sets"]["top"], *results["sets"]["bottom"]]
    for name in ("top", "bottom"):
        null = results["null"][name]
        whole = [results["conditions"][draw]["heads_off"] for draw in null["run_whole"]]
        assert whole == null["draws"][:2]
        assert len({str(heads) for heads in null["draws"]}) == null["possible"] == len(null["draws"]) > 2
        for heads in null["draws"]:
            assert sorted(layer for layer, _ in heads) == sorted(layer for layer, _ in results["sets"][name])
            assert not [head for head in heads if head in taken]


BAD_INPUTS = {
    "unknown model folder": (["--model", "./nowhere"], "no such model folder"),
    "hub unreachable": (["--model", "gpt2"], "--model smollm2-135m --dataset python-docs"),
    "hub dataset unreachable": (["--dataset", "wikitext"], "--model smollm2-135m --dataset python-docs"),
    "missing dataset file": (["--dataset", "nowhere.txt"], "no such file"),
    "too many windows": (["--nsamples", "100000"], "windows of 32 tokens"),
    "seqlen beyond the position table": (["--seqlen", "65"], "64 positions"),
    "layer out of range": (["--exp1", "--layer_id", "3"], "layers 0 to 2"),
    "no windows": (["--nsamples", "0"], "at least 1"),
    "negative seed": (["--seed", "-1"], "at least 0"),
    "not a number": (["--nsamples", "many"], "invalid int value"),
    "unknown flag": (["--frobnicate"], "--frobnicate"),
    "unknown device": (["--device", "abacus"], "abacus"),
    "malformed replot": (["--replot", __file__], "cannot read"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_and_exit_code_2(case, tiny_gpt2_folder, text_file, tmp_path, capsys):
    arguments, expected = BAD_INPUTS[case]
    shared = ["--model", tiny_gpt2_folder, "--dataset", text_file, *SAMPLE, "--savedir", tmp_path / "out"]
    assert run("main_llm.py --exp2", *shared, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("compare_3d_before_after_pruning.py", ["--head", "4"], "heads 0 to 3"),
        ("exp1_feasibility_test.py", ["--dims", "32"], "dims 0 to 31"),
        ("exp2c_mlp_internal_analysis.py", ["--position", "32"], "0 to 31"),
        ("exp5_interventions.py", ["--layer_id", "3"], "layers 0 to 2"),
        ("exp5_interventions.py", ["--nsamples", "1"], "at least 2"),
        ("exp5_interventions.py", ["--epsilons", "1.5"], "between 0 and 1"),
        ("main_llm.py --exp3", ["--reset_type", "set_one"], "invalid choice"),
        ("main_llm.py --exp4", ["--layer_id", "3"], "layers 0 to 2"),
        ("exp2c_mlp_internal_analysis.py", ["--layer_id", "-1"], "layers 0 to 2"),
        ("exp4_neuron_sets.py", ["--layer_id", "3"], "layers 0 to 2"),
        ("exp7_head_sweep.py", ["--n_whole", "0"], "--n_whole: at least 1"),
        ("exp8_experts.py", [], "this model has no mixture of experts"),
        ("test_head_pruning_on_massive.py", ["--top", "5,1", "--bottom", "1.1"], "layer.head"),
        ("test_head_pruning_on_massive.py", ["--top", "1.4", "--bottom", "1.1"], "heads 0 to 3"),
        ("test_head_pruning_on_massive.py", ["--config", "nowhere"], "cannot read pruning configuration"),
        ("test_head_pruning_on_massive.py", ["--top", "1.0", "1.1", "--bottom", "1.2", "1.3"], "too few heads"),
    ],
)
def test_out_of_range_is_an_error(script, arguments, expected, tiny_gpt2_folder, text_file, tmp_path, capsys):
    shared = ["--model", tiny_gpt2_folder, "--dataset", text_file, *SAMPLE, "--savedir", tmp_path / "out"]
    assert run(script, *shared, *arguments) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_configuration_without_heads_is_an_error(tiny_gpt2_folder, text_file, tmp_path, capsys):
    """What removes nothing would come out as "persists"."""
    config = tmp_path / "config.txt"
    config.write_text("[overall]\ntop =\nbottom = 1.1\n")
    shared = ["--model", tiny_gpt2_folder, "--dataset", text_file, *SAMPLE, "--savedir", tmp_path / "out"]
    assert run("test_head_pruning_on_massive.py", *shared, "--config", config) == 2
    assert "names no heads" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unwritable_savedir_is_found_before_the_model_is_loaded(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run("main_llm.py --exp2", "--model", "./nowhere", "--savedir", tmp_path / "file" / "out") == 2
    assert "not a writable folder" in capsys.readouterr().err


def test_non_finite_values_are_an_error(tokenizer, tmp_path, capsys):
    model = planted_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data[MASSIVE_DIM, 0] = -3e38  # too much where SPIKE_TOKEN is met
    broken = save(tmp_path / "broken", model, tokenizer)
    (tmp_path / "text.txt").write_text(100 * f"a{tokenizer.decode([SPIKE_TOKEN])}b ")
    shared = ["--model", broken, "--dataset", tmp_path / "text.txt", *SAMPLE, "--savedir", tmp_path / "out"]
    assert run("main_llm.py --exp2", *shared) == 2
    assert "non-finite values at layer 1; float16 ends at 65,504" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_cut_short_leaves_no_half_written_file(tiny_gpt2_folder, text_file, tmp_path, monkeypatch):
    def half_written(_figure, path, _dpi):
        with open(path, "wb") as file:
            file.write(b"\x89PNG")
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "save", half_written)
    out = tmp_path / "out"
    assert (
        run("main_llm.py --exp2", "--model", tiny_gpt2_folder, "--dataset", text_file, *SAMPLE, "--savedir", out) == 130
    )
    assert files(out) == ["tiny-gpt2_layerwise.json", "tiny-gpt2_layerwise.txt"]


def test_a_full_disk_is_one_line(tiny_gpt2_folder, text_file, tmp_path, monkeypatch, capsys):
    def no_space(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "save", no_space)
    out = tmp_path / "out"
    assert (
        run("main_llm.py --exp2", "--model", tiny_gpt2_folder, "--dataset", text_file, *SAMPLE, "--savedir", out) == 2
    )
    assert "No space left on device" in capsys.readouterr().err
