"""The TXT of the layer sweep: what is left in each run, self-repair, what is rebuilt elsewhere."""

from collections.abc import Mapping, Sequence

from experiments.layer_sweep.results import Kind, Part, Rebuilt, Results, Run, Stored, Swept, SweptLayer, Values
from lib.report import tables

RUNS: dict[Run, str] = {
    "alone": "off alone",
    "only": "kept alone",
    "only_with_first": "kept with MLP 0",
    "from_front": "off up to",
    "from_back": "off from",
}


def summarise(result: Stored) -> str:
    results = result.results
    baseline, windows = results.baseline, results.windows
    exactly = results.first_tokens or {}
    return "\n".join(
        [
            tables.header(result, "Experiment 2B: layers off, kept, and off from either end"),
            tables.place_text(results.place),
            f"Windows: {windows.all}; share that has the spike: {tables.interval(windows.spiking)} (what is said "
            "of the value is of these; of all, if none has it); run whole, for perplexity, loss, sink rate and what is "
            f"rebuilt elsewhere: {windows.whole}",
            f"Baseline at the end of the plateau: {tables.interval(baseline.value, True)}; perplexity "
            f"{tables.number(baseline.perplexity.value)}; sink rate {tables.interval(baseline.sink_rate)}",
            "",
            "off alone ... off from: share of the baseline's value at the place that is left at the end of the plateau",
            "sink rate: of all heads, those of attention that is off, too",
            *_other_parts(results),
            *(_table(kind, layers, result.conclusion.values) for kind, layers in results.kinds.items()),
            _elsewhere(results.kinds),
            *(f"Without any {kind}: {tables.exact_text(exact)}" for kind, exact in exactly.items()),
            tables.conclusion_text(result.conclusion),
        ]
    )


def _other_parts(results: Results) -> list[str]:
    """What an attention block is in layers without attention, and what stays on."""
    lines = []
    if results.mixers:
        layers = ", ".join(map(str, results.mixers))
        lines.append(f"attention, in layers without it: what mixes tokens in its place (layers {layers})")
    if results.never_off:
        lines.append(f"never off, and in no write: {', '.join(results.never_off)}")
    return lines


def _table(kind: Kind, layers: Sequence[SweptLayer], values: Values) -> str:
    runs = [run for run in RUNS if any(run in layer.runs for layer in layers)]
    rows = [
        [
            layer.layer,
            tables.mean(layer.write, True),
            *(_retained(layer.runs.get(run)) for run in runs),
            tables.interval(layer.repair.ratio, True) if layer.repair else "-",
            tables.number(layer.alone.perplexity.value),
            tables.interval(layer.alone.loss_change, True),
            tables.mean(layer.alone.sink_rate),
            tables.interval(layer.alone.sink_rate_change, True),
            _judged(Part(kind, layer.layer), values),
        ]
        for layer in layers
    ]
    heads = ["layer", "write", *(RUNS[run] for run in runs), "self-repair", "perplexity, off alone"]
    heads += ["change of loss (nats a token)", "sink rate", "its change", "judged (?: cannot tell)"]
    return f"{kind} of every layer\n" + tables.table(heads, rows)


def _retained(swept: Swept | None) -> str:
    return "-" if swept is None or swept.retained is None else tables.mean(swept.retained, True)


def _judged(part: Part, values: Values) -> str:
    said = [word for word, parts in values.words.items() if part in parts]
    return " ".join([*said, *(f"{unclear.word}?" for unclear in values.cannot_tell if unclear.part == part)]) or "-"


def _elsewhere(kinds: Mapping[Kind, Sequence[SweptLayer]]) -> str:
    """What stands elsewhere when a large write is removed."""
    rows = []
    for kind, layers in kinds.items():
        for layer in layers:
            elsewhere = layer.repair and layer.repair.elsewhere
            if elsewhere:
                share = f"{tables.interval(elsewhere.share)} of {elsewhere.share.n}"
                rows.append([f"{kind} {layer.layer}", share, _largest(elsewhere.largest)])
    if not rows:
        return ""
    return (
        "Rebuilt elsewhere: windows (of those run whole that have the spike) with a massive activation off the place, "
        "at a position and dim\nwhere the baseline has none in that layer\n"
        + tables.table(["off alone", "windows", "largest"], rows)
    )


def _largest(rebuilt: Rebuilt | None) -> str:
    if rebuilt is None:
        return "-"
    place = f"dim {rebuilt.dim} at position {rebuilt.position} ({rebuilt.token!r}), layer {rebuilt.layer}"
    return f"{tables.number(rebuilt.value, True)} in {place}"
