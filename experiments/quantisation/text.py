"""The TXT of quantised activations: what each scheme costs, what each remedy brings back, the range of every site."""

from experiments.quantisation.results import (
    AS_IT_IS,
    BLOCKS,
    KINDS,
    PROJECTIONS,
    REMEDIES,
    SCHEMES,
    Condition,
    Range,
    Results,
    Stored,
    name_of,
)
from lib.core.definitions import FLOAT16_MAX
from lib.core.evidence import Cell
from lib.report import tables

PLACES = {PROJECTIONS: "What projections read is quantised", BLOCKS: "What blocks give is quantised"}
NAMES = dict(zip(REMEDIES, ("as it is", "massive kept", "clamped", "set to mean", "first token kept"), strict=True))


def summarise(result: Stored) -> str:
    results = result.results
    parts = [
        tables.header(result, "Experiment 13: what massive activations cost where activations are quantised"),
        f"Windows that calibrate: {results.calibration}; others, which are measured: {results.measured}; of these "
        f"{tables.interval(results.spiking)} have something massive in a block's output",
        f"As it is: loss {tables.interval(results.loss)} nats a token",
        *(f"Rule: {rule}" for rule in results.rules),
        *(f"left out, layers {tables.spans(left.layers)}: {left.what}" for left in results.left_out),
        "",
        *(part for where in results.where for part in _of(result, where)),
        "Range of the model as it is, in the measured windows. largest: |value|, and in which layer; x median: the",
        "most of any layer; int8 zeros: of the values other than 0, how many round to 0 with one scale for a",
        "window's tensor, most of any layer and mean over layers; beyond float16: how many sites have a |value| above",
        f"{FLOAT16_MAX:,.0f}",
        _ranges(results),
        tables.conclusion_text(result.conclusion),
    ]
    return "\n".join(parts)


def _of(result: Stored, where: str) -> list[str]:
    results, values = result.results, result.conclusion.values
    remedies = [remedy for remedy in REMEDIES if any(results.of(where, scheme, remedy) for scheme in SCHEMES)]
    losses, gains = [], []
    for scheme in SCHEMES:
        name = name_of(where, scheme, AS_IT_IS)
        bare, *remedied = (results.of(where, scheme, remedy) for remedy in remedies)
        losses.append([scheme.label, _loss(bare), values.costs[name], *map(_loss, remedied)])
        best = values.best.get(name)
        gains.append([scheme.label, *(_gain(result, cell) for cell in remedied), NAMES[best] if best else "-"])
    heads = [NAMES[remedy] for remedy in remedies[1:]]
    loss = tables.table(["scheme", NAMES[AS_IT_IS], "cost", *heads], losses)
    parts = [f"{PLACES[where]}: change of the loss, nats a token, paired\n{loss}"]
    if not heads:
        return [f"{parts[0]}Remedies: none found that is massive\n"]
    return [
        *parts,
        "Brought back: by how much the loss is below that without a remedy, paired, with the interval of all of\n"
        "these together; in parts of what the scheme costs, where that costs; and the remedy that brings back most,\n"
        f"of those that surely bring back some\n{tables.table(['scheme', *heads, 'most'], gains)}",
    ]


def _loss(cell: Condition | None) -> str:
    if cell is None:
        return "-"
    if cell.loss_change is None:
        return f"overflows ({tables.counted(cell.overflowing, 'window')})"
    return tables.interval(cell.loss_change, True)


def _gain(result: Stored, cell: Condition | None) -> str:
    if cell is None or cell.regained is None:
        return "-"
    text = tables.interval(Cell(cell.regained.mean, cell.regained.together), True)
    bare = result.results.of(cell.where, cell.scheme, AS_IT_IS)
    costs = result.conclusion.values.costs[name_of(cell.where, cell.scheme, AS_IT_IS)]
    if costs != "costs" or bare is None or bare.loss_change is None:
        return text
    return f"{text} ({tables.fraction(cell.regained.mean / bare.loss_change.mean)})"


def _ranges(results: Results) -> str:
    rows = []
    for kind in KINDS:
        sites = [site for site in results.ranges if site.kind == kind]
        if not sites:
            continue
        largest = max(sites, key=lambda site: site.largest)
        ratios = [site.largest / site.median.mean for site in sites if site.median.mean]
        zeros = [site.zero.mean for site in sites]
        rows.append(
            [
                kind,
                len(sites),
                ", ".join(
                    f"{width} ({group})" for width, group in sorted({(site.width, site.group) for site in sites})
                ),
                f"{tables.number(largest.largest)} ({largest.layer})",
                tables.number(max(ratios)) if ratios else "-",
                tables.fraction(max(zeros)),
                tables.fraction(sum(zeros) / len(zeros)),
                sum(site.largest > FLOAT16_MAX for site in sites),
            ]
        )
    heads = [
        "site",
        "number",
        "width (group)",
        "largest (layer)",
        "x median",
        "int8 zeros, most",
        "mean",
        "beyond float16",
    ]
    return tables.table(heads, rows)


def details(result: Stored) -> str:
    """The errors of every condition, and the range of every site."""
    conditions = [
        [
            cell.where,
            cell.scheme.label,
            NAMES[cell.remedy],
            *(tables.interval(average) for average in (cell.error, cell.elsewhere, cell.final)),
            "-" if cell.perplexity is None else tables.number(cell.perplexity.value),
        ]
        for cell in result.results.conditions.values()
    ]
    heads = ["quantised", "scheme", "remedy", "error", "elsewhere", "final", "perplexity"]
    return (
        "Squared error, relative. error: of what is quantised, mean over sites; elsewhere: but at the massive places;\n"
        "final: of the last block's output, mean over tokens\n"
        + tables.table(heads, conditions)
        + "\nRange of every site. massive: places a window; limit: to which values are clamped\n"
        + tables.table(
            ["layer", "site", "read by", "largest", "median", "int8 zeros", "massive", "limit"],
            [_range(site) for site in result.results.ranges],
        )
    )


def _range(site: Range) -> list[str]:
    return [
        str(site.layer),
        site.kind,
        " ".join(site.modules) or "-",
        tables.number(site.largest),
        tables.interval(site.median),
        tables.interval(site.zero),
        tables.number(site.massive),
        tables.number(site.limit),
    ]
