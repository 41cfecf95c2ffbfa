"""Every token of the vocabulary as the first one, and those that spike put elsewhere."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.report.figures import LINES, MARKERS, PALETTE, PLAIN, make_axes, make_title, shortened
from lib.report.tables import number


def vocabulary_census(payload: dict[str, Any], named: int = 12) -> Figure:
    """Histogram of every token as the first one; the fewer of those that spike and those that do not are named."""
    results = payload["results"]
    census, spike = results["census"], results["spike"]
    values = np.array([v for v in census["values"] if v is not None])
    few = "failing" if census["n_failing"] <= census["n_spiking"] else "spiking"
    color = PALETTE[3] if few == "failing" else PALETTE[2]
    figure, ax = make_axes(size=(10.5, 4.8))
    ax.hist(values, bins=100, color=PALETTE[0])
    ax.set_yscale("log")
    ax.axvline(spike["sign"] * spike["threshold"], color="black", ls="--", lw=1, label="threshold of a spike")
    if census[few]:
        words = "do not spike" if few == "failing" else "spike"
        shown = [token["value"] for token in census[few]]
        label = f"{census[f'n_{few}']:,} tokens that {words}"
        ax.plot(shown, np.full(len(shown), 0.75), "v", color=color, ms=6, label=label)
        names = [f"'{shortened(t['token'])}'  {number(t['value'], True)}" for t in census[few][:named]]
        more = census[f"n_{few}"] - len(names)
        names += [f"and {more:,} more"] if more else []
        ax.text(1.02, 1, "\n".join([label, "", *names]), transform=ax.transAxes, va="top", fontsize=9)
    ax.set_ylim(bottom=0.5)
    ax.xaxis.set_major_formatter(PLAIN)
    ax.set_xlabel(f"dim {results['place']['dim']} after layer {results['layer']}, signed, of one token alone")
    ax.set_ylabel("tokens of the vocabulary (log scale)")
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    ax.set_title(f"Each of {census['tokens']:,} tokens as the first one\n{payload['config']['model_name']}")
    return figure


def triggers(payload: dict[str, Any]) -> Figure:
    """The followed value of tokens behind text, behind themselves, behind BOS, and with position embeddings swapped."""
    results = payload["results"]
    figure, axes = make_axes(2, 2, size=(12, 8.4), sharey=True)
    (moved, repeated), (bos, swapped) = axes
    rows = results["elsewhere"]
    ticks = [str(r["position"]) for r in rows]
    _summaries(moved, ticks, [("behind p tokens of text", [r["moved"] for r in rows])])
    shares = {name: of["cell"] for name, of in results["conclusion"]["values"]["measured"].items()}

    def title(ax, text, *names):
        parts = [f"{shares[name]['mean']:.1%} spike" for name in names if shares[name]]
        ax.set_title(f"{text}: {', '.join(parts)}" if parts else text, fontsize=11)

    title(moved, "behind text", "moved")
    _summaries(repeated, ticks, [("behind itself", [r["repeated"] for r in rows])])
    title(repeated, "behind itself, p times", "repeated")
    of = results["bos"]
    if of and of["behind"]:
        lone = {"value": {"mean": of["value"], "ci95": None}}
        names = ["token alone, at 0", "BOS alone, at 0", "token behind BOS, at 1"]
        _summaries(bos, names, [("value", [of["first"], lone, of["behind"]])], line="")
    else:
        text = "no other token to put behind BOS" if of else "no BOS token"
        bos.text(0.5, 0.5, text, transform=bos.transAxes, ha="center")
        bos.set_xticks([])
    title(bos, "behind BOS", "behind_bos")
    if "there" in rows[0]:
        there, alone = ([r[key] for r in rows] for key in ("there", "at_0"))
        _summaries(swapped, ticks, [("behind text at p, embedding of 0", there), ("alone at 0, embedding of p", alone)])
        swapped.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    else:
        text = "positions act in attention:\nnothing to swap"
        swapped.text(0.5, 0.5, text, transform=swapped.transAxes, ha="center")
        swapped.set_xticks([])
    title(swapped, "position embeddings of 0 and p swapped", "there", "at_0")
    for ax in axes.flat:
        if ax in (moved, repeated) or (ax is swapped and "there" in rows[0]):
            ax.set_xlabel("p")
        threshold = results["spike"]["sign"] * results["spike"]["threshold"]
        ordinary = ax.axhline(results["ordinary"]["value"]["mean"], color="black", lw=1)
        spike = ax.axhline(threshold, color="black", lw=1, ls="--")
        ax.yaxis.set_major_formatter(PLAIN)
    lines = {"windows as they are": ordinary, "threshold of a spike": spike}
    figure.legend(lines.values(), lines, frameon=False, fontsize=9, ncols=2, loc="outside lower center")
    for ax in axes[:, 0]:
        ax.set_ylabel(f"dim {results['place']['dim']} after layer {results['layer']}, signed\n(mean, 95 % interval)")
    tried = results["tried"]
    cause = f"Cause of the spike: {results['conclusion']['verdict']}\n{tried['tokens']} {tried['of']}"
    figure.suptitle(make_title(payload, cause), fontsize=11)
    return figure


def _summaries(
    ax: Axes, ticks: Sequence[str], series: Sequence[tuple[str, list[dict[str, Any]]]], line: str | None = None
) -> None:
    """Means with their intervals over categories; series: [(label, [{"value": average}])]."""
    for i, (label, rows) in enumerate(series):
        x = np.arange(len(rows)) + 0.12 * (i - (len(series) - 1) / 2)
        values = [row["value"] for row in rows]
        means = [v["mean"] for v in values]
        ax.plot(x, means, color=PALETTE[i], marker=MARKERS[i], ms=6, ls=LINES[i] if line is None else line, label=label)
        for at, value in zip(x, values, strict=True):
            if value["ci95"]:
                ax.plot([at, at], value["ci95"], color=PALETTE[i], lw=3, alpha=0.5)
    ax.set_xticks(range(len(ticks)), ticks)
    ax.margins(x=0.08)
