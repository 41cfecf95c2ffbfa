"""One text before and after a head is off: the layer in 3D, and the change there and downstream."""

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from experiments.before_after.results import Stored
from lib.report.figures import (
    DIVERGING,
    LINES,
    MARKERS,
    PALETTE,
    SIGNED,
    dims_to_label,
    draw_heatmap,
    draw_surface,
    label_layers,
    make_axes,
    make_figure,
    tick_tokens,
)


def before_after(result: Stored) -> Figure:
    """One layer in 3D before and after the head is removed, on one scale."""
    results = result.results
    before, after = np.abs(results.before), np.abs(results.after)
    top = max(before.max(), after.max())
    here = [entry for entry in results.massive if entry.layer == results.layer]
    dims = dims_to_label(here, before)
    figure = make_figure((13, 5.4))
    for column, (values, label) in enumerate(
        [(before, "before"), (after, f"after removing head {results.head} of layer {results.layer}")], 1
    ):
        ax = figure.add_subplot(1, 2, column, projection="3d", computed_zorder=False)
        draw_surface(ax, values, results.tokens, dims, top)
        ax.set_title(label, fontsize=11)
    figure.suptitle(f"{result.config['model_name']}, output of layer {results.layer}")
    return figure


def difference(result: Stored, columns: int = 12) -> Figure:
    """Signed change in the head's layer where it is largest, and how the change travels downstream."""
    results = result.results
    delta = np.array(results.after) - np.array(results.before)
    dims = np.sort(np.abs(delta).max(0).argsort()[::-1][:columns])
    limit = float(np.abs(delta).max()) or 1.0
    figure, (local, downstream) = make_axes(1, 2, size=(13, 4.8))
    draw_heatmap(
        local,
        delta[:, dims],
        cmap=DIVERGING,
        norm=SymLogNorm(limit / 100, vmin=-limit, vmax=limit),
        xticklabels=dims,
        yticklabels=False,
        cbar_kws={
            "label": "after \u2212 before (symmetric log scale)",
            "ticks": [sign * limit / step for sign, step in ((-1, 1), (-1, 10), (0, 1), (1, 10), (1, 1))],
            "format": SIGNED,
        },
    )
    tick_tokens(local.yaxis, results.tokens)
    local.tick_params(axis="y", rotation=0, labelsize=8)
    local.set_xlabel(f"the {len(dims)} most changed dims of {delta.shape[1]}")
    local.set_title(f"change in the output of layer {results.layer}", fontsize=11)
    layers = results.downstream
    for i, (label, values) in enumerate(
        [
            ("largest |activation| before", [abs(layer.largest.before) for layer in layers]),
            ("largest |change| anywhere", [abs(layer.most_changed.change) for layer in layers]),
            ("|change| at the largest activation", [abs(layer.largest.change) for layer in layers]),
            ("median |activation| before", [layer.median for layer in layers]),
        ]
    ):
        shown = np.where(np.array(values) > 0, values, np.nan)
        size = 8 if i == 1 else 4  # the largest change may lie under the change at the largest activation
        downstream.plot(shown, label=label, color=PALETTE[i], marker=MARKERS[i], ms=size, ls=LINES[i])
    downstream.axvline(results.layer, color="black", lw=0.8, ls="--", label="head removed here")
    downstream.set_yscale("log")
    downstream.set_ylabel("|activation|, |change|\n(log scale; no point: no change)")
    label_layers(downstream, len(layers))
    downstream.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    title = f"{result.config['model_name']}: head {results.head} of layer {results.layer} removed"
    figure.suptitle(title, fontsize=11)
    return figure
