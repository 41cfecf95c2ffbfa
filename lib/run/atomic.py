"""Files that appear complete or not at all."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lib.run.errors import UserError, cause

UNFINISHED = ".unfinished-"


@contextmanager
def complete_file(path: Path) -> Iterator[str]:
    """Yield a temporary path beside `path`; it takes the name of `path` only if the block succeeds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED, suffix=path.suffix)
        os.close(handle)
        try:
            os.chmod(temporary, 0o666 & ~_umask())
            yield temporary
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or cause(error)}") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for `folder`, where the file system can tell."""
    with ExitStack() as stack:
        with suppress(OSError, ImportError):
            import fcntl  # which Windows has not

            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def remove_leftovers(folder: Path, pattern: str = f"{UNFINISHED}*", days: float = 1) -> None:
    """Delete what killed runs have left unfinished in `folder`; what is younger may be in the making by another run."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > days * 24 * 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
