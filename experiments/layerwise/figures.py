"""Largest activations of every layer."""

from matplotlib.figure import Figure

from experiments.layerwise.results import Stored
from lib.report.figures import draw_curve, label_layers, make_axes, make_title


def layerwise(result: Stored) -> Figure:
    """Top-1, top-2, top-3 and median of |activation| over layers, logarithmic."""
    layers = result.results.layers
    figure, ax = make_axes()
    curves = zip(*((layer.top1, layer.top2, layer.top3, layer.median) for layer in layers), strict=True)
    for i, (averages, label) in enumerate(zip(curves, ("top 1", "top 2", "top 3", "median"), strict=True)):
        draw_curve(ax, averages, i, label)
    ax.set_yscale("log")
    ax.set_ylabel("|activation| (mean over windows, log scale)")
    label_layers(ax, len(layers))
    ax.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    ax.set_title(make_title(result, "Massive activations over layers"))
    return figure
