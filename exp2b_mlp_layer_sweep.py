"""Experiment 2B: which layers' MLPs, and which attention blocks, does the massive activation need?

    python exp2b_mlp_layer_sweep.py --model gpt2 --savedir results/exp2b_mlp_layer_sweep/

Every MLP is off alone, kept alone, and off cumulatively from either end; the same for attention blocks (off: all that
it adds to the residual stream, bias included). One place is followed; perplexity, sink rate and self-repair beside it.
"""

from dataclasses import dataclass

from lib import cli, plots, report
from lib.experiment import Experiment, execute


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(8, "number of token windows")
    seqlen: int | None = cli.flag(256, "tokens in a window")


@dataclass(frozen=True)
class LayerSweep:
    """place: see lib.place. baseline: value, perplexity and sink rate of the model as it is.

    kinds: {"mlp", "attention": [per layer {write, alone, only, from_front, from_back: {value, retained, values (mean at
    every layer), perplexity, loss_change, sink_rate}, repair, necessary, sufficient, redundant}]}.
    """

    place: dict
    baseline: dict
    kinds: dict
    conclusion: dict


def run(lm, windows, options):
    from lib import layers, place

    at = place.find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    baseline, kinds = layers.sweep_layers(lm, windows, at, options.batch_size)
    values = {
        word: [[kind, row["layer"]] for kind, rows in kinds.items() for row in rows if row[word]]
        for word in ("necessary", "sufficient", "redundant")
    }
    values["all_off"] = {kind: rows[-1]["from_front"]["retained"] for kind, rows in kinds.items()}
    named = [f"{word}: {_names(values[word])}" for word in ("necessary", "sufficient", "redundant")]
    verdict = "; ".join(named) if at.massive else "none found"
    return LayerSweep(at.described(), baseline, kinds, {"verdict": verdict, "rule": layers.RULE, "values": values})


def _names(parts):
    return ", ".join(f"{kind} {layer}" for kind, layer in parts) or "none"


def summarise(payload):
    r = payload["results"]
    baseline = r["baseline"]
    return "\n".join(
        [
            report.header(payload, "Experiment 2B: layers off, kept, and off from either end"),
            report.place_text(r["place"]),
            f"Baseline at the end of the plateau: {report.interval(baseline['value'], True)}; perplexity "
            f"{report.number(baseline['perplexity']['value'])}; sink rate {report.interval(baseline['sink_rate'])}",
            "",
            "retained: share of the baseline's value at the place, at the end of the plateau",
            *(_table(r, kind) for kind in r["kinds"]),
            f"Conclusion: {r['conclusion']['verdict']}",
            f"Rule: {r['conclusion']['rule']}",
            "",
        ]
    )


def _table(results, kind):
    rows = [
        [
            row["layer"],
            report.mean(row["write"], True),
            *(report.mean(row[run]["retained"], True) for run in ("alone", "only", "from_front", "from_back")),
            report.mean(row["repair"]["ratio"], True) if row["repair"] else "-",
            report.number(row["alone"]["perplexity"]["value"]),
            report.interval(row["alone"]["loss_change"], True),
            report.mean(row["alone"]["sink_rate"]),
            " ".join(word for word in ("necessary", "sufficient", "redundant") if row[word]) or "-",
        ]
        for row in results["kinds"][kind]
    ]
    heads = ["layer", "write", "off alone", "kept alone", "off up to", "off from", "self-repair"]
    heads += ["perplexity, off alone", "change of loss (nats a token)", "sink rate", "judged"]
    return f"{kind} of every layer\n" + report.table(heads, rows)


EXPERIMENT = Experiment(
    name="exp2b",
    json="exp2b_results.json",
    txt="EXPERIMENT_2B_SUMMARY.txt",
    run=run,
    summary=summarise,
    figures={"exp2b_layer_sweep.png": plots.layer_sweep, "exp2b_cost.png": plots.layer_sweep_cost},
)

if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
