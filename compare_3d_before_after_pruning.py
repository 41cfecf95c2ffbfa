"""One text in 3D before and after removing one head, at its layer and downstream.

    python compare_3d_before_after_pruning.py --model gpt2 --layer_id 2 --savedir results/3d_comparison/
    python compare_3d_before_after_pruning.py --model gpt2 --layer_id 5 --savedir results/3d_comparison/

The head is --head, or the one of --layer_id that attends most to the first token over --nsamples windows of the
dataset. It is off when its slice of the input of the attention output projection is zero; the bias stays. A head acts
on its own layer's output and on every later one, so all of them are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.before_after import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.before_after.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    nsamples: int = cli.flag(5, "number of token windows that rank the heads")
    layer_id: int = cli.flag(2, "layer of the head, from 0")
    head: int | None = cli.flag(None, "head to remove (default: the layer's highest by attention to the first token)")
    text: str = cli.flag("Summer is warm. Winter is cold.", "text to draw")

    def idle(self) -> dict[str, str]:
        ranked = {} if self.head is None else dict.fromkeys(cli.WINDOWS, "with --head no windows rank the heads")
        return super().idle() | ranked


def text_windows(options: Options, lm: LanguageModel) -> Windows:
    from lib.core import data

    return data.from_text(options.text, options, lm)


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.before_after import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.before_after import figures

    return {
        "layer{layer_id}_3d_comparison.png": figures.before_after,
        "layer{layer_id}_difference_analysis.png": figures.difference,
    }


EXPERIMENT = Experiment(
    name="compare_3d",
    json="layer{layer_id}_comparison.json",
    txt="layer{layer_id}_comparison.txt",
    run=run,
    summary=text.summarise,
    figures=figures,
    windows=text_windows,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
