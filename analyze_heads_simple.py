"""How much every attention head attends to the first token, where massive activations usually sit.

    python analyze_heads_simple.py --model gpt2 --nsamples 30 --savedir results/head_analysis/

A head's score is the mean over windows and queries of its probability on the first token. As in the seed study the
first query (whose probability is always 1) is included, so no score is below 1 / seqlen; the score without it is
given beside. Writes a heatmap, a ranking, and a configuration for test_head_pruning_on_massive.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.head_scores import text
from lib.core import pruning
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.head_scores.results import Results, Stored
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    pass


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.head_scores import measure

    return measure.run(lm, windows, options)


def pruning_config(result: Stored) -> str:
    return pruning.config_text(result.results.ranking, result.config["model_name"])


def figures() -> Drawings:
    from experiments.head_scores import figures

    return {
        "{model_name}_head_analysis.png": figures.head_scores,
        "{model_name}_head_ranking.png": figures.head_ranking,
    }


EXPERIMENT = Experiment(
    name="head_analysis",
    json="{model_name}_head_analysis.json",
    txt="{model_name}_head_analysis.txt",
    run=run,
    summary=text.summarise,
    figures=figures,
    extra={"{model_name}_pruning_config.txt": pruning_config},
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
