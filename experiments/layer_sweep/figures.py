"""Every layer's MLP and attention block off or kept: what is left of the value, and what it costs."""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from lib.report.figures import LINES, MARKERS, PALETTE, SEQUENTIAL, label_layers, make_axes, make_title

SWEEP_RUNS = {
    "alone": "this one off",
    "only": "all others off",
    "only_with_first": "all others but MLP 0 off",
    "from_front": "off up to this one",
    "from_back": "off from this one on",
}


def layer_sweep(payload: dict[str, Any]) -> Figure:
    """Share of the value that is left in each run of every layer, MLPs above, attention below; verdicts on top."""
    results = payload["results"]
    kinds, values = results["kinds"], results["conclusion"]["values"]
    words = ("necessary", "sufficient", "redundant")
    n = len(kinds["mlp"])
    runs = {kind: [run for run in SWEEP_RUNS if any(run in row for row in rows)] for kind, rows in kinds.items()}
    figure, axes = make_axes(
        len(kinds), 1, size=(max(7, 3 + 0.42 * n), 6.8), height_ratios=[len(of) for of in runs.values()]
    )
    for ax, (kind, rows) in zip(axes, kinds.items(), strict=True):
        share = np.array(
            [[row[run]["retained"]["mean"] if run in row else np.nan for row in rows] for run in runs[kind]]
        )
        sns.heatmap(
            share,
            ax=ax,
            cmap=SEQUENTIAL,
            vmin=0,
            vmax=1,
            annot=share.round(1) + 0.0 if n <= 40 else False,  # no -0.0
            fmt=".1f",
            annot_kws={"size": 7},
            linewidths=0.5,
            yticklabels=[SWEEP_RUNS[run] for run in runs[kind]],
            cbar_kws={"label": "share of the value left\n(colour ends at 0 and 1)", "extend": "both"},
        )
        ax.tick_params(axis="y", rotation=0)
        ax.set_xlabel(f"layer of the {'MLP' if kind == 'mlp' else 'attention block'}")
        for layer in range(n):
            letters = [w[0].upper() for w in words if [kind, layer] in values[w]]
            letters += [f"{w[0].upper()}?" for w in words[:2] if [w, kind, layer] in values["cannot_tell"]]
            at = {"ha": "center", "va": "bottom", "fontsize": 9, "weight": "bold", "linespacing": 0.9}
            ax.text(layer + 0.5, -0.08, "\n".join(letters), **at)
    place, windows = results["place"], results["windows"]
    figure.suptitle(
        make_title(payload, f"Dim {place['dim']} at the end of its plateau (layer {place['plateau'][1]})")
        + f", of which {windows['spiking']['mean']:.0%} have the spike"
        + "\nN necessary, S sufficient, R redundant; ?: the interval holds the threshold",
        fontsize=11,
    )
    return figure


def layer_sweep_cost(payload: dict[str, Any]) -> Figure:
    """Perplexity and sink rate in each run of every layer."""
    results = payload["results"]
    figure, axes = make_axes(2, 2, size=(12, 7.4), sharex=True)
    for column, (kind, rows) in zip(axes.T, results["kinds"].items(), strict=True):
        for i, (run, label) in enumerate(SWEEP_RUNS.items()):
            of = [row for row in rows if run in row]
            x = [row["layer"] for row in of]
            style = {"color": PALETTE[i], "marker": MARKERS[i], "ms": 4, "ls": LINES[i % len(LINES)], "label": label}
            column[0].plot(x, [row[run]["perplexity"]["value"] for row in of], **style)
            column[1].plot(x, [row[run]["sink_rate"]["mean"] for row in of], **style)
        baseline = results["baseline"]
        column[0].axhline(baseline["perplexity"]["value"], color="black", lw=0.8, label="baseline")
        column[1].axhline(baseline["sink_rate"]["mean"], color="black", lw=0.8)
        column[0].set_title("MLPs" if kind == "mlp" else "attention blocks", fontsize=11)
        column[0].set_yscale("log")
        column[0].set_ylabel("perplexity (log scale)")
        column[1].set_ylabel("sink rate")
        column[1].set_ylim(-0.02, 1.02)
        for ax in column:
            label_layers(ax, len(rows))
            ax.set_xlabel("layer")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=6, loc="outside lower center")
    title = make_title(payload, "What the ablations cost")
    figure.suptitle(f"{title}, {results['windows']['whole']} of them run whole", fontsize=11)
    return figure
