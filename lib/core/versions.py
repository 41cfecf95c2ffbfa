"""Every batch of windows as the model is, then with each change, without running what cannot differ."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lib.core.changes import Change
from lib.core.data import Windows
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.run import processes

BASELINE = "baseline"  # the name of the model as it is


def each_batch(
    lm: LanguageModel,
    windows: Windows,
    changes: Sequence[Change],
    batch_size: int,
    label: str,
    run: Callable[[Change | None, torch.Tensor, slice], None],
    start: int = 0,
) -> Iterator[slice]:
    """Have all versions of the model run on each batch of the windows from `start` on; yield its rows when all have.

    `run(change, ids, rows)` makes one forward pass and records what it shows: first as the model is, with None for a
    change, then inside the hooks of each change, from the first block on that it changes. One batch's block outputs are
    kept until its last pass, so memory does not grow with the windows.
    """
    n = 1 + len(changes)
    with processes.progress(len(windows.ids), batch_size, label, n) as progress:
        for rows, ids in windows.batches(batch_size):
            if rows.stop <= start:
                progress.update(n * len(ids))
                continue
            kept: dict[int, Any] = {}
            with hooks.keep_block_outputs(lm.arch, kept):
                run(None, ids, rows)
            progress.update(len(ids))
            for change in changes:
                with hooks.resume_at(lm.arch, change.first_layer, kept), change.hooks(lm.arch, rows):
                    run(change, ids, rows)
                progress.update(len(ids))
            yield rows
