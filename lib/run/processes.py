"""Several processes, as `torchrun` starts them, share the windows of an experiment; one process alone notices nothing.

Each takes equally many whole batches, in the order of the processes, and `gather` gives what came of them to all. Every
process then goes on with the same numbers, in the order in which one process would have had them: results are the same
to the bit. What is exchanged are small objects in main memory, so gloo serves GPUs, too.
"""

import atexit
import functools
import operator
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

T = TypeVar("T")


def rank() -> int:
    """Which process this is, from 0. The first one alone writes and prints."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Which of the processes on this machine this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def own(n: int, batch_size: int) -> slice:
    """Which of `n` windows are this process's, as a slice; it may be empty."""
    batches = -(-n // batch_size)
    first, end = (batches * r // size() * batch_size for r in (rank(), rank() + 1))
    return slice(min(first, n), min(end, n))


def progress(
    n: int, batch_size: int, label: str, versions: int = 1, unit: str = "window", leave: bool = True
) -> "tqdm":
    """A progress bar over those of `n` windows that are this process's, each in so many versions."""
    from tqdm import tqdm

    mine = own(n, batch_size)
    return tqdm(total=(mine.stop - mine.start) * versions, unit=unit, desc=label, disable=None, leave=leave)


def batches(ids: "torch.Tensor", batch_size: int) -> Iterator[tuple[slice, "torch.Tensor"]]:
    """(slice of the windows, their ids) of each batch of this process."""
    mine = own(len(ids), batch_size)
    for start in range(mine.start, mine.stop, batch_size):
        rows = slice(start, min(start + batch_size, mine.stop))
        yield rows, ids[rows]


def gather(parts: list[T]) -> list[T]:
    """The lists `parts` of all processes, one after another; all must call it, equally often.

    Raises the error that another process took to the end of `failing_together` instead.
    """
    return parts if size() == 1 else [part for parts_of_one in _exchange(parts) for part in parts_of_one]


def merged(own: T) -> T:
    """`own` of all processes as one: nested lists and dicts of Counter and of what has a method `merge`."""
    first, *later = gather([own])
    for other in later:
        _merge(first, other)
    return first


def _merge(first: Any, later: Any) -> None:  # of one type, nested in any way
    if isinstance(first, Counter):
        first.update(later)
    elif isinstance(first, list):
        for pair in zip(first, later, strict=True):
            _merge(*pair)
    elif isinstance(first, dict):
        for key in later:
            if key in first:
                _merge(first[key], later[key])
            else:
                first[key] = later[key]
    else:
        first.merge(later)


class Sum(Generic[T]):
    """A sum over windows, of numbers or tensors, added in the order of the windows whatever the number of processes.

    With one process terms are added as they come; with several they are kept until `total`.
    """

    def __init__(self) -> None:
        self.terms: list[T] = []
        self.kept = size() > 1

    def __iadd__(self, term: T) -> "Sum[T]":
        self.terms.append(term)
        if not self.kept:
            self.terms = [self.total]
        return self

    def merge(self, later: "Sum[T]") -> None:
        self.terms.extend(later.terms)

    @property
    def total(self) -> T:
        nothing: Any = 0.0  # of terms of whatever type
        return functools.reduce(operator.add, self.terms, nothing)


@contextmanager
def failing_together() -> Iterator[None]:
    """Whatever fails in the block in one process fails in all of them, with the error of the first that it hit."""
    if size() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        if hasattr(error, "shared"):
            raise
        _exchange(error)
    _exchange([])


@contextmanager
def quiet() -> Iterator[None]:
    """In the block only the first process prints."""
    if rank() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _exchange(mine: list[T] | Exception) -> list[list[T]]:
    """What each process gave, in their order. Where one gave an error it is raised here, in all of them."""
    everyone: list[list[T] | Exception] = []
    waiting = threading.Thread(target=_all_gather, args=(mine, everyone), daemon=True)  # so that Ctrl-C can end it
    waiting.start()
    waiting.join()
    given = []
    for theirs in everyone:
        if isinstance(theirs, Exception):
            theirs.shared = True  # type: ignore[attr-defined]  # an error of whatever class, marked
            raise theirs
        given.append(theirs)
    return given


def _all_gather(mine: list[T] | Exception, everyone: list[list[T] | Exception]) -> None:
    import torch.distributed as dist

    found: list[Any] = [None] * size()
    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(days=1))
            atexit.register(dist.destroy_process_group)  # what is left to the interpreter's end may abort there
        dist.all_gather_object(found, mine)
        everyone.extend(found)
    except Exception as error:  # another process is gone
        everyone.append(error)
