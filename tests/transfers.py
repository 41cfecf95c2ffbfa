"""What every script copies from a device to the host, in the forward passes and between them.

    python -m tests.transfers

prints it for one planted model and for a mixture of experts, of windows in batches of 4; each copy in a pass makes an
accelerator wait.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lib import catalogue
from lib.report import tables
from tests import golden, pretend


@dataclass(frozen=True)
class Counted:
    """passes: how often the model ran; inside, in_all: transfers by kind, in these and in all."""

    passes: int
    inside: Counter
    in_all: Counter
    results: dict


def counted(command, planted, text, **flags):
    """Of one script of the catalogue on the pretended device."""
    begun, inside = [], Counter()
    with pretend.device() as transfers:
        there = golden.moved(planted, pretend.DEVICE)
        transfers.clear()  # of finding its parts
        blocks = there.lm.model.base_model
        blocks.register_forward_pre_hook(lambda *_args: begun.append(transfers.copy()))
        blocks.register_forward_hook(lambda *_args: inside.update(transfers - begun[-1]), always_call=True)
        results = golden.results(command, there, text, **flags)
    return Counted(len(begun), inside, transfers, results)


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ("gpt2", golden.MIXTURE):
            planted = golden.build(architecture)
            text = golden.write_text(planted, Path(folder))
            for command in (catalogue.EXPERIMENTS[name].command for name in golden.MEASURED[architecture]):
                of = counted(command, planted, text, batch_size=4)
                each = (_a_pass(kinds, of.passes) for kinds in (of.inside, of.in_all - of.inside))
                rows.append([f"{command} ({architecture})", of.passes, *each])
    print(tables.table(["script", "passes", "in a pass", "between passes"], rows), end="")


def _a_pass(kinds, n):
    each = ", ".join(f"{kind} {times / n:.1f}" for kind, times in sorted(kinds.items()))
    return f"{kinds.total() / n:.1f} ({each})" if each else "0"


if __name__ == "__main__":
    main()
