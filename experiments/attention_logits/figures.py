"""Attention logits of one layer, queries x keys: the mean over heads, and every head."""

import numpy as np
from matplotlib.figure import Figure

from experiments.attention_logits.results import Stored
from lib.report.figures import DIVERGING, draw_heatmap, make_figure, tick_tokens


def attention_logits(result: Stored, columns: int = 4) -> Figure:
    """Logits of one layer, queries x keys: the mean over heads with the tokens, and every head in small."""
    results = result.results
    heads = np.array([_triangle(head) for head in results.logits])
    rows = -(-len(heads) // columns)
    heights = [5.0, 1.7 * rows]
    figure = make_figure((8, sum(heights)))
    ((upper,), (lower,)) = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
    ax = upper.subplots()
    average = _triangle(results.mean)
    said = average.round(1) + 0.0  # no -0.0
    annotate = {"annot": said, "fmt": ".1f", "annot_kws": {"size": 7}} if len(average) <= 16 else {}
    limit = np.nanmax(np.abs(average)) or 1.0
    draw_heatmap(
        ax,
        average,
        cmap=DIVERGING,
        vmin=-limit,
        vmax=limit,
        xticklabels=False,
        yticklabels=False,
        cbar_kws={"label": "attention logit", "shrink": 0.7},
        square=True,
        **annotate,
    )
    for axis in (ax.xaxis, ax.yaxis):
        tick_tokens(axis, results.tokens)
    ax.tick_params(axis="x", rotation=90, labelsize=8)
    ax.tick_params(axis="y", rotation=0, labelsize=8)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.set_title(f"mean over {len(heads)} heads", fontsize=11)
    limit = np.nanmax(np.abs(heads)) or 1.0
    small = lower.subplots(rows, columns, squeeze=False)
    for head, ax in enumerate(small.flat):
        ax.set_axis_off()
        if head < len(heads):
            image = ax.imshow(heads[head], cmap=DIVERGING, vmin=-limit, vmax=limit)
            ax.set_title(f"head {head}", fontsize=9)
    lower.colorbar(image, ax=small, label="attention logit")
    figure.suptitle(
        f"{result.config['model_name']}, layer {results.layer}: attention logits before softmax\n"
        "(blank: not visible; one scale for all heads)",
        fontsize=11,
    )
    return figure


def _triangle(rows: list[list[float | None]]) -> np.ndarray:
    """(seq, seq) array of lists of 1, 2, 3 ... numbers; nan elsewhere."""
    square = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        square[i, : len(row)] = row  # None becomes nan
    return square
