"""No change of the code moves a number that was not meant to move."""

import json

import pytest

from tests import golden


def differences(ours, theirs, at=""):
    """Where two JSON values differ, one line each."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(key), theirs.get(key), f"{at}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(mine, other, f"{at}[{i}]")
    elif ours != theirs:
        yield f"{at}: {ours} instead of {theirs}"


@pytest.mark.parametrize("architecture", golden.MODELS)
def test_results_are_as_they_were(architecture):
    expected = json.loads((golden.FOLDER / f"{architecture}.json").read_text())
    assert list(differences(golden.measured(architecture), expected)) == []
