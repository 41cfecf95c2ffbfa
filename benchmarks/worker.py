"""One entry in a process of its own, which is asked through a pipe."""

import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # else a look for CUDA before the fork spoils it behind it
if sys.platform == "linux":
    CONTEXT = multiprocessing.get_context("forkserver")
else:  # Apple's libraries do not outlive a fork
    CONTEXT = multiprocessing.get_context("spawn")
CONTEXT.set_forkserver_preload(
    ["benchmarks.entries", "lib.model.models"]
)  # imported once; no process begins with it anew
MIB = 2**20
PATIENCE = 5  # seconds
AT_LEAST = 0.2  # seconds: a short pass is repeated in a timing


class Worker:
    """The process that measures one entry.

    values: what the entry's first pass measures on all windows. peak_mib: the peak of memory until then, loading
    included: on CUDA of what PyTorch has there, elsewhere what is resident. seconds: of each `run`. error: why it
    cannot be measured, or None; after an error nothing more is asked.
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

    def run(self, ids):
        """Time a pass over (windows, seq) ids: the mean of as many as take AT_LEAST seconds."""
        if not self.error:
            seconds = self._ask(ids)
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
        from lib.model import models
        from lib.run import memory

        torch.set_num_threads(threads)
        ids = torch.from_numpy(connection.recv())
        # else what the allocator keeps to itself would decide: 100 MiB more or less
        memory.set_option(memory.M_MMAP_THRESHOLD, MIB)
        measure = ENTRIES[name].prepare(options)
        device = models.chosen_device(options.device)
        connection.send(((measure(ids), _peak_mib(device)), None))
        memory.keep_freed()  # for all tools, as every script here does
        while True:
            seconds = _seconds(measure, torch.from_numpy(connection.recv()), device)
            connection.send((seconds / getattr(measure, "units", 1), None))
    except EOFError:
        pass
    except Exception as error:
        connection.send((None, f"{type(error).__name__}: {error}".splitlines()[0]))


def _seconds(measure, ids, device):
    """Of a pass and of all that it gave the device to do."""
    import torch

    start, passes, seconds = time.perf_counter(), 0, 0.0
    while not passes or seconds < AT_LEAST:
        measure(ids)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        passes, seconds = passes + 1, time.perf_counter() - start
    return seconds / passes


def _peak_mib(device):
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    status = Path("/proc/self/status")
    if status.exists():  # there `getrusage` may give that of the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
