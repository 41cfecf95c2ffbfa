"""One text in 3D before and after removing one head, at its layer and downstream.

    python compare_3d_before_after_pruning.py --model gpt2 --layer_id 2 --savedir results/3d_comparison/
    python compare_3d_before_after_pruning.py --model gpt2 --layer_id 5 --savedir results/3d_comparison/

The head is --head, or the one of --layer_id that attends most to the first token over --nsamples windows of the
dataset. It is off when its slice of the input of the attention output projection is zero; the bias stays. A head acts
on its own layer's output and on every later one, so all of them are compared.
"""

from dataclasses import dataclass

from lib import cli, plots, report
from lib.experiment import Experiment, execute


@dataclass(frozen=True)
class Options(cli.Options):
    nsamples: int = cli.flag(5, "number of token windows that rank the heads")
    layer_id: int = cli.flag(2, "layer of the head, from 0")
    head: int | None = cli.flag(None, "head to remove (default: the layer's highest by attention to the first token)")
    text: str = cli.flag("Summer is warm. Winter is cold.", "text to draw")


@dataclass(frozen=True)
class BeforeAfter:
    """before, after: (seq, hidden_size) output of `layer`, signed. downstream: for every layer, where the largest
    baseline activation and the largest change are, with both values. loss: nats a token on the text."""

    definition: str
    layer: int
    head: int
    chosen: str
    tokens: list
    before: list
    after: list
    massive: list
    downstream: list
    perplexity: dict


def run(lm, windows, options):
    from lib import hooks, massive
    from lib.tokens import text_of

    lm.arch.check_layer(options.layer_id)
    head, chosen = (options.head, "--head") if options.head is not None else highest_head(lm, options)
    statistics = massive.LayerStatistics(lm.arch, lm.tokenizer)
    statistics.begin_batch(windows.ids)
    before, after = {}, {}
    with (
        hooks.watch_outputs(lm.arch, "block", statistics.update),
        hooks.watch_outputs(lm.arch, "block", before.__setitem__),
    ):
        loss_before = hooks.token_losses(lm, windows.ids).mean().exp().item()
    statistics.end_batch()
    with (
        hooks.heads_off(lm.arch, [(options.layer_id, head)]),
        hooks.watch_outputs(lm.arch, "block", after.__setitem__),
    ):
        loss_after = hooks.token_losses(lm, windows.ids).mean().exp().item()
    before, after = ({layer: h[0].float().cpu() for layer, h in run.items()} for run in (before, after))
    tokens = [text_of(lm.tokenizer, token) for token in windows.ids[0].tolist()]
    return BeforeAfter(
        definition=massive.DEFINITION,
        layer=options.layer_id,
        head=head,
        chosen=chosen,
        tokens=tokens,
        before=before[options.layer_id].numpy(),
        after=after[options.layer_id].numpy(),
        massive=statistics.massive(),
        downstream=[
            {
                "layer": layer,
                "median": statistics.rows.array[0, layer, 3],
                "largest": place(before[layer].abs(), before[layer], after[layer], tokens),
                "most_changed": place((after[layer] - before[layer]).abs(), before[layer], after[layer], tokens),
            }
            for layer in range(lm.arch.n_layers)
        ],
        perplexity={"before": loss_before, "after": loss_after},
    )


def highest_head(lm, options):
    from lib import data, sinks

    windows = data.load(options, lm)
    scores = sinks.measure(lm, windows, options.batch_size, options.layer_id).scores.mean(0)[options.layer_id]
    head = int(scores.argmax())
    return head, (
        f"the layer's highest attention to the first token, {scores[head]:.4f} over {options.nsamples} windows of "
        f"{windows.ids.shape[1]} tokens of {windows.text}"
    )


def place(size, before, after, tokens):
    """Where `size`, (seq, hidden_size), is largest, with the signed values before and after."""
    position, dim = divmod(int(size.argmax()), size.shape[1])
    values = {"before": before[position, dim].item(), "after": after[position, dim].item()}
    return {"position": position, "token": tokens[position], "dim": dim, **values}


def summarise(payload):
    r = payload["results"]
    rows = []
    for layer in r["downstream"]:
        row = [layer["layer"], report.number(layer["median"])]
        for key in ("largest", "most_changed"):
            at = layer[key]
            if key == "most_changed" and at["before"] == at["after"]:
                row += ["-"] * 4
                continue
            row += [f"position {at['position']}, dim {at['dim']}"]
            row += [report.number(at[when], True) for when in ("before", "after")]
            row += [report.percent(at["before"], at["after"])]
        rows.append(row)
    heads = ["layer", "median", "largest before", "before", "after", "per cent", "most changed", "before", "after"]
    perplexity = r["perplexity"]
    return "\n".join(
        [
            report.header(payload, f"Before and after removing head {r['head']} of layer {r['layer']}"),
            f"head: {r['chosen']}",
            f"perplexity of the text: {report.number(perplexity['before'])} -> {report.number(perplexity['after'])}",
            "",
            report.massive_table(r["massive"], r["definition"]),
            "The same place before and after, signed: the largest activation of every layer, and the largest change",
            report.table([*heads, "per cent"], rows),
            f"Layers before {r['layer']} cannot change: a head acts on its own layer's output and on later ones.",
            "",
        ]
    )


def text_windows(options, lm):
    from lib import data

    return data.from_text(options.text, options, lm)


EXPERIMENT = Experiment(
    name="compare_3d",
    json="layer{layer_id}_comparison.json",
    txt="layer{layer_id}_comparison.txt",
    run=run,
    summary=summarise,
    figures={
        "layer{layer_id}_3d_comparison.png": plots.before_after,
        "layer{layer_id}_difference_analysis.png": plots.difference,
    },
    windows=text_windows,
)

if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
