"""The inside of one MLP: its checkpoints, its neurons, its activation function replaced."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from msgspec import UNSET

from experiments.mlp_internal.results import Stored
from lib.core.definitions import MADE
from lib.core.results import Neuron
from lib.report.figures import PALETTE, PLAIN, add_legend, draw_cumulative, make_axes, make_title, write_beside
from lib.report.tables import fraction, number


def activation_flow(result: Stored) -> Figure:
    """Maxima and medians of the checkpoints, and the followed dim through those of its width."""
    results = result.results
    followed, points = results.followed, results.checkpoints
    figure, (maxima, place) = make_axes(1, 2, size=(13, 4.8), width_ratios=[1.35, 1])
    y = np.arange(len(points))
    maxima.plot([point.max for point in points], y, "o", color=PALETTE[0], label="maximum of |value|, all tokens")
    maxima.plot([point.median for point in points], y, "s", color=PALETTE[1], label="median of |value|")
    for i, point in enumerate(points):
        write_beside(maxima, i, f"{number(point.max)} ({point.at.position}, {point.at.index})")
    maxima.set_xscale("log")
    maxima.grid(axis="y", alpha=0.4)
    maxima.set_yticks(y, [f"{point.label} ({point.width})" for point in points], fontsize=9)
    maxima.set_ylim(len(points) - 0.5, -0.5)
    maxima.set_xlabel("|value| (log scale)\nbeside it: the maximum (position, index)")
    add_legend(figure, maxima)
    means = [point.value.mean for point in followed.values]
    place.barh(range(len(means)), means, color=PALETTE[2])
    for i, mean in enumerate(means):
        write_beside(place, i, number(mean, True))
    place.axvline(0, color="black", lw=0.8)
    place.set_yticks(range(len(means)), [point.label for point in followed.values], fontsize=9)
    place.invert_yaxis()
    place.xaxis.set_major_locator(MaxNLocator(nbins=4))
    place.xaxis.set_major_formatter(PLAIN)
    place.set_xlabel(f"dim {followed.dim}, signed, where followed\n(mean of {followed.sequences} windows)")
    figure.suptitle(make_title(result, f"Through the MLP of layer {results.layer}"), fontsize=11)
    return figure


def dimension_analysis(result: Stored, top: int = 12) -> Figure:
    """The neurons that make the followed output, how fast they add up, and the largest weights for contrast."""
    results = result.results
    contributions, output = results.contributions, results.contribution_check.output
    figure, (bars, cumulative, weights) = make_axes(1, 3, size=(14, 4.8))
    _neuron_bars(bars, contributions[:top], [row.contribution for row in contributions[:top]], PALETTE[2])
    activation = "activation" if results.mixture is UNSET else "routing weight \u00d7 activation"
    bars.set_xlabel(f"{activation} \u00d7 weight to dim {results.followed.dim}")
    bars.set_title("largest contributions", fontsize=11)
    share = np.cumsum([row.contribution for row in contributions]) / (output or np.nan)
    draw_cumulative(cumulative, share)
    for part, line in ((MADE, "--"), (1, ":")):
        cumulative.axhline(part, color="black", lw=0.8, ls=line, label=f"{part:.0%} of the output")
    add_legend(figure, cumulative)
    cumulative.set_ylabel("cumulative share of the output")
    cumulative.set_title(f"{100 * MADE:.0f} % of {number(output, True)}: {result.conclusion.verdict}", fontsize=11)
    _neuron_bars(weights, results.by_weight, [row.weight for row in results.by_weight], PALETTE[7])
    weights.set_yticks(
        range(len(results.by_weight)),
        [f"{row.name} (rank {row.rank_by_contribution}, {fraction(row.share)})" for row in results.by_weight],
        fontsize=9,
    )
    weights.set_xlabel("weight alone")
    weights.set_title("contrast: largest weights\n(rank and share by contribution)", fontsize=11)
    figure.suptitle(make_title(result, f"Neurons behind the largest output of MLP {results.layer}"), fontsize=11)
    return figure


def _neuron_bars(ax: Axes, rows: Sequence[Neuron], values: Sequence[float], color: tuple[float, float, float]) -> None:
    ax.barh(range(len(rows)), values, color=color)
    ax.set_yticks(range(len(rows)), [f"neuron {row.name}" for row in rows], fontsize=9)
    ax.invert_yaxis()
    ax.axvline(0, color="black", lw=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.xaxis.set_major_formatter(PLAIN)


def activation_function_impact(result: Stored) -> Figure:
    """The followed output and the perplexity with the activation function of this layer replaced, where it can be."""
    results = result.results
    replaced = list(results.replaced.values())
    figure, (place, loss) = make_axes(1, 2, size=(10, 4.4))
    labels = [function.label + ("\n(the model's)" if i == 0 else "") for i, function in enumerate(replaced)]
    for i, function in enumerate(replaced):
        output, perplexity = function.mlp_output, function.perplexity
        for ax, value, ci95 in ((place, output.mean, output.ci95), (loss, perplexity.value, perplexity.ci95)):
            ax.bar(i, value, color=PALETTE[i])
            if ci95:
                ax.plot([i, i], ci95, color="black", lw=1.5)
            outside = {"xytext": (3, 3), "va": "bottom"} if value >= 0 else {"xytext": (3, -3), "va": "top"}
            ax.annotate(number(value), (i, value), textcoords="offset points", fontsize=9, **outside)
    place.set_ylabel(f"MLP output in dim {results.followed.dim},\nsame places (black: 95 %)")
    place.axhline(0, color="black", lw=0.8)
    place.yaxis.set_major_formatter(PLAIN)
    loss.set_ylabel("perplexity (black: 95 %)")
    for ax in (place, loss):
        ax.set_xticks(range(len(labels)), labels)
        ax.margins(y=0.12)  # the number stands beyond its bar
    which = "Another" if len(replaced) > 1 else "No other"
    title = make_title(result, f"{which} activation function in the MLP of layer {results.layer}")
    figure.suptitle(title, fontsize=11)
    return figure
