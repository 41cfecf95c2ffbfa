"""What every script copies from a device to the host, in the forward passes and between them.

    python -m tests.transfers

prints it for one planted model, of 8 windows in batches of 4; each copy in a pass makes an accelerator wait.
"""

import tempfile
from collections import Counter
from pathlib import Path

from lib import catalogue
from lib.planted import planting
from lib.report import tables
from tests import golden, pretend


def counted(command, planted, text):
    """(forward passes, transfers in them by kind, transfers in all by kind) of one script of the catalogue."""
    begun, inside = [], Counter()
    with pretend.device() as transfers:
        there = golden.moved(planted, pretend.DEVICE)
        transfers.clear()  # of finding its parts
        blocks = there.lm.model.base_model
        blocks.register_forward_pre_hook(lambda *_args: begun.append(transfers.copy()))
        blocks.register_forward_hook(lambda *_args: inside.update(transfers - begun[-1]), always_call=True)
        golden.results(command, there, text, batch_size=4)
    return len(begun), inside, transfers


def main():
    planted = planting.build("gpt2", golden.MODELS["gpt2"], seed=0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        text = golden.write_text(planted, Path(folder))
        for entry in catalogue.EXPERIMENTS.values():
            n, inside, in_all = counted(entry.command, planted, text)
            rows.append([entry.command, n, *(_a_pass(kinds, n) for kinds in (inside, in_all - inside))])
    print(tables.table(["script", "passes", "in a pass", "between passes"], rows), end="")


def _a_pass(kinds, n):
    each = ", ".join(f"{kind} {times / n:.1f}" for kind, times in sorted(kinds.items()))
    return f"{kinds.total() / n:.1f} ({each})" if each else "0"


if __name__ == "__main__":
    main()
