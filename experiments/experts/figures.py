"""The experts of all mixtures at a glance, and what is left of the value without each candidate."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.experts.judge import GONE, STAYS
from experiments.experts.results import Run, Stored, given
from lib.core.definitions import CANDIDATE
from lib.core.evidence import Average
from lib.report.figures import MARKERS, PALETTE, PLAIN, SEQUENTIAL, make_axes, make_title

SHOWN = 20  # candidates
GREY = "0.85"
STYLES: dict[str, dict[str, Any]] = {  # of marks in the map, what is drawn first first
    "super": {"marker": "s", "ms": 13, "mfc": "none", "mec": PALETTE[3], "mew": 2, "label": "super expert"},
    "named": {"marker": "X", "ms": 10, "mfc": PALETTE[4], "mec": "black", "mew": 1, "label": "named by the verdict"},
    "writes": {
        **{"marker": "o", "ms": 5, "mfc": "white", "mec": "black", "mew": 0.8},
        "label": f"writes at least {CANDIDATE:.0%} of the peak at the place",
    },
}


def experts(result: Stored) -> Figure:
    """Heat map layers x experts of the largest output; who writes at the place, and whom the verdict names."""
    results, values = result.results, result.conclusion.values
    layers = [mixture.layer for mixture in results.mixtures]
    width = max(mixture.experts for mixture in results.mixtures)
    shared = width if any(mixture.shared for mixture in results.mixtures) else None  # their column
    sizes = np.full((len(layers), width + (shared is not None)), np.nan)
    marked: dict[str, list[tuple[int, int]]] = {name: [] for name in STYLES}
    for row in results.experts:
        cell = layers.index(row.layer), width if row.expert is None else row.expert
        sizes[cell] = row.largest_output or np.nan
        of_row = {"super": row.super, "writes": results.writes_much(row), "named": row.name in values.experts}
        for name, holds in of_row.items():
            if holds:
                marked[name].append((cell[1], cell[0]))
    figure, ax = make_axes(size=(min(14.0, max(7.0, 3 + 0.11 * sizes.shape[1])), max(3.6, 2.4 + 0.17 * len(layers))))
    ax.set_facecolor(GREY)
    image = ax.imshow(sizes, cmap=SEQUENTIAL, norm=LogNorm(), aspect="auto", interpolation="nearest")
    for name, style in STYLES.items():
        if marked[name]:
            ax.plot(*zip(*marked[name], strict=True), ls="", **style)
    ax.set_yticks(*_ticks(layers))
    ax.set_xticks(range(0, width, -(-width // 16)))
    ax.set_xlim(-0.5, sizes.shape[1] - 0.5)
    if shared is not None:
        ax.axvline(shared - 0.5, color="white", lw=2)
        ax.annotate("shared", (shared, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
    ax.set_xlabel("expert")
    ax.set_ylabel("layer")
    figure.colorbar(image, ax=ax, label="largest |output| (log scale)\ngrey: no token is sent to it", format=PLAIN)
    handles = [Line2D([], [], ls="", **style) for style in STYLES.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    title = f"Experts: dim {results.place.dim} at its place\n{result.conclusion.verdict}"
    figure.suptitle(make_title(result, title), fontsize=11)
    return figure


def _ticks(layers: list[int], at_most: int = 24) -> tuple[list[int], list[str]]:
    step = -(-len(layers) // at_most)
    return [*range(0, len(layers), step)], [str(layer) for layer in layers[::step]]


def off(result: Stored) -> Figure:
    """Each candidate off, off with weights renormalised, and as the only one on; beside random experts off."""
    results = result.results
    rows = sorted(results.candidates, key=lambda row: row.left)[:SHOWN]
    figure, axes = make_axes(
        1, 3, size=(13, max(3.4, 2.2 + 0.32 * (len(rows) + 2))), sharey=True, width_ratios=[2, 1, 1]
    )
    left, sinks, loss = axes
    labels = [str(row.name) for row in rows]
    kinds = (("off", "off"), ("off_renormalised", "off, others renormalised"), ("alone", "only candidate on"))
    for y, row in enumerate(rows):
        for i, (kind, _label) in enumerate(kinds):
            run: Run | None = given(getattr(row, kind))
            if run and run.retained:
                _dot(left, run.retained, y + 0.22 * (i - 1), i)
        alone = given(row.off)
        if alone:
            _dot(sinks, alone.sink_rate_change, y, 0)
            _dot(loss, alone.loss_change, y, 0)
    together = given(results.together)
    if together:
        labels.append("all candidates off")
        if together.retained:
            _dot(left, together.retained, len(rows), 0)
        _dot(sinks, together.sink_rate_change, len(rows), 0)
        _dot(loss, together.loss_change, len(rows), 0)
    random = [run for row in results.random if (run := given(row.off))]
    if random:
        y = len(labels)
        labels.append(f"random, off ({len(random)})")
        for ax, cells in (
            (left, [run.retained for run in random]),
            (sinks, [run.sink_rate_change for run in random]),
            (loss, [run.loss_change for run in random]),
        ):
            means = [cell.mean for cell in cells if cell]
            ax.plot(means, np.full(len(means), y), "x", color="black", ms=6)
    for x in (GONE, STAYS):
        left.axvline(x, color="black", lw=0.8, ls=":")
    for ax in axes:
        ax.axvline(0, color="black", lw=0.8)
        ax.grid(axis="y", alpha=0.3)
        ax.xaxis.set_major_formatter(PLAIN)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6 if ax is left else 4))
    left.set_yticks(range(len(labels)), labels, fontsize=9)
    left.set_ylim(len(labels) - 0.4, -0.6)
    left.set_ylabel("expert (layer.expert)")
    left.set_xlabel(f"share of the value left at layer {results.place.plateau[1]}\n(dotted: gone, stays)")
    sinks.set_xlabel("change of the sink rate")
    loss.set_xlabel("change of the loss (nats a token)")
    handles = [Line2D([], [], ls="", marker=MARKERS[i], color=PALETTE[i], label=kinds[i][1]) for i in range(3)]
    handles.append(Line2D([], [], ls="", marker="x", color="black", label="random experts, each off"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    more = f", {len(rows)} of {len(results.candidates)} candidates" if len(rows) < len(results.candidates) else ""
    title = f"Experts off: dim {results.place.dim} at its place (lines: 95 % intervals{more})"
    figure.suptitle(make_title(result, title), fontsize=11)
    return figure


def _dot(ax: Axes, cell: Average, y: float, style: int) -> None:
    """A mean and its interval."""
    ax.plot(cell.mean, y, MARKERS[style], color=PALETTE[style], ms=6)
    if cell.ci95:
        ax.plot(cell.ci95, [y, y], color=PALETTE[style], lw=1.5)
