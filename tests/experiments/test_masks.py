"""A mask is what others read with ten lines of NumPy; what cannot be applied is one line."""

import json
import re
import textwrap

import numpy as np
import pytest
import torch

import exp5_interventions
import main_llm
from experiments.interventions import measure as interventions
from experiments.interventions import text
from experiments.layerwise import measure as layerwise
from lib import catalogue
from lib.core import provenance
from lib.core.data import Windows
from lib.model import hooks
from lib.report import masks, result_files
from lib.report.masks import FIRST, FIRST_OF, NO_RULE, TOKENS, MaskedPlace
from lib.report.result_files import Result
from lib.run.checkout import ROOT
from lib.run.errors import UserError
from tests.conftest import MASSIVE_DIM, SECOND_DIM, SPIKE_TOKEN, language_model, planted_model, token_ids

DOCUMENTED = masks.__doc__.split("need no code of ours to read it:\n\n")[1]


def windows_of(lm, n=8):
    """SPIKE_TOKEN stands at a place of its own in each, and first in some."""
    ids = token_ids(n, 16)
    ids[torch.arange(n), 3 + torch.arange(n) % 9] = SPIKE_TOKEN
    ids[::3, 0] = SPIKE_TOKEN
    return Windows(ids, n, False, "test")


def exported(path, lm, windows):
    """The results of --exp2, whose mask is at `path`."""
    results = layerwise.run(lm, windows, main_llm.Options(batch_size=3))
    of_model = provenance.of_model(main_llm.Options(), lm)
    origin = {**of_model, "data": windows.provenance, "command": "python main_llm.py --exp2"}
    masks.write(path, Result("layerwise", origin, {}, results, None, {}))
    return results


@pytest.fixture
def planted(tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    return lm, windows_of(lm)


def run_documented(folder, layer, ids, hidden):
    """Executes exactly the lines of the docstring, in that folder."""
    names = {"layer": layer, "ids": ids, "hidden": hidden}
    code = textwrap.dedent(DOCUMENTED).replace('"mask.json"', repr(str(folder / "mask.json")))
    exec(compile(code, "documented", "exec"), names)
    return names


def test_it_is_ten_lines():
    assert len([line for line in DOCUMENTED.split("def ")[1].splitlines() if line.strip()]) <= 14


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_documented_lines_leave_nothing_massive(family, tokenizer, tmp_path):
    """On windows that the mask was not made of: exactly what is massive there, by the model's own hidden states."""
    lm = language_model(planted_model(family), tokenizer)
    results = exported(tmp_path / "mask.json", lm, windows_of(lm))
    ids = torch.cat([windows_of(lm).ids.flip(1), token_ids(2, 16, seed=1)])
    with torch.no_grad():
        outputs = lm.model(ids, output_hidden_states=True, use_cache=False).hidden_states
    for layer in range(2):  # the last one is after the final norm
        hidden = outputs[layer + 1].numpy().copy()
        median = np.sort(np.abs(hidden).reshape(len(ids), -1))[:, (hidden[0].size - 1) // 2]
        massive = (np.abs(hidden) > 100) & (np.abs(hidden) > 1000 * median[:, None, None])
        assert massive.any() == (layer == 1)
        before = hidden.copy()
        run_documented(tmp_path, layer, ids.numpy(), hidden)
        assert np.array_equal(hidden != before, massive)
        assert not hidden[massive].any()
    assert {place.rule for place in results.masked} == {TOKENS}


def test_the_documented_lines_do_the_same(tmp_path):
    """By every rule, alone and together."""
    code = re.search(r"```python\n(for place.*?)```", (ROOT / "RESULTS.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    ids = token_ids(4, 12).numpy()
    some = ids[0, 3:6].tolist()
    rules = [place_of(FIRST, dim=0), place_of(TOKENS, some, dim=1), place_of(FIRST_OF, some, dim=2), place_of(NO_RULE)]
    write_mask(tmp_path, [*rules, place_of(TOKENS, some[:1], dim=0)])
    expected, hidden = np.ones((4, 12, 3)), np.ones((4, 12, 3))
    run_documented(tmp_path, 1, ids, expected)
    names = {"json": json, "np": np, "ids": ids, "hidden": {1: hidden}}
    exec(compile(code.replace('"mask.json"', repr(str(tmp_path / "mask.json"))), "RESULTS.md", "exec"), names)
    assert np.array_equal(hidden, expected)
    assert (hidden[:, 0, 0] == 0).all()
    assert 0 < (hidden == 0).sum() < hidden.size


def place_of(rule, ids=(), layer=1, dim=2):
    return {
        "layer": layer,
        "dim": dim,
        "rule": rule,
        "ids": [*ids],
        "tokens": [*map(str, ids)],
        "value": 5.0,
        "massive": 3,
        "checked": 2,
        "held": 2,
    }


def write_mask(folder, places, **changes):
    """A mask by hand, at mask.json; changes: {key: value}."""
    stored = {
        "mask_version": masks.MASK_VERSION,
        "block_output": "",
        "definition": "",
        "rules": {},
        "holds": "",
        "model": {"name": "x", "type": "gpt2", "folder": "tiny"},
        "dtype": "float32",
        "hidden_size": 32,
        "layers": 3,
        "text": {},
        "command": "",
        "places": places,
    }
    (folder / "mask.json").write_text(json.dumps(stored | changes))
    return folder / "mask.json"


RULES = {
    "first": (place_of(FIRST), [[0, 0], [1, 0]]),
    "tokens": (place_of(TOKENS, [7, 9]), [[0, 1], [0, 2], [0, 4], [1, 0], [1, 3]]),
    "first of": (place_of(FIRST_OF, [7, 9]), [[0, 1], [1, 0]]),
    "no rule": (place_of(NO_RULE), []),
}


@pytest.mark.parametrize("case", RULES)
def test_the_documented_lines_read_every_rule_as_we_do(case, tmp_path):
    place, expected = RULES[case]
    write_mask(tmp_path, [place, place_of(FIRST, layer=0), place_of(FIRST, dim=5)])
    ids = np.array([[1, 7, 9, 3, 7], [9, 2, 3, 7, 1]])
    names = run_documented(tmp_path, 1, ids, np.zeros((2, 5, 32)))
    read = names["massive"](tmp_path / "mask.json", 1, ids)
    assert {*read} == {2, 5}
    assert np.argwhere(read[2]).tolist() == expected
    assert np.argwhere(masks.named(place["rule"], place["ids"], ids)).tolist() == expected
    ours = masks.read(tmp_path / "mask.json").named(1, ids)
    assert ours.tolist() == sorted([[*at, 2] for at in expected] + [[0, 0, 5], [1, 0, 5]])


def test_what_it_says_of_itself(planted, tmp_path):
    lm, windows = planted
    exported(tmp_path / "mask.json", lm, windows)
    stored = json.loads((tmp_path / "mask.json").read_text())
    assert stored["mask_version"] == 1
    assert (stored["hidden_size"], stored["layers"]) == (32, 3)
    assert stored["text"]["token_ids_sha256"] == windows.sha256
    assert stored["model"]["folder"] == "tiny"
    assert {place["dim"] for place in stored["places"]} == {MASSIVE_DIM, SECOND_DIM}
    mask = masks.read(tmp_path / "mask.json")
    assert isinstance(mask.places[0], MaskedPlace)
    assert mask.ruled == [1, 2]


def test_a_model_without_massive_activations_gives_an_empty_mask(tokenizer, tmp_path):
    lm = language_model(planted_model("gpt2"), tokenizer)
    exported(tmp_path / "mask.json", lm, Windows(token_ids(4, 16), 4, False, "test"))
    assert json.loads((tmp_path / "mask.json").read_text())["places"] == []
    hidden = np.ones((2, 3, 32))
    run_documented(tmp_path, 1, np.zeros((2, 3), dtype=int), hidden)
    assert hidden.all()
    with pytest.raises(UserError, match="is empty"):
        masks.read(tmp_path / "mask.json")


def test_a_result_of_an_older_version_has_none(planted, tmp_path):
    lm, windows = planted
    results = layerwise.run(lm, windows, main_llm.Options(batch_size=3))
    stored = result_files.plain(results)
    for name in ("compared", "hidden_size", "masked"):
        del stored[name]
    older = catalogue.typed("layerwise", stored)
    assert older.massive == catalogue.typed("layerwise", result_files.plain(results)).massive
    with pytest.raises(UserError, match="run --exp2 anew"):
        masks.write(tmp_path / "mask.json", Result("layerwise", {}, {}, older, None, {}))
    assert not (tmp_path / "mask.json").exists()


REFUSED = {
    "of a newer version": ([place_of(FIRST)], {"mask_version": 2}, "has mask version 2, not 1"),
    "no version": ([place_of(FIRST)], {"mask_version": None}, "is no mask"),
    "no model": ([place_of(FIRST)], {"model": None}, "is not a whole mask"),
    "a place without a dim": ([{"layer": 1}], {}, "is not a whole mask"),
    "another rule": ([place_of("last position")], {}, "there is no rule 'last position'"),
    "a layer beyond": ([place_of(FIRST, layer=3)], {}, "layer 3 is out of range: layers 0 to 2"),
    "a dim beyond": ([place_of(FIRST, dim=32)], {}, "dim 32 is out of range: dims 0 to 31"),
    "a negative layer": ([place_of(FIRST, layer=-1)], {}, "layer -1 is out of range"),
    "empty": ([], {}, "is empty: its model has no massive activations"),
    "no rule holds": ([place_of(NO_RULE)], {}, "names no positions"),
    "another model": (
        [place_of(FIRST)],
        {"model": {"name": "y", "folder": "y", "weights_sha256": {"w": "00"}}},
        "other",
    ),
    "another width": ([place_of(FIRST)], {"hidden_size": 64}, "is of 3 layers of 64 dims, not of this model"),
    "nothing at this layer": (
        [place_of(FIRST, layer=2)],
        {},
        "names no positions at layer 1; choose --layer_id among 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, planted, tmp_path):
    lm, windows = planted
    places, changes, message = REFUSED[case]
    options = exp5_interventions.Options(mask=write_mask(tmp_path, places, **changes), layer_id=1, batch_size=4)
    with pytest.raises(UserError, match=message) as error:
        interventions.run(lm, windows, options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("written", ["", "[]", "{", '{"places": NaN}', None])
def test_what_is_no_json(written, tmp_path):
    path = tmp_path / "mask.json"
    if written is not None:
        path.write_text(written)
    with pytest.raises(UserError, match="cannot read"):
        masks.read(path)


def conditions_of(results):
    """What was measured of each condition."""
    return {name: (condition.perplexity, condition.values) for name, condition in results.conditions.items()}


def test_its_places_are_changed_as_those_found(planted, tmp_path):
    """Where it names what is massive the results are the same; where it names more, or less, they are not."""
    lm, windows = planted
    windows.ids[:, 0] = windows.ids[:, 1]  # nowhere at the first position, where what is found is changed in all
    windows.ids[:, 1] = SPIKE_TOKEN + 1
    exported(tmp_path / "mask.json", lm, windows)
    found, by_mask = (
        interventions.run(lm, windows, exp5_interventions.Options(layer_id=1, batch_size=4, mask=mask))
        for mask in (None, tmp_path / "mask.json")
    )
    assert conditions_of(found) == conditions_of(by_mask)
    assert found.sites.dims == by_mask.sites.dims
    assert (found.sites.left_alone, by_mask.sites.left_alone) == (0, 0)
    assert found.sites.rule != by_mask.sites.rule
    other = write_mask(tmp_path, [place_of(TOKENS, [SPIKE_TOKEN], dim=SECOND_DIM)], model=_model(lm))
    less = interventions.run(lm, windows, exp5_interventions.Options(layer_id=1, batch_size=4, mask=other))
    assert [pair.dim for pair in less.sites.dims] == [SECOND_DIM]
    assert less.sites.left_alone == less.sites.windows == 4
    before, after = (results.conditions["zero_layer"].values[1].mean for results in (found, less))
    assert abs(before) < 1 < 100 < abs(after)


def test_what_is_not_massive_is_changed_too(planted, tmp_path):
    """And its values are the model's own."""
    lm, windows = planted
    mask = write_mask(tmp_path, [place_of(FIRST, dim=3)], model=_model(lm))
    results = interventions.run(lm, windows, exp5_interventions.Options(layer_id=1, batch_size=4, mask=mask))
    (pair,) = results.sites.dims
    seen = {}
    with hooks.watch_outputs(lm.arch, "block", lambda layer, hidden: seen.update({layer: hidden.clone()})):
        hooks.forward(lm, windows.ids)
    assert (pair.position, pair.dim, pair.massive, pair.sites, pair.positions) == ("first", 3, 0, 4, {0: 4})
    assert pair.value == pytest.approx(seen[1][1::2, 0, 3].mean().item(), rel=1e-5)
    assert pair.means[0] == pytest.approx(seen[1][::2, 0, 3].mean().item(), rel=1e-5)
    ordinary = windows.ids[::2] != SPIKE_TOKEN
    assert pair.ordinary[0] == pytest.approx(seen[1][::2, :, 3][ordinary].mean().item(), rel=1e-4)


def test_the_text_names_the_mask(planted, tmp_path):
    lm, windows = planted
    path = tmp_path / "mask.json"
    exported(path, lm, windows)
    results = interventions.run(lm, windows, exp5_interventions.Options(layer_id=1, batch_size=4, mask=path))
    stored = catalogue.judged("exp5", results)
    assert stored["sites"]["mask_sha256"] == masks_sha256(path)
    origin = {
        "model": {"name": "tiny", "type": "gpt2"},
        "data": {"windows": 8, "seqlen": 16, "dataset": "test", "bos": False},
        **dict.fromkeys(("dtype", "device", "seed", "time", "command"), "x"),
    }
    payload = {
        "experiment": "exp5",
        "schema_version": 3,
        "provenance": origin,
        "config": {"mask": str(path)},
        "files": {},
    }
    printed = text.summarise(catalogue.concluded(payload | {"results": stored}))
    assert f"Changed: what {path} (sha256 {masks_sha256(path)[:12]}) names in the output of layer 1" in printed


def masks_sha256(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _model(lm):
    return provenance.of_model(main_llm.Options(), lm)["model"]
