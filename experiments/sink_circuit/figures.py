"""Attention to position 0 under each edit, by dose, and its logits."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.sink_circuit.results import Edit, Measured, Stored
from experiments.sink_circuit.text import DOSED
from lib.core.evidence import Average
from lib.report.figures import LINES, MARKERS, PALETTE, add_legend, label_layers, loss_axis, make_axes, make_title


def edits(result: Stored) -> Figure:
    """Attention and change of the loss of every edit beside its control."""
    results = result.results
    figure, (attention, loss) = make_axes(1, 2, size=(13, 1.8 + 0.55 * len(results.edits)), sharey=True)
    for row, edit in enumerate(results.edits.values()):
        pairs: list[tuple[Edit | Measured | None, float, int]] = [(edit, -0.16, 0), (edit.control, 0.16, 1)]
        for one, shift, style in pairs:
            if one is not None:
                _point(attention, one.attention, row + shift, style)
                _point(loss, one.loss_change, row + shift, style)
        if not edit.there:
            for ax in (attention, loss):
                where = ax.get_yaxis_transform()
                ax.text(0.5, row, "not there", transform=where, ha="center", va="center", fontsize=9, color="0.4")
    baseline = results.baseline
    attention.axvline(baseline.attention.mean, color="black", lw=1, label="the model as it is")
    attention.axvline(baseline.evenly, color="black", lw=1, ls=":", label="attending evenly")
    loss.axvline(0, color="black", lw=1)
    for style, label in enumerate(("edit", "its control")):
        attention.plot([], [], color=PALETTE[style], marker=MARKERS[style], ls="none", label=label)
    attention.set_yticks(range(len(results.edits)), [edit.label for edit in results.edits.values()], fontsize=9)
    attention.set_ylim(len(results.edits) - 0.5, -0.5)
    attention.set_xlim(0, 1.08 * attention.get_xlim()[1])
    attention.set_xlabel(f"mean attention to position 0, layers {results.layers[0]} to {results.layers[-1]}")
    loss_axis(loss)
    for ax in (attention, loss):
        ax.grid(axis="x", alpha=0.4)
    add_legend(figure, attention)
    figure.suptitle(make_title(result, f"Behind the sink: {result.conclusion.verdict}"), fontsize=11)
    return figure


def _point(ax: Axes, cell: Average | None, row: float, style: int) -> None:
    if cell is None:
        return
    if cell.ci95 is not None:
        ax.plot(cell.ci95, [row, row], color=PALETTE[style], lw=2)
    ax.plot([cell.mean], [row], color=PALETTE[style], marker=MARKERS[style], ms=6, ls="none")


def doses(result: Stored) -> Figure:
    """Attention and change of the loss by the factor of each dose."""
    results = result.results
    dosed = [DOSED[name] for name in results.doses] or DOSED.values()
    title = make_title(result, f"Doses of {' and of '.join(dosed)}")
    if not results.doses:
        figure, ax = make_axes(size=(7, 1.6))
        ax.axis("off")
        ax.text(0.5, 0.5, "this model has neither\na query bias nor learned positions", ha="center", va="center")
        figure.suptitle(title, fontsize=11)
        return figure
    figure, axes = make_axes(1, 2, size=(11, 4.4))
    for style, (name, of_edit) in enumerate(results.doses.items()):
        factors = [dose.factor for dose in of_edit]
        for ax, cells in zip(axes, zip(*((d.attention, d.loss_change) for d in of_edit), strict=True), strict=True):
            _curve(ax, factors, cells, style, DOSED[name])
    axes[0].axhline(results.baseline.evenly, color="black", lw=1, ls=":", label="attending evenly")
    axes[0].set_ylim(bottom=0)
    for ax, label in zip(axes, ("mean attention to position 0", "change of the loss, nats a token"), strict=True):
        ax.set_xlabel("times what it is")
        ax.set_ylabel(label)
        ax.grid(alpha=0.4)
    add_legend(figure, axes[0], columns=3)
    figure.suptitle(title, fontsize=11)
    return figure


def logits(result: Stored) -> Figure:
    """What query biases, where there are any, and all else give of the logits at key 0 and at other keys, by layer;
    below, the difference, which is all that softmax sees."""
    layers = result.results.logits
    parts = {"bias": "query bias", "content": "all else: query content, position biases"}
    if not layers or layers[0].bias is None:
        parts = {"content": "all of it: this model has no query bias that can be told apart"}
    n = 1 + max((layer.layer for layer in layers), default=0)
    figure, axes = make_axes(1 + len(parts), 1, size=(max(7, 3 + 0.2 * n), 4 + 2 * len(parts)), sharex=True)
    *levels, apart = axes
    x = [layer.layer for layer in layers]
    for style, (ax, (part, title)) in enumerate(zip(levels, parts.items(), strict=True)):
        at_0, others = ([getattr(layer, name) for layer in layers] for name in (part, f"{part}_others"))
        _curve(ax, x, at_0, 0, "at key 0")
        _curve(ax, x, others, 1, "at the other keys (mean)")
        ax.set_title(title, fontsize=10)
        ax.set_ylabel("mean logit\n(before softmax)")
        label = f"key 0 less others: {title.partition(':')[0]}"
        look = {"color": PALETTE[2 + style], "marker": MARKERS[2 + style], "ls": LINES[2 + style]}
        apart.plot(x, [one.mean - other.mean for one, other in zip(at_0, others, strict=True)], label=label, **look)
    apart.set_title("the difference of these means, which is all that softmax sees", fontsize=10)
    apart.set_ylabel("key 0 less others")
    for ax in axes:
        ax.axhline(0, color="black", lw=1)
        label_layers(ax, n)
        ax.set_xlabel("layer" if ax is apart else "")
    add_legend(figure, levels[0], apart, columns=2)
    figure.suptitle(make_title(result, "Logits from queries of the second half, mean over heads"), fontsize=11)
    return figure


def _curve(ax: Axes, x: Sequence[float], cells: Sequence[Average], style: int, label: str) -> None:
    look = {"color": PALETTE[style], "marker": MARKERS[style], "ls": LINES[style]}
    ax.plot(x, [cell.mean for cell in cells], ms=4, label=label, **look)
    if all(cell.ci95 for cell in cells):
        low, high = np.array([cell.ci95 for cell in cells]).T
        ax.fill_between(x, low, high, color=PALETTE[style], alpha=0.25, lw=0)
