"""The TXT of the experts: their outputs and writes, what is left without each, and with each as the only one on."""

from collections.abc import Callable, Iterable

from experiments.experts.results import Mixture, Results, Run, Stored, given
from lib.core.definitions import SUPER
from lib.core.evidence import Cell
from lib.core.results import Expert
from lib.report import tables

LISTED = 30


def summarise(result: Stored) -> str:
    results, values = result.results, result.conclusion.values
    baseline, windows = results.baseline, results.windows
    return "\n".join(
        [
            tables.header(result, "Experiment 8: the experts of the mixtures"),
            tables.place_text(results.place),
            f"Windows: {windows.all}; share that has the spike: {tables.interval(windows.spiking)} (what is said of "
            f"the place is of these; of all, if none has it); run whole, for sink rate and loss: {windows.whole}",
            f"Mixtures: {_mixtures(results.mixtures)}",
            f"Baseline at the end of the plateau: {tables.interval(baseline.value, True)}; sink rate "
            f"{tables.interval(baseline.sink_rate)}; loss {tables.interval(baseline.loss)} nats a token",
            "",
            _experts(results),
            _runs(results),
            _null(results),
            f"{_named(values.experts, 'Named')}{_named(values.necessary, 'The spike is gone without')}"
            f"{_named(values.enough, 'It stays with this one as the only candidate on')}"
            f"{_named(values.cannot_tell, 'Cannot tell of')}",
            tables.conclusion_text(result.conclusion),
        ]
    )


def _mixtures(mixtures: Iterable[Mixture]) -> str:
    """Layers by what their mixtures are."""
    alike: dict[str, list[int]] = {}
    for mixture in mixtures:
        shared = " and a shared one" if mixture.shared else ""
        alike.setdefault(f"{mixture.top_k} of {mixture.experts} experts{shared}", []).append(mixture.layer)
    return "; ".join(f"{what} in layers {tables.spans(layers)}" for what, layers in alike.items())


def _experts(results: Results) -> str:
    """Candidates and super experts, the largest outputs first."""
    rows = [row for row in results.experts if row.super or row.is_candidate]
    rows.sort(key=lambda row: -(row.largest_output or 0))
    more = f"and {len(rows) - LISTED} more, in the JSON\n" if len(rows) > LISTED else ""
    cells = [
        [
            str(row.name),
            tables.fraction(row.share_of_tokens),
            tables.number(row.largest_output),
            "yes" if row.super else "no",
            tables.interval(given(row.routed)),
            tables.interval(given(row.weight)),
            tables.interval(row.write, True),
            given(row.tried) or "no",
        ]
        for row in rows[:LISTED]
    ]
    heads = ["expert", "of all tokens", "largest output", "super", "at the place", "weight", "write", "candidate"]
    return (
        f"Candidates and super experts (above {tables.number(results.percentile)}, the {SUPER[0]}th percentile of "
        f"largest outputs, and {SUPER[1]} of the largest)\n"
        "expert: layer.expert; at the place: the share of the windows whose token there is sent to it, with which "
        "routing weight, and what it adds to the dim\n"
        f"{tables.table(heads, cells)}{more}"
    )


def _runs(results: Results) -> str:
    def retained(run: Run | None) -> str:
        return tables.interval(run.retained if run else None, True)

    rows = sorted(results.candidates, key=lambda row: row.left)
    cells = [
        [
            str(row.name),
            *(retained(given(run)) for run in (row.off, row.off_renormalised, row.alone)),
            *_cost(given(row.off)),
        ]
        for row in rows[:LISTED]
    ]
    together = given(results.together)
    if together:
        cells.append(["all of these", retained(together), "-", "-", *_cost(together)])
    more = f"and {len(rows) - LISTED} more, in the JSON\n" if len(rows) > LISTED else ""
    heads = ["expert", "off", "off, renormalised", "only candidate on", "sink rate, off", "its change"]
    return (
        "Share of the value at the place that is left at the end of the plateau\n"
        "off: the other routing weights as they were; renormalised: their sum as it was; only candidate on: all others "
        "of this table off\n"
        f"{tables.table([*heads, 'change of loss (nats a token)'], cells)}{more}"
    )


def _cost(run: Run | None) -> list[str]:
    if run is None:
        return ["-"] * 3
    return [
        tables.mean(run.sink_rate),
        tables.interval(run.sink_rate_change, True),
        tables.interval(run.loss_change, True),
    ]


def _null(results: Results) -> str:
    """What random experts off do."""
    runs = [run for row in results.random if (run := given(row.off))]
    if not runs:
        return "Random experts: none\n"

    def spread(number: Callable[[Run], Cell | None]) -> str:
        means = [cell.mean for run in runs if (cell := number(run))]
        return f"{tables.number(min(means), True)} to {tables.number(max(means), True)}" if means else "-"

    return (
        f"Random experts of the same layers, to which tokens are sent, each off alone: {len(runs)}; left "
        f"{spread(lambda run: run.retained)}, change of sink rate {spread(lambda run: run.sink_rate_change)}, of loss "
        f"{spread(lambda run: run.loss_change)}\n"
    )


def _named(experts: Iterable[Expert], what: str) -> str:
    names = ", ".join(map(str, experts))
    return f"{what}: {names}\n" if names else ""
