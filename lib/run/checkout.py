"""The code that runs: where it lies, its digest, its commit."""

import functools
import hashlib
import subprocess
from pathlib import Path

from lib.run import command

ROOT = Path(__file__).resolve().parents[2]
NOT_MEASURING = (  # of lib/: files, and folders with all that lies below
    "atlas",
    "catalogue.py",
    "claims",
    "core/evidence.py",
    "page",
    "planted/figures.py",
    "planted/text.py",
    "report/figures.py",
    "report/fonts.py",
    "report/tables.py",
    "report/views.py",
)
DRAWING = ("judge.py", "text.py", "figures.py", "views.py")  # of each experiment


def code_sha256() -> str:
    """Digest of the running script and of all code that can change a number: not what only draws, words or judges."""
    return _digest(ROOT, command.current().script)


@functools.cache  # what runs is what was read, whatever the files become
def _digest(root: Path, script: str) -> str:
    digest = hashlib.sha256()
    for path in [root / script, *_measuring(root)]:
        if path.is_file():
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _measuring(root: Path) -> list[Path]:
    """The files below lib/ and experiments/ that code_sha256 covers."""
    experiments = (path for path in (root / "experiments").rglob("*.py") if path.name not in DRAWING)
    every = [*(root / "lib").rglob("*.py"), *experiments]
    others = [root / "lib" / name for name in NOT_MEASURING]
    return sorted(path for path in every if not any(path.is_relative_to(other) for other in others))


def git() -> dict[str, str | bool] | None:
    """Commit of this repository and whether the code (all but results/) is unchanged; None outside a checkout."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, check=True, encoding="utf-8", errors="replace"
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain", "--", ".", ":!results")}
    except (OSError, subprocess.CalledProcessError):
        return None
