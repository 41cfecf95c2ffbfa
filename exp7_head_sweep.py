"""Experiment 7: every attention head off, one at a time and together, and what each does to the massive activation.

    python exp7_head_sweep.py --model gpt2 --savedir results/exp7_head_sweep/

Every single head is set to zero and, beside it, to its mean over all tokens. Then heads are removed together, 1, 2, 4,
... of them: first those that attend most to the first token; first those that write most to the place; and, as the null
of the former, random heads of the same layers, because what a head can change depends first of all on its layer. What
causality makes impossible is marked so. The place is measured in all windows, exactly, by running no later token; sink
rate and loss need whole windows, and --n_whole of them are run with heads at zero, from their layer on. Which heads
move the value or cost loss is judged by intervals that are right for all heads together.
"""

from dataclasses import dataclass, replace

from lib import cli, plots, report
from lib.experiment import Experiment, execute
from lib.judges.heads import KINDS


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(64, "number of token windows")
    seqlen: int | None = cli.flag(64, "tokens in a window")
    batch_size: int | str = cli.flag(16, "windows in one forward pass, or auto: as many as fit", type=cli.batch_size)
    n_whole: int = cli.flag(32, "how many of them are run whole, for sink rate and loss")
    n_random: int = cli.flag(3, "random orders of removal")

    def idle(self):
        few = {"n_whole": f"there are only {self.nsamples} windows"} if self.n_whole > self.nsamples else {}
        return super().idle() | few


@dataclass(frozen=True)
class HeadSweep:
    """heads: {layer, head, score, write, zero, mean}, the last two {effect: cell, see lib.heads.Effects.changes}; at
    their mean heads are not run whole, and have effects on the value alone.

    effects: {effect: label, reach (the last layer whose heads can change it), impossible (why later ones cannot)};
    shown: those that differ. through_scores: None, or why attention scores cannot change the place. layers: {layer,
    score, zero, mean} of Effects.by_layer, means over the heads of a layer of |change|. early: of Effects.early, of
    heads at zero. cumulative: {order: {heads, steps: [{removed, effects, perplexity, retained}]}}.
    first_tokens: of lib.first_tokens, with all heads off; None where the place is not position 0.
    """

    place: dict
    effects: dict
    shown: list
    through_scores: str | None
    baseline: dict
    heads: list
    layers: list
    early: dict | None
    cumulative: dict
    first_tokens: dict | None


def run(lm, windows, options):
    from lib import first_tokens, heads, place, sweep
    from lib.ablation import Condition

    if options.n_whole < 1:
        raise cli.UserError("--n_whole: at least 1")
    at = place.find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    found = heads.survey(lm, windows, at, options.batch_size)
    orders = heads.orders(found, options.n_random, options.seed)
    versions = heads.changes(found, orders)
    values = sweep.at_place(lm, windows, at, versions, options.batch_size)
    step = max(1, len(windows.ids) // options.n_whole)
    rows = slice(0, step * options.n_whole, step)
    some = replace(windows, ids=windows.ids[rows])
    at_zero = [version for version in versions if not version.name.startswith("mean")]
    whole = sweep.measure(lm, some, at.of(rows), at_zero, options.batch_size)
    effects = heads.Effects(values, whole, at, rows)
    scores, writes = found.scores.mean(0), found.writes.mean(0)
    singles = {
        kind: {f"{version} {heads.label([head])}": head[0] for head in found.heads}
        for kind, version in zip(KINDS, ("off", "mean"), strict=True)
    }
    changes = {kind: effects.changes(of) for kind, of in singles.items()}
    layers = {kind: effects.by_layer(of) for kind, of in singles.items()}
    cumulative = {
        name: {
            "heads": order,
            "steps": [
                {"removed": n, **effects.described(f"off {heads.label(order[:n])}")} for n in heads.steps(len(order))
            ],
        }
        for name, order in orders.items()
    }
    all_off = Condition("all_heads_off", "all heads off", heads=tuple(found.heads))
    exactly = first_tokens.at_plateau(lm, windows, at, [all_off])
    first, end, last = effects.layers
    return HeadSweep(
        place=at.described(),
        effects=effects.keys,
        shown=["birth", *["end"] * (end > first), *["last"] * (last > end), "sink_rate", "loss"],
        through_scores=None
        if at.positions.any()
        else "impossible, position 0 sees only itself: what a head changes there goes through its values",
        baseline=effects.described(sweep.BASELINE),
        heads=[
            {"layer": head[0], "head": head[1], "score": scores[head], "write": writes[head]}
            | {kind: changes[kind][i] for kind in KINDS}
            for i, head in enumerate(found.heads)
        ],
        layers=[
            {"layer": layer, "score": of.mean()} | {kind: layers[kind][layer] for kind in KINDS}
            for layer, of in enumerate(scores)
        ],
        early=effects.early(singles["zero"]),
        cumulative=cumulative,
        first_tokens=exactly and exactly[all_off.name],
    )


def summarise(payload):
    r = payload["results"]
    shown = [_largest(r, key) for key in r["shown"]]
    return "\n".join(
        [
            report.header(payload, "Experiment 7: every attention head off"),
            report.place_text(r["place"]),
            f"Massive: {'yes' if r['place']['massive'] else 'none found'} ({r['place']['definition']})",
            f"Through attention scores: {r['through_scores'] or 'possible'}",
            "score: mean probability on the first token. write: what the head adds to that dim there, signed.",
            "zero, mean: paired change when the head's output is zero, or its mean over all tokens, with its 95 %",
            "interval; relative: to the value, along its sign, over the windows that have the spike, with the interval",
            "that holds for all heads together. Sink rate: of all heads, the removed ones too.",
            "",
            *shown,
            report.conclusion_text(r["conclusion"]),
            *_named(r["conclusion"]["values"]),
            _correlations(r["conclusion"]["values"]["correlations"]),
        ]
    )


def _largest(r, key, at_most=8):
    """The largest changes of single heads."""
    effect = r["effects"][key]
    able = sorted((h for h in r["heads"] if h["zero"][key]), key=lambda h: -abs(h["zero"][key]["mean"]))
    kinds = _kinds(r, key)
    relative = ["relative"] if any(h["zero"][key].get("relative") for h in able) else []
    rows = []
    for h in able[:at_most]:
        rows.append([f"{h['layer']}.{h['head']}", f"{h['score']:.4f}", report.number(h["write"], True)])
        for kind in kinds:
            cell = h[kind][key]
            rows[-1].append(report.interval(cell, True))
            rows[-1] += [report.interval(_together(cell[name]), True) for name in relative]
    heading = (
        f"{effect['label']}: {report.interval(r['baseline'][key], True)} with all heads, mean of "
        f"{r['baseline'][key]['n']} windows; largest changes of {len(able)} single heads\n"
    )
    impossible = f"impossible: {effect['impossible']}\n" if effect["impossible"] else ""
    columns = ["layer.head", "score", "write", *(name for kind in kinds for name in (kind, *relative))]
    return heading + impossible + report.table(columns, rows)


def _kinds(r, key):
    """Those of KINDS in which this effect is measured."""
    return [kind for kind in KINDS if key in r["heads"][0][kind]]


def _together(cell):
    return {"mean": cell["mean"], "ci95": cell["family95"]}


def _named(values):
    """Every head that the rule names, and those of which it cannot tell."""
    lines = []
    for kind in KINDS:
        moves = "; ".join(f"{layer}.{head} {does} ({key})" for layer, head, does, key in values["moves"][kind])
        lines.append(f"moves it, {kind}: {moves or 'none'}")
        for name, where in (("cannot_tell", "at the plateau"), ("cannot_tell_last", "at the last layer")):
            lines.append(f"cannot tell {where}, {kind}: {_heads(values[name][kind])}")
    for name in ("costs", "gains", "costs_cannot_tell"):
        lines.append(f"{name.replace('_', ' ')}, zero: {_heads(values[name])}")
    return [*lines, ""]


def _heads(heads):
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "none"


def _correlations(correlations):
    rows = []
    for name, of in correlations.items():
        rho, within = (report.number(of[key], True) for key in ("rho", "within_layers"))
        rows.append([name.replace("_", " and "), of["heads"], rho, within, report.number(of["p"])])
    return report.table(["Spearman's rho of", "heads", "rho", "within layers", "p"], rows)


def details(payload):
    """Heads removed together, and every layer."""
    r = payload["results"]
    cumulative, shown = r["cumulative"], r["shown"]
    draws = [of["steps"] for name, of in cumulative.items() if name.startswith("random")]
    parts = [
        "Heads removed together (output zero); random: of the same layers as those by score, lowest to highest draw"
    ]
    levels = {key: r["effects"][key]["label"] for key in shown[:-1]} | {"perplexity": "perplexity"}
    if r["place"]["massive"]:
        levels["retained"] = "retained of the value at the end of the plateau, over the windows that have the spike"
    for key, label in levels.items():
        rows = []
        for i, step in enumerate(cumulative["score"]["steps"]):
            null = [_level(of[i][key]) for of in draws]
            spread = f"{report.number(min(null))} to {report.number(max(null))}" if null else "-"
            measured = [_interval(cumulative[order]["steps"][i][key]) for order in ("score", "write")]
            rows.append([step["removed"], *measured, spread])
        parts.append(f"{label}: {_interval(r['baseline'][key])} with all heads")
        parts.append(report.table(["removed", "by score", "by write", "random, layers as by score"], rows))
    if r["first_tokens"] is not None:
        parts.append(f"Without any head: {report.exact_text(r['first_tokens'])}")
    columns = [(kind, key) for key in shown for kind in _kinds(r, key)]
    rows = [
        [
            of["layer"],
            f"{of['score']:.4f}",
            *("impossible" if of[kind][key] is None else report.interval(of[kind][key]) for kind, key in columns),
        ]
        for of in r["layers"]
    ]
    names = [f"{key.replace('_', ' ')}, {kind}" for kind, key in columns]
    parts += [
        "Every layer: |change| without a single head, mean over its heads and over windows",
        report.table(["layer", "score", *names], rows),
    ]
    return "\n".join([*parts, *_early(r["early"])])


def _early(early):
    """Quarters of the layers, and what the first has more than each other, with and without layers 0 and 1."""
    if early is None:
        return []
    rows = []
    for i, quarter in enumerate(early["quarters"]):
        more = [of[i - 1] if i and of else None for of in (early["first_minus"], early["first_minus_from_2"])]
        rows.append(["-".join(map(str, quarter["layers"])), report.interval(_together(quarter["loss"]))])
        rows[-1] += [report.interval(_together(cell), True) if cell else "-" for cell in more]
    columns = ["layers", "|change of the loss|", "first quarter more by", "without layers 0 and 1"]
    return [
        "Quarters of the layers: |change of the loss| without a single head (zero), mean over heads and windows;",
        "intervals hold for all quarters together",
        report.table(columns, rows),
    ]


def _level(cell):
    return cell["mean"] if "mean" in cell else cell["value"]


def _interval(cell):
    return report.interval({"mean": _level(cell), "ci95": cell["ci95"]})


EXPERIMENT = Experiment(
    name="exp7",
    json="exp7_results.json",
    txt="EXPERIMENT_7_SUMMARY.txt",
    run=run,
    summary=summarise,
    details=details,
    figures={
        "exp7_place_heatmap.png": plots.head_sweep_place,
        "exp7_model_heatmap.png": plots.head_sweep_model,
        "exp7_cumulative.png": plots.head_sweep_cumulative,
    },
)

if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
