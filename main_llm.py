"""Massive activations of a language model: in one sentence (3D), and over its layers.

    python main_llm.py --model gpt2 --exp1 --layer_id 2 --savedir results/llm/3d_feat_vis/
    python main_llm.py --model gpt2 --exp2 --savedir results/llm/layerwise/

--exp1 draws |activation| over tokens x dims of one block's output for --text.
--exp2 gives top-1, top-2, top-3 and median of |activation| of every block's output, over --nsamples windows.
Both may be given. Layer i's value is the output of block i, before any final norm.
"""

from dataclasses import dataclass

from lib import cli, plots, report
from lib.experiment import Experiment, execute


@dataclass(frozen=True)
class Options(cli.Options):
    exp1: bool = cli.flag(False, "3D plot of one layer", action="store_true")
    exp2: bool = cli.flag(False, "statistics of all layers", action="store_true")
    layer_id: int = cli.flag(2, "layer of --exp1, from 0")
    text: str = cli.flag("Summer is warm. Winter is cold.", "sentence of --exp1")


@dataclass(frozen=True)
class Sentence:
    """One block's output for one text. tokens: (seq,) texts; values: (seq, hidden_size), signed."""

    definition: str
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
    from lib import hooks, massive

    lm.arch.check_layer(options.layer_id)
    statistics = massive.LayerStatistics(lm.arch, lm.tokenizer)
    values = {}
    statistics.begin_batch(windows.ids)
    with (
        hooks.watch_outputs(lm.arch, "block", statistics.update),
        hooks.watch_outputs(lm.arch, "block", values.__setitem__, [options.layer_id]),
        hooks.stop_after(lm.arch, options.layer_id),
    ):
        hooks.forward(lm, windows.ids)
    statistics.end_batch()
    return Sentence(
        definition=massive.DEFINITION,
        layer=options.layer_id,
        tokens=[lm.tokenizer.decode([token]) for token in windows.ids[0].tolist()],
        values=values[options.layer_id][0].float().cpu().numpy(),
        median=statistics.rows.array[0, options.layer_id, 3],
        massive=[entry for entry in statistics.massive() if entry["layer"] == options.layer_id],
    )


def run_layerwise(lm, windows, options):
    from tqdm import tqdm

    from lib import hooks, massive

    statistics = massive.LayerStatistics(lm.arch, lm.tokenizer)
    with (
        tqdm(total=len(windows.ids), unit="window", desc="layerwise", disable=None) as progress,
        hooks.watch_outputs(lm.arch, "block", statistics.update),
    ):
        for ids in windows.batches(options.batch_size):
            statistics.begin_batch(ids)
            hooks.forward(lm, ids)
            statistics.end_batch()
            progress.update(len(ids))
    return Layerwise(massive.DEFINITION, statistics.layers(options.seed), statistics.massive())


def sentence_windows(options, lm):
    from lib import data

    return data.from_text(options.text, options, lm)


def summarise_sentence(payload):
    r = payload["results"]
    largest = sorted(((abs(v), v, t, d) for t, row in enumerate(r["values"]) for d, v in enumerate(row)), reverse=True)
    rows = [
        [k, t, repr(r["tokens"][t]), d, report.number(v, signed=True), f"{size / r['median']:,.0f}"]
        for k, (size, v, t, d) in enumerate(largest[:5], 1)
    ]
    return "\n".join(
        [
            report.header(payload, f"Activations of layer {r['layer']} in one text"),
            f"text: {''.join(r['tokens'])!r}",
            f"median |activation|: {report.number(r['median'])}",
            "",
            report.table(["rank", "position", "token", "dim", "value", "x median"], rows),
            f"Massive here ({r['definition']}): {len(r['massive'])}",
            "",
        ]
    )


def summarise_layerwise(payload):
    r = payload["results"]
    rows = []
    for layer in r["layers"]:
        at = layer["at"][0]
        rows.append(
            [layer["layer"]]
            + [report.interval(layer[key]) for key in ("top1", "top2", "top3", "median", "ratio")]
            + [f"{at['sign']}dim {at['dim']}, position {at['position']}", f"{at['sequences']}/{layer['top1']['n']}"]
        )
    return "\n".join(
        [
            report.header(payload, "Largest activations of every layer"),
            "Means over windows of top-1, top-2, top-3 and median of |block output|, with 95 % bootstrap intervals.",
            "ratio: mean of each window's top-1 / median. The last layer is the block's output, before the final norm.",
            "",
            report.table(
                ["layer", "top 1", "top 2", "top 3", "median", "ratio", "top 1 most often at", "windows"], rows
            ),
            report.massive_table(r["massive"], r["definition"]),
        ]
    )


SENTENCE = Experiment(
    name="sentence",
    json="{model_name}_layer{layer_id}_3d.json",
    txt="{model_name}_layer{layer_id}_3d.txt",
    run=run_sentence,
    summary=summarise_sentence,
    figures={"{model_name}_layer{layer_id}_3d.png": plots.sentence},
    windows=sentence_windows,
)
LAYERWISE = Experiment(
    name="layerwise",
    json="{model_name}_layerwise.json",
    txt="{model_name}_layerwise.txt",
    run=run_layerwise,
    summary=summarise_layerwise,
    figures={"{model_name}.png": plots.layerwise},
)


def main():
    options = cli.parse(Options, __doc__)
    if options.replot:
        experiment = report.read_json(options.replot).get("experiment")
        execute(SENTENCE if experiment == SENTENCE.name else LAYERWISE, options)
        return
    if not (options.exp1 or options.exp2):
        raise cli.UserError("choose --exp1 (3D plot of one layer), --exp2 (all layers), or both")
    if options.exp1:
        execute(SENTENCE, options)
    if options.exp2:
        execute(LAYERWISE, options)


if __name__ == "__main__":
    cli.main(main)
