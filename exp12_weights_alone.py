"""Experiment 12: what do the weights alone forecast, before the model has run?

    python exp12_weights_alone.py --model gpt2 --savedir results/exp12_weights_alone/

By its weights every MLP can blow up some dims along some direction of the stream. The largest of them, whose direction
is not the dim itself, is forecast as the generator of the massive activation, with its sign, its neurons, and tokens
that point along it. Only then does the model run: the place and its birth, as experiment 3 finds them, are set beside
the forecast, on few and short windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.weights_alone import text
from lib.core.definitions import SINK_WINDOW
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.weights_alone.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    seqlen: int | None = cli.flag(SINK_WINDOW, "tokens in a window")


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.weights_alone import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.weights_alone import figures

    return {"exp12_norms.png": figures.norms, "exp12_dims.png": figures.dims}


EXPERIMENT = Experiment(
    name="exp12",
    json="exp12_results.json",
    txt="EXPERIMENT_12_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    details=text.details,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
