"""Experiment 14: at which step of training were massive activations and sinks born, and who wrote them?

    python exp14_training.py --model EleutherAI/pythia-14m --revisions step0 step1000 step143000
    python exp14_training.py --model EleutherAI/pythia-14m --revisions all
    python exp14_training.py --model output_dir_of_a_trainer --savedir results/exp14_training/

Measures one checkpoint after another, of which one is in memory at a time: largest values of every layer, attention to
the first token, and who writes what is largest. They are revisions of a hub model, or the subfolders or nanoGPT's .pt
files of a local folder; their order is that of the steps in their names. What is measured is kept for a month, so that
a run that was interrupted, or one with further checkpoints, measures only what is missing; so does one with all of them
after jobs that measured one each (cluster.py --over revisions step0 step1000 ...) on the same kind of machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.training_course import text
from lib.experiment import Drawings, Experiment, Series, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.training_course.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel
    from lib.model.series import Checkpoint


@dataclass(frozen=True)
class Options(cli.Options):
    revisions: tuple[str, ...] = cli.flag(
        (),
        "checkpoints in any order: branches or tags of a hub model, subfolders or .pt files of a local one; all: whose "
        "name has a step (default, of a folder)",
        nargs="+",
        metavar="NAME",
    )

    def idle(self) -> dict[str, str]:
        return super().idle() | {"revision": "checkpoints are named with --revisions"}


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.training_course import measure

    return measure.run(lm, windows, options)


def checkpoints(options: Options) -> list[Checkpoint]:
    from lib.model import series

    return series.find(options, options.revisions)


def join(series: list[tuple[Checkpoint, dict[str, Any], Results]]) -> Results:
    from experiments.training_course import measure

    return measure.join(series)


def figures() -> Drawings:
    from experiments.training_course import figures

    return {
        "exp14_layers.png": figures.layers,
        "exp14_sinks.png": figures.sinks,
        "exp14_writers.png": figures.writers,
    }


EXPERIMENT = Experiment(
    name="exp14",
    json="exp14_results.json",
    txt="EXPERIMENT_14_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    figures=figures,
    series=Series(checkpoints, join),
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
