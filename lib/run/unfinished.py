"""A sweep that was interrupted goes on where it stopped, when the same is measured again."""

import hashlib
import io
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.run import atomic, checkout, processes, storage
from lib.run.errors import UserError

KEPT_DAYS = 30


def folder() -> Path:
    return storage.cache() / "unfinished"


class Unfinished:
    """Arrays of what has been measured so far, in a file of the user's cache that is removed at the end, or by another
    sweep after KEPT_DAYS.

    identity: whatever decides what is measured, to the bit; the code and this process's share of the work are added.
    """

    def __init__(self, *identity: object) -> None:
        digest = _digest((checkout.code_sha256(), processes.rank(), processes.size(), identity))
        self.path = folder() / f"{digest}.npz"

    def load(self) -> dict[str, np.ndarray]:
        """By name; empty if there is nothing that can be read."""
        try:
            with np.load(self.path) as file:
                return dict(file)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            return {}

    def save(self, arrays: dict[str, np.ndarray]) -> None:
        """Where the cache cannot be written, the sweep goes on all the same."""
        atomic.remove_leftovers(folder(), "*.npz", KEPT_DAYS)
        with suppress(UserError), atomic.complete_file(self.path) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # any of them might be its `allow_pickle`

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink()


def _digest(value: object) -> str:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: object) -> Any:
        if isinstance(value, torch.Tensor):  # its own way holds addresses
            return np.array, (value.cpu().numpy(),)
        return NotImplemented
