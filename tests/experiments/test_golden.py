"""No change of the code moves a number that was not meant to move."""

import json
import math

import pytest

from tests import golden

LAST_PLACE = 2.0**-11  # of a float32 of twice the size that is planted: what is left where such values cancel
OF_WIDTH = 0.01  # of an interval: heads that do nothing are rounding alone, and count in what holds for all together


def near(ours, theirs, at):
    """Floats and intervals as another machine may round them."""
    if at.endswith(("ci95", "family95")) and ours is not None and theirs is not None:
        room = max(LAST_PLACE, OF_WIDTH * (theirs[1] - theirs[0]))
        return all(math.isclose(*ends, rel_tol=1e-3, abs_tol=room) for ends in zip(ours, theirs, strict=True))
    floats = isinstance(ours, float) and isinstance(theirs, float)
    return floats and math.isclose(ours, theirs, rel_tol=1e-3, abs_tol=LAST_PLACE)


def equal(ours, theirs, _at):
    return ours == theirs


def differences(ours, theirs, same, at=""):
    """Where two JSON values differ, one line each."""
    if same(ours, theirs, at):
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(key), theirs.get(key), same, f"{at}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(mine, other, same, f"{at}[{i}]")
    elif ours != theirs:
        yield f"{at}: {ours} instead of {theirs}"


@pytest.mark.parametrize("architecture", golden.MEASURED)
def test_results_are_as_they_were(architecture):
    expected = json.loads((golden.FOLDER / f"{architecture}.json").read_text())
    same = near if expected.pop("machine") != golden.MACHINE else equal
    assert list(differences(golden.measured(architecture), expected, same)) == []


def test_a_last_digit_is_seen():
    ours = {"a": [1.000001, {"b": None}], "c": "x"}
    assert list(differences(ours, {"a": [1.000002, {"b": 0.0}]}, equal)) == [
        ".a[0]: 1.000001 instead of 1.000002",
        ".a[1].b: None instead of 0.0",
        ".c: x instead of None",
    ]
    assert list(differences([1.000001, 2], [1.000002, 3], near)) == ["[1]: 2 instead of 3"]
    ours = {"mean": 1.0, "ci95": [0.05, 10.0], "family95": None}
    assert list(differences(ours, {"mean": 1.0, "ci95": [0.1, 10.0], "family95": None}, near)) == []
    assert list(differences(ours, {"mean": 1.1, "ci95": [0.2, 10.0], "family95": None}, near)) == [
        ".ci95[0]: 0.05 instead of 0.2",
        ".mean: 1.0 instead of 1.1",
    ]
