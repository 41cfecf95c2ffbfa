"""The READMEs say what the committed results say, in both languages, and show figures that exist."""

import re

import pytest

from lib.report import ROOT
from tests.readme_numbers import NUMBER, READMES, TABLE, TABLES, rendered


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_numbers_are_those_of_the_results(readme):
    text = readme.read_text(encoding="utf-8")
    assert text == rendered(readme)
    assert len(NUMBER.findall(text)) == text.count("<!--="), "a number that is not recognised"
    assert {match["name"] for match in TABLE.finditer(text)} == set(TABLES)


def test_both_languages_have_the_same_numbers_and_commands():
    english, chinese = (path.read_text(encoding="utf-8") for path in READMES)
    assert sorted(NUMBER.findall(english)) == sorted(NUMBER.findall(chinese))
    commands = [re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for text in (english, chinese)]
    stripped = [[re.sub(r"#.*", "", block).split() for block in of] for of in commands]
    assert stripped[0] == stripped[1]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_links_and_figures_exist(readme):
    for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target
