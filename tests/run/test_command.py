"""What provenance names as the command."""

import subprocess
import sys

import pytest

from lib.core import provenance
from lib.run import checkout, command

PRINT = "from lib.core import provenance; print(provenance.environment(0)['command'])"


def named():
    return provenance.environment(0)["command"]


def test_a_script_by_its_file_name(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/elsewhere/main_llm.py", "--exp2", "--text", "two words"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert named() == "python main_llm.py --exp2 --text 'two words'"
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert named() == "torchrun --nproc_per_node=3 main_llm.py --exp2 --text 'two words'"


def test_a_module_by_its_name(tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "tool.py").write_text(PRINT)
    line = [sys.executable, "-m", "room.tool", "--exp2"]
    ran = subprocess.run(line, cwd=tmp_path, env={"PYTHONPATH": str(checkout.ROOT)}, capture_output=True, check=True)
    assert ran.stdout.decode().strip() == "python -m room.tool --exp2"


def test_what_a_study_carries_out(monkeypatch):
    """By its own name, whichever way the study was started, and only as long as it lasts."""
    before, digest = named(), checkout.code_sha256()
    with command.carried_out("exp3_lifecycle_ledger.py", ["--seed", "1"]):
        assert named() == "python exp3_lifecycle_ledger.py --seed 1"
        assert checkout.code_sha256() != digest
    with pytest.raises(OSError, match="nowhere"), command.carried_out("main_llm.py", []):
        raise OSError("nowhere")
    assert (named(), checkout.code_sha256()) == (before, digest)
