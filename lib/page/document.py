"""The whole page of a folder of results: one HTML file that asks for nothing else."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import catalogue
from lib.claims.judging import VERDICTS, JudgedClaim
from lib.core.definitions import ABSOLUTE, RELATIVE
from lib.page import figures, txt
from lib.page.html import Html, joined, tag
from lib.page.sections import Shown, section
from lib.page.words import Words
from lib.report.tables import Table

HERE = Path(__file__).parent
NO_NETWORK = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class NumberedClaim:
    """A judged claim and the numbers it rests on, in one line."""

    judged: JudgedClaim
    numbers: str


@dataclass(frozen=True)
class Subject:
    """A model in one dtype. said: what matters most, in sentences. refutes: whether it is the seed study's model, and
    can refute its figures. key: its id on the page."""

    name: str
    said: list[str]
    results: list[Shown]
    claims: list[NumberedClaim]
    refutes: bool
    key: str


def document(subjects: Sequence[Subject], words: Words) -> str:
    title = words.title.format(names=words.last_and.join(dict.fromkeys(subject.name for subject in subjects)))
    return whole(title, [_subject(subject, words, alone=len(subjects) == 1) for subject in subjects], words)


def whole(title: str, content: object, words: Words) -> str:
    """A page with this title and content."""
    main = tag("main", content, id="main")
    about = words.about.format(absolute=f"{ABSOLUTE:,.0f}", relative=f"{RELATIVE:,.0f}")
    plotly = figures.plotly() if "data-view=" in main else None
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=NO_NETWORK),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html((HERE / "page.css").read_text(encoding="utf-8"))),
    )
    body = tag(
        "body",
        tag("a", words.skip, href="#main", class_="skip"),
        tag("header", tag("h1", title), tag("p", about), tag("p", words.reading)),
        main,
        tag("footer", tag("p", words.footer)),
        tag("script", Html(plotly), type="text/plain", id="plotly") if plotly else [],
        tag("script", Html((HERE / "page.js").read_text(encoding="utf-8"))),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang=words.language)}\n"


def _subject(subject: Subject, words: Words, alone: bool) -> Html:
    sections = [section(shown, words) for shown in subject.results]  # first: what is not whole is told here
    return tag(
        "article",
        [] if alone else tag("h2", subject.name, class_="subject"),
        _facts([shown.result.provenance for shown in subject.results], words),
        [tag("h2", words.in_short), tag("ul", [tag("li", text) for text in subject.said], class_="short")]
        if subject.said
        else [],
        tag("h2", words.answers),
        _answers(subject.results, words),
        _not_measured({shown.result.experiment for shown in subject.results}, words),
        _claims(subject, words),
        tag("h2", words.experiments_heading),
        sections,
        id=subject.key,
    )


def _facts(origins: Sequence[dict[str, Any]], words: Words) -> Html:
    """What model, what text, how many windows, over all results."""
    datasets = Counter(origin["data"]["dataset"] for origin in origins)
    most = datasets.most_common(1)[0][0]
    data = [origin["data"] for origin in origins if origin["data"]["dataset"] == most]
    windows = words.of_windows.format(
        windows=_range([of["windows"] for of in data], words), tokens=_range([of["seqlen"] for of in data], words)
    )
    model = origins[0]["model"]
    days = sorted({origin["time"][:10] for origin in origins})
    facts = {
        words.model: f"{model['name']} ({model['type']})" if "type" in model else model["name"],
        words.text: words.list_and.join(datasets),
        words.windows: windows,
        words.precision: words.list_and.join(
            dict.fromkeys(str(origin[key]) for origin in origins for key in ("dtype", "device") if key in origin)
        ),
        words.measured: days[0] if len(days) == 1 else words.to.format(first=days[0], last=days[-1]),
    }
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()], class_="facts")


def _range(numbers: Sequence[int], words: Words) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else words.to.format(first=f"{least:,}", last=f"{most:,}")


def _answers(results: Sequence[Shown], words: Words) -> Html:
    """Every result with its question, verdict, and the way to it."""
    rows: list[list[str]] = [
        [
            tag("a", shown.title, href=f"#{shown.key}", lang=words.foreign),
            shown.asks(words),
            tag("strong", words.shown(shown.verdict)) if shown.verdict else words.no_verdict,
        ]
        for shown in results
    ]
    return txt.html_table(Table([words.experiment, words.question, words.answer], rows, [False] * 3), whole=True)


def _not_measured(found: Collection[str], words: Words) -> Html:
    """What a study of any model runs and is not there: it was interrupted, was --short, or is none."""
    missing = [
        entry.command
        for name, entry in catalogue.EXPERIMENTS.items()
        if entry.study and not entry.needs and name not in found
    ]
    return tag("p", words.not_measured.format(scripts=words.list_and.join(missing))) if missing else Html("")


def _claims(subject: Subject, words: Words) -> Html:
    counts = Counter(claim.judged.verdict for claim in subject.claims)
    counted = [
        words.count.format(verdict=words.shown(verdict), n=counts[verdict]) for verdict in VERDICTS if counts[verdict]
    ]
    rows: list[list[str]] = [
        [
            claim.judged.row,
            tag("strong", words.shown(claim.judged.verdict)),
            words.said(claim.judged.claim),
            claim.numbers,
        ]
        for verdict in VERDICTS
        for claim in subject.claims
        if claim.judged.verdict == verdict
    ]
    table = Table([words.row, words.verdict, words.claim, words.numbers], rows, [False] * 4)
    notes = [words.counted.format(counts=words.clause.join(counted)), "" if subject.refutes else words.not_gpt2]
    return joined(
        [
            tag("h2", words.claims_heading),
            tag("p", " ".join(filter(None, notes))),
            tag("details", tag("summary", words.every_claim), txt.html_table(table)),
        ]
    )
