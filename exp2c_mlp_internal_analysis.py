"""Experiment 2C: what happens inside one layer's MLP, and which neurons make its largest output.

    python exp2c_mlp_internal_analysis.py --model gpt2 --layer_id 2 --nsamples 30 --savedir results/exp2c_mlp_internal/

Gives each checkpoint's maximum over all tokens (each may sit elsewhere), then follows one (position, dim) through
all of them: in every window the MLP's largest output, or --position and --dim. The contribution of a neuron is its
activation times its weight to the dim; contributions plus bias are the output of the down projection. The
activation function is then replaced by the identity and by ReLU in this layer. In a mixture of experts a neuron's
activation counts with the routing weight of its expert; what is inside of experts is measured where followed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.mlp_internal import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.mlp_internal.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    layer_id: int = cli.flag(2, "layer of the MLP, from 0")
    position: int | None = cli.flag(None, "position to follow (default: of the MLP's largest output in each window)")
    dim: int | None = cli.flag(None, "dim to follow (default: the one in which that output is largest)")


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.mlp_internal import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.mlp_internal import figures

    return {
        "exp2c_activation_flow.png": figures.activation_flow,
        "exp2c_dimension_analysis.png": figures.dimension_analysis,
        "exp2c_gelu_impact.png": figures.activation_function_impact,
    }


EXPERIMENT = Experiment(
    name="exp2c",
    json="exp2c_detailed_results.json",
    txt="EXPERIMENT_2C_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
