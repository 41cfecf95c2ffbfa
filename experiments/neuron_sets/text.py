"""The TXT of the smallest set of neurons: who is in it, what runs without and with it alone show, what it reads."""

from typing import Any

from lib.core.definitions import CARRIED, HARDLY_ANY
from lib.report import tables

LISTED = 20


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    written, check, layer, end, carried = (
        r[key] for key in ("written", "contribution_check", "layer", "end_layer", "carried")
    )
    null, windows = r["null"], r["windows"]
    minimal_set = [
        [
            n["neuron"],
            tables.number(n["activation"], True),
            f"{n['weight']:+.4f}",
            tables.number(n["contribution"], True),
            tables.fraction(n["share"]),
        ]
        for n in r["minimal_set"][:LISTED]
    ]
    more = len(r["minimal_set"]) - len(minimal_set)
    random = [draw[name] for name in ("keep_only", "remove_only") for draw in null["draws"]]
    runs = [*r["runs"].values(), *(of for of in random if of["perplexity"])]
    return "\n".join(
        [
            tables.header(payload, f"Experiment 4: the neurons of the MLP of layer {layer}"),
            tables.place_text(r["place"]),
            f"Massive there at layer {layer}: {tables.interval(windows['massive'])} of {windows['all']} windows; what "
            "follows is of these, or of all if there is none",
            f"Block output there {tables.interval(written['block_output'], True)}; of it the MLP adds "
            f"{tables.interval(written['mlp'], True)} (share {tables.interval(written['share'] or {'mean': None})})",
            "",
            f"The smallest set with {CARRIED:.0%} of the MLP's output there, means over windows",
            tables.table(["neuron", "activation", "weight", "contribution", "share"], minimal_set)
            + (f"and {more} more, in the JSON\n" if more else ""),
            *_carried(carried),
            f"All contributions {tables.number(check['sum'], True)} + bias {tables.number(check['bias'], True)} = "
            f"{tables.number(check['sum'] + check['bias'], True)}; output of the down projection "
            f"{tables.number(check['output'], True)}; relative error {tables.number(check['relative_error'])}",
            "",
            f"Sets of {len(r['minimal_set'])} neurons alone or off, in every position; share: of the baseline's value, "
            "sums over the windows where it is massive there",
            f"{_null(null, _others(r))}Perplexity and sink rate: of {windows['whole']} whole windows",
            tables.table(
                ["run", f"layer {layer}", "share", f"layer {end}", "share", "perplexity", "sink rate"],
                [_run(of) for of in runs],
            ),
            _reading(r["reads"], layer),
            tables.conclusion_text(r["conclusion"]),
        ]
    )


def _carried(carried: dict[str, Any] | None) -> list[str]:
    if carried is None:
        return []
    whole, less = (tables.interval(carried[key]) for key in ("set", "without_its_last"))
    return [f"Share of the output: the set {whole}, without its last neuron {less}"]


def _others(r: dict[str, Any]) -> float:
    """The largest share of the output that as many neurons outside the set give."""
    n, cumulative = len(r["minimal_set"]), r["cumulative"]
    return cumulative[min(2 * n, len(cumulative)) - 1] - cumulative[n - 1] if n else 0.0


def _null(null: dict[str, Any], others: float) -> str:
    """How random sets are drawn, what the best of them do, and what is known of them without a run."""
    draws = null["draws"]
    if not draws:
        return ""
    drawn = f"all {null['possible']} that are possible" if null["enumerated"] else f"{len(draws)} different ones"
    active = [draw["activity"] for draw in draws]
    alone, left = ([draw[name]["share"] for draw in draws] for name in ("keep_only", "remove_only"))
    shares = ""
    if alone[0]:
        most, least = max(of["mean"] for of in alone), min(of["mean"] for of in left)
        shares = f"; they keep {tables.number(most)} at most, and {tables.number(least)} is left at least"
    return (
        f"{null['rule']}\n{drawn}; mean |activation| {tables.number(min(active))} to {tables.number(max(active))}, of "
        f"the set {tables.number(null['activity_of_set'])}{shares}\n{_foreseen(null, others)}"
    )


def _foreseen(null: dict[str, Any], others: float) -> str:
    """How far random sets could do as the set does."""
    most, of_set = max(draw["activity"] for draw in null["draws"]), null["activity_of_set"]
    active = f"none of these is as active: at most {tables.fraction(most / of_set)} of it; " if most < of_set else ""
    certain = ": this null is near certain beforehand" if others < HARDLY_ANY else ""
    return f"{active}no other neurons, as many, give more than {tables.fraction(others)} of the output{certain}\n"


def _run(of: dict[str, Any]) -> list[str]:
    perplexity = of["perplexity"]
    return [
        of["label"],
        tables.interval(of["value"], True),
        tables.interval(of["share"] or {"mean": None}),
        tables.interval(of["end_value"], True),
        tables.interval(of["end_share"] or {"mean": None}),
        tables.number(perplexity["value"]) if perplexity else "-",
        tables.mean(of["sink_rate"]) if of["sink_rate"] else "-",
    ]


def _reading(reads: dict[str, Any], layer: int) -> str:
    """What the neurons read: one table a neuron and projection."""
    through = f"through its {reads['norm']}" if reads["norm"] else "without a norm"
    parts = [f"What they read: the residual stream before the MLP of layer {layer}, {through}, at the same place\n"]
    for neuron in reads["neurons"]:
        for role, of in neuron["projections"].items():
            parts.append(
                f"Neuron {neuron['neuron']}, {role} projection: all dims {tables.number(of['sum'], True)} + bias "
                f"{tables.number(of['bias'], True)} = {tables.number(of['sum'] + of['bias'], True)}; its output "
                f"{tables.number(of['pre_activation'], True)}; relative error {tables.number(of['relative_error'])}; "
                f"half of it in {of['dims_to_half'] or '-'} of {reads['dims']} dims"
            )
            keys = ("residual", "normed", "weight", "contribution")
            rows = [
                [i["dim"], *(tables.number(i[key], True) for key in keys), tables.fraction(i["share"])]
                for i in of["inputs"]
            ]
            parts.append(
                tables.table(["dim", "residual value", "normed value", "weight", "contribution", "share"], rows)
            )
    return "\n".join(parts)
