"""Experiment 2B: which layers' MLPs, and which attention blocks, does the massive activation need?

    python exp2b_mlp_layer_sweep.py --model gpt2 --savedir results/exp2b_mlp_layer_sweep/

Every MLP is off alone, kept alone, kept with MLP 0, and off cumulatively from either end; attention blocks likewise,
but for MLP 0 (off: all that it adds to the residual stream, bias included). One place is followed, in all windows,
exactly, by running no later token. Losses and sinks need whole windows, and --n_whole of them are run; so does the look
for what is rebuilt elsewhere, at another dim or position, when one of the few large writes is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.layer_sweep import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.layer_sweep.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(32, "number of token windows")
    seqlen: int | None = cli.flag(64, "tokens in a window")
    n_whole: int = cli.flag(8, "how many of them are run whole, for sink rates, losses and what is rebuilt elsewhere")

    def idle(self) -> dict[str, str]:
        few = {"n_whole": f"there are only {self.nsamples} windows"} if self.n_whole > self.nsamples else {}
        return super().idle() | few


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.layer_sweep import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.layer_sweep import figures

    return {"exp2b_layer_sweep.png": figures.layer_sweep, "exp2b_cost.png": figures.layer_sweep_cost}


EXPERIMENT = Experiment(
    name="exp2b",
    json="exp2b_results.json",
    txt="EXPERIMENT_2B_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
