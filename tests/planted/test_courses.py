"""Checkpoints of planted courses write what they are said to, by hooks of this file alone, and experiment 14 tells when
it was born."""

import functools

import pytest

import check_controls
from lib.planted import blank, courses, planting
from tests.conftest import exhaustive_unless
from tests.planted.test_planted import all_massive, block_outputs, first_token_attention

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_draws")]
build = functools.cache(planting.build)  # no test here changes a model
EVERY = [
    exhaustive_unless(of == blank.ARCHITECTURES[seed], of, kind, seed)
    for of in blank.ARCHITECTURES
    for kind in courses.KINDS
    for seed in range(2)
]


@pytest.mark.parametrize(("architecture", "kind", "seed"), EVERY)
def test_every_step_writes_its_part(architecture, kind, seed):
    built = build(architecture, kind, seed)
    truth, ids = built.truth, built.windows.ids
    assert [*built.checkpoints] == sorted(truth.course.factors) == [*truth.course.factors]
    for step, factor in truth.course.factors.items():
        model = built.checkpoints[step].model
        written = block_outputs(model, ids)[truth.layer][:, 0]
        for dim, value in truth.values.items():
            assert written[:, dim].mean().item() == pytest.approx(factor * value, rel=0.02, abs=2)
        assert bool(all_massive(model, ids)) == (factor == 1)
        attention = first_token_attention(model, ids)
        assert {head for head, mean in attention.items() if mean > 0.3} == (set(truth.readers) if factor else set())


def test_kinds_differ_in_what_is_born(monkeypatch):
    monkeypatch.setattr(courses, "checkpoints", lambda *_: {})
    truths = {kind: [planting.build("gpt2", kind, seed).truth for seed in range(20)] for kind in courses.KINDS}
    for kind, of_kind in truths.items():
        factors = [[*truth.course.factors.values()] for truth in of_kind]
        assert len({tuple(one) for one in factors}) > 1
        first, last = {one[0] > 0 for one in factors}, {one[-1] == 1 for one in factors}
        assert (first, last) == {
            "born": ({False}, {True}),
            "flickers": ({False}, {True}),
            "gone": ({False}, {False}),
            "never_massive": ({True}, {False}),
        }[kind]
    born = [check_controls.visible_of(truth) for truth in truths["born"]]
    assert len({visible["massive_born"] for visible in born}) > 5
    assert {visible["massive_born"] == visible["sinks_born"] for visible in born} == {True, False}


@pytest.mark.parametrize(("architecture", "kind", "seed"), EVERY)
def test_experiment_14_finds_that_out(architecture, kind, seed):
    built = build(architecture, kind, seed)
    visible = check_controls.visible_of(built.truth)
    assert check_controls.diagnose(built.lm, built.windows, visible, built.checkpoints) == visible


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    """Not even in the cache, where experiment 14 keeps what it has measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built = planting.build("llama", "born", 0)
    check_controls.diagnose(built.lm, built.windows, ["massive_born"], built.checkpoints)
    assert list(tmp_path.iterdir()) == []
