"""Largest activations of every layer."""

from typing import Any

from matplotlib.figure import Figure

from lib.report.figures import draw_curve, label_layers, make_axes, make_title


def layerwise(payload: dict[str, Any]) -> Figure:
    """Top-1, top-2, top-3 and median of |activation| over layers, logarithmic."""
    layers = payload["results"]["layers"]
    figure, ax = make_axes()
    for i, (key, label) in enumerate([("top1", "top 1"), ("top2", "top 2"), ("top3", "top 3"), ("median", "median")]):
        draw_curve(ax, [layer[key] for layer in layers], i, label)
    ax.set_yscale("log")
    ax.set_ylabel("|activation| (mean over windows, log scale)")
    label_layers(ax, len(layers))
    ax.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    ax.set_title(make_title(payload, "Massive activations over layers"))
    return figure
