"""The terminal: streams that may be closed, full or of few characters, and signals that may come at any moment."""

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from lib.run.errors import UserError, cause

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

    from _typeshed import ReadableBuffer

ROOT = Path(__file__).resolve().parents[2]
written: list[Path] = []  # the result files of this run, in this order
_told = False  # whether the last words are out


class _Stream(io.FileIO):
    """A file descriptor that nobody need read: where writing fails, it is over, and `error` says why."""

    error: OSError | None = None

    def write(self, content: "ReadableBuffer") -> int:
        if self.error is None:
            try:
                return super().write(content)
            except OSError as error:
                self.error = error
        return memoryview(content).nbytes


def _open_streams() -> None:
    """Make stdout and stderr take whatever is printed, for as long as the process lives."""
    for number in range(3):  # one that is closed would be the next file that is opened, and be printed into
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and not isinstance(_raw(stream), _Stream):
            setattr(sys, name, _lossless(stream, number))


def _lossless(stream: io.TextIOWrapper | None, number: int) -> io.TextIOWrapper:
    """A text stream like `stream`, which is None where it was closed, of the same file descriptor."""
    at_once = stream is not None and stream.write_through
    if stream is not None:
        stream.flush()
    raw = _Stream(number, "w", closefd=False)
    return io.TextIOWrapper(
        raw if at_once else io.BufferedWriter(raw),
        encoding="utf-8" if stream is None else stream.encoding,
        errors="backslashreplace",
        line_buffering=stream is not None and stream.line_buffering,
        write_through=at_once,
    )


def _raw(stream: object) -> object:
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def require_printed() -> None:
    """Raise UserError if what was printed is lost, unless its reader has left."""
    sys.stdout.flush()
    error = getattr(_raw(sys.stdout), "error", None)
    if error is not None and error.errno != errno.EPIPE:
        raise UserError(f"cannot print: {cause(error)}; {_files()}")


def _files() -> str:
    """Which result files there are."""
    if not written:
        return "no result was written"
    if len(written) > 8:
        return f"{len(written)} files were written, the last of them {written[-1]}"
    return f"written: {', '.join(map(str, written))}"


def begin() -> None:
    """Make the streams ready, and forget what an earlier run in this process has told and written."""
    global _told
    _told = False
    written.clear()
    _open_streams()


def last_words(number: int) -> str:
    """The line that says what ends the run and what there is of it; only once, and of the first process."""
    global _told
    if _told or os.environ.get("RANK", "0") != "0":
        return ""
    _told = True
    return f"{'terminated' if number == signal.SIGTERM else 'interrupted'}: {_files()}\n"


@contextmanager
def interruptible() -> Iterator[None]:
    """In the block Ctrl-C and `kill` raise KeyboardInterrupt(number); a second one, or one that is heard where Python
    cannot raise it (in __del__, for example), ends the process where it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    first = True

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if not first:
            end(number)
        first = False
        raise KeyboardInterrupt(number)

    def unraisable(lost: "UnraisableHookArgs") -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            end(*lost.exc_value.args)
        told(lost)

    told, sys.unraisablehook = sys.unraisablehook, unraisable
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        sys.unraisablehook = told
        for number, handler in before.items():  # of a script that ends anyway, no other signal need be heard
            signal.signal(number, handler if first or handler is not end else signal.SIG_IGN)


def end(number: int, _frame: FrameType | None = None) -> NoReturn:
    """End the process here, in one line."""
    with suppress(OSError):
        os.write(2, last_words(number).encode(errors="backslashreplace"))  # print may be at work right now
    os._exit(128 + number)


def end_scripts_when_interrupted() -> None:
    """Until a script has begun, and after it, Ctrl-C and `kill` end it in one line; only where the process is one of
    ours."""
    frame: FrameType | None = sys._getframe()
    main: FrameType | None = None
    while frame:
        main, frame = (frame if frame.f_globals.get("__name__") == "__main__" else main), frame.f_back
    path = Path(main.f_code.co_filename) if main else ROOT
    if path.is_file() and path.resolve().parent in (ROOT, ROOT / "benchmarks"):
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) is default:
                signal.signal(number, end)
