"""Start writing, and kill it at any moment.

    python -m tests.killed results RESULT.json FOLDER
    python -m tests.killed cache GGUF FOLDER

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


def child(work, folder, started):
    """Do `work` in a fork of this process; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work(folder, started)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def kill_at_random(work, folder):
    """`work(folder, started)` calls `started` when it begins to write."""
    times = []
    for name in ("first", "whole"):  # the first imports what it needs
        work(folder / name, lambda: times.append(time.monotonic()))
    seconds = time.monotonic() - times[-1]
    random.seed(0)
    for kill in range(KILLS):
        heard, ready = os.pipe()
        pid = child(work, folder / str(kill), lambda ready=ready: os.write(ready, b"."))
        os.read(heard, 1)
        time.sleep(seconds * (kill + random.random()) / KILLS)  # from the beginning to the end
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    pair = [child(work, folder / "both", list) for _ in range(2)]
    sys.exit(sum(os.waitpid(pid, 0)[1] for pid in pair) > 0)


def results(path):
    """Writes what `main_llm.py --exp2` writes, without measuring anew, and slowly, so that kills hit files."""
    import main_llm
    from lib import experiment
    from lib.report import figures

    def slowly(path, content):
        with open(path, "wb") as file:
            for start in range(0, len(content), 1 + len(content) // 20):
                file.write(content[start : start + 1 + len(content) // 20])
                file.flush()
                time.sleep(0.02)

    def save_slowly(figure, path, save=figures.save):
        save(figure, path)
        slowly(path, Path(path).read_bytes())

    Path.write_text = lambda path, text, encoding: slowly(path, text.encode(encoding))
    figures.save = save_slowly
    payload = json.loads(path.read_text(encoding="utf-8"))
    experiment._measure = lambda *_: payload

    def work(folder, started):
        started()
        experiment.execute(main_llm.LAYERWISE, main_llm.Options(savedir=folder))

    return work


def cache(path):
    from lib.model import models
    from lib.run import atomic, storage

    def work(folder, started):
        folder.mkdir(exist_ok=True)
        storage.find = lambda _name: folder / "model"
        atomic.remove_leftovers = lambda *_args: started()  # called when the model is dequantised
        models._converted(path.stem, "0" * 64, lambda: [path])

    return work


if __name__ == "__main__":
    what, path, folder = sys.argv[1], *map(Path, sys.argv[2:])
    kill_at_random({"results": results, "cache": cache}[what](path), folder)
