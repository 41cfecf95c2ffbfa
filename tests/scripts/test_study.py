"""study.py on a planted model: every script once, nothing twice, and verdicts that are the planted truth."""

import json

import pytest

import study
import verify_claims
from experiments.ledger.results import Results, Verdict
from experiments.neuron_sets.judge import GIVE
from lib import catalogue, experiment
from lib.claims.measured import birth_layer
from lib.planted import planting
from lib.report import result_files
from lib.run.cli import UserError
from tests.conftest import save
from tests.partial import partial
from tests.scripts.test_scripts import run

pytestmark = pytest.mark.slow


def planted_study(folder, seed):
    """(flags of a study of a GPT-2 in which one MLP writes the massive activation and nothing takes it away, truth)."""
    built = planting.build("gpt2", "mlp", seed)
    save(folder / "toy", built.lm.model, built.lm.tokenizer)
    (folder / "text.txt").write_text(" ".join(f"t{token}" for token in built.windows.ids.flatten().tolist()))
    flags = ["--model", folder / "toy", "--dataset", folder / "text.txt", "--nsamples", "8", "--seqlen", "32"]
    return [*flags, "--savedir", folder / "out", "--offline"], built.truth


def test_study(tmp_path, monkeypatch, capsys, undrawn):
    flags, truth = planted_study(tmp_path, seed=2)
    out = tmp_path / "out"
    assert run("study.py", *flags, "--short") == 0
    verdicts = {of["row"]: of["verdict"] for of in claims_of(out)}
    assert verdicts["4"] == "holds here"
    assert verdicts["7"] == verdicts["14"] == "cannot tell"
    printed = capsys.readouterr().out
    assert f"mlp {truth.layer} (" in printed
    assert f"Open this: {out / 'index.html'}" in printed
    assert max(map(len, printed.partition("Massive activations")[2].splitlines())) <= 100
    assert f"<strong>mlp {truth.layer}</strong>" in (out / "index.html").read_text()

    measured = []
    measure = experiment._measure

    def counted(*args):
        measured.append(args[0].name)
        return measure(*args)

    monkeypatch.setattr(experiment, "_measure", counted)
    capsys.readouterr()
    assert run("study.py", *flags) == 0
    assert measured == [
        name for name, of in catalogue.EXPERIMENTS.items() if not (of.seed or of.needs) for _flags in of.study
    ]
    short = sum(seed for _step, seed in study.STEPS)
    printed = capsys.readouterr().out
    assert "exp8_experts.py is left out: this model has no mixture of experts" in printed
    assert f"({GIVE})" in " ".join(printed.split())
    assert printed.count("is there already") == short - (born(out) == read(out))
    by_row = {of["row"]: of for of in claims_of(out)}
    assert {row: by_row[row]["verdict"] for row in ("3", "4", "7", "8b", "11", "13c", "14")} == {
        "3": "holds here",
        "4": "holds here",
        "7": "holds here",
        "8b": "does not hold here",
        "11": "does not hold here",
        "13c": "holds here",
        "14": "holds here",
    }
    assert by_row["7"]["values"]["necessary"] == f"mlp of layer {truth.layer}"
    assert born(out) == truth.layer
    assert json.loads((out / "exp2c_mlp_internal_analysis" / "exp2c_detailed_results.json").read_text())["config"][
        "layer_id"
    ] == born(out)

    # a figure that is gone or wanted in another format, a file that only a run writes, other flags, other code
    measured.clear()
    figure = out / "exp4_neuron_sets" / "exp4_neuron_sets.png"
    figure.unlink()
    assert run("study.py", *flags, "--format", "png", "svg") == 0
    assert measured == []
    assert figure.is_file()
    assert figure.with_suffix(".svg").is_file()
    (out / "analyze_heads_simple" / "toy_pruning_config.txt").unlink()
    assert run("study.py", *flags) == 0
    assert measured == ["head_analysis"]
    measured.clear()
    monkeypatch.setattr(study, "STEPS", study.STEPS[:3])
    names = ["layerwise", "head_analysis", "exp3"]
    assert run_main(monkeypatch, *flags, "--seed", "1") == names == measured
    measured.clear()
    monkeypatch.setattr("lib.run.checkout.code_sha256", lambda: "other")
    assert run_main(monkeypatch, *flags, "--seed", "1") == names == measured
    assert run_main(monkeypatch, *flags, "--seed", "1") == names == measured  # nothing more
    assert run_main(monkeypatch, *flags, "--seed", "1", "--force") == names
    assert measured == names * 2

    # the same as the script on its own writes
    path = out / "exp3_lifecycle_ledger" / "exp3_results.json"
    in_study = json.loads(path.read_text())
    monkeypatch.undo()
    own = [*flags[:-3], "--seed", "1", "--offline", "--savedir", out / "exp3_lifecycle_ledger"]
    assert run("exp3_lifecycle_ledger.py", *own) == 0
    alone = json.loads(path.read_text())
    assert alone["results"] == in_study["results"]
    assert alone["config"] == in_study["config"]
    assert alone["provenance"]["command"] == in_study["provenance"]["command"]
    claims = json.loads((out / "toy_claims.json").read_text())
    assert claims["provenance"]["command"] == f"python verify_claims.py {out}"


def test_a_step_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    """In this model the lowest heads take up a layer, which leaves no random heads beside them: that is no failure."""
    flags, _truth = planted_study(tmp_path, seed=1)
    lacking, born = "test_head_pruning_on_massive.py", "main_llm.py --exp1 --layer_id {born}"
    failing = "main_llm.py --exp1 --layer_id 99"

    def with_steps(*steps):
        monkeypatch.setattr(study, "STEPS", [(step, True) for step in steps])
        monkeypatch.setattr("sys.argv", ["study.py", *map(str, flags)])
        study.main()

    with pytest.raises(UserError, match=rf"^without a whole result: {failing}, main_llm.py .* \(no born layer"):
        with_steps(lacking, failing, born, "main_llm.py --exp2")
    told = capsys.readouterr()
    assert f"{lacking} is left out: layer " in told.out
    assert "layer 99 is out of range" in told.err
    assert {of["row"]: of["verdict"] for of in claims_of(tmp_path / "out")}["size"] != "cannot tell"
    with_steps(lacking, born)
    assert f"{born} is left out: no born layer" in capsys.readouterr().out


def test_the_born_layer_is_the_ledgers(tmp_path, monkeypatch):
    """Two MLPs may each write half of the peak before the one that writes most does."""
    flags, _truth = planted_study(tmp_path, seed=0)
    conclusion = partial(Verdict, {"values": {"birth": {"layer": 3}}})
    results = partial(Results, {"place": {"plateau": [1, 5]}})
    ledger = result_files.Result("exp3", {}, {}, results, conclusion, {})
    monkeypatch.setattr(catalogue, "concluded", lambda _payload: ledger)
    commands = []

    def carried_out(_script, command, _lm, _force):
        commands.append(" ".join(command))
        return {"experiment": "exp3"}

    monkeypatch.setattr(study, "carry_out", carried_out)
    steps = [step for step, _seed in study.STEPS if "{born}" in step]
    assert "exp4_neuron_sets.py --layer_id {born} --nsamples 16" in steps
    monkeypatch.setattr(study, "STEPS", [(step, True) for step in ("exp3_lifecycle_ledger.py", *steps)])
    monkeypatch.setattr("sys.argv", ["study.py", *map(str, flags)])
    study.main()
    for command, step in zip(commands[1:], steps, strict=True):
        assert command.startswith(step.partition(" --nsamples")[0].format(born=3))
        assert command.count("--nsamples") <= 1  # what was typed, in place of the step's own


def run_main(monkeypatch, *flags):
    """The experiments that are there after a study, in the order of its steps."""
    monkeypatch.setattr("sys.argv", ["study.py", *map(str, flags)])
    study.main()
    return ["layerwise", "head_analysis", "exp3"]


def claims_of(out):
    return json.loads((out / "toy_claims.json").read_text())["results"]["claims"]


def born(out):
    payload = json.loads((out / "exp3_lifecycle_ledger" / "exp3_results.json").read_text())
    return birth_layer(catalogue.concluded(payload))


def read(out):
    payload = json.loads((out / "analyze_heads_simple" / "toy_head_analysis.json").read_text())
    return payload["results"]["ranking"][0]["layer"]


def test_replot_belongs_to_the_scripts(tmp_path, capsys):
    assert run("study.py", "--replot", tmp_path / "x.json") == 2
    assert "belongs to its scripts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("experiment", "source", "dtype", "counts"),
    [
        ("exp3", {"revision": "c" * 40}, "float32", True),
        ("exp3", {"revision": "d" * 40}, "float32", False),
        ("exp3", {}, "float32", False),
        ("exp14", {}, "float32", True),
        ("exp14", {}, "bfloat16", False),
        ("exp14", {"hub_id": "org/other"}, "float32", False),
    ],
)
def test_a_course_of_training_counts_for_the_model_that_it_led_to(experiment, source, dtype, counts):
    """The other results are of its very revision."""
    this = {"model": {"name": "toy", "hub_id": "org/toy", "revision": "c" * 40}, "dtype": "float32"}
    own = {"model": {"name": "toy", "hub_id": "org/toy"} | source, "dtype": dtype}
    file = verify_claims.File("x.json", {}, result_files.Result(experiment, own, {}, None, None, {}))
    assert study.of_model({experiment: [file]}, this) == {experiment: [file] * counts}
