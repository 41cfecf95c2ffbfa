"""Experiment 7: every attention head off, one at a time and together, and what each does to the massive activation.

    python exp7_head_sweep.py --model gpt2 --savedir results/exp7_head_sweep/

Every single head is set to zero and, beside it, to its mean over all tokens. Then heads are removed together, 1, 2, 4,
... of them: first those that attend most to the first token; first those that write most to the place; and, as the null
of the former, random heads of the same layers, because what a head can change depends first of all on its layer. What
causality makes impossible is marked so. The place is measured in all windows, exactly, by running no later token; sink
rate and loss need whole windows, and --n_whole of them are run: two passes a head, each from its layer on.
"""

from dataclasses import dataclass, replace

from lib import cli, plots, report
from lib.experiment import Experiment, execute

SHARE = 0.1
RULE = (
    f"heads whose removal (output zero) lowers the mean value at the place, along its sign, by at least {SHARE:.0%} at "
    "the first layer or at the end of the plateau, with the interval of the change on one side of zero (where there is "
    "more than one window); none found: nothing is massive. raises: in the same way the value at the last layer, by at "
    f"least {SHARE:.0%} of the baseline's at the end of the plateau. spearman: rank correlation over heads (of the "
    "place: those that can change it), which depth alone may cause"
)
KINDS = ("zero", "mean")


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(64, "number of token windows")
    seqlen: int | None = cli.flag(128, "tokens in a window")
    n_whole: int = cli.flag(8, "how many of them are run whole, for sink rate and loss")
    n_random: int = cli.flag(3, "random orders of removal")

    def idle(self):
        few = {"n_whole": f"there are only {self.nsamples} windows"} if self.n_whole > self.nsamples else {}
        return super().idle() | few


@dataclass(frozen=True)
class HeadSweep:
    """heads: {layer, head, score, write, zero, mean}, the last two {effect: change or None, where impossible}.

    effects: {effect: label, reach (the last layer whose heads can change it), impossible (why later ones cannot)};
    shown: those that differ. through_scores: None, or why attention scores cannot change the place. layers: means over
    the heads of a layer of |change|. cumulative: {order: {heads, steps: [{removed, effects, perplexity}]}}.
    """

    place: dict
    effects: dict
    shown: list
    through_scores: str | None
    baseline: dict
    heads: list
    layers: list
    cumulative: dict
    conclusion: dict


def run(lm, windows, options):
    from lib import heads, place, sweep

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
    whole = sweep.measure(lm, some, at.of(rows), versions, options.batch_size)
    effects = heads.Effects(values, whole, at, at.draws.of(rows))
    scores, writes = found.scores.mean(0), found.writes.mean(0)
    changes = {
        kind: effects.changes({f"{version} {heads.label([head])}": head[0] for head in found.heads})
        for kind, version in zip(KINDS, ("off", "mean"), strict=True)
    }
    rows = [
        {"layer": head[0], "head": head[1], "score": scores[head], "write": writes[head], "zero": zero, "mean": mean}
        for head, zero, mean in zip(found.heads, changes["zero"], changes["mean"], strict=True)
    ]
    cumulative = {
        name: {
            "heads": order,
            "steps": [
                {"removed": n, **effects.described(f"off {heads.label(order[:n])}")} for n in heads.steps(len(order))
            ],
        }
        for name, order in orders.items()
    }
    baseline = effects.described(sweep.BASELINE)
    first, end, last = effects.layers
    return HeadSweep(
        place=at.described(),
        effects=effects.keys,
        shown=["birth", *["end"] * (end > first), *["last"] * (last > end), "sink_rate", "loss"],
        through_scores=None
        if at.positions.any()
        else "impossible, position 0 sees only itself: what a head changes there goes through its values",
        baseline=baseline,
        heads=rows,
        layers=by_layer(rows, effects.keys),
        cumulative=cumulative,
        conclusion=conclude(at, rows, baseline),
    )


def by_layer(rows, effects):
    layers = []
    for layer in sorted({row["layer"] for row in rows}):
        here = [row for row in rows if row["layer"] == layer]
        means = {
            kind: {
                key: sum(abs(row[kind][key]["mean"]) for row in here) / len(here) if layer <= of["reach"] else None
                for key, of in effects.items()
            }
            for kind in KINDS
        }
        layers.append({"layer": layer, "score": sum(row["score"] for row in here) / len(here), **means})
    return layers


def conclude(at, rows, baseline):
    """results.conclusion by RULE."""
    from lib.stats import spearman

    def rise(row, kind, key, of):
        """Relative change along the spike's sign; 0 where impossible or where the interval holds zero."""
        change = row[kind][key]
        if not change or (change["ci95"] and change["ci95"][0] <= 0 <= change["ci95"][1]):
            return 0.0
        return at.sign * change["mean"] / abs(baseline[of]["mean"])

    def heads_that(does):
        return {kind: [[row["layer"], row["head"]] for row in rows if does(row, kind)] for kind in KINDS}

    def correlation(x, key):
        able = [row for row in rows if row["zero"][key]]
        change = [row["zero"][key]["mean"] for row in able]
        effect = change if key == "loss" else [abs(c) for c in change]
        return {"rho": spearman([abs(row[x]) for row in able], effect), "heads": len(able)}

    lowers = heads_that(lambda row, kind: min(rise(row, kind, key, key) for key in ("birth", "end")) <= -SHARE)
    raises = heads_that(lambda row, kind: rise(row, kind, "last", "end") >= SHARE)
    named = ", ".join(f"{layer}.{head}" for layer, head in lowers["zero"])
    values = {
        "lowers": lowers,
        "raises": raises,
        "spearman": {
            "score_place": correlation("score", "end"),
            "write_place": correlation("write", "end"),
            "score_loss": correlation("score", "loss"),
            "write_loss": correlation("write", "loss"),
        },
    }
    return {"verdict": (named or "no single head") if at.massive else "none found", "rule": RULE, "values": values}


def summarise(payload, at_most=8):
    r = payload["results"]
    place, values = r["place"], r["conclusion"]["values"]
    positions = ", ".join(f"{position} in {n}" for position, n in list(place["positions"].items())[:5])
    parts = [
        report.header(payload, "Experiment 7: every attention head off"),
        f"Followed: dim {place['dim']}, at position {positions} windows (most frequent token {place['token']!r})",
        f"Massive: {'yes' if place['massive'] else 'none found'} ({place['definition']})",
        f"Through attention scores: {r['through_scores'] or 'possible'}",
        "score: mean probability on the first token. write: what the head adds to that dim there, signed.",
        "zero, mean: paired change when the head's output is zero, or its mean over all tokens. Intervals: 95 %",
        "bootstrap over windows. Sink rate: of all heads, the removed ones too.",
        "",
    ]
    for key in r["shown"]:
        effect = r["effects"][key]
        able = sorted((h for h in r["heads"] if h["zero"][key]), key=lambda h: -abs(h["zero"][key]["mean"]))
        parts += [
            f"{effect['label']}: {report.interval(r['baseline'][key], True)} with all heads, mean of "
            f"{r['baseline'][key]['n']} windows; largest changes of {len(able)} single heads",
            *([f"impossible: {effect['impossible']}"] if effect["impossible"] else []),
            report.table(
                ["layer.head", "score", "write", "zero", "mean"],
                [
                    [
                        f"{h['layer']}.{h['head']}",
                        f"{h['score']:.4f}",
                        report.number(h["write"], True),
                        *(report.interval(h[kind][key], True) for kind in KINDS),
                    ]
                    for h in able[:at_most]
                ],
            ),
        ]
    rho = ", ".join(
        f"{name.replace('_', ' and ')} {report.number(of['rho'], True)} ({of['heads']} heads)"
        for name, of in values["spearman"].items()
    )
    return "\n".join(
        [
            *parts,
            f"Conclusion: {r['conclusion']['verdict']}",
            f"Rule: {r['conclusion']['rule']}",
            *(
                f"{what} it, {kind}: {', '.join(f'{layer}.{head}' for layer, head in values[what][kind]) or 'none'}"
                for what in ("lowers", "raises")
                for kind in KINDS
            ),
            f"spearman: {rho}",
            "",
        ]
    )


def details(payload):
    """Heads removed together, and every layer."""
    r = payload["results"]
    cumulative, shown = r["cumulative"], r["shown"]
    draws = [of["steps"] for name, of in cumulative.items() if name.startswith("random")]
    parts = [
        "Heads removed together (output zero); random: of the same layers as those by score, lowest to highest draw"
    ]
    for key in [*shown[:-1], "perplexity"]:
        rows = []
        for i, step in enumerate(cumulative["score"]["steps"]):
            null = [_level(of[i][key]) for of in draws]
            spread = f"{report.number(min(null))} to {report.number(max(null))}" if null else "-"
            measured = [_interval(cumulative[order]["steps"][i][key]) for order in ("score", "write")]
            rows.append([step["removed"], *measured, spread])
        label = r["effects"].get(key, {"label": key})["label"]
        parts.append(f"{label}: {_interval(r['baseline'][key])} with all heads")
        parts.append(report.table(["removed", "by score", "by write", "random, layers as by score"], rows))
    columns = [(kind, key) for key in shown for kind in KINDS]
    rows = [
        [
            of["layer"],
            f"{of['score']:.4f}",
            *("impossible" if of[kind][key] is None else report.number(of[kind][key]) for kind, key in columns),
        ]
        for of in r["layers"]
    ]
    names = [f"{key.replace('_', ' ')}, {kind}" for kind, key in columns]
    parts += ["Every layer: mean |change| of a single head", report.table(["layer", "score", *names], rows)]
    return "\n".join(parts)


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
