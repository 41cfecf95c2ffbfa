"""One entry in a process of its own, which gets pickled questions on stdin and answers on stdout."""

import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lib.cli import first_line


class Worker:
    """The process that measures one entry.

    values: what the entry's first pass measures on all windows. seconds: of each `run`. peak_mib: its peak resident
    memory, once `finish`ed. error: why it cannot be measured, or None; after an error nothing more is asked of it.
    """

    def __init__(self, name, options, ids, threads):
        """ids: (windows, seq) array of token ids."""
        self.error, self.seconds, self.peak_mib = None, [], None
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (`kill` closes it)
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self.values = self._ask((name, options, ids, threads))

    def run(self, window):
        """Time one pass over one window."""
        seconds = self._ask(window)
        if not self.error:
            self.seconds.append(seconds)

    def finish(self):
        self.peak_mib = self._ask(None)

    def kill(self):
        self.process.kill()
        self.process.communicate()
        self.said.close()

    def _ask(self, question):
        if self.error:
            return None
        try:
            pickle.dump(question, self.process.stdin)
            self.process.stdin.flush()
            answer, self.error = pickle.load(self.process.stdout)
        except (BrokenPipeError, EOFError):
            code = self.process.wait()
            self.said.seek(0)
            lines = self.said.read().decode(errors="replace").strip().splitlines()
            answer, self.error = None, f"exit code {code}: {lines[-1] if lines else 'no message'}"
        return answer


def main():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what tools print is no answer

    def answer(value, error=None):
        pickle.dump((value, error), answers)
        answers.flush()

    try:
        name, options, ids, threads = pickle.load(sys.stdin.buffer)
        import torch

        from benchmarks.entries import ENTRIES

        torch.set_num_threads(threads)
        ids = torch.from_numpy(ids)
        measure = ENTRIES[name].prepare(options)
        answer(measure(ids))
        while (window := pickle.load(sys.stdin.buffer)) is not None:
            start = time.perf_counter()
            measure(ids[window : window + 1])
            answer((time.perf_counter() - start) / getattr(measure, "units", 1))
        answer(_peak_mib())
    except Exception as error:
        answer(None, f"{type(error).__name__}: {first_line(error)}")


def _peak_mib():
    """Peak resident memory; `getrusage` may give that of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
