"""What removing single heads does to massive activations, beside random heads of the same layers.

    python test_head_pruning_on_massive.py --model gpt2 --nsamples 20 --savedir results/head_pruning_massive/

TOP heads attend most to the first token, BOTTOM heads least; they come from the model's own ranking on the same
windows (for GPT-2's weights: the seed study's sets), from --pruning_config (written by analyze_heads_simple.py), or
from --top and --bottom. A head is off when its slice of the input of the attention output projection is zero; the bias
stays. The null for each set are other heads of the same layers: all draws that are possible, or NULL of them, at the
followed place; --n_random of these are run whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.head_pruning import text
from lib.experiment import Drawings, Experiment, execute
from lib.run import cli

if TYPE_CHECKING:
    from experiments.head_pruning.results import Results
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    dataset_config: str | None = cli.flag(None, "configuration of a hub dataset")
    config: Path | None = cli.flag(
        None, "pruning configuration of analyze_heads_simple.py", type=cli.path, aliases=["--pruning_config"]
    )
    top: tuple[str, ...] = cli.flag((), "TOP heads as layer.head, for example 2.7 5.1 6.1", nargs="+")
    bottom: tuple[str, ...] = cli.flag((), "BOTTOM heads as layer.head", nargs="+")
    n_random: int = cli.flag(5, "draws of random heads for each set that are run whole")
    dims: tuple[int, ...] = cli.flag(
        (), "dims to follow (default: those of the baseline's massive activations)", **cli.INTS
    )

    def idle(self) -> dict[str, str]:
        return super().idle() | ({"config": "--top and --bottom name all heads"} if self.top and self.bottom else {})


def run(lm: LanguageModel, windows: Windows, options: Options) -> Results:
    from experiments.head_pruning import measure

    return measure.run(lm, windows, options)


def figures() -> Drawings:
    from experiments.head_pruning import figures

    return {
        "Prune_TOP_Heads_comparison.png": partial(figures.pruning_comparison, name="top"),
        "Prune_BOTTOM_Heads_comparison.png": partial(figures.pruning_comparison, name="bottom"),
        "summary_comparison.png": figures.pruning_summary,
    }


EXPERIMENT = Experiment(
    name="head_pruning",
    json="pruning_results.json",
    txt="pruning_summary.txt",
    run=run,
    summary=text.summarise,
    details=text.details,
    figures=figures,
)
if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
