"""The command that is being carried out: the one that was typed, or what a study runs of its scripts."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """script: its file name. program: what stands for it behind `python`, which may be ("-m", module)."""

    script: str
    program: tuple[str, ...]
    flags: tuple[str, ...]


_of_study: ContextVar[Command | None] = ContextVar("_of_study", default=None)


def current() -> Command:
    return _of_study.get() or _typed()


@contextmanager
def carried_out(script: str, flags: Sequence[str]) -> Iterator[None]:
    """In the block, `current` is `python SCRIPT FLAGS`."""
    token = _of_study.set(Command(script, (script,), tuple(flags)))
    try:
        yield
    finally:
        _of_study.reset(token)


def _typed() -> Command:
    module, script = sys.modules["__main__"].__spec__, Path(sys.argv[0]).name
    return Command(script, ("-m", module.name) if module else (script,), tuple(sys.argv[1:]))
