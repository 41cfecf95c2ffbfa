"""A flag does what it says or is refused: what would do nothing beside the others that were typed."""

import importlib
import json

import pytest

import study
from lib.report import result_files
from lib.run import checkout, cli
from tests.scripts.test_scripts import run

RESULT = checkout.ROOT / "results" / "smollm2-135m" / "main_llm" / "smollm2-135m_layerwise.json"
REFUSED = {
    "the packaged model has no revisions": ("main_llm.py --exp2 --model smollm2-135m --revision main", "revision"),
    "nor has a folder": ("exp1_feasibility_test.py --model lib --revision main", "revision"),
    "nor has a file": ("exp3_lifecycle_ledger.py --model ./x.gguf --revision main", "revision"),
    "in a study, too": ("study.py --model lib --revision main", "revision"),
    "all layers, and one": ("main_llm.py --exp2 --layer_id 3", "layer_id"),
    "no sentence": ("main_llm.py --exp2 --text x", "text"),
    "no sentence in --exp3": ("main_llm.py --exp3 --text x", "text"),
    "a mask of a sentence": ("main_llm.py --exp1 --export x.json", "export"),
    "nothing is set": ("main_llm.py --exp1 --exp2 --exp4 --reset_type set_mean", "reset_type"),
    "the default of a choice, typed": ("main_llm.py --exp2 --reset_type set_zero", "reset_type"),
    "a split of a sentence": ("main_llm.py --exp1 --split train", "split"),
    "a column of a sentence": ("main_llm.py --exp4 --text_column text", "text_column"),
    "a configuration of a sentence": ("main_llm.py --exp1 --exp4 --config wikitext-2-raw-v1", "dataset_config"),
    "nothing is ranked": ("compare_3d_before_after_pruning.py --head 0 --split train", "split"),
    "all heads are named": ("test_head_pruning_on_massive.py --top 0.1 --bottom 1.1 --config x.txt", "config"),
    "more windows than there are": ("exp7_head_sweep.py --nsamples 4 --n_whole 5", "n_whole"),
    "drawn from a file": (f"exp1_feasibility_test.py --model gpt2 --replot {RESULT}", "exp1"),
    "counts of a file": (f"main_llm.py --replot {RESULT} --nsamples 30", "nsamples"),
    "the model of a file": (f"main_llm.py --exp2 --replot {RESULT} --model smollm2-135m", "model"),
    "another experiment's file": (f"main_llm.py --exp1 --replot {RESULT}", "not a result of 'sentence'"),
}
HEEDED = {
    "a revision on the hub": "main_llm.py --exp2 --model EleutherAI/pythia-70m --revision step1000",
    "one of several experiments heeds it": "main_llm.py --exp1 --exp2 --text x --split train --nsamples 3 --layer_id 1",
    "a layer of --exp3": "main_llm.py --exp3 --layer_id 1 --reset_type set_zero --split train",
    "one set of heads and a configuration": "test_head_pruning_on_massive.py --top 0.1 --pruning_config x.txt",
    "windows that rank the heads": "compare_3d_before_after_pruning.py --layer_id 1 --split train --nsamples 3",
    "as many as there are": "exp7_head_sweep.py --nsamples 4 --n_whole 4",
    "fewer than its own default": "exp7_head_sweep.py --nsamples 4",
    "a tokenizer of another place": "exp2b_mlp_layer_sweep.py --model x.gguf --tokenizer gpt2",
}


def parsed(line):
    script, *flags = line.split()
    module = importlib.import_module(script.removesuffix(".py"))
    return cli.parse(module.Options, module.__doc__, flags)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path, monkeypatch, capsys):
    line, name = REFUSED[case]
    monkeypatch.chdir(checkout.ROOT)
    assert run(line, "--savedir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert name in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", HEEDED)
def test_heeded(case, capsys):
    parsed(HEEDED[case])
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["main_llm.py --exp1", "main_llm.py --exp4", "compare_3d_before_after_pruning.py --head 1"]
)
def test_flags_for_many_scripts_in_a_row_are_noted(line, capsys):
    """`--model smollm2-135m --dataset python-docs` is what an error recommends, whatever the script."""
    parsed(f"{line} --dataset python-docs --nsamples 4 --seqlen 64")
    printed = capsys.readouterr().err
    assert printed.startswith("note: --dataset --nsamples --seqlen without effect: ")
    assert printed.count("\n") == 1


def test_a_study_passes_on_what_was_typed_to_whom_it_means_something():
    counts = ["--nsamples", "30", "--seqlen", "64"]
    others = ["--no-bos", "--dtype", "float32", "--offline"]
    options = cli.parse(study.Options, "", [*counts, *others, "--split", "test", "--savedir", "out"])
    every = ["--split", "test", *counts, *others]
    assert study.shared_flags(options, {}) == every
    assert study.shared_flags(options, {"split": "", "nsamples": ""}) == every[4:]


def test_what_was_typed_is_no_part_of_the_record(tmp_path):
    options = parsed("exp1_feasibility_test.py --nsamples 3")
    assert options.typed == {"nsamples"}
    assert "typed" not in result_files.config(options)
    assert "typed" not in json.dumps(result_files.config(options), default=str)


def test_replot_beside_what_it_heeds(tmp_path):
    for flags in ((), ("--exp2",), ("--offline",)):
        assert run("main_llm.py", *flags, "--replot", RESULT, "--savedir", tmp_path / "out") == 0
    assert (tmp_path / "out" / "smollm2-135m.png").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", str(2**64)], "--seed must be below"),
        (["--tokenizer", ""], "--tokenizer is empty"),
        (["--savedir", ""], "a path is empty"),
    ],
)
def test_values_that_cannot_be(flags, message):
    with pytest.raises(cli.UserError, match=message):
        cli.parse(cli.Options, "", flags)


def test_the_home_folder_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.parse(cli.Options, "", ["--savedir", "~/out"]).savedir == tmp_path / "out"
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    assert cli.parse(cli.Options, "", ["--model", "~/link"]).model_name == "model"
    with pytest.raises(cli.UserError, match="--revision would do nothing"):
        cli.parse(cli.Options, "", ["--model", "~/model", "--revision", "main"])
