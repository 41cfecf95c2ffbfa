"""Experiment 6: what triggers the spike, the position, the token, or that there is nothing else to see?

    python exp6_trigger_census.py --model gpt2 --savedir results/exp6_trigger_census/

"The first token is special" confounds position, content, BOS and the lack of context. The place is followed by the
shared rule (--dim and --position choose another) at the first layer of its plateau (or --layer_id); no later block
runs. Every entry of the vocabulary is then the first token once, which one-token forwards measure exactly. Tokens that
spike so are put elsewhere: behind text, behind themselves, behind BOS, and with the position embeddings swapped, where
there are any. The verdict is the simplest cause whose predictions hold for all of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.census import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.census.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(32, "number of token windows")
    layer_id: int | None = cli.flag(None, "layer of the spike, from 0 (default: the first of the place's plateau)")


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.census import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.census import figures

    return {"exp6_vocabulary.png": figures.vocabulary_census, "exp6_triggers.png": figures.triggers}


EXPERIMENT = Experiment(
    name="exp6",
    json="exp6_results.json",
    txt="EXPERIMENT_6_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
