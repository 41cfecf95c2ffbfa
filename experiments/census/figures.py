"""Every token of the vocabulary as the first one, and those that spike put elsewhere."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.census.results import Stored
from lib.core.evidence import Cell
from lib.report.figures import LINES, MARKERS, PALETTE, PLAIN, make_axes, make_title
from lib.report.tables import number, shortened


def vocabulary_census(result: Stored, named: int = 12) -> Figure:
    """Histogram of every token as the first one; the fewer of those that spike and those that do not are named."""
    results = result.results
    census, spike = results.census, results.spike
    values = np.array([value for value in census.values if value is not None])
    if census.n_failing <= census.n_spiking:
        few, n, words, first, color = census.failing, census.n_failing, "do not spike", "smallest", PALETTE[3]
    else:
        few, n, words, first, color = census.spiking, census.n_spiking, "spike", "largest", PALETTE[2]
    figure, ax = make_axes(size=(10.5, 4.8))
    ax.hist(values, bins=100, color=PALETTE[0])
    ax.set_yscale("log")
    ax.axvline(spike.sign * spike.threshold, color="black", ls="--", lw=1, label="threshold of a spike")
    if few:
        title = f"{n:,} tokens that {words}"
        label = title if len(few) == n else f"the {len(few)} {first} of {title}"
        ax.plot([token.value for token in few], np.full(len(few), 0.75), "v", color=color, ms=6, label=label)
        names = [f"'{shortened(token.token)}'  {number(token.value, True)}" for token in few[:named]]
        more = n - len(names)
        names += [f"and {more:,} more"] if more else []
        ax.text(1.02, 1, "\n".join([title, "", *names]), transform=ax.transAxes, va="top", fontsize=9)
    ax.set_ylim(bottom=0.5)
    ax.xaxis.set_major_formatter(PLAIN)
    ax.set_xlabel(f"dim {results.place.dim} after layer {results.layer}, signed, of one token alone")
    ax.set_ylabel("tokens of the vocabulary (log scale)")
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    ax.set_title(f"Each of {census.tokens:,} tokens as the first one\n{result.config['model_name']}")
    return figure


def triggers(result: Stored) -> Figure:
    """The followed value of tokens behind text, behind themselves, behind BOS, and with position embeddings swapped."""
    results = result.results
    figure, axes = make_axes(2, 2, size=(12, 8.4), sharey=True)
    (moved, repeated), (behind_bos, swapped) = axes
    rows = results.elsewhere
    ticks = [str(row.position) for row in rows]
    measured = result.conclusion.values.measured

    def shared(text: str, name: str) -> str:
        cell = measured[name].cell
        return f"{text}: {cell.mean:.1%} spike" if cell else text

    _averages(moved, ticks, [("behind p tokens of text", [row.moved.value for row in rows])])
    moved.set_title(shared("behind text", "moved"), fontsize=11)
    _averages(repeated, ticks, [("behind itself", [row.repeated.value for row in rows])])
    repeated.set_title(shared("behind itself, p times", "repeated"), fontsize=11)
    bos = results.bos
    if bos and bos.behind:
        names = ["token alone, at 0", "BOS alone, at 0", "token behind BOS, at 1"]
        cells = [bos.first.value, Cell(bos.value, None), bos.behind.value]
        _averages(behind_bos, names, [("value", cells)], line="")
    else:
        text = "no other token to put behind BOS" if bos else "no BOS token"
        behind_bos.text(0.5, 0.5, text, transform=behind_bos.transAxes, ha="center")
        behind_bos.set_xticks([])
    behind_bos.set_title(shared("behind BOS", "behind_bos"), fontsize=11)
    there = [row.there.value for row in rows if row.there]
    at_0 = [row.at_0.value for row in rows if row.at_0]
    if there:
        at_p, alone = shared("behind text at p, embedding of 0", "there"), shared("alone at 0, embedding of p", "at_0")
        _averages(swapped, ticks, [(at_p, there), (alone, at_0)])
        swapped.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    else:
        text = "positions act in attention:\nnothing to swap"
        swapped.text(0.5, 0.5, text, transform=swapped.transAxes, ha="center")
        swapped.set_xticks([])
    swapped.set_title("position embeddings of 0 and p swapped", fontsize=11)
    for ax in axes.flat:
        if ax in (moved, repeated) or (ax is swapped and there):
            ax.set_xlabel("p, tokens before it")
        ax.yaxis.set_major_formatter(PLAIN)
        if not ax.has_data():  # a text stands there
            continue
        ordinary = ax.axhline(results.ordinary.value.mean, color="black", lw=1)
        spike = ax.axhline(results.spike.sign * results.spike.threshold, color="black", lw=1, ls="--")
    lines = {"windows as they are": ordinary, "threshold of a spike": spike}
    figure.legend(lines.values(), lines, frameon=False, fontsize=9, ncols=2, loc="outside lower center")
    for ax in axes[:, 0]:
        ax.set_ylabel(f"dim {results.place.dim} after layer {results.layer}, signed\n(mean, 95 % interval)")
    cause = f"Cause of the spike: {result.conclusion.verdict}\n{results.tried.tokens} {results.tried.of}"
    figure.suptitle(make_title(result, cause), fontsize=11)
    return figure


def _averages(
    ax: Axes, ticks: Sequence[str], series: Sequence[tuple[str, Sequence[Cell]]], line: str | None = None
) -> None:
    """Means with their intervals over categories; series: [(label, averages)]."""
    for i, (label, cells) in enumerate(series):
        places = np.arange(len(cells)) + 0.12 * (i - (len(series) - 1) / 2)
        style = LINES[i] if line is None else line
        ax.plot(places, [cell.mean for cell in cells], color=PALETTE[i], marker=MARKERS[i], ms=6, ls=style, label=label)
        for x, cell in zip(places, cells, strict=True):
            if cell.ci95:
                ax.plot([x, x], cell.ci95, color=PALETTE[i], lw=3, alpha=0.5)
    ax.set_xticks(range(len(ticks)), ticks)
    ax.margins(x=0.08)
