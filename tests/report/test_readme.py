"""The READMEs say what the committed results say, in both languages, show figures that exist, and can be read raw."""

import re
from itertools import zip_longest

import pytest

from lib.run import cli
from lib.run.checkout import ROOT
from tests import readme as blocks
from tests.readme import ARCHITECTURES, BLOCK, BLOCKS, READMES, WIDTH, architectures, columns, rendered

LINES = 350  # fewer than these
PAGES = [*READMES, ROOT / "CONTRIBUTING.md", ROOT / "RESULTS.md", ARCHITECTURES]
RESULTS = ("finding", "layerwise", "exp3", "exp5", "claims")


@pytest.fixture(params=READMES, ids=lambda path: path.name)
def readme(request):
    return request.param


def test_blocks_are_those_of_the_results(readme):
    assert differing(text(readme).splitlines(), rendered(readme).splitlines()) == []
    assert sorted(found["name"] for found in BLOCK.finditer(text(readme))) == sorted(BLOCKS)
    assert text(readme).count("<!--") == 2 * len(BLOCKS), "a block that is not recognised"


@pytest.mark.parametrize(
    "what",
    [
        r"^#+(?= )|(?<=^### )[a-z]+\w+",  # headings
        r"^```bash\n.*?^```",
        r"(?<=\]\()(?!README)[^)#]+",  # links and figures
        r"^<!-- \w+ -->",
    ],
    ids=["headings", "commands", "links", "blocks"],
)
def test_both_languages_have_the_same(what):
    found = [re.findall(what, text(path), re.DOTALL | re.MULTILINE) for path in READMES]
    english, chinese = ([re.sub(r" +#.*", "", each) for each in of] for of in found)
    assert differing(english, chinese) == []


def test_architectures_are_those_that_were_found():
    assert architectures() == ARCHITECTURES.read_text(encoding="utf-8")


@pytest.mark.parametrize("what", [r"`[^`\n]+`", r"\d[\d.,]*\d|\d"], ids=["code", "numbers"])
def test_prose_of_both_languages_has_the_same(what):
    english, chinese = (sorted(re.findall(what, prose(path))) for path in READMES)
    assert differing(english, chinese) == []


def differing(ours, theirs):
    """The first pair that differs: pytest would take minutes to show what is different in a page."""
    return [pair for pair in zip_longest(ours, theirs) if pair[0] != pair[1]][:1]


def text(path):
    return path.read_text(encoding="utf-8")


def prose(path):
    """Without blocks, commands and links."""
    return re.sub(r"^```.*?^```|\]\([^)]+\)", "", BLOCK.sub("", text(path)), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_raw_text_is_readable(page):
    lines = text(page).splitlines()
    assert len(lines) < LINES
    assert not [line for line in lines if columns(line) > WIDTH and line[0] != "|"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_figures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", text(page)):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("name", RESULTS)
def test_a_missing_result_is_named(name, monkeypatch, tmp_path):
    monkeypatch.setattr(blocks, "MODEL", tmp_path)
    blocks.result.cache_clear()
    with pytest.raises(cli.UserError, match=r"cannot read .*\.json"):
        blocks.block(name, blocks.english)
    blocks.result.cache_clear()


def test_a_result_of_another_make_is_named(monkeypatch):
    monkeypatch.setattr(blocks, "result", lambda name, path=None: {"conclusion": {}})
    with pytest.raises(cli.UserError, match="block exp3: its results are not as expected"):
        blocks.block("exp3", blocks.english)


def test_a_word_without_chinese_is_named():
    with pytest.raises(cli.UserError, match="no Chinese for 'whatever'"):
        blocks.chinese("whatever")
