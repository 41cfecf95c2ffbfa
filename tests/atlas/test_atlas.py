"""atlas.py: a row a model, told apart by weights, and what models say together."""

import csv
import json
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

import atlas
from experiments.interventions.results import PUT_BACK, Verdict
from experiments.interventions.results import Results as Interventions
from lib import catalogue
from lib.atlas import agreement, figures, rows
from lib.atlas.results import ClaimTogether, Curve, Mechanism, Results, Row, Said
from lib.claims.every import CLAIMS
from lib.claims.judging import FAILS, HOLDS
from lib.core.evidence import CANNOT_TELL, Cell, exact
from lib.planted import planting
from lib.report import result_files
from lib.run.checkout import ROOT
from tests import golden
from tests.claims.test_claims import write
from tests.page.parsed import parse
from tests.partial import partial
from tests.scripts.test_scripts import SMALL, run


def study_of(folder, architecture, name, source=None, only=None, **config):
    """The stored results of a planted model, as those of a study of a model of this name."""
    stored = json.loads((golden.FOLDER / f"{architecture}.json").read_text())
    for experiment, results in stored.items():
        if experiment != "machine" and (only is None or experiment in only):
            kept = {key: value for key, value in results.items() if key != "conclusion"}
            write(
                folder, f"{name}/{experiment}.json", experiment, kept, model_name=name, source=source or name, **config
            )


@pytest.fixture
def two(tmp_path):
    study_of(tmp_path, "gpt2", "first")
    study_of(tmp_path, "llama", "second")
    return tmp_path


def atlas_of(folder, *flags):
    assert run("atlas.py", folder, *flags, *SMALL) == 0
    return json.loads((folder / "atlas.json").read_text())["results"]


def test_every_model_has_a_row_with_the_planted_mechanism(two):
    results = atlas_of(two)
    assert [row["model"] for row in results["models"]] == ["first", "second"]
    for row, architecture in zip(results["models"], golden.MODELS, strict=True):
        truth = planting.build(architecture, golden.MODELS[architecture], seed=0).truth
        found = row["mechanism"]
        assert found["dim"] == max(truth.values, key=lambda dim: abs(truth.values[dim]))
        assert found["birth"].split()[-1].split(".")[0] == str(truth.layer)
        assert found["depth"] == pytest.approx((truth.layer + 1) / found["n_layers"])
        assert row["said"][0].startswith(f"Massive activations are largest in dim {found['dim']}, at")
        assert row["said"][1].startswith(f"{found['birth']} (")
        assert row["verdicts"]["exp3"] == found["birth"]
        assert set(row["claims"]) == {claim.row for claim in CLAIMS}


def test_the_atlas_says_what_verify_claims_says(two):
    """Of every claim the verdict; of the table the same as of the JSON."""
    results = atlas_of(two)
    assert run("verify_claims.py", two) == 0
    for row in results["models"]:
        claims = json.loads((two / f"{row['model']}_claims.json").read_text())["results"]["claims"]
        assert {claim["row"]: claim["verdict"] for claim in claims} == {
            name: said["verdict"] for name, said in row["claims"].items()
        }
    table = list(csv.DictReader((two / "atlas.csv").open()))
    assert [line["model"] for line in table] == ["first", "second"]
    for line, row in zip(table, results["models"], strict=True):
        assert line["claim 4"] == row["claims"]["4"]["verdict"]
        assert float(line["claim 4, number"]) == pytest.approx(row["claims"]["4"]["number"]["mean"], rel=1e-6)
        assert line["exp2a"] == row["verdicts"]["exp2a"]


def test_the_tracked_atlas_is_that_of_the_tracked_results():
    results, _pages = atlas.collect([ROOT / "results"])
    stored = json.loads((ROOT / "results" / "atlas.json").read_text())["results"]
    assert [row["model"] for row in stored["models"]] == [row.model for row in results.models]
    fresh = result_files.plain(results)
    assert [key for key in fresh if fresh[key] != stored[key]] == []


@pytest.mark.parametrize(
    ("verdicts", "kind", "verdict"),
    [
        ({"a": HOLDS, "b": HOLDS}, agreement.ALL, HOLDS),
        ({"a": HOLDS, "b": HOLDS, "c": CANNOT_TELL, "d": f"{CANNOT_TELL}: mlp 3 or mlp 2"}, agreement.ALL, HOLDS),
        ({"a": HOLDS, "b": FAILS, "c": FAILS}, agreement.SOME, None),
        ({"a": FAILS, "b": CANNOT_TELL}, agreement.ONE, FAILS),
        ({"a": CANNOT_TELL, "b": CANNOT_TELL}, agreement.NOBODY, None),
        ({}, agreement.NOBODY, None),
    ],
)
def test_together(verdicts, kind, verdict):
    found = agreement.together(verdicts)
    assert (found.kind, found.verdict) == (kind, verdict)
    assert {model for models in found.models.values() for model in models} == set(verdicts)


def test_models_are_told_apart_by_weights(tmp_path):
    """Two of one name have a row each; one under two names and in two folders has one."""
    study_of(tmp_path / "here", "gpt2", "toy", source="a", only=["exp3"])
    study_of(tmp_path / "there", "llama", "toy", source="b", only=["exp3"])
    study_of(tmp_path / "there", "gpt2", "alias", source="a", only=["exp1"])
    results = atlas_of(tmp_path / "here", tmp_path / "there")
    assert [row["model"] for row in results["models"]] == ["toy", "toy (2)"]
    assert set(results["models"][0]["verdicts"]) == {"exp3", "exp1"}


def test_of_several_dtypes_that_with_most_experiments_has_the_row(tmp_path):
    study_of(tmp_path, "gpt2", "toy", only=["exp3"], dtype="bfloat16")
    study_of(tmp_path / "all", "gpt2", "toy", only=["exp3", "exp1"])
    results = atlas_of(tmp_path)
    assert len(results["models"]) == 1
    assert "float32" in results["models"][0]["described"]
    assert results["left_out"] == ["toy in bfloat16"]


def test_figures_in_other_formats(two):
    assert run("atlas.py", two, "--format", "svg", "pdf", "--dpi", "300") == 0
    assert {path.name for path in two.glob("atlas_*")} == {
        f"atlas_{name}.{suffix}" for name in ("claims", "depth") for suffix in ("svg", "pdf")
    }


def test_the_page_links_those_of_the_models(two):
    (two / "first" / "index.html").touch()
    results = atlas_of(two)
    document = parse(two / "atlas.html")
    assert [link.attributes["href"] for link in document.every("a") if link.text == "first"] == ["first/index.html"]
    assert not [link for link in document.every("a") if link.text == "second"]
    shown = [row.text for row in document.every("li")]
    assert [" ".join(row["said"]) in text for row, text in zip(results["models"], shown, strict=False)] == [True, True]
    mechanism, verdicts, claims = (table.rows() for table in document.every("table"))
    assert ["born in", *(row["mechanism"]["birth"] for row in results["models"])] in mechanism
    assert len(verdicts) == 1 + len(results["verdicts"])
    assert len(claims) == 1 + len(results["claims"])
    assert len(list(document.every("img"))) == 2


@pytest.mark.parametrize("name", ["run #2", "50% off?", "模型 é"])
def test_a_link_to_a_folder_of_any_name(tmp_path, name):
    study_of(tmp_path, "gpt2", name, only=["exp3"])
    (tmp_path / name / "index.html").touch()
    atlas_of(tmp_path)
    (link,) = [link.attributes["href"] for link in parse(tmp_path / "atlas.html").every("a") if link.text == name]
    assert unquote(link) == f"{name}/index.html"
    assert not {"#", "?", " "} & set(link)


def test_what_is_missing_is_a_dash(tmp_path, capsys):
    study_of(tmp_path, "gpt2", "toy", only=["head_analysis"])
    results = atlas_of(tmp_path)
    assert results["models"][0]["mechanism"]["birth"] is None
    assert results["models"][0]["said"] == []
    assert results["verdicts"] == {}
    assert (tmp_path / "atlas_depth.png").stat().st_size > 1000
    assert "sink rate" in capsys.readouterr().out


def test_a_model_of_which_there_is_only_its_training(tmp_path):
    """What it is at the last step."""
    study_of(tmp_path, "gpt2", "toy", only=["exp14"])
    [row] = atlas_of(tmp_path)["models"]
    truth = planting.build("gpt2", golden.MODELS["gpt2"], seed=0).truth
    found = row["mechanism"]
    assert found["dim"] == max(truth.values, key=lambda dim: abs(truth.values[dim]))
    assert (found["birth"], found["position"], found["plateau"]) == (f"mlp {truth.layer}", 0, None)
    assert found["depth"] == pytest.approx((truth.layer + 1) / found["n_layers"])
    assert row["said"] == [f"Over training, {row['verdicts']['exp14']}."]


@pytest.mark.parametrize(
    ("left", "shown"),
    [
        ({"mean": 0.01, "ci95": [0.0, 0.02]}, True),
        (None, False),
        ({"mean": 0.82, "ci95": [0.81, 0.83]}, False),
        ({"mean": 0.05, "ci95": [0.0, 0.11]}, False),
    ],
)
def test_the_cost_is_of_a_value_that_is_gone(left, shown):
    """What the loss changes by where most of it is left says nothing of the model without it."""
    values = {"counterfactual": {"loss_change": {"mean": 0.5, "ci95": [0.4, 0.6]}, "left": left}}
    conclusion = partial(Verdict, {"verdict": "cannot tell", "values": values})
    back = {"label": "", "question": "", "where": "", "perplexity": {}, "sink_rates": {}, "values": []}
    back |= {"set_to": PUT_BACK, "sink_rate_changes": {}, "loss_change": {"mean": 0.1, "ci95": [0.0, 0.2]}}
    results = partial(Interventions, {"conditions": {"back": back}})
    measured = SimpleNamespace(interventions=result_files.Result("exp5", {}, {}, results, conclusion, {}))
    cells = {"cost": Cell(0.5, (0.4, 0.6)), "put_back": Cell(0.1, (0.0, 0.2))}
    assert rows._need(measured) == (cells if shown else {})


def test_a_training_in_which_nothing_gets_massive():
    [row] = atlas.collect([ROOT / "results" / "small-llama"])[0].models
    [said] = row.said
    assert said.startswith("Over training, massive activations: none found; sinks: ")
    assert row.mechanism.found is False
    assert row.mechanism.sink_rate.mean == pytest.approx(0.0917, abs=1e-4)


def test_a_course_shares_the_row_of_its_model(tmp_path):
    """In another folder, too; the ledger says more than the last step does."""
    hub = {"hub_id": "org/toy"}
    study_of(tmp_path / "a", "gpt2", "toy", source=hub | {"revision": "c" * 40}, only=["exp3", "exp1"])
    study_of(tmp_path / "b", "gpt2", "toy", source=hub, only=["exp14"])
    [row] = atlas_of(tmp_path / "a", tmp_path / "b")["models"]
    assert {"exp3", "exp1", "exp14"} == set(row["verdicts"])
    assert row["mechanism"]["plateau"] is not None


def test_nothing_massive(tmp_path):
    stored = json.loads((golden.FOLDER / "gpt2.json").read_text())["exp3"]
    stored["place"]["massive"] = False
    stored["profile"]["spiking"]["mean"] = 0.0
    write(tmp_path, "exp3.json", "exp3", {key: value for key, value in stored.items() if key != "conclusion"})
    [row] = atlas_of(tmp_path)["models"]
    [said] = row["said"]
    assert said.startswith("Nothing is massive here: the dim with the largest value, ")
    assert row["mechanism"]["found"] is False
    assert row["mechanism"]["birth"] is None


def test_where_no_birth_is_sure_the_verdict_stands_in_its_place(tmp_path):
    stored = json.loads((golden.FOLDER / "gpt2.json").read_text())["exp3"]
    mlps = [write for write in stored["writes"] if write["kind"] == "mlp"]
    first = max(mlps, key=lambda write: write["share"]["mean"])
    second = next(write for write in mlps if write["layer"] == first["layer"] - 1)
    second["share"] = first["share"]
    write(tmp_path, "exp3.json", "exp3", {key: value for key, value in stored.items() if key != "conclusion"})
    [row] = atlas_of(tmp_path)["models"]
    said = row["verdicts"]["exp3"]
    assert said.startswith("cannot tell: ")
    assert ["born in", said] in next(iter(parse(tmp_path / "atlas.html").every("table"))).rows()


def test_the_share_of_a_birth_has_its_simultaneous_interval(tmp_path):
    """It was picked out of many."""
    stored = json.loads((golden.FOLDER / "gpt2.json").read_text())["exp3"]
    birth = max(stored["writes"], key=lambda write: write["share"]["mean"])
    birth["share"] |= {"mean": 0.6, "ci95": [0.58, 0.62], "family95": [0.49, 0.71]}
    write(tmp_path, "exp3.json", "exp3", {key: value for key, value in stored.items() if key != "conclusion"})
    [row] = atlas_of(tmp_path)["models"]
    assert row["mechanism"]["share"] == {"mean": 0.6, "ci95": [0.49, 0.71]}


@pytest.mark.parametrize("n", [1, 9, 30])
def test_figures_of_few_and_of_many_models(n):
    """Every cell has its sign, every model its column."""
    claims = {claim.row: Said(HOLDS, exact(0.5), "share") for claim in CLAIMS}
    curve = Curve([1.0, 2.0], [10.0, None])
    made = [Row(f"model-{i}", "", "", Mechanism(depth=0.5), [], {}, {}, claims, curve) for i in range(n)]
    together = agreement.together({row.model: HOLDS for row in made})
    listed = [ClaimTogether(claim.row, claim.text, together) for claim in CLAIMS]
    drawn = figures.claims(Results(made, listed, {}, agreement.RULE, []))
    [axes] = drawn.axes
    assert len([text for text in axes.texts if text.get_text() == "yes 0.5000"]) == n * len(CLAIMS)
    assert [label.get_text() for label in axes.get_xticklabels()] == [row.model for row in made]
    depth = figures.depth(Results(made, listed, {}, agreement.RULE, []))
    depth.canvas.draw()
    [axes] = depth.axes
    legend = axes.get_legend()
    assert len(legend.get_texts()) == n + 1  # and where massive begins
    box = legend.get_window_extent()
    assert box.x0 >= axes.bbox.x1
    assert min(box.y0, depth.bbox.x1 - box.x1, depth.bbox.y1 - box.y1) >= 0


@pytest.mark.parametrize(("arguments", "message"), [(["nowhere"], "no such folder: nowhere"), ([], "no results below")])
def test_bad_input(arguments, message, tmp_path, capsys):
    assert run("atlas.py", *arguments or [tmp_path]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "atlas.json").exists()


def test_every_experiment_with_a_judge_is_compared(two):
    judged = {
        name
        for name, entry in catalogue.EXPERIMENTS.items()
        if entry.judge and (entry.study or entry.course) and not entry.needs
    }
    assert set(atlas_of(two)["verdicts"]) == judged
