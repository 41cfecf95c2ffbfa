"""Massive activations of a language model: in one sentence (3D), over its layers, set to something else; attention.

    python main_llm.py --model gpt2 --exp1 --layer_id 2 --savedir results/llm/3d_feat_vis/
    python main_llm.py --model gpt2 --exp2 --savedir results/llm/layerwise/
    python main_llm.py --model gpt2 --exp3 --layer_id 2 --reset_type set_mean --savedir results/llm/intervention/
    python main_llm.py --model gpt2 --exp4 --layer_id 2 --savedir results/llm/attn/

--exp1 draws |activation| over tokens x dims of one block's output for --text.
--exp2 gives top-1, top-2, top-3 and median of |activation| of every block's output, over --nsamples windows.
--exp3 sets the massive activations of one block's output to zero, or to the mean they have in every second window,
and gives the perplexity of the other windows before and after (exp5_interventions.py does it in more ways).
--exp4 gives one layer's attention logits, as its softmax takes them, for --text.
Several may be given. Layer i's value is the output of block i, before any final norm.
"""

from dataclasses import dataclass
from typing import ClassVar

from lib import cli, plots, report
from lib.experiment import Experiment, execute


@dataclass(frozen=True)
class Options(cli.Options):
    exp1: bool = cli.flag(False, "3D plot of one layer", action="store_true")
    exp2: bool = cli.flag(False, "statistics of all layers", action="store_true")
    exp3: bool = cli.flag(False, "massive activations of one layer set to something else", action="store_true")
    exp4: bool = cli.flag(False, "attention logits of one layer", action="store_true")
    layer_id: int = cli.flag(2, "layer of --exp1, --exp3 and --exp4, from 0")
    reset_type: str = cli.flag("set_zero", "what --exp3 sets", choices=["set_zero", "set_mean"])
    text: str = cli.flag("Summer is warm. Winter is cold.", "sentence of --exp1 and --exp4")
    beside_replot: ClassVar[frozenset] = cli.Options.beside_replot | {"exp1", "exp2", "exp3", "exp4"}

    def idle(self):
        idle = super().idle()
        if not (self.exp1 or self.exp3 or self.exp4):
            idle["layer_id"] = "it is of --exp1, --exp3 and --exp4"
        if not self.exp3:
            idle["reset_type"] = "it is of --exp3"
        if not (self.exp1 or self.exp4):
            idle["text"] = "it is of --exp1 and --exp4"
        if not (self.exp2 or self.exp3):
            idle |= dict.fromkeys(cli.WINDOWS, "--exp1 and --exp4 measure --text")
        return idle


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


@dataclass(frozen=True)
class AttentionLogits:
    """What the softmax of one layer's attention takes. logits: of each head, mean: over heads; per query the keys up
    to it, None where a sliding window hides one.

    first_token: of each head, means over all queries but the first: logit on the first token, mean logit on the other
    visible keys, and attention probability on the first token.
    """

    layer: int
    tokens: list
    logits: list
    mean: list
    first_token: list


def run_sentence(lm, windows, options):
    from lib import hooks, massive
    from lib.tokens import text_of

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
        tokens=[text_of(lm.tokenizer, token) for token in windows.ids[0].tolist()],
        values=values[options.layer_id][0].float().cpu().numpy(),
        median=statistics.rows.array[0, options.layer_id, 3],
        massive=[entry for entry in statistics.massive() if entry["layer"] == options.layer_id],
    )


def run_layerwise(lm, windows, options):
    from lib import hooks, massive, ranks

    statistics = massive.LayerStatistics(lm.arch, lm.tokenizer)
    with (
        ranks.progress(len(windows.ids), options.batch_size, "layerwise") as progress,
        hooks.watch_outputs(lm.arch, "block", statistics.update),
    ):
        for _rows, ids in windows.batches(options.batch_size):
            statistics.begin_batch(ids)
            hooks.forward(lm, ids)
            statistics.end_batch()
            progress.update(len(ids))
    statistics.gather()
    return Layerwise(massive.DEFINITION, statistics.layers(windows.draws(options.seed)), statistics.massive())


def run_intervention(lm, windows, options):
    from lib import interventions, place
    from lib.definitions import SINK_EPSILON

    lm.arch.check_layer(options.layer_id)
    found = place.find(lm, windows, options.batch_size, seed=options.seed)
    wanted = [(options.reset_type.removeprefix("set_"), interventions.LAYER)]
    return interventions.compare(lm, windows, found, options.layer_id, wanted, (SINK_EPSILON,), options)


def run_logits(lm, windows, options):
    from lib import sinks
    from lib.tokens import text_of

    lm.arch.check_layer(options.layer_id)
    logits = sinks.logits(lm, windows.ids, options.layer_id)
    return AttentionLogits(
        layer=options.layer_id,
        tokens=[text_of(lm.tokenizer, token) for token in windows.ids[0].tolist()],
        logits=[_up_to_the_query(head) for head in logits],
        mean=_up_to_the_query(logits.mean(0)),
        first_token=[sinks.first_token_logits(head) for head in logits],
    )


def _up_to_the_query(logits):
    return [row[: query + 1].tolist() for query, row in enumerate(logits)]


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
            f"text: {payload['config']['text']!r}",
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
            "Means over windows of top-1, top-2, top-3 and median of |block output|, with 95 % intervals.",
            "ratio: mean of each window's top-1 / median. The last layer is the block's output, before the final norm.",
            "",
            report.table(
                ["layer", "top 1", "top 2", "top 3", "median", "ratio", "top 1 most often at", "windows"], rows
            ),
            report.massive_table(r["massive"], r["definition"]),
        ]
    )


def summarise_intervention(payload):
    layer, set_to = payload["results"]["layer"], payload["config"]["reset_type"]
    return report.interventions_summary(payload, f"Massive activations of layer {layer}: {set_to}")


def summarise_logits(payload):
    r = payload["results"]
    rows = []
    for head, row in enumerate(r["first_token"]):
        gap = None if row["first"] is None else row["first"] - row["others"]
        rows.append([head, *(report.number(x, True) for x in (row["first"], row["others"], gap))])
        rows[-1].append(report.number(row["probability"]))
    return "\n".join(
        [
            report.header(payload, f"Attention logits of layer {r['layer']} in one text"),
            f"text: {payload['config']['text']!r}",
            "",
            "Before softmax: scaled, capped, with position biases. Means over the queries that see the first token,",
            "without the first query; others: the mean over the other keys that a query sees.",
            report.table(["head", "logit, first token", "logit, others", "difference", "probability, first"], rows),
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


INTERVENTION = Experiment(
    name="intervention",
    json="{model_name}_layer{layer_id}_{reset_type}.json",
    txt="{model_name}_layer{layer_id}_{reset_type}.txt",
    run=run_intervention,
    summary=summarise_intervention,
    details=report.interventions_details,
    figures={"{model_name}_layer{layer_id}_{reset_type}.png": plots.interventions_over_layers},
)
LOGITS = Experiment(
    name="attention_logits",
    json="{model_name}_layer{layer_id}_attention_logits.json",
    txt="{model_name}_layer{layer_id}_attention_logits.txt",
    run=run_logits,
    summary=summarise_logits,
    figures={"{model_name}_layer{layer_id}_attention_logits.png": plots.attention_logits},
    windows=sentence_windows,
)
EXPERIMENTS = {"exp1": SENTENCE, "exp2": LAYERWISE, "exp3": INTERVENTION, "exp4": LOGITS}


def main():
    options = cli.parse(Options, __doc__)
    if options.replot:
        name = report.read_json(options.replot).get("experiment")
        asked = [experiment for flag, experiment in EXPERIMENTS.items() if getattr(options, flag)]
        asked = asked or list(EXPERIMENTS.values())
        execute(next((experiment for experiment in asked if experiment.name == name), asked[0]), options)
        return
    for experiment in chosen(options):
        execute(experiment, options)


def chosen(options):
    """The Experiments that the command line asks for. Raises UserError if there is none."""
    experiments = [experiment for flag, experiment in EXPERIMENTS.items() if getattr(options, flag)]
    if not experiments:
        raise cli.UserError(
            "choose --exp1 (3D plot of one layer), --exp2 (all layers), --exp3 (set massive activations), "
            "--exp4 (attention logits), or several"
        )
    return experiments


if __name__ == "__main__":
    cli.main(main)
