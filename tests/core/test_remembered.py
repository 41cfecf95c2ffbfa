"""What a study remembers: the same values, and never those of another model, or of one as it was before."""

import numpy as np
import pytest

from lib.core import first_tokens, remembered
from lib.core.ablation import Condition, all_heads_off
from lib.core.data import Windows
from lib.core.place import find
from lib.model import hooks
from tests import reference
from tests.conftest import MASSIVE_DIM, SPIKE_TOKEN, VOCABULARY, language_model, planted_model, token_ids


@pytest.fixture
def passes(monkeypatch):
    """One entry for each pass."""
    made, forward = [], hooks.forward
    monkeypatch.setattr(hooks, "forward", lambda *args: (made.append(args), forward(*args)))
    return made


def measured(lm, dim=MASSIVE_DIM, layer=2):
    ids = token_ids(4, 8)
    counts = np.bincount([*ids.flatten().tolist(), SPIKE_TOKEN], minlength=VOCABULARY)
    windows = Windows(ids, len(ids), False, "test", counts=counts)
    conditions = [all_heads_off(lm.arch), Condition("mlp", "", mlps=(1,)), Condition("mlp", "", mlps=(2,))]
    medians = {"baseline": np.full(lm.arch.n_layers, 0.1)}
    return [
        first_tokens.measure(lm, windows, dim, layer, [condition], medians)[condition.name] for condition in conditions
    ]


def test_a_study_measures_a_condition_once(tokenizer, passes):
    lm = language_model(planted_model("gpt2"), tokenizer)
    alone = measured(lm)
    assert len(passes) == 6  # the model as it is, three times, and each condition
    passes.clear()
    with remembered.of(lm):
        assert measured(lm) == alone
        assert len(passes) == 4
        assert measured(lm) == alone
        assert len(passes) == 4
        assert measured(lm, layer=1) != alone
        assert len(passes) == 8


def test_a_study_finds_a_place_once(tokenizer, passes):
    lm, other = (language_model(planted_model("gpt2"), tokenizer) for _ in range(2))
    windows = Windows(token_ids(4, 8), 4, False, "test")
    alone = [find(lm, windows, 2), find(lm, windows, 2, dim=MASSIVE_DIM)]
    n = len(passes)
    with remembered.of(lm):
        for _ in range(2):
            again = [find(lm, windows, 2), find(lm, windows, 2, dim=MASSIVE_DIM)]
            assert [place.described() for place in again] == [place.described() for place in alone]
        assert len(passes) == 2 * n
        find(lm, windows, 4)  # what is rounded otherwise is measured
        find(lm, Windows(windows.ids + 1, 4, False, "test"), 2)
        find(lm, windows, 2, position=1)
        assert len(passes) == 2 * n + 2 + 2 * 4
        find(other, windows, 2)
        assert len(passes) == 2 * n + 2 + 3 * 4


def test_nothing_is_remembered_afterwards(tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    with remembered.of(lm):
        values = [measured(lm)[0].value]
    for _ in range(3):
        reference.matrix(reference.parts(reference.blocks(lm.model)[1]).down)[MASSIVE_DIM] *= 2
        values.append(measured(lm)[0].value)
    with remembered.of(lm):
        assert measured(lm)[0].value == values[-1]
    assert np.all(np.divide(values[1:], values[:-1]) > 1.5)
