"""Figures for print: as wide as asked for, no text below six points, nothing outside, nothing on top of a neighbour."""

import itertools
import re
import shutil

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from lib.report import figures, printed
from lib.run.checkout import ROOT
from tests.scripts.test_scripts import run

LONG = "what is drawn here, in words that are too long for one panel of two"


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
    yield drawn
    plt.close(drawn)


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
    ticks = sorted(label.get_window_extent().x0 for label in figure.axes[0].get_xticklabels())
    height = figure.axes[0].get_xticklabels()[0].get_window_extent().width
    assert min(after - before for before, after in itertools.pairwise(ticks)) < height or width == 10


def test_what_is_narrow_enough_stays(figure):
    before = [(text.get_text(), text.get_fontsize()) for text in figure.findobj(Text)]
    assert printed.fit(figure, 13)
    assert [(text.get_text(), text.get_fontsize()) for text in figure.findobj(Text)] == before


def test_what_has_no_room_is_told(figure):
    assert not printed.fit(figure, 2)


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
