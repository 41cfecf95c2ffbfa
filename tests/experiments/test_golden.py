"""No change of the code moves a number that was not meant to move."""

import json
import math
import operator

import pytest

from tests import golden


def near(ours, theirs):
    """Floats as another machine may round them: most by float32, what is left of large ones that cancel by more."""
    floats = isinstance(ours, float) and isinstance(theirs, float)
    return floats and math.isclose(ours, theirs, rel_tol=1e-3, abs_tol=1e-4)


def differences(ours, theirs, same, at=""):
    """Where two JSON values differ, one line each."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(key), theirs.get(key), same, f"{at}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(mine, other, same, f"{at}[{i}]")
    elif not same(ours, theirs) and ours != theirs:
        yield f"{at}: {ours} instead of {theirs}"


@pytest.mark.parametrize("architecture", golden.MEASURED)
def test_results_are_as_they_were(architecture):
    expected = json.loads((golden.FOLDER / f"{architecture}.json").read_text())
    same = near if expected.pop("machine") != golden.MACHINE else operator.eq
    assert list(differences(golden.measured(architecture), expected, same)) == []


def test_a_last_digit_is_seen():
    ours = {"a": [1.000001, {"b": None}], "c": "x"}
    assert list(differences(ours, {"a": [1.000002, {"b": 0.0}]}, operator.eq)) == [
        ".a[0]: 1.000001 instead of 1.000002",
        ".a[1].b: None instead of 0.0",
        ".c: x instead of None",
    ]
    assert list(differences([1.000001, 2], [1.000002, 3], near)) == ["[1]: 2 instead of 3"]
