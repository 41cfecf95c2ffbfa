"""The atlas as figures: claims beside models, and the value over the depth of each model."""

import textwrap

import numpy as np
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lib.atlas.results import Results
from lib.atlas.text import SIGNS
from lib.claims.every import CLAIMS
from lib.claims.judging import CANNOT_TELL, FAILS, HOLDS
from lib.core.definitions import ABSOLUTE, RELATIVE
from lib.report import tables
from lib.report.figures import LINES, MARKERS, PALETTE, PLAIN, make_axes
from lib.report.tables import shortened

COLOURS = {HOLDS: sns.light_palette(PALETTE[0])[2], FAILS: sns.light_palette(PALETTE[1])[3], CANNOT_TELL: (0.92,) * 3}
CLAIM_COLUMNS = 88
TEXTS = {claim.row: claim.text for claim in CLAIMS}  # what stands in a result loses its middle where it is long


def claims(results: Results) -> Figure:
    """Rows: claims; columns: models; in each cell the verdict's sign and the number that it hangs on."""
    models, verdicts = results.models, list(COLOURS)
    labels = [textwrap.fill(f"{claim.row}:  {TEXTS[claim.row]}", CLAIM_COLUMNS) for claim in results.claims]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure, ax = make_axes(size=(5.4 + 1.4 * len(models), 1.6 + 0.14 * (lines + 0.7 * len(labels))))
    codes = np.array([[verdicts.index(row.claims[claim.row].verdict) for row in models] for claim in results.claims])
    edges = np.cumsum([0.0, *(label.count("\n") + 1.7 for label in labels)])
    middles = (edges[1:] + edges[:-1]) / 2
    columns = np.arange(len(models) + 1) - 0.5
    colours = ListedColormap([COLOURS[verdict] for verdict in verdicts])
    ax.pcolormesh(columns, edges, codes, cmap=colours, vmin=-0.5, vmax=2.5, edgecolors="white", linewidth=1.5)
    for middle, claim in zip(middles, results.claims, strict=True):
        for column, row in enumerate(models):
            said = row.claims[claim.row]
            text = SIGNS[said.verdict] + ("" if said.number is None else f" {tables.mean(said.number)}")
            ax.text(column, middle, text, ha="center", va="center", fontsize=8)
    ax.set_yticks(middles, labels, fontsize=8, ha="left")
    ax.tick_params(axis="y", pad=365)
    ax.set_xticks(range(len(models)), [row.model for row in models], fontsize=9, rotation=20, ha="left")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_ylim(edges[-1], 0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    handles = [Patch(color=colour, label=f"{SIGNS[verdict]}  {verdict}") for verdict, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def depth(results: Results) -> Figure:
    """Top-1 / median of every model over the share of its blocks that have run; its birth is the filled marker."""
    drawn = [row for row in results.models if row.curve is not None]
    figure, ax = make_axes(size=(10, max(4.6, 1.0 + 0.2 * len(drawn))))
    for i, row in enumerate(drawn):
        assert row.curve is not None
        ratio = np.array([np.nan if value is None else value for value in row.curve.ratio])
        x = np.arange(1, len(ratio) + 1) / len(ratio)
        colour, marker, line = (styles[i % len(styles)] for styles in (PALETTE, MARKERS, LINES))
        ax.plot(x, ratio, color=colour, ls=line, marker=marker, ms=4, mfc="white", label=shortened(row.model))
        born = row.mechanism.depth
        if born is not None:
            ax.plot(born, ratio[round(born * len(ratio)) - 1], color=colour, marker=marker, ms=10, ls="none")
    ax.axhline(RELATIVE, color="0.4", lw=1, ls=":", label=f"massive: above {RELATIVE:,.0f} x, and {ABSOLUTE:g}")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(PLAIN)
    ax.set_xlim(0, 1.02)
    ax.set_xlabel("depth (share of the blocks that have run)")
    ax.set_ylabel("top-1 / median of |block output|")
    ax.grid(axis="y", alpha=0.4)
    ax.set_title("Where massive activations stand in each model\nfilled marker: the layer of the birth", fontsize=11)
    if drawn:
        ax.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
