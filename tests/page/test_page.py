"""The page says what the JSON says: verdicts, tables, figures, views; it is one whole file, and nothing of a result is
markup."""

import base64
import gzip
import importlib.util
import io
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import page
from lib import catalogue
from lib.report import views
from lib.run.checkout import ROOT
from tests.page import folders
from tests.page.parsed import parse
from tests.scripts.test_scripts import run

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = folders.smollm2(tmp_path_factory.mktemp("page") / "smollm2-135m")
    assert page.write(folder) == folder / "index.html"
    return folder


@pytest.fixture(scope="module")
def document(folder):
    return parse(folder / "index.html")


def payloads(folder):
    """{path: payload} of the stored results, read without lib."""
    found = {path: json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))}
    return {path: payload for path, payload in found.items() if payload["experiment"] in catalogue.EXPERIMENTS}


def section_of(document, path):
    """The section whose provenance names this JSON."""
    [section] = [
        section
        for section in document.every("section")
        if any(path.name == dd.text.split("/")[-1] for dd in list(section.every("dd"))[:1])
    ]
    return section


def sections(document, folder):
    return [(payload, section_of(document, path), path) for path, payload in payloads(folder).items()]


def tables(element):
    return [table.rows() for table in element.every("table")]


def test_one_whole_file(folder, document):
    assert (folder / "index.html").stat().st_size < 5 * MEGABYTE
    ids = [element.attributes["id"] for element in document.every() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    named = [element.attributes.get(name) for element in document.every() for name in ("href", "src")]
    targets = [target for target in named if target is not None]
    assert targets
    for target in targets:
        assert target.startswith("data:image/") or target.removeprefix("#") in ids, target[:80]
    [policy] = document.every("meta", http_equiv="Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")
    levels = [int(element.tag[1]) for element in document.every("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_result_has_its_verdict(folder, document):
    [answers] = [table for table in tables(document) if table[0] == ["experiment", "question", "answer"]]
    shown = [row[2] for row in answers[1:]]
    [box] = [box for box in document.every("div") if tables(box)[:1] == [answers] and "box" in box.attributes["class"]]
    assert box.attributes["class"] == "box"  # all rows in sight
    for payload, section, _path in sections(document, folder):
        conclusion = payload["results"].get("conclusion")
        [title] = section.every("h3")
        answer = [element.text for element in section.every("strong", class_="answer")]
        [of_table] = [row[2] for row in answers if row[0] == title.text]
        if conclusion is None:
            assert answer == []
            assert of_table == "measured; no verdict"
        else:
            assert answer == [conclusion["verdict"]] == [of_table]
            assert "Rule: " in section.text
    assert len(shown) == len(payloads(folder))
    assert "Not measured here" not in next(document.every("main")).text


def test_every_claim_as_verify_claims_stored_it(folder, document):
    claims = json.loads((folder / "smollm2-135m_claims.json").read_text())["results"]["claims"]
    [table] = [table for table in tables(document) if table[0][:3] == ["row", "verdict", "claim"]]
    assert {tuple(row[:3]) for row in table[1:]} == {(of["row"], of["verdict"], of["claim"]) for of in claims}
    assert len(table) == 1 + len(claims)


def test_it_says_what_a_massive_activation_is(document):
    [header] = document.every("header")
    assert "value is above 100 and more than 1,000 times the median" in header.text
    assert "mlp 2 is the MLP of layer 2" in header.text


def test_what_matters_in_sentences(document):
    [short] = document.every("ul", class_="short")
    where, who, without, needed = (item.text for item in short.every("li"))
    assert "dim 507, at position 0: +23,806 in layer 11, and up to 14,320 x" in where.replace("\u00d7", "x")
    assert "from layer 11 to 27" in where
    assert who.startswith(
        "mlp 11 (+23,761) writes it, 99.8% of the peak; mlp 28 (-14,199) and mlp 29 (-5,604) take it away"
    )
    assert (
        "head the massive activation is reduced, 0.6796 of it left (on average; mixed by token; of the value: in that "
        "layer it is massive in no window any more); without any MLP it collapses, -0.0074 of it left" in without
    )
    assert "needed, a constant is enough" in needed


def test_tables_have_the_numbers_of_the_json(folder, document):
    shown = sections(document, folder)
    of = {payload["experiment"]: (payload["results"], tables(section)) for payload, section, _path in shown}
    layerwise, [rows, massive, compared, *_] = of["layerwise"]
    assert massive[0][0] == "position"
    assert massive[1][2] == str(layerwise["massive"][0]["dim"])
    assert len(rows) == 1 + len(layerwise["layers"])
    assert [row[:2] for row in compared[1:]] == [[row["name"], str(row["places"])] for row in layerwise["compared"]]
    writes, [largest, tests, *_] = of["exp3"]
    assert [row[0] for row in tests[1:]] == [test["what"] for test in writes["conclusion"]["tests"]]
    first = max(writes["writes"], key=lambda write: abs(write["value"]))
    assert largest[1][:2] == [str(first["layer"]), first["kind"]]
    assert largest[1][2].startswith(f"{first['value']:+,.0f} [")
    scores, [highest, *_] = of["head_analysis"]
    for row, head in zip(highest[1:], scores["ranking"], strict=False):
        assert row[1:3] == [str(head["layer"]), str(head["head"])]
        assert row[3].startswith(f"{head['score']:.4f} [")
    for _payload, section, _path in shown:
        for rows in tables(section):
            assert len({len(row) for row in rows}) == 1


def test_figures_are_those_that_lie_there(folder, document):
    for payload, section, path in sections(document, folder):
        root = path.parents[payload["files"]["json"].count("/")]
        images = list(section.every("img"))
        assert len(images) == len(payload["files"]["figures"]) > 0
        for image, name in zip(images, payload["files"]["figures"], strict=True):
            stored = Image.open(root / name).convert("RGB")
            shown = Image.open(io.BytesIO(base64.b64decode(image.attributes["src"].partition(",")[2])))
            assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(stored)), name
            assert (image.attributes["width"], image.attributes["height"]) == tuple(map(str, stored.size))
            assert "smollm2-135m" in image.attributes["alt"]
    captions = [caption.text for caption in document.every("figcaption")]
    assert all(len(caption) > 20 for caption in captions)


def views_of(section):
    packed = [base64.b64decode(view.attributes["data-view"]) for view in section.every("div", class_="view")]
    return [json.loads(gzip.decompress(view)) for view in packed]


@pytest.mark.skipif(importlib.util.find_spec("plotly") is None, reason="plotly is not installed")
def test_views_have_the_numbers_of_the_json(folder, document):
    of = {}
    for payload, section, _path in sections(document, folder):
        of.setdefault(payload["experiment"], []).append((payload["results"], views_of(section)))
    for results, [view] in of["sentence"]:
        assert np.allclose(view["values"], np.abs(results["values"]), rtol=1e-3)
        assert view["tokens"] == results["tokens"]
    for results, shown in of["compare_3d"]:
        for view, values in zip(shown, (results["before"], results["after"]), strict=True):
            assert np.allclose(view["values"], np.abs(values), rtol=1e-3)
    [(results, [view])] = of["head_analysis"]
    assert np.allclose(view["values"], [[cell["mean"] for cell in row] for row in results["scores"]], rtol=1e-3)
    [(results, [view])] = of["exp1"]
    before, after = (results["conditions"][name]["layers"] for name in ("baseline", "all_heads_off"))
    top1 = [100 * (a["top1"]["mean"] / b["top1"]["mean"] - 1) for a, b in zip(after, before, strict=True)]
    assert np.allclose([row[0] for row in view["values"]], top1, rtol=1e-3, atol=1e-2)
    [(results, [view])] = of["exp3"]
    column = view["columns"].index("mlp")
    written = {write["layer"]: write["value"] for write in results["writes"] if write["kind"] == "mlp"}
    signs = [np.sign(row[column]) for row in view["values"]]
    assert signs == [np.sign(written[layer]) for layer in range(len(signs))]
    largest = max(written, key=lambda layer: abs(written[layer]))
    assert view["values"][largest][column] == pytest.approx(view["limits"][1], rel=1e-3)


def test_a_wide_model_keeps_its_largest_dims(monkeypatch):
    monkeypatch.setattr(views, "CELLS", 4)
    view = views.text_in_3d("x", "x", ["a", "b"], [[1.0, -9.0, 2.0], [3.0, 0.5, 0.1]], 9.0)
    assert (view.dims, view.width, view.values) == ([0, 1], 3, [[1.0, 9.0], [3.0, 0.5]])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mixture"])
def test_pages_of_planted_models(architecture, tmp_path):
    """Golden results: other parts, another number of layers, no figures, experts."""
    folder = folders.planted(tmp_path, architecture)
    document = parse(page.write(folder))
    for payload, section, _path in sections(document, folder):
        verdict = payload["results"].get("conclusion", {}).get("verdict")
        assert [answer.text for answer in section.every("strong", class_="answer")] == ([verdict] if verdict else [])
        assert not list(section.every("img"))
    assert "windows of 64" not in next(document.every("main")).text  # of 32
    if architecture != "mixture":
        values = payloads(folder)[folder / "exp3.json"]["results"]["conclusion"]["values"]
        said = next(document.every("ul", class_="short")).text
        assert f"{values['birth']['name']} (" in said
        assert all(eraser["name"] in said for eraser in values["erasers"][:3])


HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


def test_nothing_of_a_result_is_markup(tmp_path):
    folder = folders.smollm2(tmp_path / "x", "sentence", "exp3", "layerwise")

    def alter(payload):
        results = payload["results"]
        if "tokens" in results:
            results["tokens"][0] = HOSTILE
        for entry in results.get("massive", []):
            entry["token"] = HOSTILE
        payload["config"]["text"] = HOSTILE
        payload["provenance"]["model"]["name"] = HOSTILE
        payload["provenance"]["data"]["dataset"] = HOSTILE
        payload["provenance"]["warning"] = HOSTILE

    plain = list(parse(page.write(folder)).every())
    for path in payloads(folder):
        folders.change(path, alter)
    document = parse(page.write(folder))
    assert [e.tag for e in document.every("script")] == [e.tag for e in plain if e.tag == "script"]
    assert len(list(document.every("img"))) == len([e for e in plain if e.tag == "img"])
    assert not any("onerror" in element.attributes for element in document.every())
    for path in payloads(folder):
        assert section_of(document, path).text.count(HOSTILE) >= 3  # warning, model, data


def test_several_models_and_dtypes(tmp_path):
    for dtype in ("float32", "float16"):
        folders.smollm2(tmp_path / dtype, "exp3", "layerwise")
    for path in payloads(tmp_path / "float16"):
        folders.change(path, lambda payload: payload["provenance"].update(dtype="float16"))
    folders.planted(tmp_path / "toy", "gpt2", "toy")
    document = parse(page.write(tmp_path))
    names = [heading.text for heading in document.every("h2", class_="subject")]
    assert sorted(names) == ["smollm2-135m (float16)", "smollm2-135m (float32)", "toy"]


def test_other_weights_of_the_same_name_are_told_apart(tmp_path):
    folders.planted(tmp_path / "a", "gpt2", "toy")
    folders.planted(tmp_path / "b", "llama", "toy")
    for path in payloads(tmp_path / "b"):
        folders.change(path, lambda payload: payload["provenance"]["model"].update(weights_sha256={"model": "1" * 64}))
    document = parse(page.write(tmp_path))
    names = [heading.text for heading in document.every("h2", class_="subject")]
    assert names == ["toy (float32)", "toy (float32) (2)"]


@pytest.mark.parametrize(("course", "subjects"), [("org/toy", 0), ("org/other", 2)])
def test_a_course_of_training_is_on_the_page_of_its_model(course, subjects, tmp_path):
    """Which has a revision, and the course has not; one of another model stands for itself."""
    folders.planted(tmp_path, "gpt2", "toy")
    for path in payloads(tmp_path):
        own = {"hub_id": course} if path.name == "exp14.json" else {"hub_id": "org/toy", "revision": "c" * 40}
        folders.change(
            path, lambda payload, own=own: payload["provenance"].update(model={"name": "toy", "type": "gpt2"} | own)
        )
    document = parse(page.write(tmp_path))
    assert len(list(document.every("h2", class_="subject"))) == subjects  # none over a single one
    missing = "no result of exp14_training.py" in "".join(element.text for element in document.every("table"))
    assert missing == bool(subjects)


def test_what_is_not_there_is_left_out(tmp_path):
    folder = folders.smollm2(tmp_path / "x", "exp3")
    (folder / "exp3_lifecycle_ledger" / "exp3_ledger.png").unlink()
    (folder / "exp3_lifecycle_ledger" / "exp3_writes.png").write_bytes(b"")
    (folder / "other.json").write_text("{}")
    document = parse(page.write(folder))
    assert not list(document.every("img"))
    assert len(list(document.every("section"))) == 1
    [missing] = [said.text for said in document.every("p") if said.text.startswith("Not measured here: ")]
    assert "exp1_feasibility_test.py, " in missing
    assert not re.search("exp3|exp8|exp14", missing)  # is there; of experts; of a training


def test_an_svg_stands_in_for_a_png(tmp_path):
    folder = folders.smollm2(tmp_path / "x", "exp3")
    json_file = folder / "exp3_lifecycle_ledger" / "exp3_results.json"
    width, height = Image.open(json_file.with_name("exp3_ledger.png")).size
    json_file.with_name("exp3_ledger.png").unlink()
    assert run("exp3_lifecycle_ledger.py", "--replot", json_file, "--format", "svg") == 0
    [ledger, writes] = parse(page.write(folder)).every("img")
    kind, content = ledger.attributes["src"].split(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(content) == json_file.with_name("exp3_ledger.svg").read_bytes()
    size = (int(ledger.attributes["width"]), int(ledger.attributes["height"]))
    assert size == pytest.approx((width, height), abs=1)
    assert "svg" not in writes.attributes["src"]


def test_no_picture_from_outside_the_folder(tmp_path):
    folder = folders.smollm2(tmp_path / "x", "layerwise")
    (folder / "outside.png").write_bytes((folder / "main_llm" / "smollm2-135m.png").read_bytes())
    for path, payload in payloads(folder).items():
        if payload["experiment"] == "layerwise":
            folders.change(path, lambda payload: payload["config"].update(model_name="../outside"))
    document = parse(page.write(folder))
    assert len(list(document.every("img"))) == 1  # of the sentence


def test_an_ablation_is_shown_and_not_concluded_from(tmp_path):
    folder = folders.smollm2(tmp_path / "x", "exp3")
    [path] = payloads(folder)
    folders.change(path, lambda payload: payload["config"].update(mlps_off=["3"]))
    document = parse(page.write(folder))
    assert not list(document.every("ul", class_="short"))
    assert len(list(document.every("section"))) == 1


BROKEN = {
    "cut": lambda path: path.write_text(path.read_text()[:500]),
    "changed": lambda path: path.write_text(path.read_text().replace("mlp", "pml")),
    "no place": lambda path: folders.change(path, lambda payload: payload["results"].pop("place")),
    "no data": lambda path: folders.change(path, lambda payload: payload["provenance"].pop("data")),
    "no picture": lambda path: path.with_name("exp3_ledger.png").write_bytes(b"\x89PNG"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_one_line(how, tmp_path, capsys):
    folder = folders.smollm2(tmp_path / "x", "exp3")
    [path] = payloads(folder)
    BROKEN[how](path)
    assert run("page.py", folder) == 2
    error = capsys.readouterr().err
    assert ("exp3_ledger.png" if how == "no picture" else path.name) in error
    assert error.count("\n") == 1
    assert not (folder / page.NAME).exists()


def test_a_folder_without_results(tmp_path, capsys):
    refusals = {tmp_path: "no results below", tmp_path / "none": "no such folder", __file__: f"{__file__} is a file"}
    for given, said in refusals.items():
        assert run("page.py", given) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {said}")
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_of_someone_else_stays(tmp_path, capsys, monkeypatch):
    """A study is refused before it has loaded its model."""
    folder = folders.smollm2(tmp_path / "x", "exp3")
    (folder / page.NAME).write_text("<html>mine</html>")
    monkeypatch.setattr("lib.model.models.load", lambda _options: pytest.fail("loaded"))
    for command in (["page.py", folder], ["study.py", "--model", "gpt2", "--savedir", folder]):
        assert run(*command) == 2
        assert f"{page.NAME} is no page of ours" in capsys.readouterr().err
    assert (folder / page.NAME).read_text() == "<html>mine</html>"
    (folder / page.NAME).unlink()
    assert [run("page.py", folder, "--language", language) for language in ("zh", "en", "en")] == [0, 0, 0]


def test_no_torch(tmp_path):
    folder = folders.smollm2(tmp_path / "x", "exp3")
    code = f"import sys, pathlib, page; print(page.write(pathlib.Path({str(folder)!r}))); "
    code += "print({'torch', 'transformers', 'plotly'} & sys.modules.keys())"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [str(folder / "index.html"), "set()"]
