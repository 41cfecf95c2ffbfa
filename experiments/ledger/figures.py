"""Who writes the followed value, layer by layer."""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lib.report.figures import DIVERGING, PALETTE, PLAIN, draw_curve, label_layers, make_axes, make_title
from lib.report.tables import number


def ledger(payload: dict[str, Any]) -> Figure:
    """What attention and MLP of each layer write into the place, signed, under the block output that they add up to."""
    results = payload["results"]
    layers, values = results["layers"], results["conclusion"]["values"]
    before = sum(write["value"] for write in results["writes"] if write["layer"] is None)
    attention = [layer["heads"]["mean"] + (layer["attention_bias"] or {"mean": 0})["mean"] for layer in layers]
    mlp = [layer["mlp"]["mean"] for layer in layers]
    start = -1.5  # where the embedding stands
    figure, ax = make_axes(size=(max(8, 3 + 0.25 * len(layers)), 5.4))
    ax.use_sticky_edges = False
    if values["plateau"]:
        first, last = values["plateau"]
        ax.axvspan(first - 0.5, last + 0.5, color=PALETTE[7], alpha=0.15, lw=0, label="plateau")
    ax.bar(start, before, color=PALETTE[4], label="embedding")
    ax.bar(range(len(layers)), attention, color=PALETTE[1], label="attention (heads and bias)")
    on_top = np.where(np.sign(attention) == np.sign(mlp), attention, 0)
    ax.bar(range(len(layers)), mlp, bottom=on_top, color=PALETTE[0], label="MLP")
    draw_curve(ax, results["residual"], 2, "block output (band: 95 % interval)")
    for role, marker, writes in (("birth", "*", [values["birth"]]), ("eraser", "v", values["erasers"])):
        writes = [write for write in writes if write]
        if writes:
            named = [f"{write['name']} ({number(write['value'], True)})" for write in writes[:4]]
            label = f"{role}: {', '.join(named)}" + (f" and {len(writes) - 4} more" if writes[4:] else "")
            layer = [start if write["layer"] is None else write["layer"] for write in writes]
            height = [write["value"] for write in writes]
            ax.scatter(layer, height, marker=marker, s=90, color=PALETTE[3], edgecolor="white", zorder=4, label=label)
    ax.axhline(0, color="black", lw=0.8)
    label_layers(ax, len(layers))
    ticks = range(0, len(layers), 1 + len(layers) // 16)
    ax.set_xticks([start, *ticks], ["emb.", *ticks])
    ax.set_xlim(start - 0.6, len(layers) - 0.4)
    ax.set_ylabel(f"dim {results['place']['dim']} at the place, signed")
    ax.yaxis.set_major_formatter(PLAIN)
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    ax.set_title(
        make_title(payload, f"Who writes into dim {results['place']['dim']} ({results['condition']['label']})"),
        fontsize=11,
    )
    return figure


def ledger_writes(payload: dict[str, Any], annotated: float = 0.01) -> Figure:
    """Heatmap layers x (heads, attention bias, MLP) of the signed writes, with numbers from 1 % of the peak on."""
    results = payload["results"]
    writes = [write for write in results["writes"] if write["layer"] is not None]
    components = list(dict.fromkeys(write["component"] for write in writes))
    values = np.zeros((len(results["layers"]), len(components)))
    for write in writes:
        values[write["layer"], components.index(write["component"])] = write["value"]
    limit = float(np.abs(values).max()) or 1.0
    least = annotated * abs(results["conclusion"]["values"]["peak"]["value"])
    figure, ax = make_axes(size=(max(6.0, 2.8 + 0.55 * len(components)), max(4.0, 1.8 + 0.27 * len(values))))
    sns.heatmap(
        values,
        ax=ax,
        cmap=DIVERGING,
        norm=SymLogNorm(limit / 1000, vmin=-limit, vmax=limit),
        annot=np.array([[number(v, True) if abs(v) >= least else "" for v in row] for row in values]),
        fmt="",
        annot_kws={"size": 7},
        xticklabels=[name.removeprefix("head ").replace("attention ", "") for name in components],
        cbar_kws={
            "label": f"write into dim {results['place']['dim']} (symmetric log scale)",
            "ticks": [
                sign * limit / step for sign, step in ((-1, 1), (-1, 10), (-1, 100), (0, 1), (1, 100), (1, 10), (1, 1))
            ],
            "format": FuncFormatter(lambda x, _position: number(x, signed=True)),
        },
    )
    for column in (index for index, name in enumerate(components) if not name.startswith("head")):
        ax.axvline(column, color="black", lw=1)
    ax.set_xlabel("head, attention bias, MLP")
    ax.set_ylabel("layer")
    ax.tick_params(axis="y", rotation=0)
    ax.set_title(
        make_title(payload, f"Writes into dim {results['place']['dim']} ({results['condition']['label']})"), fontsize=11
    )
    return figure
