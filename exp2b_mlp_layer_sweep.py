"""Experiment 2B: which layers' MLPs, and which attention blocks, does the massive activation need?

    python exp2b_mlp_layer_sweep.py --model gpt2 --savedir results/exp2b_mlp_layer_sweep/

Every MLP is off alone, kept alone, kept with MLP 0, and off cumulatively from either end; attention blocks likewise,
but for MLP 0 (off: all that it adds to the residual stream, bias included). One place is followed, in all windows,
exactly, by running no later token. Losses and sinks need whole windows, and --n_whole of them are run; so does the look
for what is rebuilt elsewhere, at another dim or position, when one of the few large writes is removed.
"""

from dataclasses import dataclass

from lib import cli, plots, report
from lib.experiment import Experiment, execute


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(32, "number of token windows")
    seqlen: int | None = cli.flag(128, "tokens in a window")
    n_whole: int = cli.flag(8, "how many of them are run whole, for sink rates, losses and what is rebuilt elsewhere")

    def idle(self):
        few = {"n_whole": f"there are only {self.nsamples} windows"} if self.n_whole > self.nsamples else {}
        return super().idle() | few


@dataclass(frozen=True)
class LayerSweep:
    """place: see lib.place. windows: {all, spiking: the share that has the spike, whole: how many are run whole}.
    baseline: value, values, perplexity and sink rate of the model as it is.

    kinds: {"mlp", "attention": [per layer {layer, write, alone, only, only_with_first (MLPs), from_front, from_back:
    {value, retained, values (mean at every layer), perplexity, loss_change, sink_rate, sink_rate_change}, repair: None
    or {frozen, free, ratio, elsewhere: {share, largest}}}]}. first_tokens: {kind: of lib.first_tokens, with all of its
    kind off}, or None where the place is not position 0.
    """

    place: dict
    windows: dict
    baseline: dict
    kinds: dict
    first_tokens: dict | None


def run(lm, windows, options):
    from lib import first_tokens, layers, place
    from lib.ablation import Condition

    if options.n_whole < 1:
        raise cli.UserError("--n_whole: at least 1")
    at = place.find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    every = tuple(range(lm.arch.n_layers))
    all_off = [Condition(kind, "", **{field: every}) for kind, field in layers.KINDS.items()]
    return LayerSweep(
        at.described(),
        *layers.sweep_layers(lm, windows, at, options.n_whole, options.batch_size),
        first_tokens=first_tokens.at_plateau(lm, windows, at, all_off),
    )


def summarise(payload):
    r = payload["results"]
    baseline, windows = r["baseline"], r["windows"]
    return "\n".join(
        [
            report.header(payload, "Experiment 2B: layers off, kept, and off from either end"),
            report.place_text(r["place"]),
            f"Windows: {windows['all']}; share that has the spike: {report.interval(windows['spiking'])} (what is said "
            "of the value is of these; of all, if none has it); run whole, for perplexity, loss, sink rate and what is "
            f"rebuilt elsewhere: {windows['whole']}",
            f"Baseline at the end of the plateau: {report.interval(baseline['value'], True)}; perplexity "
            f"{report.number(baseline['perplexity']['value'])}; sink rate {report.interval(baseline['sink_rate'])}",
            "",
            "off alone ... off from: share of the baseline's value at the place that is left at the end of the plateau",
            "sink rate: of all heads, those of attention that is off, too",
            *(_table(r, kind) for kind in r["kinds"]),
            _elsewhere(r["kinds"]),
            *(f"Without any {kind}: {report.exact_text(of)}" for kind, of in (r["first_tokens"] or {}).items()),
            report.conclusion_text(r["conclusion"]),
        ]
    )


def _table(results, kind):
    runs = {
        "alone": "off alone",
        "only": "kept alone",
        "only_with_first": "kept with MLP 0",
        "from_front": "off up to",
        "from_back": "off from",
    }
    layers = results["kinds"][kind]
    runs = {run: label for run, label in runs.items() if any(run in row for row in layers)}
    rows = [
        [
            row["layer"],
            report.mean(row["write"], True),
            *(report.mean(row[run]["retained"], True) if run in row else "-" for run in runs),
            report.interval(row["repair"]["ratio"], True) if row["repair"] else "-",
            report.number(row["alone"]["perplexity"]["value"]),
            report.interval(row["alone"]["loss_change"], True),
            report.mean(row["alone"]["sink_rate"]),
            report.interval(row["alone"]["sink_rate_change"], True),
            _judged(results["conclusion"]["values"], [kind, row["layer"]]),
        ]
        for row in layers
    ]
    heads = ["layer", "write", *runs.values(), "self-repair", "perplexity, off alone"]
    heads += ["change of loss (nats a token)", "sink rate", "its change", "judged (?: cannot tell)"]
    return f"{kind} of every layer\n" + report.table(heads, rows)


def _judged(values, part):
    words = ("necessary", "sufficient", "redundant", "repaired")
    said = [word for word in words if part in values[word]]
    return " ".join(said + [f"{word}?" for word, *at in values["cannot_tell"] if at == part]) or "-"


def _elsewhere(kinds):
    """What stands elsewhere when a large write is removed."""
    rows = []
    for kind, layers in kinds.items():
        for row in layers:
            found = row["repair"] and row["repair"]["elsewhere"]
            if found:
                share = f"{report.interval(found['share'])} of {found['share']['n']}"
                rows.append([f"{kind} {row['layer']}", share, _largest(found["largest"])])
    if not rows:
        return ""
    return (
        "Rebuilt elsewhere: windows (of those run whole that have the spike) with a massive activation off the place, "
        "at a position and dim\nwhere the baseline has none in that layer\n"
        + report.table(["off alone", "windows", "largest"], rows)
    )


def _largest(at):
    if at is None:
        return "-"
    place = f"dim {at['dim']} at position {at['position']} ({at['token']!r}), layer {at['layer']}"
    return f"{report.number(at['value'], True)} in {place}"


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
