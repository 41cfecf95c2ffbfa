"""Experiment 1: do massive activations survive without attention heads?

    python exp1_feasibility_test.py --model gpt2 --nsamples 30 --savedir results/exp1_feasibility_test/

Compares the model with all heads of all layers off: each head's slice of the input of the attention output
projection is zero, the projection's bias stays. Every layer is compared at the same position and dim, signed; each
place is judged once, at the end of its plateau, and at position 0 over all first tokens that the text could give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.ablation import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.ablation.results import Results, Stored
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    dims: tuple[int, ...] = cli.flag(
        (), "dims to follow (default: those of the baseline's massive activations)", **cli.INTS
    )


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.ablation import measure
    from lib.core.ablation import all_heads_off

    return measure.run(lm, windows, all_heads_off(lm.arch), options)


def summarise(result: Stored) -> str:
    return text.summary(
        result,
        "Experiment 1: all attention heads off",
        "Question: are the baseline's massive activations still there when no head writes anything?",
    )


def figures() -> Drawings:
    from experiments.ablation import figures

    return {
        "comparison/exp1_top1_comparison.png": figures.top1_comparison,
        "comparison/exp1_critical_dimensions.png": figures.critical_dimensions,
        "comparison/exp1_percentage_change_heatmap.png": figures.percentage_heatmap,
    }


EXPERIMENT = Experiment(
    name="exp1",
    json="comparison/exp1_results.json",
    txt="comparison/EXPERIMENT_1_SUMMARY.txt",
    run=run,
    summary=summarise,
    details=text.details,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
