"""One job a combination, on this machine; jobs redraw results, which needs no torch."""

import sys

import pytest

import cluster
from lib.run import checkout
from tests.scripts.test_scripts import run

pytestmark = pytest.mark.slow
RESULT = checkout.ROOT / "results" / "smollm2-135m" / "main_llm" / "smollm2-135m_layerwise.json"


def test_commands_are_all_combinations(tmp_path):
    named = dict(cluster.commands([["model", "a", "b/c"], ["head", "0", "1"]], ["main_llm.py", "--exp2"], tmp_path))
    assert list(named) == ["model-a_head-0", "model-a_head-1", "model-b-c_head-0", "model-b-c_head-1"]
    script = [sys.executable, str(checkout.ROOT / "main_llm.py"), "--exp2"]
    own = ["--model", "b/c", "--head", "1", "--savedir", str(tmp_path / "model-b-c_head-1")]
    assert named["model-b-c_head-1"] == [*script, *own]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--over", "model", "a", "--", "nowhere.py"], "no such script"),
        (["--over", "model", "a", "--", "main_llm.py", "--savedir", "here"], "--savedir of the script"),
        (["--over", "head", "1", "--", "main_llm.py", "--head=2"], "--head of the script"),
        (["--over", "model", "a", "--parameters", "fast", "--", "main_llm.py"], "KEY=VALUE"),
        (["--over", "model", "a", "--parameters", "speed=9", "--", "main_llm.py"], "submitit"),
        (["--executor", "slurm", "--over", "model", "a", "--", "main_llm.py"], "srun"),
    ],
)
def test_bad_input_is_one_line(arguments, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    assert run("cluster.py", "--savedir", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_local_jobs(tmp_path, capsys):
    pytest.importorskip("submitit")
    missing = tmp_path / "missing.json"
    assert run("cluster.py", "--savedir", tmp_path, "--over", "replot", RESULT, missing, "--", "main_llm.py") == 1
    done, failed = capsys.readouterr().out.splitlines()
    assert done.startswith("done")
    assert failed.startswith("failed")
    drawn = [path for path in tmp_path.rglob("*.png") if path.is_file()]
    assert [path.name for path in drawn] == ["smollm2-135m.png"]
    assert str(drawn[0].parent) in done
    with open(failed.split("log ")[1], encoding="utf-8") as log:
        assert f"cannot read {missing}" in log.read()
