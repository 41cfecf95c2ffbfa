"""How far dims stand out of their layer, with what was measured; and by layer and dim."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogFormatter

from experiments.weights_alone.judge import first_generator
from experiments.weights_alone.results import ERASER, GENERATOR, Forecast, Results, Stored
from lib.report.figures import PALETTE, PLAIN, SEQUENTIAL, draw_heatmap, label_layers, make_axes, make_title
from lib.report.tables import number

STYLES = ((GENERATOR, "o", PALETTE[0]), (ERASER, "v", PALETTE[1]))


def norms(result: Stored) -> Figure:
    """The dims with the largest norms of each layer by role, in parts of the mean of all dims."""
    results = result.results
    layers = results.layers
    figure, ax = make_axes(size=(9, 5))
    for role, marker, color in STYLES:
        found = [(layer.layer, one.norm / layer.mean) for layer in layers for one in layer.largest if one.role == role]
        ax.plot(*np.array(found).reshape(-1, 2).T, marker, ms=5, mfc="none", color=color, label=role)
    ax.axhline(1, ls="--", color="grey", label="mean of all dims")
    n_layers = len(next(iter(results.times_mean.values()), [0]))
    for one in _labelled(results, n_layers):
        side, ha = (13, "left") if one.layer < n_layers / 8 else (-13, "right")
        where = {"xytext": (side, 0), "textcoords": "offset points", "ha": ha, "va": "center"}
        ax.annotate(f"dim {one.dim}", (one.layer, one.times_mean), fontsize=9, **where)
    first, compared = first_generator(results.forecast), results.measured.compared
    if first is not None:
        label = f"first generator forecast: dim {first.dim}, layer {first.layer}"
        ax.plot(first.layer, first.times_mean, "*", ms=13, color=PALETTE[2], label=label)
    if compared is not None:
        label = f"measured: dim {compared.dim}, layer {compared.layer}"
        ax.plot(compared.layer, compared.times_mean, "o", ms=18, mfc="none", mew=2, color=PALETTE[3], label=label)
    label_layers(ax, n_layers)
    ax.set_xlabel("layer of the MLP")
    if layers:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(PLAIN)
        ax.yaxis.set_minor_formatter(LogFormatter())
    ax.set_ylabel("norm of the form that writes a dim\n(x the mean of its layer)")
    ax.legend(frameon=False, fontsize=9, ncols=2, labelspacing=0.9, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    ax.set_title(make_title(result, "What the weights alone can blow up"), fontsize=11)
    return figure


def _labelled(results: Results, n_layers: int, at_most: int = 4) -> list[Forecast]:
    """The first of the forecast, those that would be written over one another left out."""
    kept: list[Forecast] = []
    for one in results.forecast[:at_most]:
        if all(
            abs(one.layer - other.layer) > n_layers / 8 or other.times_mean > 1.4 * one.times_mean for other in kept
        ):
            kept.append(one)
    return kept


def dims(result: Stored) -> Figure:
    """Heatmap of the first dims of the forecast, in every layer; the measured one in a frame."""
    results = result.results
    rows = np.array([*results.times_mean.values()], dtype=float)
    figure, ax = make_axes(size=(9, 1.8 + 0.35 * max(1, len(rows))))
    ax.set_title(make_title(result, "Norms of the first dims of the forecast"), fontsize=11)
    if not len(rows):
        ax.set_axis_off()
        return figure
    positive = rows[rows > 0]
    draw_heatmap(
        ax,
        np.where(rows > 0, rows, np.nan),
        cmap=SEQUENTIAL,
        norm=LogNorm(positive.min(), positive.max()),
        yticklabels=[*results.times_mean],
        cbar_kws={
            "label": f"norm, x the mean of its layer (log scale; blank: 0{', or left out' * bool(results.left_out)})",
            "format": FuncFormatter(lambda x, _position: number(x)),
        },
    )
    compared = results.measured.compared
    if compared is not None and compared.dim in results.times_mean:
        corner = compared.layer, [*results.times_mean].index(compared.dim)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec=PALETTE[3], lw=3))
    ax.set_xlabel("layer of the MLP")
    ax.set_ylabel("dim")
    ax.tick_params(axis="y", rotation=0)
    return figure
