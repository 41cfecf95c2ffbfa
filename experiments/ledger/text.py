"""The TXT of the ledger: the largest writes, who gives birth and who erases, and every layer."""

from typing import Any

from experiments.ledger.results import NamedWrite, Stored
from lib.core.results import LedgerWrite
from lib.report import tables

LISTED = 15


def summarise(result: Stored) -> str:
    results, conclusion = result.results, result.conclusion
    place, check, values = results.place, results.check, conclusion.values
    positions = [f"{n} at {position}" for position, n in place.positions.items()]
    others = f" and {tables.counted(len(positions) - 5, 'more position')}" if positions[5:] else ""
    largest = sorted(results.writes, key=lambda write: -abs(write.value))
    exact = "below" if check.relative_error < check.tolerance else "NOT below"
    return "\n".join(
        [
            tables.header(result, "Experiment 3: who writes a massive activation, and who takes it away"),
            f"Place: dim {place.dim} (windows by position: {', '.join(positions[:5])}{others}; most frequent token "
            f"{place.token!r}),",
            "found in the model as it is, so that ledgers of the same windows with different parts off compare",
            *tables.spread_at_0(place).splitlines(),
            f"Condition: {results.condition.label}",
            "",
            f"The {min(LISTED, len(largest))} largest of {len(largest)} writes into it, signed, mean over "
            f"{'the windows that have the spike' if place.massive else 'all windows'} [95 % interval]; share: of the "
            "peak",
            tables.table(["layer", "component", "write", "share of the peak"], [_row(w) for w in largest[:LISTED]]),
            f"All writes add up to {tables.number(check.sum, True)}; the last block's output is "
            f"{tables.number(check.residual, True)}; relative error {check.relative_error:.1e}, {exact} "
            f"{check.tolerance:.0e}",
            check.definition,
            "",
            f"Conclusion: {conclusion.verdict}",
            f"peak {tables.number(values.peak.value, True)} in layer {values.peak.layer}; generators: "
            f"{_names(values.generators)};",
            f"plateau: {_span(values.plateau)}; erasers: {_names(values.erasers)}",
            f"generators or erasers of which we cannot tell: {_names(values.cannot_tell)}",
            f"Rule: {conclusion.rule}",
            tables.tests_table(conclusion.tests),
            "Place: " + place.rule.removeprefix("place: "),
            f"Massive: {place.definition}",
            "",
        ]
    )


def _row(write: LedgerWrite) -> list[Any]:
    layer = "-" if write.layer is None else write.layer
    return [layer, write.component, tables.interval(write.average, True), f"{write.share.mean:+.1%}"]


def _names(writes: list[NamedWrite]) -> str:
    return ", ".join(f"{write.name} ({tables.number(write.value, True)})" for write in writes) or "none"


def _span(plateau: tuple[int, int] | None) -> str:
    if plateau is None:
        return "none"
    first, last = plateau
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def details(result: Stored) -> str:
    """Every layer: what its heads, its attention bias and its MLP add, and the block output."""
    results = result.results
    before = [f"{write.kind} {tables.number(write.value, True)}" for write in results.writes if write.layer is None]
    other = any(layer.other for layer in results.layers)
    rows = []
    for layer, residual in zip(results.layers, results.residual, strict=True):
        heads = [write for write in results.writes if write.layer == layer.layer and write.kind == "head"]
        largest = max(heads, key=lambda write: abs(write.value), default=None)
        rows.append(
            [
                layer.layer,
                tables.interval(layer.heads, True),
                f"{tables.number(largest.value, True)} ({largest.component})" if largest else "-",
                tables.mean(layer.attention_bias, True) if layer.attention_bias else "-",
                tables.interval(layer.mlp, True),
                *([tables.interval(layer.other or None, True)] if other else []),
                tables.interval(residual, True),
            ]
        )
    columns = ["layer", "sum of heads", "largest head", "attention bias", "mlp"]
    return "\n".join(
        [
            f"Every layer, signed, mean over windows [95 % interval]; before layer 0: {', '.join(before)}",
            tables.table([*columns, *(["others"] if other else []), "block output"], rows),
        ]
    )
