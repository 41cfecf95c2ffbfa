"""Every layer's MLP and attention block off or kept: what is left of the value, and what it costs."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.layer_sweep.results import Kind, Part, Results, Run, Stored, Swept, Word
from lib.report.figures import LINES, MARKERS, PALETTE, SEQUENTIAL, draw_heatmap, label_layers, make_axes, make_title

SWEEP_RUNS: dict[Run, str] = {
    "alone": "this one off",
    "only": "all others off",
    "only_with_first": "all others but MLP 0 off",
    "from_front": "off up to this one",
    "from_back": "off from this one on",
}
LETTERS: dict[Word, str] = {"necessary": "N", "sufficient": "S", "redundant": "R"}
ABOVE: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 9, "weight": "bold", "linespacing": 0.9}


def layer_sweep(result: Stored) -> Figure:
    """Share of the value that is left in each run of every layer, MLPs above, attention below; verdicts on top."""
    results, values = result.results, result.conclusion.values
    kinds = results.kinds
    n = len(kinds["mlp"])
    runs = {
        kind: [run for run in SWEEP_RUNS if any(run in layer.runs for layer in layers)]
        for kind, layers in kinds.items()
    }
    figure, axes = make_axes(
        len(kinds), 1, size=(max(7, 3 + 0.42 * n), 6.8), height_ratios=[len(shown) for shown in runs.values()]
    )
    for ax, (kind, layers) in zip(axes, kinds.items(), strict=True):
        share = np.array([[_retained(layer.runs.get(run)) for layer in layers] for run in runs[kind]])
        draw_heatmap(
            ax,
            share,
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
        ax.set_xlabel(f"layer of the {'MLP' if kind == 'mlp' else 'attention block'}{_in_its_place(kind, results)}")
        for layer in range(n):
            part = Part(kind, layer)
            said = [LETTERS[word] for word, parts in values.words.items() if word in LETTERS and part in parts]
            said += [
                f"{LETTERS[unclear.word]}?"
                for unclear in values.cannot_tell
                if unclear.part == part and unclear.word in ("necessary", "sufficient")
            ]
            ax.text(layer + 0.5, -0.08, "\n".join(said), **ABOVE)
    place = results.place
    figure.suptitle(
        make_title(result, f"Dim {place.dim} at the end of its plateau (layer {place.plateau[1]})")
        + f", of which {results.windows.spiking.mean:.0%} have the spike"
        + "\nN necessary, S sufficient, R redundant; ?: the interval holds the threshold",
        fontsize=11,
    )
    return figure


def _in_its_place(kind: Kind, results: Results) -> str:
    """What an attention block is in layers without attention."""
    return ", or what mixes tokens in its place" if kind == "attention" and results.mixers else ""


def _retained(swept: Swept | None) -> float:
    return np.nan if swept is None or swept.retained is None else swept.retained.mean


def layer_sweep_cost(result: Stored) -> Figure:
    """Perplexity and sink rate in each run of every layer."""
    results = result.results
    figure, axes = make_axes(2, 2, size=(12, 7.4), sharex=True)
    for column, (kind, layers) in zip(axes.T, results.kinds.items(), strict=True):
        for i, (run, label) in enumerate(SWEEP_RUNS.items()):
            runs = {layer.layer: layer.runs[run] for layer in layers if run in layer.runs}
            style = {"color": PALETTE[i], "marker": MARKERS[i], "ms": 4, "ls": LINES[i % len(LINES)], "label": label}
            column[0].plot([*runs], [swept.perplexity.value for swept in runs.values()], **style)
            column[1].plot([*runs], [swept.sink_rate.mean for swept in runs.values()], **style)
        column[0].axhline(results.baseline.perplexity.value, color="black", lw=0.8, label="baseline")
        column[1].axhline(results.baseline.sink_rate.mean, color="black", lw=0.8)
        title = "MLPs" if kind == "mlp" else "attention blocks"
        column[0].set_title(title + _in_its_place(kind, results), fontsize=11)
        column[0].set_yscale("log")
        column[0].set_ylabel("perplexity (log scale)")
        column[1].set_ylabel("sink rate")
        column[1].set_ylim(-0.02, 1.02)
        for ax in column:
            label_layers(ax, len(layers))
            ax.set_xlabel("layer")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=6, loc="outside lower center")
    title = make_title(result, "What the ablations cost")
    figure.suptitle(f"{title}, {results.windows.whole} of them run whole", fontsize=11)
    return figure
