"""Massive activations set to something else, or not written: the cost, and whether the value comes back."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.interventions.judge import nearest_epsilon
from experiments.interventions.results import LAYER, ONWARD, Change, Results, SingleStored, Stored
from lib.core.evidence import Average
from lib.report.figures import (
    PALETTE,
    PLAIN,
    add_legend,
    draw_curve,
    label_layers,
    loss_axis,
    make_axes,
    mark_costs,
    measured_title,
    write_beside,
)
from lib.report.tables import number

OFF = "off"
KINDS = (OFF, LAYER, ONWARD)
TITLES = {
    OFF: "what writes it at layer {} off",
    LAYER: "set at layer {} alone",
    ONWARD: "set from layer {} on",
}


def interventions(result: Stored) -> Figure:
    """Loss and sink rate without the value (its writer off) and with it set to something else, beside the baseline."""
    results = result.results
    epsilon = nearest_epsilon(results)
    rows, drawn = _intervention_rows(results)
    figure, (loss, sinks) = make_axes(1, 2, size=(13, 2.6 + 0.42 * max(2, len(rows))), sharey=True)
    labels = ("writer off", f"set at layer {results.layer} alone", f"set at layer {results.layer} and all later")
    shown: list[tuple[Axes, Callable[[Change], Average], bool]] = [
        (loss, lambda change: change.loss_change, True),
        (sinks, lambda change: change.sink_rates[epsilon], False),
    ]
    for ax, average_of, signed in shown:
        for style, label in enumerate(labels):
            color = PALETTE[(2, 0, 1)[style]]
            for i, (row, change) in enumerate(drawn[style]):
                average = average_of(change)
                if average.ci95:
                    ax.plot(average.ci95, [row, row], color=color, lw=2)
                ax.plot(average.mean, row, "Dos"[style], color=color, ms=6, label=None if i else label)
                write_beside(ax, row, number(average.mean, signed))
        ax.grid(axis="x", alpha=0.4)
    mark_costs(loss.axvline, "baseline")
    loss_axis(loss)
    baseline = results.baseline.sink_rates[epsilon]
    sinks.axvline(baseline.mean, color="black", lw=0.8, ls="--")
    if baseline.ci95:
        sinks.axvspan(*baseline.ci95, color="black", alpha=0.08, lw=0)
    sinks.set_xlim(-0.03, 1.03)
    sinks.set_xlabel(f"sink rate at epsilon {epsilon} (baseline {number(baseline.mean)})")
    loss.set_yticks(range(len(rows)), rows, fontsize=9)
    loss.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    add_legend(figure, loss, columns=5)
    for ax in (loss, sinks):
        if not rows:
            ax.text(0.5, 0.6, "no massive activation to change", ha="center", transform=ax.transAxes)
    verdict = result.conclusion.verdict
    title = f"Without the massive activations of layer {results.layer}: {verdict} (line, band: 95 % interval)"
    figure.suptitle(measured_title(result, result.results.sites.windows, title), fontsize=11)
    return figure


def _intervention_rows(results: Results) -> tuple[list[str], list[list[tuple[float, Change]]]]:
    """(labels of the rows, [[(row, change)] of what is off, set at the layer alone, set onward])."""
    off, alone, onward = (_of_kind(results, kind) for kind in KINDS)
    values = list(dict.fromkeys(change.set_to for change in (*alone, *onward)))
    row = {value: len(off) + i for i, value in enumerate(values)}
    drawn: list[list[tuple[float, Change]]] = [
        [*enumerate(off)],
        [(row[change.set_to] - 0.17, change) for change in alone],
        [(row[change.set_to] + 0.17, change) for change in onward],
    ]
    return [*(change.label for change in off), *values], drawn


def _of_kind(results: Results, kind: str | None) -> list[Change]:
    """kind: of KINDS; None: none."""
    return [change for change in results.changes.values() if kind == (change.where if change.held else OFF)]


def interventions_over_layers(result: Stored | SingleStored) -> Figure:
    """The signed value at the followed place, by layer, in the baseline and in each intervention."""
    results = result.results
    place, baseline = results.place, results.baseline
    kinds = [kind for kind in KINDS if _of_kind(results, kind)]
    panels: list[str | None] = [*kinds] or [None]
    figure, axes = make_axes(1, len(panels), size=(5 * len(panels), 5.4), squeeze=False, sharey=True)
    for ax, kind in zip(axes[0], panels, strict=True):
        changes = _of_kind(results, kind)
        named = [(change.label if kind == OFF else change.set_to, change) for change in changes]
        for i, (name, condition) in enumerate([(baseline.label, baseline), *named]):
            draw_curve(ax, condition.values, i, f"{name} (perplexity {number(condition.perplexity.value)})")
        ax.axvline(results.layer, color="black", lw=0.8, ls="--")
        ax.axhline(0, color="black", lw=0.8)
        ax.yaxis.set_major_formatter(PLAIN)
        label_layers(ax, len(place.values))
        title = TITLES[kind] if kind else "nothing massive at layer {}"
        ax.set_title(title.format(results.layer) + " (dashed line)", fontsize=11)
        columns = 1 if kind == OFF else 2
        ax.legend(frameon=False, fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    axes[0][0].set_ylabel(f"dim {place.dim}, signed (band: 95 % interval)")
    figure.suptitle(
        measured_title(result, result.results.sites.windows, "The value at the followed place: does it come back?"),
        fontsize=11,
    )
    return figure
