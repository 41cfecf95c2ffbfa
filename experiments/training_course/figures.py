"""The course of training: largest values by layer, attention to the first token, who writes most."""

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from experiments.training_course import fit
from experiments.training_course.results import FITTED, FORMULA, Birth, Step, Stored
from experiments.training_course.text import by_share, largest_layer
from lib.core.definitions import RELATIVE, SINK_EPSILON, SINKS
from lib.report.figures import MARKERS, PALETTE, PLAIN, SEQUENTIAL, add_legend, make_axes, make_title
from lib.report.tables import shortened, sink_window

STEPS = "optimiser step (logarithmic scale)"
LABELS = 24  # at most, on the axis of steps and over bars
EMBEDDING, ATTENTION, MLP, OTHER = ("embedding", 4), ("attention", 1), ("MLP", 0), ("other", 5)  # name, colour
WRITERS = {
    "embedding": EMBEDDING,
    "position embedding": EMBEDDING,
    "head": ATTENTION,
    "attention bias": ATTENTION,
    "attention": ATTENTION,
    "mlp": MLP,
    "expert": MLP,
    "shared expert": MLP,
}


def layers(result: Stored) -> Figure:
    """Ratio of every layer over steps, both logarithmic, with the fit of the layer whose ratio ends highest."""
    steps = result.results.steps
    figure, ax = make_axes(size=(9, 5.4))
    n_layers = len(steps[0].layers)
    colors = sns.color_palette(SEQUENTIAL, n_layers)
    at = _along(ax, steps)
    for layer in range(n_layers):
        cells = [step.layers[layer].ratio for step in steps]
        ratios = [np.nan if cell is None else cell.mean for cell in cells]
        ax.plot(at, ratios, color=colors[layer], marker="o", ms=3.5, lw=1.5)
    last = largest_layer(steps[-1])
    for found in result.conclusion.values.fits:
        if found.layer == last and found.outcome == FITTED:
            where = np.interp(np.linspace(0, len(at) - 1, 400), np.arange(len(at)), at)
            label = f"fit of layer {last}: {FORMULA}"
            ax.plot(where, fit.curve(where, found.parameters), color="black", ls="--", lw=1.2, label=label)
    ax.axhline(
        RELATIVE, color=PALETTE[3], lw=1, ls=":", label=f"{RELATIVE:,.0f} x the median: one half of being massive"
    )
    _mark(ax, result.conclusion.values.massive, "massive activations")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(PLAIN)
    ax.set_ylabel("top-1 / median of |block output|")
    ax.grid(axis="y", alpha=0.4)
    ax.set_xlabel(STEPS)
    _add_layers(figure, ax, colors)
    add_legend(figure, ax, columns=1)
    ax.set_title(make_title(result, "Largest values over training, by layer"), fontsize=11)
    return figure


def sinks(result: Stored) -> Figure:
    """Sink rate over steps; below, the highest score of each layer."""
    steps = result.results.steps
    figure, (rate, scores) = make_axes(2, 1, size=(9, 7), sharex=True)
    at = _along(rate, steps)
    rate.plot(at, [step.sink_rate.mean for step in steps], color=PALETTE[0], marker=MARKERS[0], ms=4, label="sink rate")
    told = [(i, step.sink_rate.ci95) for i, step in zip(at, steps, strict=True) if step.sink_rate.ci95]
    if told:
        low, high = np.array([limits for _i, limits in told]).T
        rate.fill_between([i for i, _limits in told], low, high, color=PALETTE[0], alpha=0.25, lw=0)
    rate.axhline(SINKS, color=PALETTE[3], lw=1, ls=":", label=f"{SINKS:.0%}: from here on there are sinks")
    _mark(rate, result.conclusion.values.sinks, "sinks")
    _limit(rate, [(step.sink_rate.ci95 or (0, step.sink_rate.mean))[1] for step in steps])
    rate.set_ylabel(f"share of heads over {SINK_EPSILON:g} in\n{sink_window(result)} tokens (band: 95 %)")
    rate.grid(axis="y", alpha=0.4)
    n_layers = len(steps[0].scores)
    colors = sns.color_palette(SEQUENTIAL, n_layers)
    for layer in range(n_layers):
        if steps[0].scores[layer]:
            highest = [max(step.scores[layer]) for step in steps]
            scores.plot(at, highest, color=colors[layer], marker="o", ms=3.5, lw=1.5)
    _limit(scores, [score for step in steps for row in step.scores for score in row])
    scores.set_ylabel("mean attention to the\nfirst token, highest head")
    scores.grid(axis="y", alpha=0.4)
    scores.set_xlabel(STEPS)
    _add_layers(figure, scores, colors)
    add_legend(figure, rate, columns=3)
    figure.suptitle(make_title(result, "Attention to the first token over training"), fontsize=11)
    return figure


def writers(result: Stored) -> Figure:
    """At each step the shares of those who write along the place's value, the largest one named."""
    steps = result.results.steps
    figure, ax = make_axes(size=(10, 5.6))
    seen: set[str] = set()
    for i, step in enumerate(steps):
        bottom = 0.0
        for write in by_share(step):
            if write.share.mean <= 0:
                continue
            name, color = WRITERS.get(write.kind, OTHER)
            label = None if name in seen else name
            style = {"color": PALETTE[color], "edgecolor": "white", "lw": 0.6, "label": label}
            ax.bar(i, write.share.mean, bottom=bottom, **style)
            seen.add(name)
            bottom += write.share.mean
        written = by_share(step)
        if written and i % _every(steps) == 0:
            what = f"{shortened(written[0].name, 22)}, dim {step.followed.dim}"
            ax.text(i, max(1.0, bottom) + 0.04, what, rotation=90, ha="center", va="bottom", fontsize=8)
    top = max((sum(max(write.share.mean, 0) for write in step.followed.writers) for step in steps), default=1.0)
    ax.set_ylim(0, max(1.0, top) + 0.75)
    ax.axhline(1, color="black", lw=0.8, ls="--")
    ax.set_ylabel("share of the value where it is largest")
    shown = range(0, len(steps), _every(steps))
    ax.set_xticks([*shown], [f"{steps[i].step:,}" for i in shown], rotation=60, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.6, len(steps) - 0.4)
    ax.set_xlabel("optimiser step (every measured checkpoint, side by side)")
    if seen:
        ax.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    title = "Who writes the value that is followed (the largest writer and the dim are named)"
    ax.set_title(make_title(result, title), fontsize=11)
    return figure


def _add_layers(figure: Figure, ax: Axes, colors: list[tuple[float, float, float]]) -> None:
    """What colour each layer has."""
    norm = BoundaryNorm(np.arange(len(colors) + 1) - 0.5, len(colors))
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colors)), ax=ax, label="layer")
    bar.set_ticks([*range(0, len(colors), 1 + len(colors) // 12)])
    bar.minorticks_off()


def _limit(ax: Axes, values: Sequence[float]) -> None:
    """From 0 to somewhat more than the largest of these shares."""
    top = min(1.0, max(0.2, 1.2 * max(values)))
    ax.set_ylim(-0.02 * top, 1.02 * top)


def _every(steps: list[Step]) -> int:
    return -(-len(steps) // LABELS)


def _along(ax: Axes, steps: list[Step]) -> np.ndarray:
    """The steps, along a logarithmic axis that begins with 0."""
    at = np.array([step.step for step in steps])
    if at.max() > 0:
        ax.set_xscale("symlog", linthresh=at[at > 0].min(), linscale=0.3)
    ax.xaxis.set_major_formatter(PLAIN)
    return at


def _mark(ax: Axes, birth: Birth, what: str) -> None:
    """A band between the last step without and the first with."""
    if birth.at is not None:
        after = birth.at if birth.after is None else birth.after
        ax.axvspan(after, birth.at, color=PALETTE[7], alpha=0.3, label=f"{what}: {birth.verdict}")
