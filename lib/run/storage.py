"""Where this project keeps files of its own between runs, or for one run where it may not keep any."""

import functools
import hashlib
import os
import tempfile
from pathlib import Path

from lib.run.errors import UserError, cause


def cache() -> Path:
    """A folder that can be written: massive-activations in $XDG_CACHE_HOME or ~/.cache; where there is none, a
    temporary one, which goes when the run ends. Raises UserError if there is not even that."""
    folder = _lasting()
    return folder if folder is not None and _writable(folder) else Path(_temporary().name)


def lasting() -> Path:
    """The cache, for what must stay there. Raises UserError if it cannot be written."""
    folder = _lasting()
    if folder is None or not _writable(folder):
        raise UserError(f"{folder or 'the cache'} cannot be written; set XDG_CACHE_HOME to a folder that can be")
    return folder


def find(name: str) -> Path:
    """Path of a file or folder in the cache: where it is, though nothing else may be written there, or where to make
    it."""
    folder = _lasting()
    if folder is not None and os.path.lexists(folder / name):
        return folder / name
    return cache() / name


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lasting() -> Path | None:
    """None where there is no home. A relative $XDG_CACHE_HOME counts as none, as its specification says."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return Path(base if os.path.isabs(base) else Path.home() / ".cache") / "massive-activations"
    except RuntimeError:
        return None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError):
        return False
    return True


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="massive-activations-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(
            f"no folder for temporary files ({cause(error)}); set XDG_CACHE_HOME or TMPDIR to one that can be written"
        ) from error
