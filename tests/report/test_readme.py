"""The READMEs say what the committed results say, in both languages, show figures that exist, and can be read raw."""

import json
import re
from itertools import zip_longest

import pytest

from lib.run import cli
from lib.run.checkout import ROOT
from tests import readme as blocks
from tests.readme import ARCHITECTURES, BLOCK, BLOCKS, READMES, WIDTH, architectures, columns, rendered

LINES = 350  # fewer than these
PAGES = [*READMES, ROOT / "CONTRIBUTING.md", ROOT / "RESULTS.md", ARCHITECTURES]
RESULTS = ("layerwise", "exp3", "exp5")


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


@pytest.mark.parametrize("name", ["finding", "claims"])
def test_no_models_are_said(name, monkeypatch, tmp_path):
    monkeypatch.setattr(blocks, "RESULTS", tmp_path)
    blocks.models_side_by_side.cache_clear()
    with pytest.raises(cli.UserError, match="no results below"):
        blocks.block(name, blocks.english)
    blocks.models_side_by_side.cache_clear()


def rows_of(block):
    """Of a table: the cells of each row, the heading and its line left out."""
    lines = [line for line in block.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_claims_are_those_of_verify_claims():
    """A column a model, as it stores them itself; those of which none can tell stand below the table."""
    stored = {}
    for path in sorted((ROOT / "results").glob("*/*_claims.json")):
        stored[path.parent.name] = {
            claim["row"]: claim["verdict"] for claim in json.loads(path.read_text())["results"]["claims"]
        }
    block = blocks.block("claims", blocks.english)
    models = block.splitlines()[0].strip("| ").split(" | ")[1:-1]
    assert sorted(stored) == models
    said = {"yes": "holds here", "no": "does not hold here", "?": "cannot tell"}
    shown = {}
    for text, *signs, together in rows_of(block):
        row = re.match(r"\*(.+?)\*", text)[1]
        shown[row] = together
        assert {model: said[sign] for model, sign in zip(models, signs, strict=True)} == {
            model: stored[model][row] for model in models
        }
    untold = re.search(r"^told of none .*", block, re.DOTALL | re.MULTILINE)
    below = set(re.findall(r"\*(.+?)\*", untold[0].replace("\n", " "))) if untold else set()
    every = set(stored[models[0]])
    assert shown.keys() | below == every
    assert shown.keys() & below == set()
    for row in every:
        told = [of[row] for of in stored.values() if of[row] != "cannot tell"]
        kind = "told of one" if len(told) == 1 else "differs" if len(set(told)) > 1 else "the same in all"
        assert shown.get(row, "none") == (kind if told else "none"), row


def test_the_finding_has_a_column_a_model():
    [where, *_rows] = rows_of(blocks.block("finding", blocks.english))
    models = blocks.block("finding", blocks.english).splitlines()[0].strip("| ").split(" | ")[1:-1]
    for model, cell in zip(models, where[1:-1], strict=True):
        stored = json.loads((ROOT / "results" / model / "exp3_lifecycle_ledger" / "exp3_results.json").read_text())
        place, plateau = stored["results"]["place"], stored["results"]["conclusion"]["values"]["plateau"]
        most = max(place["positions"], key=lambda position: place["positions"][position])
        assert cell.startswith(f"dim {place['dim']}, position {most}; ")
        assert f", massive with half of it or more in layers {plateau[0]} to {plateau[1]}; " in cell


def test_a_result_of_another_make_is_named(monkeypatch):
    monkeypatch.setattr(blocks, "result", lambda name, path=None: {"conclusion": {}})
    with pytest.raises(cli.UserError, match="block exp3: its results are not as expected"):
        blocks.block("exp3", blocks.english)


def test_a_word_without_chinese_is_named():
    with pytest.raises(cli.UserError, match="no Chinese for 'whatever'"):
        blocks.chinese("whatever")
