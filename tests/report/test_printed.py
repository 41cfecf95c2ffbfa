"""Figures for print: as wide as asked for, no text below six points, nothing outside, nothing on top of a neighbour."""

import itertools
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from lib.report import figures, printed
from lib.run.checkout import ROOT
from tests.scripts.test_scripts import run

LONG = "what is drawn here, in words that are too long for one panel of two"


@pytest.fixture(autouse=True)
def _style():
    with figures.style():
        yield


@pytest.fixture
def figure():
    """Two panels with long labels, legends below, crowded ticks."""
    drawn, axes = figures.make_axes(1, 2, size=(13, 6))
    for ax in axes:
        for i in range(4):
            ax.plot([0, 1, 2], [i, 1, 0], label=f"a name of some length, number {i}")
        ax.set_title(LONG, fontsize=11)
        ax.set_xlabel(LONG)
        ax.set_ylabel(LONG, fontsize=8)
        ax.set_xticks(range(30), [f"{i:,}" for i in range(1000, 1030)])
    axes[0].legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    drawn.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    drawn.suptitle(f"{LONG}, {LONG}\nsecond line", fontsize=11)
    return drawn


def labels(drawn):
    found = [text for ax in drawn.axes for text in (ax.title, ax.xaxis.label, ax.yaxis.label)]
    legends = [legend for ax in drawn.axes if (legend := ax.get_legend())] + drawn.legends
    return [*found, *drawn.texts, *(text for legend in legends for text in legend.get_texts())]


@pytest.mark.parametrize("width", [7, 10])
def test_all_has_room(width, figure):
    said = {" ".join(text.get_text().split()) for text in labels(figure)}
    assert printed.fit(figure, width)
    figure.draw_without_rendering()
    assert figure.get_size_inches()[0] == width
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 6
    assert {" ".join(text.get_text().split()) for text in labels(figure)} == said
    boxes = [text.get_window_extent() for text in labels(figure)]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert box.x0 > -3
        assert box.x1 < figure.bbox.width + 3
    ticks = sorted(tuple(label.get_window_extent().intervalx) for label in figure.axes[0].get_xticklabels())
    assert len(ticks) > 3
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ticks))


def test_words_below_an_axis_are_turned():
    drawn, ax = figures.make_axes(size=(13, 4))
    names = [f"a name of some length, {i}" for i in range(8)]
    ax.set_xticks(range(8), names)
    assert printed.fit(drawn, 3.3)
    assert [label.get_text() for label in ax.get_xticklabels()] == names
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {90}


def test_panels_without_room_stand_below_each_other():
    """With the names of their rows, which the first of them showed for all."""
    drawn, axes = figures.make_axes(1, 3, size=(13, 5), sharey=True)
    for ax in axes:
        ax.plot([0, 1], [0, 1])
        ax.set_xlabel(LONG)
    axes[0].set_yticks([0, 1], [LONG, "short"], fontsize=9)
    axes[0].set_ylabel("rows")
    assert printed.fit(drawn, 3.3)
    drawn.draw_without_rendering()
    boxes = [ax.get_window_extent() for ax in axes]
    assert len({round(box.x0) for box in boxes}) == 1
    assert boxes[0].y0 > boxes[1].y1 > boxes[1].y0 > boxes[2].y1
    for ax, box in zip(axes, boxes, strict=True):
        assert box.width / drawn.dpi > 1
        assert ax.get_ylabel() == "rows"
        labels = ax.get_yticklabels()
        assert " ".join(labels[0].get_text().split()) == LONG
        assert all(label.get_visible() and label.get_fontsize() < 9 for label in labels)
        assert min(label.get_window_extent().x0 for label in labels) > 0


def test_as_many_panels_beside_each_other_as_have_room():
    drawn, axes = figures.make_axes(1, 4, size=(20, 5))
    assert printed.fit(drawn, 7)
    drawn.draw_without_rendering()
    first, second, third, fourth = (ax.get_window_extent() for ax in axes)
    assert first.x1 < second.x0 < second.x1 < third.x0
    assert first.y0 == pytest.approx(third.y0)
    assert fourth.x0 == pytest.approx(first.x0)
    assert fourth.y1 < first.y0


@pytest.mark.parametrize(("columns", "left"), [(3, 6), (40, 0)])
def test_numbers_wider_than_the_cells_of_a_heat_map_are_left_out(columns, left):
    """And what is written over it is not."""
    drawn, ax = figures.make_axes(size=(13, 4))
    figures.draw_heatmap(ax, np.ones((2, columns)), annot=True, fmt=".3f")
    above = ax.text(0.5, -0.1, "N", va="bottom")
    assert printed.fit(drawn, 5)
    assert len(ax.texts) == left + 1
    assert above in ax.texts


def test_a_surface_has_room():
    """With the label of its values, beside which there is none."""
    drawn = figures.make_figure((8, 5.6))
    ax = drawn.add_subplot(projection="3d", computed_zorder=False)
    values = np.full((4, 300), 20_000.0)
    figures.draw_surface(ax, values, ["a", "b", "c", "d"], [100], values.max())
    assert printed.fit(drawn, 3.3)
    drawn.draw_without_rendering()
    [label] = [text for text in ax.texts if text.get_text() == "|activation|"]
    assert label.get_window_extent().x1 < drawn.bbox.width


def test_numbers_of_a_heat_map_stand_out_from_their_cells():
    """By the WCAG's measure, 4.5 at least."""
    _drawn, ax = figures.make_axes()
    values = np.linspace(-1, 1, 100).reshape(10, 10)
    values[3, 4] = np.nan
    figures.draw_heatmap(ax, values, annot=True, cmap=figures.DIVERGING)
    cells = ax.collections[0].get_facecolors()[np.isfinite(values.ravel())]
    assert len(ax.texts) == len(cells) == 99
    for text, cell in zip(ax.texts, cells, strict=True):
        dark, light = sorted(map(luminance, (text.get_color(), cell)))
        assert (light + 0.05) / (dark + 0.05) > 4.5


def luminance(color):
    """WCAG 2, relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_what_is_narrow_enough_stays(figure):
    before = [(text.get_text(), text.get_fontsize()) for text in figure.findobj(Text)]
    assert printed.fit(figure, 13)
    assert [(text.get_text(), text.get_fontsize()) for text in figure.findobj(Text)] == before


def test_rows_whose_names_lie_over_one_another_have_no_room():
    drawn, ax = figures.make_axes(size=(8, 4))
    ax.set_yticks(range(40), [f"row {i}" for i in range(40)])
    assert not printed.fit(drawn, 3.3)


def test_what_has_no_room_is_told(figure):
    assert not printed.fit(figure, 1)


def replotted(tmp_path, name, *flags):
    """rc of --replot on a copy of SmolLM2's result, and the folder."""
    folder = shutil.copytree(ROOT / "results" / "smollm2-135m" / name, tmp_path / name)
    for figure in folder.glob("*.png"):
        figure.unlink()
    [path] = folder.glob("*_results.json")
    return run(f"{name}.py", "--replot", path, "--format", "svg", *flags), folder


def test_by_the_command_line(tmp_path):
    ended, folder = replotted(tmp_path, "exp3_lifecycle_ledger", "--width", "3.3")
    assert ended == 0
    for name in ("exp3_ledger.svg", "exp3_writes.svg"):
        svg = (folder / name).read_text()
        assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) == pytest.approx(72 * 3.3, abs=0.1)
        sizes = {float(size) for size in re.findall(r"<text style=\"[^\"]*?([\d.]+)px", svg)}
        assert sizes
        assert min(sizes) >= 6


def test_a_figure_without_room_is_one_line(tmp_path, capsys):
    ended, folder = replotted(tmp_path, "exp5_interventions", "--width", "2")
    assert ended == 2
    error = capsys.readouterr().err
    assert "exp5_comes_back.svg: what it shows needs more than 2 inches" in error
    assert error.count("\n") == 1
    assert not (folder / "exp5_comes_back.svg").exists()


@pytest.mark.parametrize("width", ["0.5", "50", "wide", "nan"])
def test_no_width(width, tmp_path, capsys):
    ended, _folder = replotted(tmp_path, "exp12_weights_alone", "--width", width)
    assert ended == 2
    assert f"--width must be from 2 to 20 inches, not {width}" in capsys.readouterr().err


@pytest.mark.parametrize(("n", "ticks"), [(1, [0]), (3, [0, 1, 2])])
def test_layers_are_whole_numbers(n, ticks):
    _figure, ax = figures.make_axes()
    figures.label_layers(ax, n)
    assert [tick for tick in ax.get_xticks() if -0.5 <= tick <= n - 0.5] == ticks


@pytest.mark.parametrize("largest", [0.02, 1.9, 19.0])
def test_an_axis_of_losses_has_room_at_both_ends(largest):
    _drawn, ax = figures.make_axes()
    ax.plot([-0.01, largest], [0, 1])
    ax.axvline(0)
    figures.loss_axis(ax)
    ends = ax.transAxes.inverted().transform(ax.transData.transform([(-0.01, 0), (largest, 0)]))[:, 0]
    assert 0.03 < ends[0] < ends[1] < 0.97
    assert figures.SIGNED(0.0) == "0"


@pytest.mark.parametrize(("low", "high"), [(-0.0683, 0.0617), (-0.001, 0.05), (-0.09, 0.05)])
def test_small_losses_have_round_ticks(low, high):
    drawn, ax = figures.make_axes(size=(5, 3))
    ax.plot([low, high], [0, 1])
    figures.loss_axis(ax)
    drawn.draw_without_rendering()
    ticks = {label.get_text(): label.get_window_extent() for label in ax.get_xticklabels()}
    assert len(ticks) > 2
    assert max(map(len, ticks)) <= len("-0.05")
    assert all(before.x1 < after.x0 for before, after in itertools.pairwise(ticks.values()))


def test_a_long_name_breaks_the_line_of_a_title():
    name = "a-model-whose-name-is-\u2026letters-and-then-some"
    data = {"windows": 8, "seqlen": 32}
    result = SimpleNamespace(config={"model_name": name}, provenance={"data": data})
    assert figures.make_title(result, "Title") == f"Title\n{name},\n8 windows of 32 tokens"
    result.config["model_name"] = "qwen2.5-coder-0.5b"
    assert figures.make_title(result, "Title").count("\n") == 1
