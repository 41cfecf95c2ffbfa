"""Massive activations of a language model: in one sentence (3D), and over its layers.

    python main_llm.py --model gpt2 --exp1 --layer_id 2 --savedir results/llm/3d_feat_vis/
    python main_llm.py --model gpt2 --exp2 --savedir results/llm/layerwise/

--exp1 draws |activation| over tokens x dims of one block's output for --text.
--exp2 gives top-1, top-2, top-3 and median of |activation| of every block's output, over --nsamples windows.
Both may be given; layer i's value is the output of block i, before any final norm.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace

from lib import cli, experiment, plots, report


@dataclass(frozen=True)
class Options(cli.Options):
    exp1: bool = cli.flag(False, "3D plot of one layer", action="store_true")
    exp2: bool = cli.flag(False, "statistics of all layers", action="store_true")
    layer_id: int = cli.flag(2, "layer of --exp1, from 0")
    text: str = cli.flag("Summer is warm. Winter is cold.", "sentence of --exp1")


@dataclass(frozen=True)
class Sentence:
    """|activation| of one block's output. tokens: (seq,) texts; values: (seq, hidden_size), signed."""

    layer: int
    tokens: list
    values: list
    median: float
    massive: list


@dataclass(frozen=True)
class Layerwise:
    """layers: averages of top-1..3, median and ratio; massive: every (layer, position, dim) that passes the test."""

    definition: str
    layers: list
    massive: list


def run_sentence(lm, windows, options):
    from lib import massive

    lm.arch.check_layer(options.layer_id)
    statistics = massive.LayerStatistics(lm.arch, lm.tokenizer)
    captured = {}
    _measure(lm, windows.ids, statistics, captured, options.layer_id)
    (median,) = statistics.rows.array[:, options.layer_id, 3]
    return Sentence(
        layer=options.layer_id,
        tokens=[lm.tokenizer.decode([token]) for token in windows.ids[0].tolist()],
        values=captured[options.layer_id][0].float().cpu().numpy(),
        median=median,
        massive=[entry for entry in statistics.massive() if entry["layer"] == options.layer_id],
    )


def run_layerwise(lm, windows, options):
    from tqdm import tqdm

    from lib import massive

    statistics = massive.LayerStatistics(lm.arch, lm.tokenizer)
    with tqdm(total=len(windows.ids), unit="window", desc="layerwise", disable=None) as progress:
        for ids in windows.batches(options.batch_size):
            _measure(lm, ids, statistics)
            progress.update(len(ids))
    return Layerwise(massive.DEFINITION, statistics.layers(options.seed), statistics.massive())


def _measure(lm, ids, statistics, captured=None, last_layer=None):
    """One pass; with `captured` it keeps `last_layer`'s output there and goes no further."""
    from lib import hooks

    statistics.begin_batch(ids)
    stop = nullcontext() if last_layer is None else hooks.stop_after(lm.arch, last_layer)

    def keep(layer, hidden):
        captured[layer] = hidden

    watch = nullcontext() if last_layer is None else hooks.watch_outputs(lm.arch, "block", keep, [last_layer])
    with hooks.watch_outputs(lm.arch, "block", statistics.update), watch, stop:
        hooks.forward(lm, ids)
    statistics.end_batch()
