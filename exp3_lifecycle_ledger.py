"""Experiment 3: a ledger of who writes what into a massive activation, from its birth to its end.

    python exp3_lifecycle_ledger.py --model gpt2 --nsamples 30 --savedir results/exp3_lifecycle_ledger/

Follows one dim at one position of each window through all layers and lists, signed, what the embedding, the position
embedding, every head, every attention bias and every MLP add to it; together they are the block output, exactly. Names
the component that gives birth to it, its plateau, and the components that take it away. With --mlps_off or --heads_off
the same place is followed in the model without these parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.ledger import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.ledger.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    mlps_off: tuple[str, ...] = cli.flag(
        (), "layers whose MLP is off, for example 28 29, or all", nargs="+", metavar="LAYER"
    )
    heads_off: tuple[str, ...] = cli.flag((), "heads that are off, as layer.head, or all", nargs="+", metavar="HEAD")


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.ledger import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.ledger import figures

    return {
        "exp3_ledger.png": figures.ledger,
        "exp3_writes.png": figures.ledger_writes,
    }


EXPERIMENT = Experiment(
    name="exp3",
    json="exp3_results.json",
    txt="EXPERIMENT_3_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    details=text.details,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
