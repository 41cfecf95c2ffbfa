"""The part of one result: what it asks and answers, its figures, tables and provenance."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import catalogue
from lib.experiment import Experiment, of_file
from lib.page import figures, txt
from lib.page.html import Html, tag
from lib.page.words import Said, Words
from lib.report import result_files
from lib.report.result_files import Result
from lib.report.views import View


@dataclass(frozen=True)
class Shown:
    """A result of a page. path: of its JSON; below: the same, below the page's folder; folder: in which its files are;
    key: its id on the page."""

    experiment: Experiment
    result: Result[Any, Any]
    path: Path
    folder: Path
    below: str
    key: str

    @property
    def title(self) -> str:
        return txt.title(self.experiment.summary(self.result))

    @property
    def verdict(self) -> str | None:
        conclusion = self.result.conclusion
        return None if conclusion is None else conclusion.verdict

    def asks(self, words: Words) -> str:
        said = words.experiments.get(self.result.experiment)
        return said.asks if said else self.title


def section(shown: Shown, words: Words) -> Html:
    """Raises UserError if the result does not hold what its texts and views need."""
    with of_file(shown.path):
        return _section(shown, words)


def _section(shown: Shown, words: Words) -> Html:
    said = words.experiments.get(shown.result.experiment)
    details = shown.experiment.details
    warning = shown.result.provenance.get("warning")
    return tag(
        "section",
        tag("h3", shown.title, id=f"{shown.key}-title", lang=words.foreign),
        tag("p", shown.asks(words), " ", _answer(shown, words), class_="asks"),
        tag("p", words.warning.format(warning=warning), class_="warning") if warning else [],
        _limits(said, words) if said else [],
        tag("div", [*_figures(shown, words)], class_="figures"),
        tag("div", txt.summary(shown.experiment.summary, shown.result), class_="numbers", lang=words.foreign),
        _folded(words.details, txt.details(details, shown.result), words) if details else [],
        _folded(words.provenance, _provenance(shown), words),
        id=shown.key,
        aria_labelledby=f"{shown.key}-title",
    )


def _limits(said: Said, words: Words) -> Html:
    shows = [tag("strong", words.shows), f" {said.shows}{words.stop}"]
    cannot = [tag("strong", words.cannot_show), f" {said.cannot_show}{words.stop.rstrip()}"]
    return tag("p", shows, cannot, class_="limits")


def _answer(shown: Shown, words: Words) -> Html:
    return tag("strong", words.shown(shown.verdict), class_="answer") if shown.verdict else Html("")


def _folded(summary: str, content: Html, words: Words) -> Html:
    """content: as a result says it."""
    return tag("details", tag("summary", summary), tag("div", content, lang=words.foreign))


def _figures(shown: Shown, words: Words) -> Iterator[Html]:
    """Those that lie where a run of today writes them, as PNG or, where that is not there, as SVG."""
    views = catalogue.views_of(shown.result.experiment, shown.result) if figures.plotly() else []
    about = f"{shown.result.config['model_name']}: {shown.title}" + (f"; {shown.verdict}" if shown.verdict else "")
    for template, draw in shown.experiment.figures().items():
        name = result_files.native(template.format(**shown.result.config))
        for file in (name, f"{name.removesuffix('png')}svg"):
            path = (shown.folder / file).resolve()
            if path.is_file() and path.stat().st_size and path.is_relative_to(shown.folder.resolve()):
                yield figures.figure(path, figures.caption(draw), about, _of(views, name), words)
                break


def _of(views: list[View], name: str) -> list[View]:
    return [view for view in views if name.endswith(view.figure)]


def _provenance(shown: Shown) -> Html:
    """As the TXT's head, with packages, commit and where the JSON is."""
    p, data = shown.result.provenance, shown.result.provenance["data"]
    git = p.get("git") or {}
    facts: dict[str, object] = {
        "JSON": shown.below,
        "command": p.get("command"),
        "model": ", ".join(f"{key} {value}" for key, value in p["model"].items()),
        "data": ", ".join(f"{key} {_visible(value)}" for key, value in data.items()),
        "run": ", ".join(str(p.get(key)) for key in ("dtype", "device", "attention", "time") if p.get(key)),
        "seed": p.get("seed"),
        "commit": ", ".join(f"{key} {value}" for key, value in git.items()),
        "packages": ", ".join(f"{key} {value}" for key, value in (p.get("packages") or {}).items()),
        "sha256": p.get("sha256"),
    }
    rows = [[tag("dt", name), tag("dd", str(value))] for name, value in facts.items() if value not in (None, "")]
    return tag("dl", rows)


def _visible(value: object) -> str:
    """What joins documents may be a line break."""
    return str(value) if str(value).isprintable() else repr(value)
