"""A page in another language is the same page: the same parts, all fixed words in that language, and what a result says
marked as English."""

import dataclasses
import json
import re

import pytest

import page
from experiments.ablation.judge import MIXED, NO_LONGER
from experiments.census.judge import CAUSES
from experiments.interventions.results import SAME
from experiments.neuron_sets.judge import GIVE
from lib.claims.every import CLAIMS
from lib.page.words import BRACKETS, CHINESE, ENGLISH, LANGUAGES, Words
from tests import golden
from tests.page import folders
from tests.page.parsed import parse
from tests.scripts.test_scripts import run

HAN = re.compile(r"[\u4e00-\u9fff]")
NAME = re.compile(r"(mlp|head|attention bias|embedding)( \d+)?(\.\d+)?")  # of a component


def texts(words):
    """{name: text} of all that is a text, those of experiments and fates among them."""
    found = {}
    for field in dataclasses.fields(Words):
        value = getattr(words, field.name)
        if isinstance(value, str):
            found[field.name] = value
        elif field.name == "experiments":
            for name, said in value.items():
                found |= {f"{name} {part}": text for part, text in vars(said).items()}
        elif field.name == "fates":
            found |= {f"fate {name}": text for name, text in value.items()}
    return found


def test_every_word_is_said_with_the_same_places():
    english, chinese = texts(ENGLISH), texts(CHINESE)
    assert chinese.keys() == english.keys()
    for name, text in chinese.items():
        places = [sorted(re.findall(r"\{\w+\}", of)) for of in (text, english[name])]
        assert places[0] == places[1], name
    said = {name for name, text in chinese.items() if HAN.search(text)}
    assert chinese.keys() - said == {
        "language",
        "file",
        "stop",
        "clause",
        "count",
        "list_and",
        "glossed",
        "note",
        "write",
        "mlp",
        "who",
    }


def test_every_claim_is_said():
    assert {BRACKETS.sub("", claim.text) for claim in CLAIMS} == set(CHINESE.claims)


def test_what_stands_beside_a_verdict_is_said():
    for note in (MIXED, NO_LONGER, GIVE, SAME, "behind BOS, 12.5% still spike"):
        assert not re.search("[a-z]{4}", CHINESE.noted(note).replace("token", ""))
    assert (ENGLISH.noted(MIXED), ENGLISH.noted(None)) == (f" ({MIXED})", "")


def test_what_is_not_known_stands_as_it_is():
    assert CHINESE.shown("collapses") == "collapses\uff08\u5d29\u584c\uff09"
    assert CHINESE.shown("head 3.2") == "head 3.2"
    assert CHINESE.said("A claim of nobody (GPT-2)") == "A claim of nobody (GPT-2)"
    first = next(iter(CHINESE.claims))
    assert CHINESE.said(f"{first} (GPT-2: +0.06 %)") == f"{CHINESE.claims[first]} (GPT-2: +0.06 %)"
    assert (ENGLISH.shown("collapses"), ENGLISH.said(first)) == ("collapses", first)


def test_a_verdict_with_numbers_and_verdicts_in_it():
    assert CHINESE.meaning("2 of 1536 neurons") == "1536 \u4e2a\u795e\u7ecf\u5143\u4e2d\u7684 2 \u4e2a"
    none, between = CHINESE.meaning("none found"), CHINESE.meaning("between steps 500 and 700")
    assert re.findall(r"\d+", between) == ["500", "700"]
    said = CHINESE.meaning("massive activations: none found; sinks: between steps 500 and 700")
    assert said.count(none) == said.count(between) == 1
    assert ENGLISH.meaning("2 of 1536 neurons") is None


def golden_verdicts():
    stored = [results for path in golden.FOLDER.glob("*.json") for results in json.loads(path.read_text()).values()]
    return {
        results["conclusion"]["verdict"] for results in stored if isinstance(results, dict) and "conclusion" in results
    }


@pytest.mark.parametrize("verdict", sorted(golden_verdicts() | {*CAUSES, "6.1 lowers, 2.0 raises"}))
def test_every_verdict_but_a_name_has_a_meaning(verdict):
    if not NAME.fullmatch(verdict):
        meaning = CHINESE.meaning(verdict)
        assert meaning
        assert HAN.search(meaning)
        assert not re.search(r"\b(cannot|none|found|steps|neurons|lowers|raises|the)\b", meaning)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = folders.smollm2(tmp_path_factory.mktemp("language") / "x", "exp3", "exp5", "sentence")
    return {language: parse(page.write(folder, words)) for language, words in LANGUAGES.items()}


def skeleton(element):
    """Without what hangs on how long a text is."""
    kept = {key: value for key, value in element.attributes.items() if key in ("id", "class", "href", "src", "scope")}
    kept = {key: value for key, value in kept.items() if value != "brief"}
    inside = [skeleton(part) for part in element.inside if not isinstance(part, str)]
    return element.tag, kept, inside


def test_the_same_parts(documents):
    english, chinese = (skeleton(documents[language]) for language in ("en", "zh"))
    assert english == chinese


def own_texts(element):
    """What stands below no element that is English."""
    for part in element.inside:
        if isinstance(part, str):
            yield part.strip()
        elif part.attributes.get("lang") != "en" and part.tag not in ("script", "style"):
            yield from own_texts(part)


def test_the_language_is_told_and_no_english_word_is_left(documents):
    [html] = documents["zh"].every("html")
    assert html.attributes["lang"] == "zh"
    assert [element.attributes["lang"] for element in documents["en"].every() if "lang" in element.attributes] == ["en"]
    own = {language: set(own_texts(next(of.every("body")))) for language, of in documents.items()}
    fixed = {text for name, text in texts(ENGLISH).items() if len(text) > 3 and name not in ("language", "file")}
    assert fixed & own["en"] > {"In short", "Provenance", "As a picture"}
    assert fixed & own["zh"] == set()
    marked = [element for element in documents["zh"].every("h3", "div") if element.attributes.get("lang") == "en"]
    assert len(marked) > 6


def test_by_the_command_line(tmp_path, capsys):
    folder = folders.smollm2(tmp_path / "x", "exp3")
    assert run("page.py", folder, "--language", "zh") == 0
    assert capsys.readouterr().out == f"{folder / 'index_zh.html'}\n"
    assert not (folder / "index.html").exists()
    assert run("page.py", folder, "--language", "xx") == 2
    assert "invalid choice: 'xx'" in capsys.readouterr().err
