"""Experiment 13: what do massive activations cost where activations are quantised?

    python exp13_quantisation.py --model gpt2 --savedir results/exp13_quantisation/

Activations are rounded to int8 and int4 (one scale per tensor, static or dynamic, per token or per group of dims) and
to float16: what all projections of the blocks read, or what the blocks give. Each time as it is; with the massive
values kept in full precision, clamped, or set to their mean; and with the first token kept, as if its keys and values
were stored. Every fourth window calibrates; loss, errors and the range of every site are measured on the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.quantisation import text
from experiments.quantisation.results import CALIBRATES
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.quantisation.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    nsamples: int = cli.flag(12, f"number of token windows, of which one of {CALIBRATES} calibrates")
    seqlen: int | None = cli.flag(24, "tokens in a window")


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.quantisation import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.quantisation import figures

    return {"exp13_remedies.png": figures.remedies, "exp13_range.png": figures.ranges}


EXPERIMENT = Experiment(
    name="exp13",
    json="exp13_results.json",
    txt="EXPERIMENT_13_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    details=text.details,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
