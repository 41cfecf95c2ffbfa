"""Figures as wide as a column of a paper: text is large enough to be read there, and is wrapped where that leaves it
less room; panels that would be too narrow side by side stand below each other."""

import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Transform

SMALLEST = 6.0  # points
SHRUNK = 0.7  # the least of a text's size on the screen, if that is not below SMALLEST, and of a figure's height
HANDLE = 60  # pixels beside a legend's text
OVER = 0.05  # inches that something may stand out of a figure
PANEL = 2.2  # inches of a panel beside another, with its labels; of one that is narrow on the screen SHRUNK of that
TALLEST = 9.0  # inches of a figure whose panels were moved below each other
PADDING = 3  # pixels of a line of text that its letters seldom reach
ROWS = 0.36  # of a figure's width that names of rows may take
LEAST = 0.7  # inches of a panel without its labels
PASSES = 6  # what is wrapped leaves others less room


def fit(figure: Figure, width: float) -> bool:
    """Make a figure at most `width` inches wide, all text at least SMALLEST points; gives whether all that it shows has
    room there."""
    wide, high = figure.get_size_inches()
    if width >= wide:
        return True
    scale = max(SHRUNK, width / wide)
    lines = _stack(figure, width)
    figure.set_size_inches(width, scale * high if lines == 1 else min(TALLEST, scale * high * lines))
    for text in figure.findobj(Text):
        text.set_fontsize(max(SMALLEST, scale * text.get_fontsize()))
    for line in figure.findobj(Line2D):
        line.set_linewidth(scale * line.get_linewidth())
        line.set_markersize(scale * line.get_markersize())
    for ax in figure.axes:
        if (legend := ax.get_legend()) is not None:
            legend.set_in_layout(False)  # as wide as it is, it would leave the axes no room
        _wrap_rows(ax, ROWS * figure.bbox.width)
    said = {text: text.get_text() for text in figure.findobj(Text)}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="constrained_layout not applied")
        try:
            for left in reversed(range(PASSES)):
                figure.draw_without_rendering()
                _make_room(figure, said)
                if left < PASSES / 2:  # what is wrapped by then leaves panels all their room
                    _clear(figure)
            figure.draw_without_rendering()
        except UserWarning:
            return False
    drawn, (wide, high) = figure.get_tightbbox(), figure.get_size_inches()
    inside = min(drawn.x0, drawn.y0) > -OVER and drawn.x1 < wide + OVER and drawn.y1 < high + OVER
    return inside and all(_can_be_read(ax, figure.dpi_scale_trans) for ax in figure.axes)


def _stack(figure: Figure, width: float) -> int:
    """Move panels of a row into several where there is no room for them side by side; gives the rows for one."""
    specs = {ax: spec for ax in figure.axes if (spec := ax.get_subplotspec()) is not None}
    grids = {spec.get_gridspec() for spec in specs.values()}
    if len(grids) != 1:  # one panel, or figures in a figure
        return 1
    [grid] = grids
    rows, columns = grid.get_geometry()
    beside = max(1, int(width / min(PANEL, SHRUNK * figure.get_figwidth() / columns)))
    if beside >= columns:
        return 1
    lines = -(-columns // beside)
    stacked = figure.add_gridspec(rows * lines, beside, height_ratios=np.repeat(grid.get_height_ratios(), lines))
    first = {spec.rowspan.start: ax for ax, spec in specs.items() if spec.colspan.start == 0}
    for ax, spec in specs.items():
        row, column = spec.rowspan.start, spec.colspan.start
        ax.set_subplotspec(stacked[row * lines + column // beside, column % beside])
        if column % beside == 0 and ax.get_shared_y_axes().joined(ax, first[row]):
            ax.tick_params(axis="y", labelleft=True, labelsize=first[row].get_yticklabels()[0].get_fontsize())
            ax.set_ylabel(ax.get_ylabel() or first[row].get_ylabel())
    return lines


def _can_be_read(ax: Axes, dots: Transform) -> bool:
    """Whether there is room for what it draws, for the names of its rows, and for a legend inside of it."""
    room, legend = ax.get_window_extent(), ax.get_legend()
    if legend is not None and (box := legend.get_window_extent()).y1 > room.y0 and box.width > room.width:
        return False
    if _touch((label.get_window_extent().intervaly for label in ax.get_yticklabels() if label.get_text()), -PADDING):
        return False
    return ax.get_label() == "<colorbar>" or room.transformed(dots.inverted()).width > LEAST


def _make_room(figure: Figure, said: Mapping[Text, str]) -> None:
    """Of a figure that is laid out; said: what each text is, unwrapped."""
    for ax in figure.axes:
        room = ax.get_window_extent()
        _wrap(ax.title, said[ax.title], ax.title.get_window_extent().width, room.width)
        _wrap(ax.xaxis.label, said[ax.xaxis.label], ax.xaxis.label.get_window_extent().width, room.width)
        _wrap(ax.yaxis.label, said[ax.yaxis.label], ax.yaxis.label.get_window_extent().height, room.height)
        legend = ax.get_legend()
        if legend is not None and legend.get_window_extent().y1 < room.y0:
            below = (ax.xaxis.get_tightbbox().y0 - room.y0) / room.height  # type: ignore[union-attr]
            where = {"loc": "upper center", "bbox_to_anchor": (0.5, below - 0.02)}
            ax.legend(**_narrower(legend, room.width), **where)
    for legend in figure.legends:
        if legend.get_window_extent().width > figure.bbox.width:
            legend.remove()
            figure.legend(**_narrower(legend, figure.bbox.width), loc="outside lower center")
    for text in figure.texts:  # its title
        _wrap(text, said[text], text.get_window_extent().width, figure.bbox.width)


def _clear(figure: Figure) -> None:
    for ax in figure.axes:
        _clear_crowded_ticks(ax)
        _clear_crowded_cells(ax)


def _wrap(text: Text, said: str, has: float, room: float) -> None:
    """Break the lines of `said` where there is no room for more; has: of the text as it is, both in pixels."""
    if not said:
        return
    columns = _columns(text, has, room)
    text.set_text("\n".join(textwrap.fill(line, columns, break_long_words=False) for line in said.split("\n")))


def _columns(text: Text, has: float, room: float) -> int:
    """Letters in a line of the text's that is as long as there is room for."""
    return max(8, int(max(map(len, text.get_text().split("\n"))) * room / has))


def _wrap_rows(ax: Axes, room: float) -> None:
    labels = ax.get_yticklabels()
    widest = max(labels, key=lambda label: label.get_window_extent().width, default=None)
    if widest is None or (has := widest.get_window_extent().width) <= room:
        return
    columns = _columns(widest, has, room)
    names = [textwrap.fill(label.get_text(), columns, break_long_words=False) for label in labels]
    ax.set_yticks([label.get_position()[1] for label in labels], names)


def _clear_crowded_ticks(ax: Axes) -> None:
    """Words below an axis are turned; of numbers every second stays."""
    for i, axis in enumerate((ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [(label.get_position()[i], label) for label in axis.get_ticklabels() if label.get_text()]
        shown = [(at, label) for at, label in ticks if low <= at <= high]
        boxes = [label.get_window_extent() for _at, label in shown]
        if not _touch((box.x0, box.x1) if axis is ax.xaxis else (box.y0, box.y1) for box in boxes):
            continue
        if not any(label.get_text()[0].isalpha() for _at, label in shown):
            axis.set_ticks([at for at, _label in shown[::2]], [label.get_text() for _at, label in shown[::2]])
        elif axis is ax.xaxis:
            ax.tick_params(axis="x", labelrotation=90)


def _clear_crowded_cells(ax: Axes) -> None:
    """Numbers in a heat map that are wider than its cells are left out; its colours stay."""
    for mesh in ax.collections:
        if isinstance(mesh, QuadMesh) and (cells := np.asarray(mesh.get_array())).ndim == 2:
            room = ax.get_window_extent()
            numbers = {text: box for text in ax.texts if (box := text.get_window_extent()).y1 < room.y1}
            if any(box.width > room.width / cells.shape[1] for box in numbers.values()):
                for text in numbers:
                    text.remove()


def _touch(intervals: Iterable[Sequence[float]], gap: float = 4) -> bool:
    """Whether less than this many pixels are between two of them."""
    ordered = sorted(map(tuple, intervals))
    return any(before[1] + gap > after[0] for before, after in pairwise(ordered))


def _narrower(legend: Legend, room: float) -> dict[str, object]:
    """What makes the same legend with as many columns as there is room for."""
    texts = legend.get_texts()
    columns = max(1, int(room / (max(text.get_window_extent().width for text in texts) + HANDLE)))
    for text in texts:
        said = " ".join(text.get_text().split())
        _wrap(text, said, text.get_window_extent().width, room - HANDLE)
    return {
        "handles": legend.legend_handles,
        "labels": [text.get_text() for text in texts],
        "fontsize": texts[0].get_fontsize(),
        "ncols": columns,
        "frameon": False,
    }
