"""Write, and be killed at each of many moments.

    python -m tests.killed results RESULT.json FOLDER
    python -m tests.killed cache GGUF FOLDER

Every killed writer has a folder of its own, FOLDER/0, FOLDER/1, ...; two that go on at once share FOLDER/both.
"""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

KILLS = 12
FILE_EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
watched = {}  # folder: what is called before each of FILE_EVENTS in it


@sys.addaudithook
def _tell(event, arguments):
    if event in FILE_EVENTS and watched:
        path = str(arguments[0])
        for folder, step in watched.items():
            if path.startswith(str(folder)):
                step()


def write(work, folder, step):
    """`work(folder, step)`, which calls `step` inside files; it is called before every file event as well."""
    watched.clear()
    watched[folder] = step
    work(folder, step)
    watched.clear()


def child(work, folder, step):
    """The same in a fork of this process; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            write(work, folder, step)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def at_step(number, action):
    """A step that does `action` when it is called for the `number`th time."""
    steps = iter(range(1, number + 1))
    return lambda: action() if next(steps, None) == number else None


def kill_at_every_stage(work, folder):
    steps = []
    for name in ("first", "whole"):  # the first imports what it needs
        steps.clear()
        write(work, folder / name, lambda: steps.append(None))
    for kill in range(KILLS):  # from the first step to the last
        number = 1 + kill * (len(steps) - 1) // (KILLS - 1)
        pid = child(work, folder / str(kill), at_step(number, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    together = multiprocessing.get_context("fork").Barrier(2)
    pair = [child(work, folder / "both", at_step(1, together.wait)) for _ in range(2)]
    sys.exit(sum(os.waitpid(pid, 0)[1] for pid in pair) > 0)


def results(path):
    """Writes what `main_llm.py --exp2` writes, without measuring anew, and each file in pieces."""
    import main_llm
    from lib import experiment
    from lib.report import figures

    payload = json.loads(path.read_text(encoding="utf-8"))
    experiment._measure = lambda *_: payload
    save = figures.save

    def work(folder, step):
        def in_pieces(path, content):
            with open(path, "wb") as file:
                for start in range(0, len(content), 1 + len(content) // 20):
                    file.write(content[start : start + 1 + len(content) // 20])
                    file.flush()
                    step()

        def save_in_pieces(figure, path, dpi):
            save(figure, path, dpi)
            in_pieces(path, Path(path).read_bytes())

        Path.write_text = lambda path, text, encoding: in_pieces(path, text.encode(encoding))
        figures.save = save_in_pieces
        experiment.execute(main_llm.LAYERWISE, main_llm.Options(savedir=folder))

    return work


def cache(path):
    from lib.model import models
    from lib.run import storage

    def work(folder, _step):
        folder.mkdir(exist_ok=True)
        storage.find = lambda _name: folder / "model"
        models._from_gguf(path.stem, "0" * 64, lambda: [path])

    return work


if __name__ == "__main__":
    what, path, folder = sys.argv[1], *map(Path, sys.argv[2:])
    kill_at_every_stage({"results": results, "cache": cache}[what](path), folder)
