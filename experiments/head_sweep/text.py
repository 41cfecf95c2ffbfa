"""The TXT of the head sweep: single heads, heads removed together, every layer."""

from typing import Any

from experiments.head_sweep.judge import KINDS
from lib.report import tables


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    shown = [_largest(r, key) for key in r["shown"]]
    return "\n".join(
        [
            tables.header(payload, "Experiment 7: every attention head off"),
            tables.place_text(r["place"]),
            f"Massive: {'yes' if r['place']['massive'] else 'none found'} ({r['place']['definition']})",
            f"Through attention scores: {r['through_scores'] or 'possible'}",
            "score: mean probability on the first token. write: what the head adds to that dim there, signed.",
            "zero, mean: paired change when the head's output is zero, or its mean over all tokens, with its 95 %",
            "interval; relative: to the value, along its sign, over the windows that have the spike, with the interval",
            "that holds for all heads together. Sink rate: of all heads, the removed ones too.",
            "",
            *shown,
            tables.conclusion_text(r["conclusion"]),
            *_named(r["conclusion"]["values"]),
            _correlations(r["conclusion"]["values"]["correlations"]),
        ]
    )


def _largest(r: dict[str, Any], key: str, at_most: int = 8) -> str:
    """The largest changes of single heads."""
    effect = r["effects"][key]
    able = sorted((h for h in r["heads"] if h["zero"][key]), key=lambda h: -abs(h["zero"][key]["mean"]))
    kinds = _kinds(r, key)
    relative = ["relative"] if any(h["zero"][key].get("relative") for h in able) else []
    rows = []
    for h in able[:at_most]:
        rows.append([f"{h['layer']}.{h['head']}", f"{h['score']:.4f}", tables.number(h["write"], True)])
        for kind in kinds:
            cell = h[kind][key]
            rows[-1].append(tables.interval(cell, True))
            rows[-1] += [tables.interval(_together(cell[name]), True) for name in relative]
    heading = (
        f"{effect['label']}: {tables.interval(r['baseline'][key], True)} with all heads, mean of "
        f"{r['baseline'][key]['n']} windows; largest changes of {len(able)} single heads\n"
    )
    impossible = f"impossible: {effect['impossible']}\n" if effect["impossible"] else ""
    columns = ["layer.head", "score", "write", *(name for kind in kinds for name in (kind, *relative))]
    return heading + impossible + tables.table(columns, rows)


def _kinds(r: dict[str, Any], key: str) -> list[str]:
    """Those of KINDS in which this effect is measured."""
    return [kind for kind in KINDS if key in r["heads"][0][kind]]


def _together(cell: dict[str, Any]) -> dict[str, Any]:
    return {"mean": cell["mean"], "ci95": cell["family95"]}


def _named(values: dict[str, Any]) -> list[str]:
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


def _heads(heads: list[list[int]]) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "none"


def _correlations(correlations: dict[str, Any]) -> str:
    rows = []
    for name, of in correlations.items():
        rho, within = (tables.number(of[key], True) for key in ("rho", "within_layers"))
        rows.append([name.replace("_", " and "), of["heads"], rho, within, tables.number(of["p"])])
    return tables.table(["Spearman's rho of", "heads", "rho", "within layers", "p"], rows)


def details(payload: dict[str, Any]) -> str:
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
            spread = f"{tables.number(min(null))} to {tables.number(max(null))}" if null else "-"
            measured = [_interval(cumulative[order]["steps"][i][key]) for order in ("score", "write")]
            rows.append([step["removed"], *measured, spread])
        parts.append(f"{label}: {_interval(r['baseline'][key])} with all heads")
        parts.append(tables.table(["removed", "by score", "by write", "random, layers as by score"], rows))
    if r["first_tokens"] is not None:
        parts.append(f"Without any head: {tables.exact_text(r['first_tokens'])}")
    columns = [(kind, key) for key in shown for kind in _kinds(r, key)]
    rows = [
        [
            of["layer"],
            f"{of['score']:.4f}",
            *("impossible" if of[kind][key] is None else tables.interval(of[kind][key]) for kind, key in columns),
        ]
        for of in r["layers"]
    ]
    names = [f"{key.replace('_', ' ')}, {kind}" for kind, key in columns]
    parts += [
        "Every layer: |change| without a single head, mean over its heads and over windows",
        tables.table(["layer", "score", *names], rows),
    ]
    return "\n".join([*parts, *_early(r["early"])])


def _early(early: dict[str, Any] | None) -> list[str]:
    """Quarters of the layers, and what the first has more than each other, with and without layers 0 and 1."""
    if early is None:
        return []
    rows = []
    for i, quarter in enumerate(early["quarters"]):
        more = [of[i - 1] if i and of else None for of in (early["first_minus"], early["first_minus_from_2"])]
        rows.append(["-".join(map(str, quarter["layers"])), tables.interval(_together(quarter["loss"]))])
        rows[-1] += [tables.interval(_together(cell), True) if cell else "-" for cell in more]
    columns = ["layers", "|change of the loss|", "first quarter more by", "without layers 0 and 1"]
    return [
        "Quarters of the layers: |change of the loss| without a single head (zero), mean over heads and windows;",
        "intervals hold for all quarters together",
        tables.table(columns, rows),
    ]


def _level(cell: dict[str, Any]) -> float:
    return cell["mean"] if "mean" in cell else cell["value"]


def _interval(cell: dict[str, Any]) -> str:
    return tables.interval({"mean": _level(cell), "ci95": cell["ci95"]})
