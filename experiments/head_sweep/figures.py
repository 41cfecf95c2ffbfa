"""Every head off or at its mean, one by one, and heads removed together."""

from typing import Any

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lib.report.figures import DIVERGING, LINES, MARKERS, NAMED, PALETTE, PLAIN, make_axes, make_title
from lib.report.tables import number


def head_sweep_place(payload: dict[str, Any]) -> Figure:
    """Heatmaps layers x heads: change of the value at the place, heads zero and at their mean."""
    results = payload["results"]
    keys = [key for key in results["shown"] if key in ("birth", "end", "last")]
    place = results["place"]
    figure, axes = _head_panels(results, len(keys) * 2)
    _head_changes(figure, axes, results, keys, "change of the value,\nnegative: smaller spike", place["sign"])
    through = results["through_scores"] and "through attention scores: impossible, position 0 sees only itself"
    title = f"Single heads removed: dim {place['dim']} at its place" + (f"\n{through}" if through else "")
    figure.suptitle(make_title(payload, title), fontsize=11)
    return figure


def head_sweep_model(payload: dict[str, Any]) -> Figure:
    """Heatmaps layers x heads: change of the sink rate and of the loss, heads zero."""
    results = payload["results"]
    figure, axes = _head_panels(results, 2)
    _head_changes(figure, axes[:1], results, ["sink_rate"], "change of the sink rate")
    _head_changes(figure, axes[1:], results, ["loss"], "change of the loss (nats a token)")
    title = f"Single heads removed: sink rate and loss {_in_windows(results['baseline']['loss'])}"
    figure.suptitle(make_title(payload, title), fontsize=11)
    return figure


def _in_windows(average: dict[str, Any]) -> str:
    """The title has the number of all windows."""
    return f"in {average['n']} of the windows"


def _head_panels(results: dict[str, Any], n: int) -> tuple[Figure, np.ndarray]:
    n_layers, n_heads = (max(head[key] for head in results["heads"]) + 1 for key in ("layer", "head"))
    size = (2.2 + n * max(1.9, 0.24 * n_heads), 2.6 + 0.17 * n_layers)
    figure, axes = make_axes(1, n, size=size, sharey=True)
    named = Line2D([], [], color="black", ls="", **NAMED, label="named by the rule")
    figure.legend(
        handles=[
            Patch(facecolor="0.9", edgecolor="0.5", hatch="////", label="impossible by causality, not run"),
            named,
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    axes[0].set_ylabel("layer of the head")
    return figure, axes


def _head_changes(
    figure: Figure, axes: np.ndarray, results: dict[str, Any], keys: list[str], label: str, sign: int = 1
) -> None:
    """One panel a key and a kind of removal in which it is measured, on one symmetric scale; `sign` multiplies."""
    shape = [max(head[key] for head in results["heads"]) + 1 for key in ("layer", "head")]
    panels = [(key, kind) for key in keys for kind in ("zero", "mean") if key in results["heads"][0][kind]]
    values = np.full((len(panels), *shape), np.nan)
    for i, (key, kind) in enumerate(panels):
        for head in results["heads"]:
            if head[kind][key]:
                values[i, head["layer"], head["head"]] = sign * head[kind][key]["mean"]
    limit = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    norm = SymLogNorm(limit / 1000, vmin=-limit, vmax=limit)
    for ax, (key, kind), of in zip(axes, panels, values, strict=True):
        ax.patch.set(facecolor="0.9", edgecolor="0.5", hatch="////")
        image = ax.imshow(of, cmap=DIVERGING, norm=norm, aspect="auto", interpolation="nearest")
        for layer, head in _heads_named(results["conclusion"]["values"], key, kind):
            ax.plot(head, layer, color="black", **NAMED)
        effect = results["effects"][key]["label"].split(" (")[0]
        ax.set_title(f"{effect},\n{'zero' if kind == 'zero' else 'its mean'}", fontsize=9)
        ax.set_xlabel("head")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=15, integer=True))
    ticks = [side * limit / step for side, step in ((-1, 1), (-1, 10), (-1, 100), (0, 1), (1, 100), (1, 10), (1, 1))]
    signed = FuncFormatter(lambda x, _position: number(x, signed=True))
    bar = figure.colorbar(image, ax=list(axes), ticks=ticks, format=signed, label=f"{label}\n(symmetric log scale)")
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8)


def _heads_named(values: dict[str, Any], key: str, kind: str) -> list[tuple[int, int]]:
    """[(layer, head)] that the verdict names for this effect; of the loss with the head at zero only."""
    if (key, kind) == ("loss", "zero"):
        return values["costs"] + values["gains"]
    return [(layer, head) for layer, head, _does, of in values["moves"][kind] if of == key]


def head_sweep_cumulative(payload: dict[str, Any]) -> Figure:
    """Heads removed together in three orders: value at the place, sink rate, perplexity."""
    results = payload["results"]
    cumulative, baseline = results["cumulative"], results["baseline"]
    draws = [of["steps"] for name, of in cumulative.items() if name.startswith("random")]
    removed = [step["removed"] for step in cumulative["score"]["steps"]]
    figure, axes = make_axes(1, 3, size=(14, 4.8))
    place = f"dim {results['place']['dim']}: {results['effects']['end']['label']}"
    for ax, key, label in zip(
        axes, ("end", "sink_rate", "perplexity"), (place, "sink rate", "perplexity (log scale)"), strict=True
    ):
        mean = "value" if key == "perplexity" else "mean"
        for i, (order, name) in enumerate((("score", "by attention score"), ("write", "by |direct write|"))):
            steps = [step[key] for step in cumulative[order]["steps"]]
            ax.plot(removed, [s[mean] for s in steps], label=name, color=PALETTE[i], marker=MARKERS[i], ls=LINES[i])
            if steps[0]["ci95"]:
                low, high = np.array([s["ci95"] for s in steps]).T
                ax.fill_between(removed, low, high, color=PALETTE[i], alpha=0.2, linewidth=0)
        for i, steps in enumerate(draws):
            values = [step[key][mean] for step in steps]
            ax.plot(removed, values, color=PALETTE[7], lw=1, label="random, layers as by score" if i == 0 else None)
        ax.axhline(baseline[key][mean], color="black", lw=0.8, ls="--", label="all heads on")
        ax.set_xscale("log", base=2)
        ax.set_xticks(removed, [n if n == removed[-1] or 1.4 * n < removed[-1] else "" for n in removed])
        ax.minorticks_off()
        ax.set_xlabel("heads removed (log scale)")
        ax.set_ylabel(label)
        ax.set_title(_in_windows(baseline[key]), fontsize=9)
        ax.grid(axis="y", alpha=0.4)
    axes[2].set_yscale("log")
    for ax in (axes[0], axes[2]):
        ax.yaxis.set_major_formatter(PLAIN)
    axes[1].set_ylim(-0.03, 1.03)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(make_title(payload, "Heads removed together (bands: 95 % intervals)"), fontsize=11)
    return figure
