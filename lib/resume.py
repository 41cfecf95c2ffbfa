"""A sweep that was interrupted goes on where it stopped, when the same is measured again."""

import hashlib
import io
import pickle
import zipfile
from contextlib import suppress

import numpy as np
import torch

from lib import ranks, report, storage
from lib.errors import UserError

KEPT_DAYS = 30


def folder():
    return storage.cache() / "unfinished"


class Unfinished:
    """Arrays of what has been measured so far, in a file of the user's cache that is removed at the end, or by another
    sweep after KEPT_DAYS.

    identity: whatever decides what is measured, to the bit; the code and this process's share of the work are added.
    """

    def __init__(self, *identity):
        digest = _digest((report.code_sha256(), ranks.rank(), ranks.size(), identity))
        self.path = folder() / f"{digest}.npz"

    def load(self):
        """{name: array}; empty if there is nothing that can be read."""
        try:
            with np.load(self.path) as file:
                return dict(file)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            return {}

    def save(self, arrays):
        """Where the cache cannot be written, the sweep goes on all the same."""
        report.remove_leftovers(folder(), "*.npz", KEPT_DAYS)
        with suppress(UserError), report.complete_file(self.path) as temporary:
            np.savez(temporary, **arrays)

    def remove(self):
        with suppress(OSError):
            self.path.unlink()


def _digest(value):
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value):
        if isinstance(value, torch.Tensor):  # its own way holds addresses
            return np.array, (value.cpu().numpy(),)
        return NotImplemented
