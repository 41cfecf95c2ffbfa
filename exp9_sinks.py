"""Experiment 9: where does attention go, and what does it find there?

    python exp9_sinks.py --model gpt2 --savedir results/exp9_sinks/
    python exp9_sinks.py --model gpt2 --lengths 256 1024

A head has a sink at a key that takes more than epsilon of its attention, a mean over the queries that see the key. The
share of heads that have one at key k is measured for every k, in natural text, in uniformly random tokens, and where
one token is repeated; so are the tokens anywhere that are sinks. Of the first key: what its value is beside those of
other keys and what it gives of each head's output, which tells whether a sink is a no-op or broadcasts; the cosine and
the norms that make its logit; and later tokens that are sinks while their hidden state is like the first one's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.sinks import text
from experiments.sinks.results import INPUTS
from lib.core.definitions import SINK_WINDOW
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.sinks.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    seqlen: int | None = cli.flag(SINK_WINDOW, "tokens in a window")
    input: tuple[str, ...] = cli.flag(
        INPUTS, "what to measure; heads are of the first", nargs="+", type=str, choices=INPUTS
    )
    lengths: tuple[int, ...] = cli.flag((), "further lengths of windows to measure", **cli.INTS)
    epsilons: tuple[float, ...] = cli.flag(
        (0.2, 0.3, 0.4), "attention to a key that makes a sink; what is nearest to 0.3 counts", **cli.FLOATS
    )


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.sinks import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.sinks import figures

    return {
        "exp9_positions.png": figures.positions,
        "exp9_tokens.png": figures.tokens,
        "exp9_values.png": figures.values,
        "exp9_secondary.png": figures.secondary,
    }


EXPERIMENT = Experiment(
    name="exp9",
    json="exp9_results.json",
    txt="EXPERIMENT_9_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
