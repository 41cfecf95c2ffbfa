"""Largest activations of every layer, and where what is massive is found."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.layerwise.results import FoundBy, Stored
from lib.report.figures import draw_curve, label_layers, make_axes, make_title


def layerwise(result: Stored) -> Figure:
    """Top-1, top-2, top-3 and median of |activation| over layers, logarithmic; below, the layers that each definition
    of massive finds."""
    layers, compared = result.results.layers, result.results.compared
    if compared:
        figure, (ax, below) = make_axes(2, size=(8, 6.5), sharex=True, height_ratios=(4, 1))
        _layers_found(below, compared)
        label_layers(below, len(layers))
        ax.grid(axis="y", alpha=0.4)
    else:
        figure, ax = make_axes()
        label_layers(ax, len(layers))
    curves = zip(*((layer.top1, layer.top2, layer.top3, layer.median) for layer in layers), strict=True)
    for i, (averages, label) in enumerate(zip(curves, ("top 1", "top 2", "top 3", "median"), strict=True)):
        draw_curve(ax, averages, i, label)
    ax.set_yscale("log")
    ax.set_ylabel("|activation| (mean over windows, log scale)")
    figure.legend(frameon=False, ncols=4, loc="outside lower center")
    ax.set_title(make_title(result, "Massive activations over layers"))
    return figure


def _layers_found(ax: Axes, compared: list[FoundBy]) -> None:
    for row, found in enumerate(compared):
        ax.plot(found.layers, [row] * len(found.layers), "s", color="0.25", markersize=4)
    ax.set_yticks(range(len(compared)), [found.name for found in compared], fontsize=9)
    ax.set_ylim(len(compared) - 0.5, -0.5)
    ax.set_title("layers in which each definition finds what is massive", fontsize=10)
