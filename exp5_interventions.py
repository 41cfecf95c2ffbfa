"""Experiment 5: are the massive activations needed, and as what: their size, or only a constant?

    python exp5_interventions.py --model gpt2 --savedir results/exp5_interventions/

Counterfactual states first: the model as it would be if the massive activations of one layer (--layer_id; default: the
first of the followed place's plateau) had not been written, because the neurons of its MLP that write them, or the
whole MLP, are off, at their positions or everywhere; and off with the mean put back. Then the values set by hand, to
those of another window, to their mean, to what the dim has at ordinary positions, to zero, to the median of |block
output| and to --factors times what they are: in that layer's output alone, or in that of all later ones too. Every
second window estimates what is set; loss, sink rates and the values of the later layers at the followed place (--dim,
--position) are measured on the others.
--mask mask.json, of main_llm.py --exp2 --export, changes what it names at the layer instead of what is massive there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.interventions import text
from lib.core.definitions import WINDOWS
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.interventions.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(2 * WINDOWS, "number of token windows, half of which are measured")
    seqlen: int | None = cli.flag(128, "tokens in a window")
    layer_id: int | None = cli.flag(None, "layer to change, from 0 (default: the first of the place's plateau)")
    factors: tuple[float, ...] = cli.flag((0.5, 2.0), "multiples of the value to set", **cli.FLOATS)
    mask: Path | None = cli.flag(
        None, "change what this mask of main_llm.py --exp2 --export names, instead of what is massive", type=cli.path
    )
    epsilons: tuple[float, ...] = cli.flag(
        (0.2, 0.3, 0.4), "attention to the first token that makes a sink", **cli.FLOATS
    )


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.interventions import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.interventions import figures

    return {
        "exp5_perplexity_and_sinks.png": figures.interventions,
        "exp5_comes_back.png": figures.interventions_over_layers,
    }


EXPERIMENT = Experiment(
    name="exp5",
    json="exp5_results.json",
    txt="EXPERIMENT_5_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    details=text.details,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
