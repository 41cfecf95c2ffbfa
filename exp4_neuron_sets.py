"""Experiment 4: the smallest set of MLP neurons that carries a massive activation, proved by runs.

    python exp4_neuron_sets.py --model gpt2 --layer_id 2 --savedir results/exp4_neuron_sets/

Follows one dim at one position a window. Neurons are ranked by activation x weight to that dim; the smallest set that
makes the MLP's output there is run alone (all other neurons of that MLP off) and removed, beside random sets of the
same size that are as active. The place is measured in all windows, exactly, by running no later token; perplexity and
sink rate need whole windows, and --n_whole of them are run. What these neurons read: the dims of the residual stream
that, through the norm, add up to what enters them. In a mixture of experts the set is one of the neurons of all
experts, each with its routing weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.neuron_sets import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.neuron_sets.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(32, "number of token windows")
    seqlen: int | None = cli.flag(512, "tokens in a window")
    layer_id: int | None = cli.flag(None, "layer of the MLP, from 0 (default: the first of the place's plateau)")
    n_whole: int = cli.flag(6, "how many windows are run whole, for perplexity and sink rate")
    n_random: int = cli.flag(20, "random sets of the same size")

    def idle(self) -> dict[str, str]:
        few = {"n_whole": f"there are only {self.nsamples} windows"} if self.n_whole > self.nsamples else {}
        return super().idle() | few


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.neuron_sets import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.neuron_sets import figures

    return {
        "exp4_neuron_sets.png": figures.neuron_sets,
        "exp4_neurons_read.png": figures.neurons_read,
        "exp4_super_weights.png": figures.super_weights,
    }


EXPERIMENT = Experiment(
    name="exp4",
    json="exp4_results.json",
    txt="EXPERIMENT_4_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
