"""Experiment 11: which parameters carry the attention sink at the first position?

    python exp11_sink_circuit.py --model gpt2 --savedir results/exp11_sink_circuit/

The mean probability on position 0 from the second half of the window, over all heads of the middle layers, and the
loss: of the model as it is, and without its query biases; with position 1's embedding at position 0; with the two
embeddings, as block 0's MLP makes them or raw, swapped after block 0; without the first token's embedding, MLPs,
position embeddings, or the largest dims of that of position 0 in the keys (arXiv 2604.14722). Beside each a control
changes as much elsewhere. Query biases and the embedding of position 0 are taken times --factors, too, and the logits
at key 0 split into what query biases and what all else gives. What a model does not have is said to be not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.sink_circuit import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.sink_circuit.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    nsamples: int = cli.flag(16, "number of token windows")
    seqlen: int | None = cli.flag(40, "tokens in a window")
    factors: tuple[float, ...] = cli.flag(
        (0.0, 0.5, 1.5), "times what query biases and the embedding of position 0 are", **cli.FLOATS
    )


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.sink_circuit import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.sink_circuit import figures

    return {
        "exp11_edits.png": figures.edits,
        "exp11_doses.png": figures.doses,
        "exp11_logits.png": figures.logits,
    }


EXPERIMENT = Experiment(
    name="exp11",
    json="exp11_results.json",
    txt="EXPERIMENT_11_SUMMARY.txt",
    run=run,
    summary=text.summarise,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
