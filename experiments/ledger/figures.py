"""Who writes the followed value, layer by layer."""

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from experiments.ledger.results import Stored
from lib.report.figures import (
    DIVERGING,
    PALETTE,
    PLAIN,
    SIGNED,
    draw_curve,
    draw_heatmap,
    label_layers,
    make_axes,
    make_title,
)
from lib.report.tables import number


def ledger(result: Stored) -> Figure:
    """What attention and MLP of each layer write into the place, signed, under the block output that they add up to."""
    results, values = result.results, result.conclusion.values
    layers = results.layers
    before = sum(write.value for write in results.writes if write.layer is None)
    heads, bias, mlp, other = (
        np.array([part.mean if part else 0.0 for part in parts])
        for parts in zip(*((la.heads, la.attention_bias, la.mlp, la.other) for la in layers), strict=True)
    )
    attention = heads + bias
    start = -1.5  # where the embedding stands
    figure, ax = make_axes(size=(max(8, 3 + 0.25 * len(layers)), 5.4))
    ax.use_sticky_edges = False
    if values.plateau:
        first, last = values.plateau
        ax.axvspan(first - 0.5, last + 0.5, color=PALETTE[7], alpha=0.15, lw=0, label="plateau")
    ax.bar(start, before, color=PALETTE[4], label="embedding")
    ax.bar(range(len(layers)), attention, color=PALETTE[1], label="attention (heads and bias)")
    on_top = np.where(np.sign(attention) == np.sign(mlp), attention, 0)
    ax.bar(range(len(layers)), mlp, bottom=on_top, color=PALETTE[0], label="MLP")
    if other.any():
        on_top = np.sum([np.where(np.sign(part) == np.sign(other), part, 0) for part in (attention, mlp)], axis=0)
        ax.bar(range(len(layers)), other, bottom=on_top, color=PALETTE[5], label="other mixers and writes")
    draw_curve(ax, results.residual, 2, "block output (band: 95 % interval)")
    births = [values.birth] if values.birth else []
    for role, marker, writes in (("birth", "*", births), ("eraser", "v", values.erasers)):
        if writes:
            named = [f"{write.name} ({number(write.value, True)})" for write in writes[:4]]
            label = f"{role}: {', '.join(named)}" + (f" and {len(writes) - 4} more" if writes[4:] else "")
            layer = [start if write.layer is None else write.layer for write in writes]
            height = [write.value for write in writes]
            ax.scatter(layer, height, marker=marker, s=90, color=PALETTE[3], edgecolor="white", zorder=4, label=label)
    ax.axhline(0, color="black", lw=0.8)
    label_layers(ax, len(layers))
    ticks = range(0, len(layers), 1 + len(layers) // 16)
    ax.set_xticks([start, *ticks], ["emb.", *ticks])
    ax.set_xlim(start - 0.6, len(layers) - 0.4)
    ax.set_ylabel(f"dim {results.place.dim} at the place, signed")
    ax.yaxis.set_major_formatter(PLAIN)
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    ax.set_title(
        make_title(result, f"Who writes into dim {results.place.dim} ({results.condition.label})"),
        fontsize=11,
    )
    return figure


def ledger_writes(result: Stored, annotated: float = 0.01) -> Figure:
    """Heatmap layers x (heads, attention bias, MLP) of the signed writes, with numbers from 1 % of the peak on. The
    experts of a layer are one column: their sum."""
    results = result.results
    writes = [write for write in results.writes if write.layer is not None]
    component = {
        write.name: ("experts", None) if write.kind == "expert" else (write.kind, write.head) for write in writes
    }
    components = sorted(dict.fromkeys(component.values()), key=lambda found: found[1] is None)  # heads first
    values = np.zeros((len(results.layers), len(components)))
    for write in writes:
        values[write.order, components.index(component[write.name])] += write.value
    limit = float(np.abs(values).max()) or 1.0
    least = annotated * abs(result.conclusion.values.peak.value)
    figure, ax = make_axes(size=(max(6.0, 2.8 + 0.55 * len(components)), max(4.0, 1.8 + 0.27 * len(values))))
    draw_heatmap(
        ax,
        values,
        cmap=DIVERGING,
        norm=SymLogNorm(limit / 1000, vmin=-limit, vmax=limit),
        annot=np.array([[number(v, True) if abs(v) >= least else "" for v in row] for row in values]),
        fmt="",
        annot_kws={"size": 7},
        xticklabels=[kind.removeprefix("attention ") if head is None else head for kind, head in components],
        cbar_kws={
            "label": f"write into dim {results.place.dim} (symmetric log scale)",
            "ticks": [
                sign * limit / step for sign, step in ((-1, 1), (-1, 10), (-1, 100), (0, 1), (1, 100), (1, 10), (1, 1))
            ],
            "format": SIGNED,
        },
    )
    for column in (index for index, (_kind, head) in enumerate(components) if head is None):
        ax.axvline(column, color="black", lw=1)
    ax.set_xlabel("head, attention bias, MLP")
    ax.set_ylabel("layer")
    ax.tick_params(axis="y", rotation=0)
    ax.set_title(make_title(result, f"Writes into dim {results.place.dim} ({results.condition.label})"), fontsize=11)
    return figure
