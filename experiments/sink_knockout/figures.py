"""What masking the edge to the sink costs, beside its controls; layer by layer; and where attention goes instead."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.sink_knockout.results import CONTROLS, RECENT, SINK, SINK_SECOND, Moved, Stored
from experiments.sink_knockout.text import named
from lib.core.evidence import Interval
from lib.report.figures import (
    MARKERS,
    PALETTE,
    PLAIN,
    WholeNumbers,
    add_legend,
    loss_axis,
    make_axes,
    make_title,
    mark_costs,
    write_beside,
)
from lib.report.tables import number, shortened, spans

KINDS = "sink's key masked", "control", "sink alone, or values set"
MOST = 5  # keys to which attention moves


def knockout(result: Stored) -> Figure:
    """Loss change of each condition, and the attention that its edges had."""
    results = result.results
    shown = results.together
    figure, (loss, mass) = make_axes(
        1, 2, size=(12.5, 2.4 + 0.42 * len(shown)), sharey=True, gridspec_kw={"width_ratios": [3, 1]}
    )
    for kind, label in enumerate(KINDS):
        rows = [i for i, name in enumerate(shown) if _kind(name) == kind]
        cells = [[*shown.values()][row] for row in rows]
        style = {"color": PALETTE[kind], "marker": MARKERS[kind], "ls": "", "ms": 6}
        loss.plot([cell.loss_change.mean for cell in cells], rows, label=label, **style)
        for row, cell in zip(rows, cells, strict=True):
            average = cell.loss_change
            _interval(loss, row, average.ci95, kind)
            write_beside(loss, row, number(average.mean, True))
        with_edges = [(row, cell) for row, cell in zip(rows, cells, strict=True) if cell.edges]
        mass.plot([cell.mass.mean for _row, cell in with_edges], [row for row, _cell in with_edges], **style)
        for row, cell in with_edges:
            _interval(mass, row, cell.mass.ci95, kind)
    mark_costs(loss.axvline, "as it is")
    loss_axis(loss)
    mass.set_xlim(-0.03, 1.03)
    mass.set_xlabel("attention that the edges had,\nof a head and query")
    for ax in (loss, mass):
        ax.grid(axis="x", alpha=0.4)
    loss.set_yticks(range(len(shown)), [cell.label for cell in shown.values()], fontsize=9)
    loss.set_ylim(len(shown) - 0.5, -0.5)
    add_legend(figure, loss, columns=5)
    title = f"Without the edge to the sink: {result.conclusion.verdict} (lines: 95 % intervals)"
    figure.suptitle(make_title(result, title), fontsize=11)
    return figure


def _kind(name: str) -> int:
    return 1 if name in CONTROLS else 0 if name.startswith("sink") else 2


def _interval(ax: Axes, row: float, ci95: Interval | None, kind: int) -> None:
    if ci95:
        ax.plot(ci95, [row, row], color=PALETTE[kind], lw=2)


def layers(result: Stored) -> Figure:
    """The sink's key masked in each layer alone: loss change, and the attention that it had."""
    results = result.results
    figure, (loss, mass) = make_axes(2, 1, size=(max(7, 2 + 0.28 * len(results.heads)), 6), sharex=True)
    for i, (ax, name) in enumerate(((loss, "loss_change"), (mass, "mass"))):
        averages = {layer: getattr(cell, name) for layer, cell in results.by_layer.items()}
        means = [average.mean for average in averages.values()]
        ax.plot([*averages], means, color=PALETTE[i], marker=MARKERS[i], ms=5, ls="")
        for layer, average in averages.items():
            if average.ci95:
                ax.plot([layer, layer], average.ci95, color=PALETTE[i], lw=2)
        ax.grid(axis="y", alpha=0.4)
    if results.place.massive:
        first, last = results.place.plateau
        loss.axvspan(first - 0.5, last + 0.5, color="0.92", zorder=0, label="plateau of the massive activation")
    mark_costs(loss.axhline, "as it is")
    loss.set_ylabel("change of the loss,\nnats a token")
    add_legend(figure, loss, columns=3)
    mass.set_ylim(-0.03, 1.03)
    mass.set_ylabel("attention of the sink's key,\nof a head and query")
    mass.set_xlabel("layer in which it is masked")
    mass.set_xlim(-0.5, len(results.heads) - 0.5)
    mass.xaxis.set_major_locator(WholeNumbers(nbins=15))
    figure.suptitle(make_title(result, "The sink's key masked in one layer alone (lines: 95 % intervals)"), fontsize=11)
    return figure


def moves(result: Stored) -> Figure:
    """The keys that gain most, of the sink and of a control."""
    results = result.results
    shown = [(name, results.conditions[name]) for name in (SINK, SINK_SECOND, RECENT) if name in results.conditions]
    figure, axes = make_axes(1, len(shown), size=(5 * len(shown), 4), sharex=True)
    for ax, (name, cell) in zip(axes, shown, strict=True):
        _gains(ax, cell.moved_to[:MOST], _kind(name))
        ax.set_title(f"{cell.label}: layers {spans(cell.layers)}", fontsize=10)
        ax.set_xlabel("gain in mean probability")
        if not cell.moved_to:
            ax.text(0.5, 0.5, "none gains", transform=ax.transAxes, ha="center")
    figure.suptitle(make_title(result, "Where attention goes (lines: simultaneous 95 % intervals)"), fontsize=11)
    return figure


def _gains(ax: Axes, moved: Sequence[Moved], kind: int) -> None:
    ax.barh(range(len(moved)), [one.gain.mean for one in moved], color=PALETTE[kind], alpha=0.6)
    for row, one in enumerate(moved):
        if one.gain.together:
            ax.plot(one.gain.together, [row, row], color="black", lw=1.5)
    ax.set_yticks(range(len(moved)), [named(one, _quoted) for one in moved], fontsize=9)
    ax.set_ylim(MOST - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=3))
    ax.xaxis.set_major_formatter(PLAIN)
    ax.axvline(0, color="black", lw=0.8)
    ax.grid(axis="x", alpha=0.4)


def _quoted(token: str) -> str:
    return f"'{shortened(token, 14)}'"
