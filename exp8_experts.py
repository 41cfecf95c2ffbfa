"""Experiment 8: which experts of its mixtures make the massive activation?

    python exp8_experts.py --model allenai/OLMoE-1B-7B-0924 --savedir results/exp8_experts/

For models with mixtures of experts. Of every expert: how large its outputs get, how many tokens are sent to it, what it
writes at the followed place. Candidates, which write much there or have the largest outputs, are off one by one, with
the routing weights of the others as they were and renormalised, and on one by one with all others of them off, beside
random experts of their layers. The place is measured in all windows, exactly, by running no later token; losses and
sinks need whole windows, and --n_whole of them are run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.experts import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.experts.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(32, "number of token windows")
    seqlen: int | None = cli.flag(128, "tokens in a window")
    n_whole: int = cli.flag(8, "how many of them are run whole, for sink rates and losses")
    n_random: int = cli.flag(2, "random experts of its layer beside each candidate")
    all: bool = cli.flag(False, "every expert is a candidate", action="store_true")

    def idle(self) -> dict[str, str]:
        few = {"n_whole": f"there are only {self.nsamples} windows"} if self.n_whole > self.nsamples else {}
        random = {"n_random": "with --all no expert is left beside the candidates"} if self.all else {}
        return super().idle() | few | random


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.experts import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.experts import figures

    return {"exp8_experts.png": figures.experts, "exp8_off.png": figures.off}


EXPERIMENT = Experiment(
    name="exp8",
    json="experts_results.json",
    txt="EXPERIMENT_8_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
