"""A few heads off, beside random heads of the same layers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.head_pruning.results import SETS, Stored
from lib.report.figures import PALETTE, PLAIN, add_legend, draw_curve, label_layers, make_axes, make_title
from lib.report.tables import number


def pruning_comparison(result: Stored, name: str) -> Figure:
    """One set of heads off: top-1 of every layer, and its paired change beside the random draws."""
    results = result.results
    conditions, changes = results.conditions, results.changes
    figure, (level, change) = make_axes(1, 2, size=(12, 4.8))
    for i, condition in enumerate((conditions["baseline"], conditions[name])):
        draw_curve(level, [layer.top1 for layer in condition.layers], i, condition.label)
    level.set_yscale("log")
    level.set_ylabel("top-1 |activation| (log scale)")
    for i, draw in enumerate(results.null.named(name).run_whole):
        means = [layer.top1.mean for layer in changes[draw]]
        change.plot(means, color=PALETTE[7], lw=1, label="random heads of the same layers" if i == 0 else None)
    draw_curve(change, [layer.top1 for layer in changes[name]], 1, conditions[name].label)
    change.axhline(0, color="black", lw=0.8)
    change.set_ylabel("change of top-1 (paired, band: 95 % interval)")
    change.yaxis.set_major_formatter(PLAIN)
    for ax in (level, change):
        label_layers(ax, len(changes[name]))
        ax.set_xlabel("layer")
    add_legend(figure, level, change)
    heads = ", ".join(f"{layer}.{head}" for layer, head in results.sets.named(name))
    figure.suptitle(make_title(result, f"{name.upper()} heads off (layer.head: {heads})"), fontsize=11)
    return figure


def pruning_summary(result: Stored) -> Figure:
    """Both sets beside their null: change at the followed place, and perplexity."""
    results = result.results
    figure, (place, loss) = make_axes(1, 2, size=(11, 4.6))
    for row, name in enumerate(SETS):
        null = results.null.named(name)
        if null.of_set is not None:
            place.plot(null.of_set, row, "o", color=PALETTE[1], ms=9)
            _draws(place, row, null.absolute_change)
            says = "impossible by causality" if null.impossible else f"p = {number(null.p)}"
            place.annotate(says, (1, row), xycoords=("axes fraction", "data"), xytext=(-6, 14),
                           textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
        loss.plot(results.conditions[name].perplexity.value, row, "o", color=PALETTE[1], ms=9)
        _draws(loss, row, null.perplexity)
    baseline = results.conditions["baseline"].perplexity.value
    loss.axvline(baseline, color="black", lw=0.8, ls="--", label=f"baseline {number(baseline)}")
    end = results.place.plateau[1]
    place.set_xlabel(f"|change| of dim {results.place.dim} after layer {end} / its size")
    place.margins(x=0.1)
    loss.set_xlabel("perplexity")
    for ax in (place, loss):
        ax.set_yticks([0, 1], ["TOP", "BOTTOM"])
        ax.set_ylim(1.5, -0.5)
        ax.grid(axis="x", alpha=0.4)
    place.plot([], [], "o", color=PALETTE[1], label="the set")
    place.plot([], [], "|", color=PALETTE[7], label="random heads of its layers (second panel: those run whole)")
    place.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    loss.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.suptitle(make_title(result, "Removing single heads, beside random heads of the same layers"), fontsize=11)
    return figure


def _draws(ax: Axes, row: int, values: Sequence[float]) -> None:
    ax.plot(values, np.full(len(values), row + 0.15), "|", color=PALETTE[7], ms=12)
