"""The atlas as one HTML file, with a link to the page of each model that has one."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from lib.atlas import figures, text
from lib.atlas.results import Results, Row
from lib.page import figures as page_figures
from lib.page import txt
from lib.page.document import whole
from lib.page.html import Html, tag
from lib.page.words import ENGLISH


def document(results: Results, pages: Mapping[str, Path], folder: Path, drawn: Mapping[str, Path]) -> str:
    """pages: {model: its page}; folder: where the document is to lie; drawn: {claims, depth: a PNG or SVG}."""
    shown = [
        page_figures.figure(path, page_figures.caption(getattr(figures, name)), "", [], ENGLISH)
        for name, path in drawn.items()
    ]
    content = [
        tag("ul", [_model(row, pages.get(row.model), folder) for row in results.models], class_="short"),
        *([tag("p", f"Left out: {'; '.join(results.left_out)}.")] if results.left_out else []),
        *(tag("h2", text.MECHANISM), txt.html_table(text.mechanism(results))),
        tag("div", shown, class_="figures"),
        *(tag("h2", text.VERDICTS), txt.html_table(text.verdicts(results))),
        *(tag("h2", text.CLAIMS), tag("p", text.LEGEND)),
        tag("ul", [tag("li", line) for line in text.groups(results)]),
        tag("p", f"Rule: {results.rule}.", class_="rule"),
        txt.html_table(text.claims(results)),
    ]
    return whole(text.TITLE, content, ENGLISH)


def _model(row: Row, page: Path | None, folder: Path) -> Html:
    name = tag("strong", row.model)
    if page is not None:
        name = tag("a", name, href=quote(os.fsencode(Path(os.path.relpath(page, folder)).as_posix())))
    return tag("li", name, f": {' '.join(row.said) or '-'} ", tag("small", f"{row.described}; {row.data}"))
