"""Start writing, and kill it at any moment: `python -m tests.killed results RESULT.json FOLDER` or `... cache GGUF FOLDER`.

Every killed writer has a folder of its own, FOLDER/0, FOLDER/1, ...; two that go on at once share FOLDER/both.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

KILLS = 12


def child(work, folder, ready=None):
    """Do `work` in a fork of this process, after a byte to the pipe `ready`; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            if ready is not None:
                os.write(ready, b".")
            work(folder)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def kill_at_random(work, folder):
    work(folder / "first")  # imports what it needs
    start = time.monotonic()
    work(folder / "whole")
    seconds = time.monotonic() - start
    random.seed(0)
    for kill in range(KILLS):
        heard, ready = os.pipe()
        pid = child(work, folder / str(kill), ready)
        os.read(heard, 1)
        time.sleep(seconds * (kill + random.random()) / KILLS)  # from the beginning to the end
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(heard), os.close(ready)
    pair = [child(work, folder / "both") for _ in range(2)]
    sys.exit(sum(os.waitpid(pid, 0)[1] for pid in pair) > 0)


def results(path):
    """Writes what `main_llm.py --exp2` writes, without measuring anew."""
    import main_llm
    from lib import experiment

    payload = json.loads(path.read_text(encoding="utf-8"))
    experiment._measure = lambda *_: payload
    return lambda folder: experiment.execute(main_llm.LAYERWISE, main_llm.Options(savedir=folder))


def cache(path):
    from lib import models

    return lambda folder: models._dequantise(path, folder / "model")


if __name__ == "__main__":
    what, path, folder = sys.argv[1], *map(Path, sys.argv[2:])
    kill_at_random({"results": results, "cache": cache}[what](path), folder)
