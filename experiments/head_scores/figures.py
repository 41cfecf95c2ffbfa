"""Attention of every head to the first token."""

import numpy as np
from matplotlib.figure import Figure

from experiments.head_scores.results import Stored
from lib.report.figures import PALETTE, SEQUENTIAL, draw_heatmap, label_layers, make_axes, make_title


def head_scores(result: Stored) -> Figure:
    """Heatmap layers x heads of the mean attention to the first token."""
    results = result.results
    n_layers, n_heads = len(results.scores), max(map(len, results.scores))
    scores = np.full((n_layers, n_heads), np.nan)  # a layer without attention stays empty
    for layer, row in enumerate(results.scores):
        scores[layer, : len(row)] = [cell.mean for cell in row]
    figure, ax = make_axes(size=(max(5.0, 2.5 + 0.42 * n_heads), max(4.0, 1.6 + 0.27 * n_layers)))
    annotate = n_layers * n_heads <= 300
    draw_heatmap(
        ax,
        scores,
        cmap=SEQUENTIAL,
        vmin=0,
        vmax=1,
        annot=annotate,
        fmt=".2f",
        annot_kws={"size": 7},
        cbar_kws={"label": "mean attention probability on the first token"},
    )
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    ax.tick_params(axis="y", rotation=0)
    ax.set_title(make_title(result, "Attention to the first token"), fontsize=11)
    return figure


def head_ranking(result: Stored) -> Figure:
    """Every head's score by layer, and the highest heads with their intervals."""
    results = result.results
    ranking = results.ranking
    n_layers = len(results.scores)
    figure, (by_layer, by_rank) = make_axes(1, 2, size=(12, 5), width_ratios=[1.2, 1])
    by_layer.scatter(
        [r.layer for r in ranking], [r.score for r in ranking], s=22, color=PALETTE[0], alpha=0.6, label="head"
    )
    layer_means = [np.mean([cell.mean for cell in row]) if row else np.nan for row in results.scores]
    by_layer.plot(layer_means, color=PALETTE[1], marker="s", markersize=4, label="mean of the layer")
    by_layer.axhline(results.uniform, color=PALETTE[7], ls="--", lw=1, label="uniform attention")
    by_layer.set_ylabel("mean attention probability on the first token")
    by_layer.set_ylim(-0.03, 1.03)
    label_layers(by_layer, n_layers)
    by_layer.set_xlabel("layer")
    by_layer.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    top = ranking[:20][::-1]
    names = [f"layer {r.layer}, head {r.head}" for r in top]
    by_rank.barh(range(len(top)), [r.score for r in top], color=PALETTE[0])
    by_rank.set_yticks(range(len(top)), names)
    for row, r in enumerate(top):
        cell = results.scores[r.layer][r.head]
        if cell.ci95:
            by_rank.plot(cell.ci95, [row, row], color="black", lw=1.5)
    by_rank.set_xlim(0, 1.03)
    by_rank.set_xlabel("score (black: 95 % interval)")
    by_rank.set_title(f"the {len(top)} highest heads", fontsize=11)
    by_rank.tick_params(axis="y", labelsize=8)
    figure.suptitle(make_title(result, "Heads ranked by attention to the first token"), fontsize=12)
    return figure
