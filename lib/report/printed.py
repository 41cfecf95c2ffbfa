"""Figures as wide as a column of a paper: text is large enough to be read there, and is wrapped where that leaves it
less room."""

import textwrap
import warnings
from collections.abc import Iterable, Mapping
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Transform

SMALLEST = 6.0  # points
SHRUNK = 0.7  # the least of a text's size on the screen, if that is not below SMALLEST, and of a figure's height
OVER = 0.05  # inches that something may stand out of a figure
LEAST = 0.4  # inches of a panel
PASSES = 4  # what is wrapped leaves others less room


def fit(figure: Figure, width: float) -> bool:
    """Make a figure at most `width` inches wide, all text at least SMALLEST points; gives whether all that it shows has
    room there."""
    wide, high = figure.get_size_inches()
    if width >= wide:
        return True
    scale = max(SHRUNK, width / wide)
    figure.set_size_inches(width, high * scale)
    for text in figure.findobj(Text):
        text.set_fontsize(max(SMALLEST, scale * text.get_fontsize()))
    for line in figure.findobj(Line2D):
        line.set_linewidth(scale * line.get_linewidth())
        line.set_markersize(scale * line.get_markersize())
    for ax in figure.axes:
        if (legend := ax.get_legend()) is not None:
            legend.set_in_layout(False)  # as wide as it is, it would leave the axes no room
    said = {text: text.get_text() for text in figure.findobj(Text)}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="constrained_layout not applied")
        try:
            for _pass in range(PASSES):
                figure.draw_without_rendering()
                _make_room(figure, said)
            figure.draw_without_rendering()
        except UserWarning:
            return False
    drawn, (wide, high) = figure.get_tightbbox(), figure.get_size_inches()
    inside = min(drawn.x0, drawn.y0) > -OVER and drawn.x1 < wide + OVER and drawn.y1 < high + OVER
    return inside and all(_can_be_read(ax, figure.dpi_scale_trans) for ax in figure.axes)


def _can_be_read(ax: Axes, dots: Transform) -> bool:
    """Whether there is room for what it draws, and for a legend inside of it."""
    room, legend = ax.get_window_extent(), ax.get_legend()
    if legend is not None and (box := legend.get_window_extent()).y1 > room.y0 and box.width > room.width:
        return False
    return ax.get_label() == "<colorbar>" or room.transformed(dots.inverted()).width > LEAST


def _make_room(figure: Figure, said: Mapping[Text, str]) -> None:
    """Of a figure that is laid out; said: what each text is, unwrapped."""
    for ax in figure.axes:
        room = ax.get_window_extent()
        _wrap(ax.title, said[ax.title], ax.title.get_window_extent().width, room.width)
        _wrap(ax.xaxis.label, said[ax.xaxis.label], ax.xaxis.label.get_window_extent().width, room.width)
        _wrap(ax.yaxis.label, said[ax.yaxis.label], ax.yaxis.label.get_window_extent().height, room.height)
        _turn_crowded_ticks(ax)
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


def _wrap(text: Text, said: str, has: float, room: float) -> None:
    """Break the lines of `said` where there is no room for more; has: of the text as it is, both in pixels."""
    if not said:
        return
    columns = max(8, int(max(map(len, text.get_text().split("\n"))) * room / has))
    text.set_text("\n".join(textwrap.fill(line, columns) for line in said.split("\n")))


def _turn_crowded_ticks(ax: Axes) -> None:
    low, high = sorted(ax.get_xlim())
    shown = [label for label in ax.get_xticklabels() if label.get_text() and low <= label.get_position()[0] <= high]
    if _touch(tuple(label.get_window_extent().intervalx) for label in shown):
        ax.tick_params(axis="x", labelrotation=90)


def _touch(intervals: Iterable[tuple[float, float]]) -> bool:
    ordered = sorted(intervals)
    """Or nearly so."""
    return any(before[1] + 2 > after[0] for before, after in pairwise(ordered))


def _narrower(legend: Legend, room: float) -> dict[str, object]:
    """What makes the same legend with as many columns as there is room for."""
    texts = legend.get_texts()
    columns = max(1, int(room / (max(text.get_window_extent().width for text in texts) + 60)))
    return {
        "handles": legend.legend_handles,
        "labels": [text.get_text() for text in texts],
        "fontsize": texts[0].get_fontsize(),
        "ncols": columns,
        "frameon": False,
    }
