"""Figures, each drawn from a result JSON's payload; no model is needed."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator
from mpl_toolkits.mplot3d import Axes3D
from PIL import Image

from lib.core.definitions import COST
from lib.core.evidence import Cell
from lib.core.results import MassiveActivation
from lib.report.fonts import FAMILY, legible
from lib.report.printed import fit
from lib.report.result_files import Result, result_file
from lib.report.tables import counted, number, shortened
from lib.run.cli import Options
from lib.run.errors import UserError

Drawn = TypeVar("Drawn")
PALETTE = sns.color_palette("colorblind")
DIVERGING = "PuOr_r"
SEQUENTIAL = "viridis"
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
NAMED: dict[str, Any] = {"marker": "o", "ms": 4, "mfc": "white"}
PLAIN = FuncFormatter(lambda x, _position: f"{x:,.10g}")
SIGNED = FuncFormatter(lambda x, _position: number(x, signed=x != 0))
TITLE = 46  # letters of a line of a title: what the narrowest figure has room for
LINEAR = 0.1  # of a change of the loss: up to it an axis is linear
# text of vector figures stays text, which can be searched and edited, and the same figure is the same file
VECTOR: Any = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "figure"}
UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@contextmanager
def style() -> Iterator[None]:
    """In which figures are drawn and written: the same whatever matplotlibrc there is, or whoever else draws in this
    process, who then goes on as before."""
    registry = dict(matplotlib.units.registry)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        sns.set_theme(style="ticks", palette=PALETTE, font=FAMILY, color_codes=False)
        for text in (str, np.str_, bytes, np.bytes_):  # no axis is of words: a text among the numbers is a mistake
            matplotlib.units.registry.pop(text, None)
        try:
            yield
        finally:
            matplotlib.units.registry.update(registry)


def write(
    path: Path, draw: Callable[[Drawn], Figure], result: Drawn, dpi: int = Options.dpi, width: float | None = None
) -> None:
    """Draw a result into a file of the format that its suffix names: one of cli.FORMATS. width: in inches, at most."""
    with result_file(path) as temporary, style():
        figure = draw(legible(result))
        if width is not None and not fit(figure, width):
            raise UserError(f"cannot make {path}: what it shows needs more than {width:g} inches")
        save(figure, temporary, dpi)


def save(figure: Figure, path: str | Path, dpi: int = Options.dpi) -> None:
    """Write a figure; a PNG with a palette of 256 colours, a third of the usual size."""
    suffix = Path(path).suffix
    if suffix != ".png":
        with matplotlib.rc_context(VECTOR):
            figure.savefig(path, dpi=dpi, metadata=UNDATED[suffix])
        return
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.set_dpi(dpi)
    figure.canvas.draw()
    pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba()))
    pixels.convert("RGB").quantize(256).save(path, optimize=True)


def make_figure(size: tuple[float, float]) -> Figure:
    """An empty one of so many inches, without pyplot, which would show it in a notebook."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def make_axes(rows: int = 1, columns: int = 1, size: tuple[float, float] = (8, 5), **kwargs: Any) -> tuple[Figure, Any]:
    figure = make_figure(size)
    return figure, figure.subplots(rows, columns, **kwargs)


def make_title(result: Result[Any, Any], text: str) -> str:
    said = f"{result.config['model_name']}, {_data(result)}"
    return f"{text}\n{textwrap.fill(said, TITLE, break_long_words=False, break_on_hyphens=False)}"


def measured_title(result: Result[Any, Any], n: int, text: str) -> str:
    """Of a figure over n of the windows."""
    seqlen = result.provenance["data"]["seqlen"]
    return f"{text}\n{result.config['model_name']}, {counted(n, 'measured window')} of {seqlen} tokens"


def _data(result: Result[Any, Any]) -> str:
    data = result.provenance["data"]
    return f"{counted(data['windows'], 'window')} of {data['seqlen']} tokens"


def draw_curve(ax: Axes, averages: Sequence[Cell], style: int, label: str) -> None:
    """Means over layers with their 95 % band; style: 0, 1, 2 ... picks colour, marker and line."""
    color, marker, line = (styles[style % len(styles)] for styles in (PALETTE, MARKERS, LINES))
    means = [average.mean for average in averages]
    ax.plot(means, label=label, color=color, marker=marker, markersize=4, ls=line)
    if averages[0].ci95 is not None:
        low, high = np.array([average.ci95 for average in averages]).T
        ax.fill_between(np.arange(len(means)), low, high, color=color, alpha=0.25, linewidth=0)


WholeNumbers = partial(MaxNLocator, integer=True, min_n_ticks=1)  # else fractions fill an axis of a single layer


def label_layers(ax: Axes, n: int) -> None:
    ax.set_xlabel("layer (block output, before the final norm)")
    ax.set_xlim(-0.5, n - 0.5)
    ax.xaxis.set_major_locator(WholeNumbers(nbins=15))
    ax.grid(axis="y", alpha=0.4)


def loss_axis(ax: Axes) -> None:
    """Changes of the loss, already drawn, along x."""
    ax.margins(x=0.06)
    ax.set_xscale("symlog", linthresh=LINEAR)
    ax.autoscale_view()  # before, its margins were of a linear scale
    reach = max(map(abs, ax.get_xlim()))
    if reach <= LINEAR:  # of which the scale's own ticks are the two ends
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    elif reach < 10 * LINEAR:  # these again, and none beyond
        ax.xaxis.set_major_locator(SymmetricalLogLocator(subs=(1, 2, 5), linthresh=LINEAR, base=10))
    ax.xaxis.set_major_formatter(PLAIN)
    ax.set_xlabel(f"change of the loss, nats a token (linear up to {LINEAR:g}, then log)")


def mark_costs(line: Callable[..., Line2D], unchanged: str) -> None:
    """No change of the loss, and from where on one costs. line: axvline or axhline of the axes. unchanged: the name of
    the first."""
    line(0, color="black", lw=0.8, ls="--", label=unchanged)
    line(COST, color="black", lw=0.8, ls=":", label=f"costs: above {COST:g}")


def draw_cumulative(ax: Axes, share: np.ndarray, label: str | None = None) -> None:
    """What the first neurons give together, in parts of all; 0 and 1 are on the axis, with room above."""
    ax.plot(np.arange(1, len(share) + 1), share, color=PALETTE[2], marker="o", ms=3, label=label)
    ax.set_xscale("log")
    ax.set_xlim(0.8, 1.25 * len(share))
    ax.xaxis.set_major_formatter(PLAIN)
    low, high = np.nanmin(share, initial=0), np.nanmax(share, initial=1)
    ax.set_ylim(low, high + 0.05 * (high - low))
    ax.set_xlabel("neurons, largest contribution first (log scale)")


def add_legend(figure: Figure, *axes: Axes, columns: int = 4) -> None:
    """One below all panels, of what these show, each name once."""
    named = {name: line for ax in axes for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    names, lines = [*named], [*named.values()]
    figure.legend(lines, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def write_beside(ax: Axes, y: float, text: str) -> None:
    """Right of the axes, where nothing is drawn."""
    ax.text(1.01, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8)


def draw_heatmap(ax: Axes, values: np.ndarray, **kwargs: Any) -> None:
    """seaborn's, with the numbers in its cells black or white, whichever the WCAG calls the stronger contrast."""
    sns.heatmap(values, ax=ax, **kwargs)
    cells = ax.collections[0]
    shown = ~np.ma.getmaskarray(np.ma.asarray(cells.get_array())).ravel()
    for text, color in zip(ax.texts, np.asarray(cells.get_facecolor())[shown], strict=False):  # not all have numbers
        text.set_color("black" if sns.utils.relative_luminance(color) > 0.179 else "white")


def dims_to_label(massive: Iterable[MassiveActivation], values: np.ndarray, at_most: int = 3) -> list[int]:
    """The massive dims; where nothing is massive, the two dims with the largest values."""
    dims = list(dict.fromkeys(entry.dim for entry in massive))[:at_most]
    return dims or np.argsort(values.max(0))[::-1][:2].tolist()


def draw_surface(
    ax: Axes3D, values: np.ndarray, tokens: list[str], dims: list[int], top: float, label: str = "|activation|"
) -> None:
    n_tokens, n_dims = values.shape
    for row in reversed(range(n_tokens)):
        ax.plot(np.arange(n_dims), np.full(n_dims, row), values[row], color=PALETTE[0], linewidth=1.2)
    for dim in dims:
        row = int(values[:, dim].argmax())
        text = ax.text(dim, row, values[row, dim], f" {number(float(values[row, dim]))}", fontsize=9, color="black")
        text.set_in_layout(False)  # of its place among the data a layout would think as of one among the pixels
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # over the lines of other tokens
    ax.set_xticks(_spread(dims, n_dims), [str(d) for d in _spread(dims, n_dims)], fontsize=9)
    step = -(-n_tokens // 16)
    shown = [shortened(token) for token in tokens[::step]]
    ax.set_yticks(np.arange(n_tokens)[::step], shown, fontsize=9, ha="left", va="center")
    ax.tick_params(axis="y", pad=-2)
    ax.tick_params(axis="z", pad=6, labelsize=9)
    ax.zaxis.set_major_formatter(PLAIN)
    ax.set_zlim(0, top * 1.05)
    ax.set_xlabel("dim", labelpad=8)
    ax.text2D(1.0, 0.85, label, transform=ax.transAxes, ha="right")  # over its axis: beside it, it may be cut
    ax.set_box_aspect((1.6, 1.2, 1), zoom=1.12)
    ax.view_init(elev=22, azim=-60)


def _spread(dims: list[int], n_dims: int, gap: float = 0.09) -> list[int]:
    """Ticks: the given dims, and both ends of the axis where that leaves room."""
    kept: list[int] = []
    for dim in [*dims, 0, n_dims - 1]:
        if all(abs(dim - other) > gap * n_dims for other in kept):
            kept.append(dim)
    return sorted(kept)


def tick_tokens(axis: Axis, tokens: list[str], at_most: int = 32) -> None:
    """Every token of a heatmap's axis, or every second, third ... where they are many."""
    step = -(-len(tokens) // at_most)
    axis.set_ticks(np.arange(len(tokens))[::step] + 0.5, [shortened(token) for token in tokens[::step]])
