"""Massive activations with all heads or all MLPs off: top-1, the followed dims, every change in per cent."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.ablation.results import Stored
from lib.core.evidence import Average
from lib.core.results import LayerOfCondition
from lib.report.figures import (
    DIVERGING,
    PLAIN,
    add_legend,
    draw_curve,
    draw_heatmap,
    label_layers,
    make_axes,
    make_title,
)
from lib.report.tables import number, percent


def top1_comparison(result: Stored) -> Figure:
    """Top-1 of every layer in the baseline and in each condition, logarithmic, with intervals."""
    conditions = result.results.conditions
    figure, ax = make_axes()
    for i, condition in enumerate(conditions.values()):
        label = f"{condition.label} (perplexity {number(condition.perplexity.value)})"
        draw_curve(ax, [layer.top1 for layer in condition.layers], i, label)
    ax.set_yscale("log")
    ax.set_ylabel("top-1 |activation| (log scale, band: 95 % interval)")
    label_layers(ax, len(conditions["baseline"].layers))
    ax.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    ax.set_title(
        make_title(result, "Largest activation of every layer (it may sit elsewhere after ablation)"), fontsize=11
    )
    return figure


def critical_dimensions(result: Stored, at_most: int = 4) -> Figure:
    """The followed dims, signed, at the same position in every condition, and where each is judged."""
    results = result.results
    dims = results.dims[:at_most]
    judged = {place.dim: place.layer for place in reversed(results.places)}  # of each dim the largest place
    figure, axes = make_axes(1, max(1, len(dims)), size=(max(7, 5.2 * len(dims)), 4.6), squeeze=False)
    for ax, dim in zip(axes[0], dims, strict=False):
        for i, condition in enumerate(results.conditions.values()):
            draw_curve(ax, [layer.dims[dim] for layer in condition.layers], i, condition.label)
        if dim in judged:
            ax.axvline(judged[dim], color="black", lw=0.8, ls=":")
        ax.set_title(
            f"dim {dim}" + (f", judged after layer {judged[dim]} (dotted)" if dim in judged else ""), fontsize=11
        )
        ax.set_ylabel("activation (signed)")
        ax.yaxis.set_major_formatter(PLAIN)
        label_layers(ax, len(results.conditions["baseline"].layers))
    if dims:
        add_legend(figure, axes[0][0])
    else:
        axes[0][0].text(0.5, 0.5, "no massive activation in the baseline", ha="center")
        axes[0][0].set_axis_off()
    figure.suptitle(make_title(result, "Critical dims at the position where each peaks in the baseline"), fontsize=11)
    return figure


def percentage_heatmap(result: Stored) -> Figure:
    """Change of every layer and statistic in per cent, each cell with both values."""
    results = result.results
    dims = results.dims[:4]
    before, after, *_experts_off = results.conditions.values()
    labels = ["top 1", "top 2", "top 3", "median", *(f"dim {dim}" for dim in dims)]
    change, text = [], []
    for layer_before, layer_after in zip(before.layers, after.layers, strict=True):
        pairs = list(zip(_means(layer_before, dims), _means(layer_after, dims), strict=True))
        change.append([100 * (y - x) / abs(x) if x else 0 for x, y in pairs])
        text.append([f"{percent(x, y)}\n{number(x)} \u2192 {number(y)}" for x, y in pairs])
    figure, ax = make_axes(size=(2.2 + 1.5 * len(labels), 1.8 + 0.36 * len(before.layers)))
    draw_heatmap(
        ax,
        np.array(change),
        cmap=DIVERGING,
        vmin=-100,
        vmax=100,
        annot=np.array(text),
        fmt="",
        annot_kws={"size": 7},
        cbar_kws={"label": "change in per cent (colour ends at \u00b1100)", "extend": "both"},
        xticklabels=labels,
    )
    ax.set_ylabel("layer")
    ax.tick_params(axis="y", rotation=0)
    ax.set_title(make_title(result, f"Change with {after.label}"), fontsize=11)
    return figure


def _means(layer: LayerOfCondition, dims: Sequence[int]) -> list[float]:
    averages: list[Average] = [layer.top1, layer.top2, layer.top3, layer.median, *(layer.dims[dim] for dim in dims)]
    return [average.mean for average in averages]
