"""Every head off or at its mean, one by one, and heads removed together."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.head_sweep.results import VALUE_EFFECTS, Effect, Kind, Level, Results, Stored, Values, kinds_of
from lib.core.results import Head
from lib.report.figures import (
    DIVERGING,
    LINES,
    MARKERS,
    NAMED,
    PALETTE,
    PLAIN,
    SIGNED,
    WholeNumbers,
    add_legend,
    make_axes,
    make_title,
)


def head_sweep_place(result: Stored) -> Figure:
    """Heatmaps layers x heads: change of the value at the place, heads zero and at their mean."""
    results = result.results
    place, values = results.place, result.conclusion.values
    effects = [effect for effect in VALUE_EFFECTS if effect in results.shown]
    figure, axes = _head_panels(results, 2, len(effects))
    label = "change of the value,\nnegative: smaller spike"
    _head_changes(figure, axes, results, values, effects, label, place.sign)
    title = f"Single heads removed: dim {place.dim} at its place"
    if results.through_scores:
        title += "\nthrough attention scores: impossible, position 0 sees only itself"
    figure.suptitle(make_title(result, title), fontsize=11)
    _explain(figure, axes, results)
    return figure


def head_sweep_model(result: Stored) -> Figure:
    """Heatmaps layers x heads: change of the sink rate and of the loss, heads zero."""
    results, values = result.results, result.conclusion.values
    figure, axes = _head_panels(results, 1, 2)
    _head_changes(figure, axes[:, :1], results, values, ["sink_rate"], "change of the sink rate")
    _head_changes(figure, axes[:, 1:], results, values, ["loss"], "change of the loss (nats a token)")
    title = f"Single heads removed: sink rate and loss {_in_windows(results.baseline.loss.n)}"
    figure.suptitle(make_title(result, title), fontsize=11)
    _explain(figure, axes, results)
    return figure


def _in_windows(n: int) -> str:
    """The title has the number of all windows."""
    return f"in {n} of the windows"


def _head_panels(results: Results, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    n_layers, n_heads = _shape(results)
    size = (2.2 + columns * max(1.9, 0.24 * n_heads), 1.8 + rows * (0.8 + 0.17 * n_layers))
    figure, axes = make_axes(rows, columns, size=size, sharex=True, sharey=True, squeeze=False)
    for ax in axes[-1]:
        ax.set_xlabel("head")
    figure.supylabel("layer of the head", fontsize=axes[0, 0].yaxis.label.get_size())  # of few layers too low for each
    return figure, axes


def _explain(figure: Figure, axes: np.ndarray, results: Results) -> None:
    """A legend of what is drawn besides colours."""
    n_layers, n_heads = _shape(results)
    unequal = len(results.heads) < n_layers * n_heads
    handles: list[Artist] = []
    if any(np.isnan(ax.images[0].get_array().filled(np.nan)).any() for ax in axes.flat):
        label = "impossible by causality, not run" + (", or no head" if unequal else "")
        handles.append(Patch(facecolor="0.9", edgecolor="0.5", hatch="////", label=label))
    if any(ax.lines for ax in axes.flat):
        handles.append(Line2D([], [], color="black", ls="", **NAMED, label="named by the rule"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _shape(results: Results) -> tuple[int, int]:
    """Layers up to the last with heads, and the most heads that one has."""
    return results.heads[-1].layer + 1, 1 + max(head.head for head in results.heads)


def _head_changes(
    figure: Figure,
    axes: np.ndarray,
    results: Results,
    values: Values,
    effects: Sequence[Effect],
    label: str,
    sign: int = 1,
) -> None:
    """A column an effect, a row a kind of removal in which it is measured, on one symmetric scale, times `sign`."""
    panels = [(effect, kind) for effect in effects for kind in kinds_of(effect)]
    means = np.full((len(panels), *_shape(results)), np.nan)
    for i, (effect, kind) in enumerate(panels):
        for head in results.heads:
            change = head.changes(kind).effect(effect)
            if change:
                means[i, head.layer, head.head] = sign * change.mean
    limit = float(np.nanmax(np.abs(means), initial=0)) or 1.0
    norm = SymLogNorm(limit / 1000, vmin=-limit, vmax=limit)
    for ax, (effect, kind), cells in zip(axes.T.flat, panels, means, strict=True):
        ax.patch.set(facecolor="0.9", edgecolor="0.5", hatch="////")
        image = ax.imshow(cells, cmap=DIVERGING, norm=norm, aspect="auto", interpolation="nearest")
        for named in _heads_named(values, effect, kind):
            ax.plot(named.head, named.layer, color="black", **NAMED)
        ax.set_title(f"{results.effects[effect].name},\n{'zero' if kind == 'zero' else 'its mean'}", fontsize=9)
        ax.xaxis.set_major_locator(WholeNumbers())
        ax.yaxis.set_major_locator(WholeNumbers(nbins=15))
    ticks = [side * limit / step for side, step in ((-1, 1), (-1, 10), (-1, 100), (0, 1), (1, 100), (1, 10), (1, 1))]
    bar = figure.colorbar(image, ax=axes, ticks=ticks, format=SIGNED, label=f"{label}\n(symmetric log scale)")
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8)


def _heads_named(values: Values, effect: Effect, kind: Kind) -> list[Head]:
    """Those that the verdict names for this effect."""
    if effect == "loss":
        return values.costs + values.gains
    return [Head(move.layer, move.head) for move in values.moves.kind(kind) if move.effect == effect]


def head_sweep_cumulative(result: Stored) -> Figure:
    """Heads removed together in three orders: value at the place, sink rate, perplexity."""
    results = result.results
    cumulative, baseline = results.cumulative, results.baseline
    removed = [step.removed for step in cumulative.score.steps]
    figure, axes = make_axes(1, 3, size=(14, 4.8))
    panels: list[tuple[Level, str, int]] = [
        ("end", f"dim {results.place.dim}: {results.effects['end'].label}", baseline.end.n),
        ("sink_rate", "sink rate", baseline.sink_rate.n),
        ("perplexity", "perplexity (log scale)", baseline.perplexity.n),
    ]
    for ax, (name, label, n) in zip(axes, panels, strict=True):
        orders = (("by attention score", cumulative.score), ("by |direct write|", cumulative.write))
        for i, (order, removal) in enumerate(orders):
            cells = removal.levels(name)
            means = [cell.mean for cell in cells]
            ax.plot(removed, means, label=order, color=PALETTE[i], marker=MARKERS[i], ls=LINES[i])
            if cells[0].ci95:
                low, high = np.array([cell.ci95 for cell in cells]).T
                ax.fill_between(removed, low, high, color=PALETTE[i], alpha=0.2, linewidth=0)
        for i, removal in enumerate(cumulative.random):
            means = [cell.mean for cell in removal.levels(name)]
            ax.plot(removed, means, color=PALETTE[7], lw=1, label="random, layers as by score" if i == 0 else None)
        ax.axhline(baseline.level(name).mean, color="black", lw=0.8, ls="--", label="all heads on")
        ax.set_xscale("log", base=2)
        ax.set_xticks(
            removed, [heads if heads == removed[-1] or 1.4 * heads < removed[-1] else "" for heads in removed]
        )
        ax.minorticks_off()
        ax.set_xlabel("heads removed (log scale)")
        ax.set_ylabel(label)
        ax.set_title(_in_windows(n), fontsize=9)
        ax.grid(axis="y", alpha=0.4)
    axes[0].yaxis.set_major_formatter(PLAIN)
    axes[2].set_yscale("log")
    axes[1].set_ylim(-0.03, 1.03)
    add_legend(figure, axes[1])
    figure.suptitle(make_title(result, "Heads removed together (bands: 95 % intervals)"), fontsize=11)
    return figure
