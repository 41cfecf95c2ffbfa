"""Experiment 10: what does the model lose without the edge to the sink?

    python exp10_sink_knockout.py --model gpt2 --savedir results/exp10_sink_knockout/

A sink is an edge: later queries attend to one key (--position). It is masked for all later queries, in all layers, in
half of them and in each alone; beside it as many other edges (a random, the previous, the middle key of each query),
and random other keys with about as much attention. Then the edge stays and what it carries goes: the sink's value is
zero for later queries; all values are random directions of their norm; heads that have the sink see nothing but it.
What each costs, where attention goes instead and what becomes of the massive activation is measured on the same
windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.sink_knockout import text
from lib.core.definitions import SINK_WINDOW
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.sink_knockout.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    seqlen: int | None = cli.flag(SINK_WINDOW, "tokens in a window")
    position: int | None = cli.flag(None, "position of the sink's key (default: 0, the first)")


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.sink_knockout import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.sink_knockout import figures

    return {
        "exp10_knockout.png": figures.knockout,
        "exp10_layers.png": figures.layers,
        "exp10_moves.png": figures.moves,
    }


EXPERIMENT = Experiment(
    name="exp10",
    json="exp10_results.json",
    txt="EXPERIMENT_10_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    details=text.details,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
