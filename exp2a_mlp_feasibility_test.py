"""Experiment 2A: do massive activations survive without MLPs?

    python exp2a_mlp_feasibility_test.py --model gpt2 --nsamples 30 --savedir results/exp2a_mlp_feasibility_test/

Compares the model with all MLPs off: what each adds to the residual stream is zero, bias included. Every layer is
compared at the same position and dim, signed; each place is judged once, at the end of its plateau, and at position 0
over all first tokens that the text could give. In a mixture of experts that has shared experts or dense layers, too,
with all experts off beside it.
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
    from lib.core.ablation import all_experts_off, all_mlps_off

    return measure.run(lm, windows, all_mlps_off(lm.arch), options, all_experts_off(lm.arch))


def summarise(result: Stored) -> str:
    return text.summary(
        result,
        "Experiment 2A: all MLPs off",
        "Question: are the baseline's massive activations still there when no MLP writes anything?",
    )


def figures() -> Drawings:
    from experiments.ablation import figures

    return {
        "comparison/exp2a_top1_comparison.png": figures.top1_comparison,
        "comparison/exp2a_critical_dimensions.png": figures.critical_dimensions,
        "comparison/exp2a_percentage_change_heatmap.png": figures.percentage_heatmap,
    }


EXPERIMENT = Experiment(
    name="exp2a",
    json="comparison/exp2a_results.json",
    txt="comparison/EXPERIMENT_2A_SUMMARY.txt",
    run=run,
    summary=summarise,
    details=text.details,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
