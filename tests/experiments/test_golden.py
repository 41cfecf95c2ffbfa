"""No change of the code moves a number that was not meant to move."""

import json
import operator
from functools import partial

import pytest

from tests import golden
from tests.compared import differences, near, with_intervals

LAST_PLACE = 2.0**-11  # of a float32 of twice the size that is planted: what is left where such values cancel
elsewhere = partial(near, relative=1e-3, absolute=LAST_PLACE, step=0.01)  # as another machine may round


@pytest.mark.parametrize("architecture", golden.MEASURED)
def test_results_are_as_they_were(architecture):
    expected = json.loads((golden.FOLDER / f"{architecture}.json").read_text())
    here = expected.pop("machine") == golden.MACHINE
    measured = golden.measured(architecture)
    if not here:
        measured, expected = with_intervals(measured), with_intervals(expected)
    assert list(differences(measured, expected, operator.eq if here else elsewhere)) == []


def test_a_last_digit_is_seen():
    ours = {"a": [1.000001, {"b": None}], "c": "x"}
    assert list(differences(ours, {"a": [1.000002, {"b": 0.0}]}, operator.eq)) == [
        ".a[0]: 1.000001 instead of 1.000002",
        ".a[1].b: None instead of 0.0",
        ".c: x instead of None",
    ]
    assert list(differences([1.000001, 2], [1.000002, 3], elsewhere)) == ["[1]: 2 instead of 3"]


def test_an_interval_is_as_exact_as_it_is_wide():
    ours = with_intervals({"mean": 1.0, "ci95": [0.05, 10.0], "family95": None})
    near_it, far = [with_intervals({"mean": 1.0, "ci95": [low, 10.0], "family95": None}) for low in (0.1, 0.2)]
    assert list(differences(ours, near_it, elsewhere)) == []
    assert list(differences(ours, far, elsewhere)) == [".ci95: (0.05, 10.0) instead of (0.2, 10.0)"]
