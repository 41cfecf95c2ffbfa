"""One entry in a process of its own, which is asked through a pipe."""

import ctypes
import multiprocessing
import os
import time
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["benchmarks.entries", "lib.model.models"]
)  # imported once; no process begins with it anew
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
MIB = 2**20
PATIENCE = 5  # seconds


class Worker:
    """The process that measures one entry.

    values: what the entry's first pass measures on all windows. peak_mib: the peak resident memory until then, loading
    included. seconds: of each `run`. error: why it cannot be measured, or None; after an error nothing more is asked.
    """

    def __init__(self, name, options, ids, threads):
        """ids: (windows, seq) array of token ids."""
        self.error: str | None = None
        self.seconds: list[float] = []
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_work, args=(theirs, name, options, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.values: dict | None
        self.peak_mib: float | None
        self.values, self.peak_mib = self._ask(ids) or (None, None)

    def run(self, window):
        """Time one pass over one window."""
        if not self.error:
            seconds = self._ask(window)
            self.seconds += [] if self.error else [seconds]

    def end(self):
        self.connection.close()
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()

    def _ask(self, question):
        try:
            self.connection.send(question)
            answer, self.error = self.connection.recv()
        except (BrokenPipeError, ConnectionResetError, EOFError):
            self.process.join()
            answer, self.error = None, f"exit code {self.process.exitcode}"
        return answer


def _work(connection, name, options, threads):
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        import torch

        from benchmarks.entries import ENTRIES

        torch.set_num_threads(threads)
        ids = torch.from_numpy(connection.recv())
        _mallopt(M_MMAP_THRESHOLD, MIB)  # else what the allocator keeps to itself would decide: 100 MiB more or less
        measure = ENTRIES[name].prepare(options)
        connection.send(((measure(ids), _peak_mib()), None))
        _mallopt(M_MMAP_THRESHOLD, 32 * MIB)  # what it would have come to by itself, at most
        _mallopt(M_TRIM_THRESHOLD, 64 * MIB)
        while True:
            window = connection.recv()
            start = time.perf_counter()
            measure(ids[window : window + 1])
            connection.send(((time.perf_counter() - start) / getattr(measure, "units", 1), None))
    except EOFError:
        pass
    except Exception as error:
        connection.send((None, f"{type(error).__name__}: {error}".splitlines()[0]))


def _mallopt(parameter, value):
    """Of glibc, which the figures are for; a C library without it goes on as it does."""
    function = getattr(ctypes.CDLL(None), "mallopt", None)
    if function:
        function(parameter, value)


def _peak_mib():
    """Peak resident memory; `getrusage` may give that of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
