"""Experiment 3: a ledger of who writes what into a massive activation, from its birth to its end.

    python exp3_lifecycle_ledger.py --model gpt2 --nsamples 30 --savedir results/exp3_lifecycle_ledger/

Follows one dim at one position of each window through all layers and lists, signed, what the embedding, the position
embedding, every head, every attention bias and every MLP add to it; together they are the block output, exactly. Names
the component that gives birth to it, its plateau, and the components that take it away. With --mlps_off or --heads_off
the same place is followed in the model without these parts.
"""

from dataclasses import dataclass

from lib import cli, plots, report
from lib.experiment import Experiment, execute

LISTED = 15


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    mlps_off: tuple = cli.flag((), "layers whose MLP is off, for example 28 29, or all", nargs="+", metavar="LAYER")
    heads_off: tuple = cli.flag((), "heads that are off, as layer.head, or all", nargs="+", metavar="HEAD")


@dataclass(frozen=True)
class Lifecycle:
    """place: of the model as it is; everything else is under `condition`.

    writes: lib.ledger.Ledger.listed; profile, drop: its own.
    layers: per layer, averages of the sum of its heads, of its attention bias (None without one) and of its MLP.
    residual: per layer, averages of the block output at the place. check: the sum of all writes against it.
    """

    condition: dict
    place: dict
    writes: list
    layers: list
    residual: list
    profile: dict
    drop: dict | None
    check: dict


def run(lm, windows, options):
    from lib import ledger, place

    condition = condition_of(lm.arch, options)
    at = place.find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    found = ledger.measure(lm, windows, at, condition, options.batch_size)
    return Lifecycle(
        condition={"label": condition.label, "mlps_off": condition.mlps, "heads_off": condition.heads},
        place=at.described(),
        writes=found.listed(),
        layers=found.layers(),
        residual=at.draws.averages(found.place.values),
        profile=found.profile(),
        drop=found.drop(),
        check=found.check(),
    )


def condition_of(arch, options):
    """The ablation.Condition of --mlps_off and --heads_off. Raises UserError for what is no layer or no head."""
    from lib.ablation import Condition
    from lib.pruning import parse_heads

    layers = range(arch.n_layers)
    if options.mlps_off == ("all",):
        mlps = tuple(layers)
    else:
        for name in options.mlps_off:
            if not name.isdigit():
                raise cli.UserError(f"'{name}' is not a layer; write layers, for example --mlps_off 28 29, or all")
        mlps = tuple(sorted({int(name) for name in options.mlps_off}))
    if options.heads_off == ("all",):
        heads = tuple((layer, head) for layer in layers for head in range(arch.n_heads))
    else:
        heads = parse_heads(options.heads_off)
    for layer in mlps:
        arch.check_layer(layer)
    for layer, head in heads:
        arch.check_head(layer, head)
    named = {"MLPs off": options.mlps_off, "heads off": options.heads_off}
    label = "; ".join(
        f"{kind}: {' '.join(names) if len(names) < 9 else len(names)}" for kind, names in named.items() if names
    )
    return Condition("ledger", label or "nothing off", heads, mlps)


def summarise(payload):
    r = payload["results"]
    place, check, conclusion = r["place"], r["check"], r["conclusion"]
    values = conclusion["values"]
    positions = [f"{n} at {position}" for position, n in place["positions"].items()]
    others = f" and {len(positions) - 5} more positions" if positions[5:] else ""
    largest = sorted(r["writes"], key=lambda write: -abs(write["value"]))
    exact = "below" if check["relative_error"] < check["tolerance"] else "NOT below"
    return "\n".join(
        [
            report.header(payload, "Experiment 3: who writes a massive activation, and who takes it away"),
            f"Place: dim {place['dim']} (windows by position: {', '.join(positions[:5])}{others}; most frequent token "
            f"{place['token']!r}),",
            "found in the model as it is, so that ledgers of the same windows with different parts off compare",
            f"Condition: {r['condition']['label']}",
            "",
            f"The {min(LISTED, len(largest))} largest of {len(largest)} writes into it, signed, mean over the windows "
            "that have the spike [95 % interval]; share: of the peak",
            report.table(["layer", "component", "write", "share of the peak"], [_row(w) for w in largest[:LISTED]]),
            f"All writes add up to {report.number(check['sum'], True)}; the last block's output is "
            f"{report.number(check['residual'], True)}; relative error {check['relative_error']:.1e}, {exact} "
            f"{check['tolerance']:.0e}",
            check["definition"],
            "",
            f"Conclusion: {conclusion['verdict']}",
            f"peak {report.number(values['peak']['value'], True)} in layer {values['peak']['layer']}; generators: "
            f"{_names(values['generators'])};",
            f"plateau: {_span(values['plateau'])}; erasers: {_names(values['erasers'])}",
            f"cannot tell: {_names(values['cannot_tell'])}",
            f"Rule: {conclusion['rule']}",
            report.tests_table(conclusion["tests"]),
            "Place: " + place["rule"].removeprefix("place: "),
            f"Massive: {place['definition']}",
            "",
        ]
    )


def _row(write):
    layer = "-" if write["layer"] is None else write["layer"]
    return [layer, write["component"], report.interval(write["average"], True), f"{write['share']['mean']:+.1%}"]


def _names(writes):
    return ", ".join(f"{write['name']} ({report.number(write['value'], True)})" for write in writes) or "none"


def _span(plateau):
    if plateau is None:
        return "none"
    first, last = plateau
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def details(payload):
    """Every layer: what its heads, its attention bias and its MLP add, and the block output."""
    r = payload["results"]
    before = [f"{w['component']} {report.number(w['value'], True)}" for w in r["writes"] if w["layer"] is None]
    rows = []
    for layer, residual in zip(r["layers"], r["residual"], strict=True):
        heads = [w for w in r["writes"] if w["layer"] == layer["layer"] and w["component"].startswith("head")]
        largest = max(heads, key=lambda write: abs(write["value"]))
        bias = layer["attention_bias"]
        rows.append(
            [
                layer["layer"],
                report.interval(layer["heads"], True),
                f"{report.number(largest['value'], True)} ({largest['component']})",
                report.mean(bias, True) if bias else "-",
                report.interval(layer["mlp"], True),
                report.interval(residual, True),
            ]
        )
    return "\n".join(
        [
            f"Every layer, signed, mean over windows [95 % interval]; before layer 0: {', '.join(before)}",
            report.table(["layer", "sum of heads", "largest head", "attention bias", "mlp", "block output"], rows),
        ]
    )


EXPERIMENT = Experiment(
    name="exp3",
    json="exp3_results.json",
    txt="EXPERIMENT_3_SUMMARY.txt",
    run=run,
    summary=summarise,
    details=details,
    figures={
        "exp3_ledger.png": plots.ledger,
        "exp3_writes.png": plots.ledger_writes,
    },
)

if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
