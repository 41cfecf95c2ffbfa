"""Every claim's rule, in both directions and without its results; which results count; GPT-2 beside the published."""

import copy
import json

import pytest

import verify_claims
from lib import claims, report
from tests.test_scripts import run

PLACE = {
    "massive": True,
    "plateau": [1, 6],
    "peak_layer": 5,
    "values": [{"mean": m} for m in (5.0, 2500, 2800, 2900, 3000, 3010, 3000, 450.0)],
}


def cell(mean, spread=0.001):
    return {"mean": mean, "std": 1.0, "ci95": [mean - spread, mean + spread], "n": 4}


def head(layer, number, score, write=1.0, **changes):
    zero = {"birth": None, "end": cell(1.0), "last": cell(1.0), "sink_rate": cell(0.0), "loss": cell(0.01)}
    return {"layer": layer, "head": number, "score": score, "write": write, "zero": zero | changes, "mean": zero}


def layers(top1):
    return [
        {
            "layer": i,
            "top1": cell(value) | {"n": 4},
            "ratio": cell(1000.0),
            "at": [None, {"position": 0, "dim": 9, "sequences": 4}],
        }
        for i, value in enumerate(top1)
    ]


def judged(verdict, retained):
    return {"verdict": verdict, "rule": "", "values": {"retained": cell(retained)}}


TOP1 = (100, 2500, 2800, 2900, 3000, 3010, 3000, 450)
# results in which every claim holds
HOLDS = {
    "layerwise": {"layers": layers(TOP1), "massive": [{"layer": i} for i in range(1, 7)]},
    "head_analysis": {
        "scores": [
            [cell(0.001), cell(0.9)],
            [cell(0.8), cell(0.7)],
            *[[cell(0.002 * i), cell(0.6)] for i in range(1, 7)],
        ],
        "ranking": [
            {"layer": layer, "head": h, "score": score}
            for layer, h, score in ((0, 1, 0.9), (1, 0, 0.8), (1, 1, 0.7), (0, 0, 0.001))
        ],
        "uniform": 0.007,
    },
    "head_pruning": {
        "sets": {"top": [[5, 1]]},
        "conclusion": {
            "verdict": "persists",
            "values": {
                "top": {"absolute_change": cell(0.002), "retained": cell(1.0)},
                "bottom": {"absolute_change": cell(0.014), "retained": cell(0.99)},
            },
        },
        "null": {"bottom": {"absolute_change": [0.001, 0.002]}},
        "conditions": {name: {"perplexity": {"value": 20.0}} for name in ("baseline", "top", "bottom")},
    },
    "exp1": {
        "conclusion": judged("persists", 1.006),
        "conditions": {"baseline": {"layers": layers(TOP1)}, "all_heads_off": {"layers": layers((*TOP1[:-1], 2900))}},
    },
    "exp2a": {"conclusion": judged("collapses", 0.39)},
    "exp2b": {
        "conclusion": {"verdict": "", "values": {"necessary": [["mlp", 1]], "sufficient": [["mlp", 1]]}},
        "baseline": {"sink_rate": cell(0.6)},
        "kinds": {
            "mlp": [
                {
                    "layer": i,
                    "write": cell(2400.0 if i == 1 else 300.0),
                    "repair": {"ratio": cell(0.5)} if i in (1, 2) else None,
                    "alone": {"retained": cell(0.05), "sink_rate": cell(0.1)},
                    "only": {"retained": cell(0.95)},
                }
                for i in range(8)
            ]
        },
    },
    "exp2c": {
        "layer": 1,
        "by_weight": [
            {"neuron": n, "rank_by_contribution": rank} for n, rank in zip(range(5), (2, 1, 3, 5, 4), strict=True)
        ],
        "contribution_check": {"output": 2342.0},
        "contributions": [{"neuron": 0, "activation": -60.0}, {"neuron": 1, "activation": 20.0}],
        "checkpoints": [{"name": n, "at": {"sequence": 0, "position": 0}} for n in ("residual", "mlp_output")],
        "replaced": {
            name: {"label": name, "mlp_output": {"mean": mean}, "perplexity": {"value": perplexity}}
            for name, mean, perplexity in (("actual", 2342, 20.0), ("identity", 2343, 20.5), ("relu", 2341, 20.1))
        },
    },
    "exp3": {
        "place": PLACE,
        "writes": [{"layer": i, "component": f"head {h}", "value": 1.0} for i, h in ((0, 0), (0, 1), (1, 0), (1, 1))],
        "conclusion": {
            "verdict": "mlp 1",
            "values": {
                "birth": {"layer": 1, "component": "mlp", "name": "mlp 1"},
                "erasers": [{"layer": 7, "component": "head 0", "name": "head 7.0", "value": -2600}],
            },
        },
    },
    "exp4": {
        "layer": 1,
        "width": 40,
        "minimal_set": [{"neuron": n} for n in range(4)],
        "keep_only_share": 0.96,
        "remove_share": 0.02,
        "conclusion": {"verdict": "4 of 40 neurons"},
    },
    "exp5": {
        "layer": 1,
        "conclusion": {
            "verdict": "a constant is enough",
            "values": {"onward": {"zero": cell(3.0), "mean": cell(0.001)}},
        },
    },
    "exp6": {
        "census": {"tokens": 100},
        "conclusion": {"verdict": "position", "values": {"first_token_share": 1.0, "moved_share": 0.0}},
    },
    "exp7": {
        "place": PLACE,
        "baseline": {"birth": cell(2500.0), "end": cell(3000.0), "last": cell(450.0)},
        "heads": [
            *(head(i, 0, 0.001 * (i + 1)) for i in range(5)),
            head(7, 0, 0.5, last=cell(2500.0), write=-2600.0),
        ],
        "layers": [{"zero": {"loss": loss}} for loss in (0.4, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)],
        "conclusion": {"values": {"spearman": {"score_loss": {"rho": 0.1, "heads": 6}}}},
    },
    "compare_3d": {
        "layer": 2,
        "head": 7,
        "downstream": [{"largest": {"before": -2480.0}, "most_changed": {"before": 10.0, "after": 12.0}}],
    },
}


def change(path, value):
    """A function that sets a dotted path of results."""

    def apply(results):
        *where, last = path.split(".")
        for key in where:
            results = results[int(key)] if isinstance(results, list) else results[key]
        results[int(last) if isinstance(results, list) else last] = value

    return apply


REFUTES = {  # row: [one change a case, each of which alone refutes the claim]
    "size": [change("layerwise.layers.3.ratio.mean", 3001.0), change("layerwise.layers.6.ratio.mean", 299.0)],
    "phases": [
        change("exp3.place.plateau", [2, 6]),
        change("exp3.place.plateau", [1, 3]),
        change("exp3.place.values.7.mean", -2000.0),
    ],
    "specialised heads": [
        change("head_analysis.ranking.0.score", 0.4),
        change("head_analysis.ranking.3.score", 0.008),
    ],
    "1": [change("head_pruning.conclusion.values.top.absolute_change", cell(0.0095))],
    "2": [change("exp7.heads.4.zero.last", cell(-301.0)), change("exp7.heads.0.zero.loss", cell(0.06))],
    "2b": [change("exp7.heads.2.write", -400.0)],
    "2c": [
        change("exp7.heads.5.zero.last", cell(1000.0)),
        change("exp3.conclusion.values.erasers.0.component", "mlp"),
    ],
    "3": [change("exp1.conclusion.verdict", "reduced")],
    "3b": [change("exp1.conditions.all_heads_off.layers.0.top1.mean", 187)],
    "4": [change("exp2a.conclusion.verdict", "reduced")],
    "4b": [change("exp2a.conclusion.values.retained.mean", -0.01)],
    "5": [
        change("head_pruning.null.bottom.absolute_change", [0.001, 0.02]),
        change("head_pruning.conclusion.values.top.absolute_change.mean", 0.02),
    ],
    "6": [change("exp3.writes.2.value", 500.0)],
    "7": [
        change("exp2b.conclusion.values.necessary", []),
        change("exp2b.conclusion.values.necessary", [["mlp", 0], ["mlp", 1]]),
        change("exp2b.conclusion.values.sufficient", []),
    ],
    "7b": [change("exp2b.kinds.mlp.1.repair.ratio", cell(0.05))],
    "8": [change("exp2c.by_weight.4.rank_by_contribution", 6)],
    "8b": [change("exp4.minimal_set", [{"neuron": 1}])],
    "9": [change("exp2c.replaced.relu.mlp_output.mean", 2000)],
    "9b": [change("exp2c.replaced.identity.perplexity.value", 95.0)],
    "10": [change("exp2c.checkpoints.0.at.position", 3)],
    "10b": [change("exp2c.contributions.0.activation", -300.0)],
    "11": [change("exp3.place.values.7.mean", 1600.0)],
    "12": [
        change("layerwise.layers.3.at.1", {"position": 0, "dim": 8, "sequences": 4}),
        change("layerwise.layers.3.at.1.sequences", 3),
    ],
    "13": [
        change("head_pruning.conclusion.values.bottom.retained.mean", 0.8),
        change("head_pruning.conditions.top.perplexity.value", 22.0),
    ],
    "13b": [change("exp5.conclusion.verdict", "needed as it is")],
    "13c": [change("exp2b.kinds.mlp.1.alone.sink_rate.mean", 0.4)],
    "14": [change("exp6.conclusion.verdict", "token")],
    "15": [change("head_analysis.scores.1.0", cell(0.85, 0.06)), change("head_analysis.ranking.0.score", 0.75)],
    "early heads": [change("exp7.layers.6.zero.loss", 2.0)],
    "attention is not impact": [change("exp7.conclusion.values.spearman.score_loss.rho", -0.4)],
    "3D": [change("compare_3d.downstream.0.most_changed.after", 60.0)],
}
UNDECIDED = {  # row: changes after which the results cannot tell
    "size": [change("layerwise.massive", [])],
    "phases": [change("exp3.place.massive", False)],
    "1": [change("head_pruning.conclusion.verdict", "none found")],
    "2": [change("exp7.place.massive", False)],
    "2b": [change("head_analysis.uniform", 0.0005)],
    "2c": [change("exp3.conclusion.values.erasers", [])],
    "3": [change("exp1.conclusion.verdict", "none found")],
    "5": [change("head_pruning.null.bottom.absolute_change", [])],
    "6": [change("exp3.place.plateau", [-1, 6])],  # all heads run later
    "7b": [change("exp2b.kinds.mlp.1.repair.ratio", cell(0.1, 0.2))],
    "8": [change("exp2c.layer", 2)],
    "8b": [change("exp4.keep_only_share", None)],
    "13b": [change("exp5.conclusion.verdict", "undecided")],
    "13c": [change("exp3.conclusion.values.birth.component", "head 3")],
    "14": [change("exp6.conclusion.verdict", "none found")],
    "15": [change("head_analysis.scores.0.1.ci95", None)],
    "attention is not impact": [change("exp7.conclusion.values.spearman.score_loss.rho", None)],
}


def verdict(row, results):
    files = {name: [{"results": of}] for name, of in results.items()}
    claim = next(claim for claim in claims.CLAIMS if claim.row == row)
    return claims.judge(claim, claims.Results(files))


def test_every_row_is_there_once():
    rows = [claim.row for claim in claims.CLAIMS]
    assert len(set(rows)) == len(rows)
    assert set(map(str, range(1, 16))) <= set(rows)
    assert set(REFUTES) == set(rows)


@pytest.mark.parametrize("row", REFUTES)
def test_a_claim_goes_both_ways(row):
    supported = verdict(row, HOLDS)
    assert (supported["verdict"], supported["reason"]) == ("supported", None), supported
    assert supported["values"]
    for apply in REFUTES[row]:
        results = copy.deepcopy(HOLDS)
        apply(results)
        assert verdict(row, results)["verdict"] == "refuted"


@pytest.mark.parametrize("row", UNDECIDED)
def test_what_results_cannot_tell_is_untested(row):
    for apply in UNDECIDED[row]:
        results = copy.deepcopy(HOLDS)
        apply(results)
        found = verdict(row, results)
        assert found["verdict"] == "untested"
        assert found["reason"]
        assert not found["values"]


@pytest.mark.parametrize("row", REFUTES)
def test_without_its_results_a_claim_is_untested(row):
    """Of what a judge reads, nothing may be missing; of the rest, everything."""
    read = set()

    class Recording(claims.Results):
        def every(self, experiment):
            read.add(experiment)
            return super().every(experiment)

    claim = next(claim for claim in claims.CLAIMS if claim.row == row)
    claims.judge(claim, Recording({name: [{"results": of}] for name, of in HOLDS.items()}))
    assert verdict(row, {name: HOLDS[name] for name in read})["verdict"] == "supported"
    for name in read:
        found = verdict(row, {other: of for other, of in HOLDS.items() if other != name})
        assert found["verdict"] == "untested"
        assert claims.SCRIPTS[name] in found["reason"]


def write(folder, name, experiment, results, windows=4, time="2026-01-01", model_name="toy", source="a", **config):
    """source: that of lib.identity, or a name that stands for some weights; config: may hold dtype and typed, too."""
    source = source if isinstance(source, dict) else {"weights_sha256": {"model.safetensors": source}}
    payload = {
        "schema_version": 1,
        "experiment": experiment,
        "provenance": {
            "time": time,
            "git": None,
            "model": {"name": config.pop("typed", model_name), "type": "gpt2", **source},
            "dtype": config.pop("dtype", "float32"),
            "data": {"windows": windows, "seqlen": 8, "dataset": "text"},
        },
        "config": {"model_name": model_name, **config},
        "results": results,
        "files": {},
    }
    report.write_json(folder / name, payload)
    return folder / name


def written(folder, model_name="toy"):
    payload = json.loads((folder / f"{model_name}_claims.json").read_text())
    return {of["row"]: of for of in payload["results"]["claims"]}, payload["results"]


def test_the_files_that_count(tmp_path, capsys):
    holds, refuted = HOLDS["exp2a"], {"conclusion": judged("reduced", 0.5)}
    write(tmp_path, "small.json", "exp2a", refuted, windows=3, time="2026-03-01")
    write(tmp_path, "deep/large.json", "exp2a", holds, windows=5)
    write(tmp_path, "older.json", "exp2a", refuted, windows=5, time="2025-01-01")
    write(tmp_path, "chosen.json", "exp2a", refuted, windows=9, dims=[3])
    write(tmp_path, "other.json", "exp2a", refuted, windows=9, model_name="other")
    (tmp_path / "broken.json").write_text("{")
    assert run("verify_claims.py", tmp_path) == 0
    by_row, results = written(tmp_path)
    assert by_row["4"]["verdict"] == "supported"
    assert by_row["3"]["verdict"] == "untested"
    assert [file["path"] for file in results["files"]["exp2a"]] == ["deep/large.json", "older.json", "small.json"]
    assert results["conclusion"]["values"]["supported"] == sum(c["verdict"] == "supported" for c in by_row.values())
    assert written(tmp_path, "other")[0]["4"]["verdict"] == "refuted"
    text = (tmp_path / "toy_claims.txt").read_text()
    assert text in capsys.readouterr().out
    for claim in claims.CLAIMS:
        assert claim.text in text
        assert claim.rule in text


def test_results_of_different_weights_do_not_mix(tmp_path, capsys):
    write(tmp_path, "one.json", "exp2a", HOLDS["exp2a"])
    write(tmp_path, "two.json", "exp6", HOLDS["exp6"], source="b")
    assert run("verify_claims.py", tmp_path) == 2
    assert "results of different weights are called toy: one.json, two.json" in capsys.readouterr().err
    assert not (tmp_path / "toy_claims.json").exists()


def test_two_folders_of_one_name_are_chosen_by_what_was_typed(tmp_path, capsys):
    for of in "ab":
        write(tmp_path, f"{of}.json", "exp2a", HOLDS["exp2a"], source=of, typed=f"models/{of}/toy")
    for model in (["--model", "toy"], ["--model", "c/toy"], []):
        assert run("verify_claims.py", tmp_path, *model) == 2
        error = capsys.readouterr().err
        assert "models/a/toy" in error
        assert "models/b/toy" in error
        assert error.count("\n") == 1
    assert run("verify_claims.py", tmp_path, "--model", "models/b/toy") == 0
    assert [file["path"] for file in written(tmp_path)[1]["files"]["exp2a"]] == ["b.json"]


def test_another_name_is_judged_beside_a_mixture(tmp_path):
    for of in "ab":
        write(tmp_path, f"{of}.json", "exp2a", HOLDS["exp2a"], source=of)
    write(tmp_path, "other.json", "exp2a", HOLDS["exp2a"], model_name="other")
    assert run("verify_claims.py", tmp_path, "--model", "other") == 0
    assert run("verify_claims.py", tmp_path) == 2
    assert not (tmp_path / "toy_claims.json").exists()


def test_dtypes_do_not_mix(tmp_path):
    write(tmp_path, "a.json", "exp2a", HOLDS["exp2a"])
    write(tmp_path, "b.json", "exp2a", {"conclusion": judged("reduced", 0.5)}, windows=9, dtype="bfloat16")
    write(tmp_path, "c.json", "exp6", HOLDS["exp6"], dtype="bfloat16")
    assert run("verify_claims.py", tmp_path) == 0
    assert not (tmp_path / "toy_claims.json").exists()
    verdicts = {dtype: written(tmp_path, f"toy_{dtype}")[0] for dtype in ("float32", "bfloat16")}
    assert {dtype: of["4"]["verdict"] for dtype, of in verdicts.items()} == {
        "float32": "supported",
        "bfloat16": "refuted",
    }
    assert verdicts["float32"]["14"]["verdict"] == "untested"


def test_the_hubs_old_and_new_id_are_one_model(tmp_path):
    for name, hub_id in (("exp3", "gpt2"), ("exp6", "openai-community/gpt2")):
        source = {"hub_id": hub_id, "revision": "c" * 40}
        write(tmp_path, f"{name}.json", name, HOLDS[name], source=source, model_name="gpt2", typed=hub_id)
    for model in ("gpt2", "openai-community/gpt2"):
        assert run("verify_claims.py", tmp_path, "--model", model) == 0
        by_row, _results = written(tmp_path, "gpt2")
        assert by_row["phases"]["verdict"] == by_row["14"]["verdict"] == "supported"


def damage(path, how):
    content = path.read_text()
    if how == "another number":
        payload = json.loads(content)
        payload["provenance"]["sha256"] = "0" * 64
        payload["results"]["conclusion"]["verdict"] = "persists"
        path.write_text(json.dumps(payload))
    elif how == "cut short":
        path.write_text(content[: len(content) // 2])
    elif how == "not a number":
        path.write_text(content.replace("0.39", "NaN"))
    else:
        payload = json.loads(content)
        *where, last = how.split(".")
        del (report.lookup(payload, ".".join(where)) if where else payload)[last]
        path.write_text(json.dumps(payload))


KEYS = ("config.model_name", "provenance.model", "provenance.data", "results")


@pytest.mark.parametrize("how", ["another number", "cut short", "not a number", *KEYS])
def test_a_damaged_result_is_named(how, tmp_path, capsys):
    write(tmp_path, "whole.json", "exp6", HOLDS["exp6"])
    path = write(tmp_path, "deep/damaged.json", "exp2a", HOLDS["exp2a"])
    damage(path, how)
    assert run("verify_claims.py", tmp_path) == 2
    error = capsys.readouterr().err
    assert "damaged.json" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "toy_claims.json").exists()


def test_files_of_others_and_of_other_versions_are_left_alone(tmp_path, capsys):
    write(tmp_path, "whole.json", "exp2a", HOLDS["exp2a"])
    newer = write(tmp_path, "newer.json", "exp2a", HOLDS["exp2a"])
    newer.write_text(newer.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "experiment": ["x"], "schema_version": null}')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.json").mkdir()
    assert run("verify_claims.py", tmp_path) == 0
    error = capsys.readouterr().err
    assert error == f"left out: {newer} has schema version 2\n"
    assert [file["path"] for file in written(tmp_path)[1]["files"]["exp2a"]] == ["whole.json"]


GPT2_LAYERS = [{key: cell(10.0 * i + 1) for key in ("top1", "top2", "top3", "median")} for i in range(12)]
GPT2 = {"hub_id": "gpt2", "revision": "c" * 40}


def test_results_without_a_layer_stand_beside_the_published(tmp_path):
    """As of all scripts but two; what is of one layer counts for that layer only."""
    of_gpt2 = {"model_name": "gpt2", "source": GPT2}
    results = HOLDS["layerwise"] | {
        "layers": [old | new for old, new in zip(layers(range(1, 13)), GPT2_LAYERS, strict=True)]
    }
    write(tmp_path, "layerwise.json", "layerwise", results, **of_gpt2)
    write(tmp_path, "exp2c.json", "exp2c", HOLDS["exp2c"], **of_gpt2)
    assert run("verify_claims.py", tmp_path, "--model", "gpt2") == 0
    _by_row, results = written(tmp_path, "gpt2")
    ours = {(row["name"], row["source"]): row["ours"] for row in results["published"]}
    compared = {name: value for (name, _source), value in ours.items() if value is not None}
    assert compared["layer 10, top1"] == 101.0
    assert all(name.startswith("layer ") for name in compared)


@pytest.mark.parametrize(
    "source",
    [
        {"folder": "gpt2", "weights_sha256": {"model.safetensors": "1" * 64}},
        {"gguf": "gpt2.gguf", "gguf_sha256": "1" * 64},
        {"hub_id": "someone/gpt2", "revision": "c" * 40},
    ],
)
def test_what_is_only_called_gpt2_does_not_stand_beside_the_published(source, tmp_path):
    write(tmp_path, "exp2a.json", "exp2a", HOLDS["exp2a"], model_name="gpt2", source=source)
    assert run("verify_claims.py", tmp_path) == 0
    assert written(tmp_path, "gpt2")[1]["published"] == []
    assert "are left out: these are not known to be its weights" in (tmp_path / "gpt2_claims.txt").read_text()


def test_gpt2_stands_beside_what_is_published(tmp_path, capsys):
    assert run("verify_claims.py", tmp_path, "--model", "gpt2") == 0
    printed = capsys.readouterr().out
    assert "0 of 92 compared" in printed
    assert "0 supported, 0 refuted" in printed
    compare = {"downstream": [{}, {}, {"largest": {"before": 2500.0, "after": 2490.0}}]}
    write(tmp_path, "layer2.json", "compare_3d", {"layer": 2} | compare, model_name="gpt2")
    [before, after, *rest] = [
        row
        for row in verify_claims.beside_published(verify_claims.find(tmp_path)["gpt2"])
        if "removing a head" in row["name"]
    ]
    assert (before["published"], before["ours"], before["gap"]) == (2480, 2500.0, 20.0)
    assert (after["published"], after["gap"]) == (2478, 12.0)
    assert [row["ours"] for row in rest] == [None, None]  # of layer 5


@pytest.mark.parametrize(
    ("arguments", "message"), [(["nowhere"], "no such folder"), ([], "name the --model to see what is untested")]
)
def test_bad_input(arguments, message, tmp_path, capsys):
    assert run("verify_claims.py", *arguments or [tmp_path]) == 2
    assert message in capsys.readouterr().err
