"""Times and memory of the entries."""

import dataclasses

import numpy as np

from benchmarks.results import Spread
from lib.report.figures import PALETTE, make_axes, make_title


def benchmark(result):
    """Time and peak memory of every entry of a benchmark, one row each; colours are tools."""
    results, config = result.results, result.config
    rows = [row for row in results.entries if not row.error]
    tools = list(dict.fromkeys(row.tool for row in rows))
    colors = [PALETTE[tools.index(row.tool)] for row in rows]
    labels = [f"{row.label}\n{row.tool}: {row.gives}" for row in rows]
    heights = np.arange(len(rows))
    figure, axes = make_axes(1, 2, size=(12, 1.8 + 0.48 * len(rows)), sharey=True)
    peaks = np.array([row.peak_mib for row in rows])
    unknown = Spread(np.nan, np.nan, np.nan)
    ratios = np.array([dataclasses.astuple(row.ratio or unknown) for row in rows])
    axes[0].barh(heights, ratios[:, 0] - 1, left=1, color=colors)
    axes[0].hlines(heights, ratios[:, 1], ratios[:, 2], color="black", lw=1)
    axes[0].axvline(1, color="black", lw=0.8, ls="--")
    axes[0].set_xscale("log")
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].set_xlabel("time / bare forward's (line: min to max)")
    axes[1].barh(heights, peaks, color=colors)
    axes[1].set_xlabel(f"peak memory of the process ({results.memory}, MiB)")
    times = [f"{ratio:.3g} x" if np.isfinite(ratio) else "not timed" for ratio in ratios[:, 0]]
    texts = (times, [f"{peak:,.0f}" for peak in peaks])
    on_white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    style = {"textcoords": "offset points", "va": "center", "fontsize": 9, "bbox": on_white}
    for ax, values, ends in zip(axes, texts, (np.fmax(ratios[:, 2], 1), peaks), strict=True):
        for y, text, x in zip(heights, values, ends, strict=True):
            ax.annotate(text, (x, y), xytext=(4, 0), **style)
    axes[0].set_xlim(np.nanmin(ratios) / 1.5, 5 * np.nanmax(ratios))
    axes[1].set_xlim(0, 1.2 * peaks.max())
    axes[0].set_yticks(heights, labels, fontsize=9)
    axes[0].invert_yaxis()
    axes[0].margins(y=0.02)
    device = result.provenance["device"]
    where = f"{config['threads']} threads" if device == "cpu" else device
    title = make_title(result, f"The cost of measuring ({config['rounds']} rounds, {where})")
    figure.suptitle(title, fontsize=11)
    return figure
