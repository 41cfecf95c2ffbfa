"""The smallest set of neurons, and what they read."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from msgspec import UNSET

from experiments.neuron_sets.results import Scaled, Stored
from lib.core.evidence import Average
from lib.report.figures import PALETTE, PLAIN, add_legend, draw_cumulative, make_axes, make_title, write_beside
from lib.report.tables import number


def neuron_sets(result: Stored) -> Figure:
    """How fast the neurons add up, and the place with the smallest set alone and removed, beside random sets."""
    results, conclusion = result.results, result.conclusion
    size, dim, wanted = len(results.minimal_set), results.place.dim, conclusion.values.share
    figure, (curve, place) = make_axes(1, 2, size=(13, 4.8), width_ratios=[1, 1.25])
    draw_cumulative(curve, np.array(results.cumulative, dtype=float), "cumulative share")
    curve.axhline(wanted, color="black", lw=0.8, ls="--", label=f"{wanted:.0%} of the output")
    if size:
        curve.axvline(size, color=PALETTE[1], lw=1.5, ls=":", label=f"smallest set: {size} of {results.width}")
    output, activation = "down projection", "activation"
    if results.mixture is not UNSET:
        output, activation = "mixture", "routing weight \u00d7 activation"
    curve.set_ylabel(f"share of the {output}'s output")
    add_legend(figure, curve)
    curve.set_title(f"{activation} \u00d7 weight to dim {dim}", fontsize=11)

    runs, draws = results.runs, results.null.draws
    labels = []
    for y, run, color in (
        (0, runs.baseline, PALETTE[7]),
        (1, runs.keep_only, PALETTE[0]),
        (3, runs.remove_only, PALETTE[1]),
    ):
        value = run.value
        labels.append((y, run.label))
        place.barh(y, value.mean, height=0.6, color=color)
        if value.ci95:
            place.plot(value.ci95, [y, y], color="black", lw=1.5)
        text = number(value.mean, True) + (f" ({100 * run.share.mean:.1f} %)" if run.share else "")
        write_beside(place, y, text)
    for y, label, values in (
        (2, "only random on", [draw.keep_only.value.mean for draw in draws]),
        (4, "random off", [draw.remove_only.value.mean for draw in draws]),
    ):
        if values:
            labels.append((y, f"{label} ({len(values)} next in activity)"))
            place.plot(values, np.full(len(values), y), "x", color="black", ms=6)
            write_beside(place, y, f"{number(min(values), True)} to {number(max(values), True)}")
    place.axvline(0, color="black", lw=0.8)
    place.set_yticks(*zip(*labels, strict=True), fontsize=9)
    place.invert_yaxis()
    place.xaxis.set_major_locator(MaxNLocator(nbins=6))
    place.xaxis.set_major_formatter(PLAIN)
    place.set_xlabel(f"output of layer {results.layer} in dim {dim}, signed (black line: 95 % interval)")
    place.set_title("the same places in each run (share of the baseline's value)", fontsize=11)
    figure.suptitle(make_title(result, f"MLP {results.layer}, dim {dim}: {conclusion.verdict}"), fontsize=11)
    return figure


def neurons_read(result: Stored, at_most: int = 3) -> Figure:
    """The input dims that add up to the pre-activations of the first neurons of the smallest set."""
    layer, reads = result.results.layer, result.results.reads
    rows = reads.neurons[:at_most]
    roles = list(rows[0].projections) if rows else ["up"]
    size = (5.6 * len(roles) + 0.8, 1.2 + 2.7 * max(1, len(rows)))
    figure, axes = make_axes(max(1, len(rows)), len(roles), size=size, squeeze=False)
    for line, neuron in zip(axes, rows, strict=False):
        for i, (ax, (role, projection)) in enumerate(zip(line, neuron.projections.items(), strict=True)):
            inputs = projection.inputs
            ax.barh(range(len(inputs)), [row.contribution for row in inputs], color=PALETTE[i])
            labels = [f"dim {row.dim} = {number(row.residual, True)}" for row in inputs]
            ax.set_yticks(range(len(inputs)), labels, fontsize=8)
            ax.invert_yaxis()
            ax.axvline(0, color="black", lw=0.8)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
            ax.xaxis.set_major_formatter(PLAIN)
            half = f"half of it in {projection.dims_to_half or '-'} of {reads.dims} dims"
            value = number(projection.pre_activation, True)
            ax.set_title(f"neuron {neuron.name}, {role}: {value}, {half}", fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("normed value \u00d7 weight")
    if not rows:
        axes[0][0].text(0.5, 0.5, "no set of neurons", ha="center")
        axes[0][0].set_axis_off()
    title = f"What the first neurons of MLP {layer} read (dim = value before {reads.norm or 'no norm'})"
    figure.suptitle(make_title(result, title), fontsize=11)
    return figure


def super_weights(result: Stored) -> Figure:
    """What is left of the place, and what the loss becomes, with single weights scaled; random ones zeroed."""
    results = result.results
    scalars = results.super_weights or []
    figure, axes = make_axes(1, 2, size=(11, 4.2))
    panels: list[tuple[str, Callable[[Scaled], Average | None], float]] = [
        (f"share of the value of layer {results.layer}", lambda one: one.share, 1.0),
        ("change of the loss, nats a token", lambda one: one.loss_change, 0.0),
    ]
    for ax, (label, of, as_it_is) in zip(axes, panels, strict=True):
        ax.axhline(as_it_is, color="black", lw=0.8, ls="--", label="as it is")
        for i, scalar in enumerate(scalars):
            _doses(ax, scalar.doses, of, as_it_is, PALETTE[i], f"[{results.place.dim}, {scalar.neuron}]")
            others = [cell.mean for cell in map(of, scalar.random) if cell is not None]
            ax.plot(
                [0.0] * len(others),
                others,
                "x",
                color=PALETTE[i],
                ms=7,
                label="random, nearest in size" if others else None,
            )
        ax.set_xlabel("times the weight")
        ax.set_ylabel(label)
        if not scalars:
            ax.text(0.5, 0.5, "no single weights are scaled", ha="center", transform=ax.transAxes)
    axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle(make_title(result, f"Single weights of the down projection of MLP {results.layer}"), fontsize=11)
    return figure


def _doses(
    ax: Axes, doses: list[Scaled], of: Callable[[Scaled], Average | None], as_it_is: float, color: str, label: str
) -> None:
    """The curve through the doses and the model as it is."""
    cells = [(dose.factor, cell) for dose, cell in zip(doses, map(of, doses), strict=True) if cell is not None]
    points = sorted([(1.0, as_it_is), *((factor, cell.mean) for factor, cell in cells)])
    ax.plot(*zip(*points, strict=True), "o-", color=color, ms=5, label=label)
    for factor, cell in cells:
        if cell.ci95:
            ax.plot([factor, factor], cell.ci95, color=color, lw=1.5)
