"""The TXT of the layer sweep: what is left in each run, self-repair, what is rebuilt elsewhere."""

from typing import Any

from lib.report import tables


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    baseline, windows = r["baseline"], r["windows"]
    return "\n".join(
        [
            tables.header(payload, "Experiment 2B: layers off, kept, and off from either end"),
            tables.place_text(r["place"]),
            f"Windows: {windows['all']}; share that has the spike: {tables.interval(windows['spiking'])} (what is said "
            "of the value is of these; of all, if none has it); run whole, for perplexity, loss, sink rate and what is "
            f"rebuilt elsewhere: {windows['whole']}",
            f"Baseline at the end of the plateau: {tables.interval(baseline['value'], True)}; perplexity "
            f"{tables.number(baseline['perplexity']['value'])}; sink rate {tables.interval(baseline['sink_rate'])}",
            "",
            "off alone ... off from: share of the baseline's value at the place that is left at the end of the plateau",
            "sink rate: of all heads, those of attention that is off, too",
            *(_table(r, kind) for kind in r["kinds"]),
            _elsewhere(r["kinds"]),
            *(f"Without any {kind}: {tables.exact_text(of)}" for kind, of in (r["first_tokens"] or {}).items()),
            tables.conclusion_text(r["conclusion"]),
        ]
    )


def _table(results: dict[str, Any], kind: str) -> str:
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
            tables.mean(row["write"], True),
            *(tables.mean(row[run]["retained"], True) if run in row else "-" for run in runs),
            tables.interval(row["repair"]["ratio"], True) if row["repair"] else "-",
            tables.number(row["alone"]["perplexity"]["value"]),
            tables.interval(row["alone"]["loss_change"], True),
            tables.mean(row["alone"]["sink_rate"]),
            tables.interval(row["alone"]["sink_rate_change"], True),
            _judged(results["conclusion"]["values"], [kind, row["layer"]]),
        ]
        for row in layers
    ]
    heads = ["layer", "write", *runs.values(), "self-repair", "perplexity, off alone"]
    heads += ["change of loss (nats a token)", "sink rate", "its change", "judged (?: cannot tell)"]
    return f"{kind} of every layer\n" + tables.table(heads, rows)


def _judged(values: dict[str, Any], part: list[Any]) -> str:
    words = ("necessary", "sufficient", "redundant", "repaired")
    said = [word for word in words if part in values[word]]
    return " ".join(said + [f"{word}?" for word, *at in values["cannot_tell"] if at == part]) or "-"


def _elsewhere(kinds: dict[str, Any]) -> str:
    """What stands elsewhere when a large write is removed."""
    rows = []
    for kind, layers in kinds.items():
        for row in layers:
            found = row["repair"] and row["repair"]["elsewhere"]
            if found:
                share = f"{tables.interval(found['share'])} of {found['share']['n']}"
                rows.append([f"{kind} {row['layer']}", share, _largest(found["largest"])])
    if not rows:
        return ""
    return (
        "Rebuilt elsewhere: windows (of those run whole that have the spike) with a massive activation off the place, "
        "at a position and dim\nwhere the baseline has none in that layer\n"
        + tables.table(["off alone", "windows", "largest"], rows)
    )


def _largest(at: dict[str, Any] | None) -> str:
    if at is None:
        return "-"
    place = f"dim {at['dim']} at position {at['position']} ({at['token']!r}), layer {at['layer']}"
    return f"{tables.number(at['value'], True)} in {place}"
