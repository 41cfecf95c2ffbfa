"""Where attention goes, and what it finds at the first key."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.sinks.judge import KINDS
from experiments.sinks.results import Head, Key, Stored
from lib.core.definitions import ALIKE, BROADCASTS, DRAINED
from lib.core.evidence import CANNOT_TELL
from lib.report.figures import (
    LINES,
    MARKERS,
    PALETTE,
    SEQUENTIAL,
    WholeNumbers,
    add_legend,
    make_axes,
    make_title,
)
from lib.report.tables import shortened

NO_SINK = "no sink at key 0"
STYLES = ((0.75, 0.75, 0.75), "."), (PALETTE[0], "o"), (PALETTE[1], "s"), (PALETTE[2], "^"), (PALETTE[3], "x")
SHOWN = 20  # rows of tokens
LEAST = 5  # rows of tokens: with fewer, the label of the colour bar is longer than the figure is high


def positions(result: Stored) -> Figure:
    """Sink rate at every key, of every input; below, layers x keys."""
    results = result.results
    names = [*results.inputs]
    n_layers = len(results.heads)
    size = (3 + 3.6 * len(names), 5.4 + 0.12 * n_layers)
    figure, grid = make_axes(2, len(names), size=size, sharex=True, sharey="row", squeeze=False, height_ratios=[1, 1.5])
    for i, (name, measured) in enumerate(results.inputs.items()):
        curve, image = grid[:, i]
        means = [rate.mean for rate in measured.sink_rate]
        curve.plot(means, color=PALETTE[i], marker=MARKERS[i], ms=3, ls=LINES[i])
        if measured.sink_rate[0].ci95:
            low, high = np.array([rate.ci95 for rate in measured.sink_rate]).T
            curve.fill_between(range(len(means)), low, high, color=PALETTE[i], alpha=0.25, lw=0)
        curve.set_yscale("symlog", linthresh=0.01)
        curve.set_yticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
        curve.minorticks_off()
        curve.set_ylim(0, 1.1)
        curve.grid(axis="y", alpha=0.4)
        curve.set_title(f"{name}: {measured.sink_rate[0].mean:.1%} of heads at key 0", fontsize=10)
        shares = np.full((n_layers, len(means)), np.nan)
        for layer, of_layer in enumerate(measured.by_layer):
            shares[layer, : len(of_layer)] = of_layer or np.nan
        drawn = image.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        image.set_title(f"{name}, by layer", fontsize=10)
        image.set_xlabel("key")
        for ax in (curve, image):
            ax.axvline(results.n_listed - 0.5, color="black", lw=1, ls=":")
            ax.xaxis.set_major_locator(WholeNumbers())
        image.yaxis.set_major_locator(WholeNumbers(nbins=15))
    grid[0, 0].set_ylabel("share of all heads\n(linear up to 0.01, then log)")
    grid[1, 0].set_ylabel("layer")
    figure.colorbar(drawn, ax=list(grid[1]), label="share of the layer's heads")
    title = (
        f"Heads with a sink at key k, epsilon {results.epsilon:g} (bands: 95 % intervals)\n"
        f"right of the dotted line fewer than {results.least} later queries see a key"
    )
    figure.suptitle(make_title(result, title), fontsize=11)
    return figure


def tokens(result: Stored) -> Figure:
    """Layers x tokens that are sinks, of every input."""
    results = result.results
    names = [*results.inputs]
    n_layers = len(results.heads)
    rows = max(LEAST, *(len(measured.keys[:SHOWN]) for measured in results.inputs.values()))
    size = (3.2 + (2.4 + 0.07 * n_layers) * len(names), 2.2 + 0.27 * rows)
    figure, axes = make_axes(1, len(names), size=size, squeeze=False)
    for ax, (name, measured) in zip(axes[0], results.inputs.items(), strict=True):
        keys = measured.keys[:SHOWN]
        shares = np.full((rows, n_layers), np.nan)
        for row, key in enumerate(keys):
            shares[row] = key.shares
        drawn = ax.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        ax.set_yticks(range(len(keys)), [_named(key) for key in keys], fontsize=8)
        ax.set_xlabel("layer")
        ax.xaxis.set_major_locator(WholeNumbers())
        ax.set_title(f"{name}: {len(keys)} of {measured.n_keys:,} tokens", fontsize=10)
        if not keys:
            ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    figure.colorbar(drawn, ax=list(axes[0]), label="share of the layer's\nheads (mean)")
    title = (
        f"Tokens that are sinks: over {results.epsilon:g} of a head, mean over {results.least} later queries at least\n"
        "(times it is one; * always, + sometimes with a massive activation)"
    )
    figure.suptitle(make_title(result, title), fontsize=11)
    return figure


def _named(key: Key) -> str:
    mark = " *" if key.massive == key.times else " +" if key.massive else ""
    what = "first key" if key.position == 0 else f"'{shortened(key.token, 14)}'"
    return f"{what} ({key.times}){mark}"


def values(result: Stored) -> Figure:
    """Of every head: the first value's norm beside other keys', what it gives of the output, and cosines with keys."""
    results, sinks = result.results, result.conclusion.values.sinks
    figure, (norms, kinds, angles) = make_axes(1, 3, size=(15, 5.2))
    named = {(sink.layer, sink.head): sink.kind for sink in sinks}
    groups: dict[str, list[Head]] = {NO_SINK: [], **{kind: [] for kind in (*KINDS, CANNOT_TELL)}}
    for layer, heads in enumerate(results.heads):
        for number, head in enumerate(heads):
            if head.value is not None:
                groups[named.get((layer, number), NO_SINK)].append(head)
    for (kind, heads), (color, marker) in zip(groups.items(), STYLES, strict=True):
        style = {"s": 24, "color": color, "marker": marker, "label": f"{kind} ({len(heads)})"}
        _scatter(norms, heads, "value_others", "value", style)
        _scatter(angles, heads, "cosine_others", "cosine", style)
        if kind != NO_SINK:
            _scatter(kinds, heads, "value_ratio", "output_share", style)
    norms.set_xscale("log")
    norms.set_yscale("log")
    for ratio, line in ((1, "-"), (DRAINED, "--")):
        norms.axline((1, ratio), (10, 10 * ratio), color="black", lw=1, ls=line)
    norms.set_xlabel("|value| of other keys, mean")
    norms.set_ylabel("|value| of key 0")
    norms.set_title(f"value norms (lines: equal; {DRAINED:g} of it)", fontsize=10)
    kinds.axvline(DRAINED, color="black", lw=1, ls="--")
    kinds.axhline(BROADCASTS, color="black", lw=1, ls="--")
    kinds.set_xlabel("|value| of key 0 / of other keys")
    kinds.set_ylabel("share of the head's output from key 0")
    kinds.set_title("sink heads, and the rule's thresholds", fontsize=10)
    angles.axline((0, 0), slope=1, color="black", lw=1)
    angles.set_xlabel("cosine of queries with the other keys that they see")
    angles.set_ylabel("cosine of queries with key 0")
    angles.set_title("the angle of a logit (line: equal)", fontsize=10)
    add_legend(figure, norms, columns=5)
    figure.suptitle(make_title(result, f"What heads find at key 0 ({results.first_input})"), fontsize=11)
    return figure


def _scatter(ax: Axes, heads: list[Head], x: str, y: str, style: dict[str, Any]) -> None:
    """Of two of the heads' numbers, or of their means."""
    points = [[getattr(cell, "mean", cell) for cell in (getattr(head, x), getattr(head, y))] for head in heads]
    ax.scatter(*np.array(points, dtype=float).reshape(-1, 2).T, **style)


def secondary(result: Stored) -> Figure:
    """Lifetimes of the secondary sinks, of every input."""
    results = result.results
    n_layers = len(results.heads)
    of_input = {name: [one for one in results.secondary if one.input == name][:SHOWN] for name in results.inputs}
    most = max(2, *map(len, of_input.values()))
    size = (1.5 + (2.8 + 0.06 * n_layers) * len(of_input), 2.6 + 0.27 * most)
    figure, axes = make_axes(1, len(of_input), size=size, squeeze=False)
    for ax, (name, rows) in zip(axes[0], of_input.items(), strict=True):
        common = max((b for b in results.between if b.input == name), key=lambda between: between.windows)
        between = ax.axvspan(common.first - 0.5, common.last + 0.5, color="0.9")
        for y, row in enumerate(rows):
            ends = [row.first_layer, row.first_layer + row.layers - 1]
            ax.plot(ends, [y, y], color=PALETTE[0], lw=3, solid_capstyle="butt")
            ax.plot(ends[:1], [y], color=PALETTE[1], marker="o", ms=5)
        if not rows:
            ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center")
        names = [f"'{shortened(row.token, 14)}' at {row.position} ({row.times})" for row in rows]
        ax.set_yticks(range(len(rows)), names, fontsize=8)
        ax.set_ylim(most - 0.4, -0.6)
        ax.set_xlim(-0.5, n_layers - 0.5)
        ax.xaxis.set_major_locator(WholeNumbers())
        ax.set_xlabel("layer (block output)")
        ax.grid(axis="x", alpha=0.4)
        ax.set_title(f"{name}: {len(rows)} of {results.inputs[name].n_secondary:,}", fontsize=10)
    label = "layers between the largest rise and the largest fall of the first token's norm, in most windows"
    figure.legend([between], [label], loc="outside lower center", frameon=False, fontsize=9)
    title = (
        f"Secondary sinks: later sinks whose hidden state has |cosine| > {ALIKE} with the first token's\n"
        "(where and how often; dot: the first layer of the longest run)"
    )
    figure.suptitle(make_title(result, title), fontsize=11)
    return figure
