"""Every batch of windows as the model is, then with each change, without running what cannot differ."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from typing import Any

import torch

from lib.core.changes import Change, SharesAPass
from lib.core.data import Windows
from lib.model import hooks
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.run import processes

BASELINE = "baseline"  # the name of the model as it is


def each_batch(
    lm: LanguageModel,
    windows: Windows,
    changes: Sequence[Change],
    batch_size: int,
    label: str,
    run: Callable[[Sequence[Change], torch.Tensor, slice], None],
    start: int = 0,
    share: bool = False,
) -> Iterator[slice]:
    """Have all versions of the model run on each batch of the windows from `start` on; yield its rows when all have.

    `run(together, ids, rows)` makes one forward pass over the ids, once for each change of `together`, and records what
    it shows: first as the model is, with no change, then inside the hooks of each, from the first block on that it
    changes. Only with `share` there may be several, as many as `batch_size` windows have room for. One batch's block
    outputs are kept until its last pass, so memory does not grow with the windows.
    """
    n = 1 + len(changes)
    with processes.progress(len(windows.ids), batch_size, label, n) as progress:
        for rows, ids in windows.batches(batch_size):
            if rows.stop <= start:
                progress.update(n * len(ids))
                continue
            kept: dict[int, Any] = {}
            with hooks.keep_block_outputs(lm.arch, kept):
                run((), ids, rows)
            progress.update(len(ids))
            for together in sharing_a_pass(changes, batch_size // len(ids)) if share else ([one] for one in changes):
                with applied(lm.arch, together, kept, rows):
                    run(together, ids.repeat(len(together), 1), rows)
                progress.update(len(together) * len(ids))
            yield rows


def sharing_a_pass(changes: Sequence[Change], at_most: int) -> Iterator[list[Change]]:
    """The changes, by their first layer: up to `at_most` of one kind that can share a pass, each other one alone."""
    for _first, of_layer in groupby(sorted(changes, key=_first_layer), key=_first_layer):
        group: dict[type, list[Change]] = {}
        for change in of_layer:
            group.setdefault(type(change), []).append(change)
        for kind, of_kind in group.items():
            step = max(1, at_most) if issubclass(kind, SharesAPass) else 1
            yield from (of_kind[i : i + step] for i in range(0, len(of_kind), step))


def _first_layer(change: Change) -> int:
    return change.first_layer


@contextmanager
def applied(arch: Architecture, together: Sequence[Change], kept: Mapping[int, Any], rows: slice) -> Iterator[None]:
    """Changes of one first layer, each in its own copy of the windows `rows`, from that layer on.

    kept: what the blocks before it return for these windows.
    """
    one, *others = together
    first = one.first_layer
    if others:
        kept = dict.fromkeys(range(first), _repeated(kept.get(first - 1), len(together)))
    hooks_of: AbstractContextManager[object] = (
        one.hooks_beside(arch, others, rows) if isinstance(one, SharesAPass) else one.hooks(arch, rows)
    )
    with hooks.resume_at(arch, first, kept), hooks_of:
        yield


def _repeated(output: Any, n: int) -> Any:
    """What a block returned for a batch, for `n` such batches."""
    if isinstance(output, tuple):
        return (_repeated(output[0], n), *output[1:])
    return output if output is None else output.repeat(n, 1, 1)
