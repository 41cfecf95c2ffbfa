"""A model of another format as a folder that transformers loads: made once, and kept in the cache."""

import glob
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file

from lib.run import atomic, storage
from lib.run.errors import UserError, cause

WRITTEN = "written.json"  # size and time of each file of a converted model
LOADERS = ("transformers", "tokenizers", "gguf", "safetensors", "torch")
KEPT_DAYS = 30  # a converted model of another version of the code


def folder(stem: str, sha256: str, variant: str, code: Iterable[ModuleType], write: Callable[[Path], None]) -> Path:
    """The folder of the model with this digest: kept from an earlier run, or made now by `write`.

    It appears complete or not at all, also when two processes do this at once; one that is damaged is made anew.

    stem: what its name begins with; variant: what else tells it from others; code: the modules that decide what is
    written, which it must not outlive.
    """
    own = f"{stem[:80]}-{sha256[:16]}"
    kept = storage.find(f"{own}-{_digest(code)[:16]}{variant}")
    if is_whole(kept):
        return kept
    atomic.remove_leftovers(kept.parent)
    atomic.remove_leftovers(kept.parent, f"{glob.escape(own)}*", KEPT_DAYS)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=atomic.UNFINISHED) as unfinished:
        ready = Path(unfinished) / "model"
        try:
            write(ready)
            written = {file.name: _state(file) for file in ready.iterdir()}
            (ready / WRITTEN).write_text(json.dumps(written), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot keep {stem} in {kept.parent}: {cause(error)}; set XDG_CACHE_HOME to a folder with room for it "
                "in float32"
            ) from error
        try:
            ready.rename(kept)
        except OSError:  # another process was faster, unless what is there is damaged
            if not is_whole(kept):
                kept.rename(Path(unfinished) / "damaged")
                ready.rename(kept)
    return kept


def save(
    folder: Path,
    config: transformers.PreTrainedConfig,
    weights: dict[str, torch.Tensor],
    tokenizer: transformers.PreTrainedTokenizerBase | None,
) -> None:
    """What `folder` lets be written. weights: by their names in transformers."""
    folder.mkdir()
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def is_whole(kept: Path) -> bool:
    """Whether a folder has what was written there, and nobody has written since."""
    try:
        written = json.loads((kept / WRITTEN).read_text(encoding="utf-8"))
        return all(_state(kept / name) == state for name, state in written.items())
    except (OSError, ValueError, AttributeError):
        return False


def _digest(code: Iterable[ModuleType]) -> str:
    """Of the modules, this one among them, and of the libraries that write a model."""
    digest = hashlib.sha256(" ".join(importlib.metadata.version(name) for name in LOADERS).encode())
    for file in (__file__, *(module.__file__ for module in code)):
        digest.update(Path(str(file)).read_bytes())
    return digest.hexdigest()


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]  # a digest would take seconds at every load
