"""What a result's TXT says, as HTML: the same words and numbers, its tables as tables."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from lib.page.html import Html, joined, tag
from lib.report import tables
from lib.report.tables import MARK, Table

NUMBERED = re.compile(r"Experiment \w+: ")
TALL = 16  # rows of a table; one that has more scrolls
BRIEF = 34  # columns of a cell that is not broken into lines; a Chinese character takes two
HINTS = {"Conclusion: ": "conclusion", "Rule: ": "rule"}


def title(text: str) -> str:
    """The first line, as a heading of its own."""
    line = NUMBERED.sub("", text.partition("\n")[0])
    return line[:1].upper() + line[1:]


def summary(say: Callable[[Any], str], result: Any) -> Html:
    """Of a summary all but its head, which says what ran on what."""
    return _html(say, result, headless=True)


def details(say: Callable[[Any], str], result: Any) -> Html:
    return _html(say, result, headless=False)


def _html(say: Callable[[Any], str], result: Any, headless: bool) -> Html:
    with tables.set_aside() as kept:
        text = say(result)
    if headless:
        text = text.partition("\n\n")[2]
    return joined([*_blocks(text, kept)])


def _blocks(text: str, kept: list[Table]) -> Iterator[Html]:
    """Paragraphs and tables in their order; verdict and rule are one each."""
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        table = line.startswith(MARK)
        if lines and (table or not line or line.startswith(tuple(HINTS)) or lines[-1].startswith(tuple(HINTS))):
            yield _paragraph(lines)
            lines = []
        if table:
            yield html_table(kept[int(line.strip(MARK))])
        elif line:
            lines.append(line)


def _paragraph(lines: list[str]) -> Html:
    role = next((role for begin, role in HINTS.items() if lines[0].startswith(begin)), "said")
    return tag("p", "\n".join(lines), class_=role)


def html_table(table: Table, whole: bool = False) -> Html:
    """In a box of its own that scrolls, and can be scrolled with keys. whole: with all rows in sight."""
    kinds = [_kind(table, column) for column in range(len(table.headers))]
    heads = [tag("th", head, scope="col", class_=kind) for head, kind in zip(table.headers, kinds, strict=True)]
    rows = [
        tag("tr", [tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)]) for row in table.rows
    ]
    body = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows))
    shape = "tall box" if len(table.rows) > TALL and not whole else "box"
    return tag("div", body, class_=shape, tabindex="0", role="group", aria_label=", ".join(filter(None, table.headers)))


def _kind(table: Table, column: int) -> str | bool:
    """The class of a column's cells."""
    if table.numeric and table.numeric[column]:
        return "number"
    return "brief" if all(_columns(row[column]) <= BRIEF for row in table.rows) else False


def _columns(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)
