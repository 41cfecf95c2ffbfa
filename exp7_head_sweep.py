"""Experiment 7: every attention head off, one at a time and together, and what each does to the massive activation.

    python exp7_head_sweep.py --model gpt2 --savedir results/exp7_head_sweep/

Every single head is set to zero and, beside it, to its mean over all tokens. Then heads are removed together, 1, 2, 4,
... of them: first those that attend most to the first token; first those that write most to the place; and, as the null
of the former, random heads of the same layers, because what a head can change depends first of all on its layer. What
causality makes impossible is marked so. The place is measured in all windows, exactly, by running no later token; sink
rate and loss need whole windows, and --n_whole of them are run with heads at zero, from their layer on. Which heads
move the value or cost loss is judged by intervals that are right for all heads together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.head_sweep import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.head_sweep.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(64, "number of token windows")
    seqlen: int | None = cli.flag(64, "tokens in a window")
    n_whole: int = cli.flag(8, "how many of them are run whole, for sink rate and loss")
    n_random: int = cli.flag(3, "random orders of removal")

    def idle(self) -> dict[str, str]:
        few = {"n_whole": f"there are only {self.nsamples} windows"} if self.n_whole > self.nsamples else {}
        return super().idle() | few


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.head_sweep import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.head_sweep import figures

    return {
        "exp7_place_heatmap.png": figures.head_sweep_place,
        "exp7_model_heatmap.png": figures.head_sweep_model,
        "exp7_cumulative.png": figures.head_sweep_cumulative,
    }


EXPERIMENT = Experiment(
    name="exp7",
    json="exp7_results.json",
    txt="EXPERIMENT_7_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    details=text.details,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
