"""What each scheme costs with each remedy, and the range of every site by layer."""

from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.quantisation.results import BLOCKS, KINDS, PROJECTIONS, REMEDIES, SCHEMES, Condition, Stored
from experiments.quantisation.text import NAMES
from lib.core.definitions import FLOAT16_MAX
from lib.report.figures import (
    LINES,
    MARKERS,
    PALETTE,
    PLAIN,
    add_legend,
    label_layers,
    loss_axis,
    make_axes,
    mark_costs,
    measured_title,
)

TITLES = {PROJECTIONS: "what projections read is quantised", BLOCKS: "what blocks give is quantised"}
APART = 0.15  # rows between the remedies of a scheme


def remedies(result: Stored) -> Figure:
    """Change of the loss of every scheme, a row each, with every remedy."""
    results = result.results
    n = len(SCHEMES)
    figure, axes = make_axes(1, len(results.where), size=(6.6 * len(results.where), 7.6), squeeze=False, sharey=True)
    for ax, where in zip(axes[0], results.where, strict=True):
        for i, remedy in enumerate(REMEDIES):
            cells = [
                (row + APART * (i - (len(REMEDIES) - 1) / 2), cell)
                for row, scheme in enumerate(SCHEMES)
                if (cell := results.of(where, scheme, remedy)) is not None
            ]
            _draw(ax, cells, i, NAMES[remedy])
        for row in range(1, n):
            ax.axhline(row - 0.5, color="0.85", lw=0.8)
        mark_costs(ax.axvline, "not quantised")
        loss_axis(ax)
        if any(cell.loss_change is None for cell in results.conditions.values() if cell.where == where):
            ax.set_xlabel(f"{ax.get_xlabel()}\nopen, at the edge: overflows")
        ax.set_title(TITLES[where], fontsize=11)
        ax.grid(axis="x", alpha=0.4)
        if all(results.of(where, scheme, remedy) is None for scheme in SCHEMES for remedy in REMEDIES[1:]):
            ax.text(0.98, 0.02, "remedies: none found that is massive", transform=ax.transAxes, ha="right", fontsize=9)
    axes[0][0].set_yticks(range(n), [scheme.label for scheme in SCHEMES], fontsize=10)
    axes[0][0].set_ylim(n - 0.5, -0.5)
    add_legend(figure, axes[0][0], columns=7)
    title = f"Quantised activations: {result.conclusion.verdict} (lines: 95 % intervals)"
    figure.suptitle(measured_title(result, result.results.measured, title), fontsize=11)
    return figure


def _draw(ax: Axes, cells: list[tuple[float, Condition]], style: int, label: str) -> None:
    """(row, condition) each; what overflows is open, at the right edge."""
    finite = [(row, cell.loss_change) for row, cell in cells if cell.loss_change is not None]
    color = PALETTE[style]
    if cells:
        means = [average.mean for _row, average in finite]
        ax.plot(means, [row for row, _average in finite], MARKERS[style], color=color, ms=5, label=label)
    for row, average in finite:
        if average.ci95:
            ax.plot(average.ci95, [row, row], color=color, lw=1.8)
    over = [row for row, cell in cells if cell.loss_change is None]
    if over:
        edge = ax.get_yaxis_transform()
        ax.plot([1] * len(over), over, MARKERS[style], color=color, mfc="white", ms=5, transform=edge, clip_on=False)


def ranges(result: Stored) -> Figure:
    """Largest |value| and median of every kind of site by layer, and the share that int8 per tensor takes to 0; where
    a layer has several of a kind, of that with the largest."""
    sites = result.results.ranges
    n = 1 + max(site.layer for site in sites)
    figure, (sizes, zeros) = make_axes(2, 1, size=(max(8, 3 + 0.28 * n), 8.4), sharex=True)
    for i, kind in enumerate(kind for kind in KINDS if any(site.kind == kind for site in sites)):
        of_kind = groupby((site for site in sites if site.kind == kind), key=lambda site: site.layer)
        own = [max(of_layer, key=lambda site: site.largest) for _layer, of_layer in of_kind]
        layers = [site.layer for site in own]
        style = {"color": PALETTE[i], "marker": MARKERS[i], "ms": 4}
        sizes.plot(layers, [site.largest for site in own], ls=LINES[0], label=kind, **style)
        sizes.plot(layers, [site.median.mean or None for site in own], ls=LINES[2], mfc="white", **style)
        zeros.plot(layers, [site.zero.mean for site in own], ls=LINES[0], **style)
        for site in own:
            if site.zero.ci95:
                zeros.plot([site.layer, site.layer], site.zero.ci95, color=PALETTE[i], lw=1.5)
    sizes.axhline(FLOAT16_MAX, color="black", lw=1, ls="--", label=f"float16 ends: {FLOAT16_MAX:,.0f}")
    sizes.set_yscale("log")
    sizes.yaxis.set_major_formatter(PLAIN)
    sizes.set_ylabel("|value|: largest (filled), median (open)")
    zeros.set_ylabel("values that become 0 in int8,\none scale for a window's tensor")
    zeros.set_ylim(-0.03, 1.03)
    zeros.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    for ax in (sizes, zeros):
        label_layers(ax, n)
    sizes.set_xlabel("")
    zeros.set_xlabel("layer")
    add_legend(figure, sizes, columns=3)
    figure.suptitle(
        measured_title(result, result.results.measured, "Dynamic range of activations (lines: 95 % intervals)"),
        fontsize=11,
    )
    return figure
