"""What planted models say of the next token is lost by int8 where it is said to be, by hooks of this file alone."""

import functools
import math

import pytest
import torch

import check_controls
from lib.planted import blank, planting, rounding
from tests.conftest import exhaustive_unless
from tests.planted.test_planted import all_massive, blocks

pytestmark = pytest.mark.slow
build = functools.cache(planting.build)  # no test here changes a model
SEEDS = range(5)
EVERY = [
    exhaustive_unless(seed == kept, of, kind, seed)
    for kept, of in enumerate(blank.ARCHITECTURES)
    for kind in rounding.KINDS
    for seed in SEEDS
]


def loss(built, change=lambda hidden: hidden):
    """Nats a token, with what each block gives changed."""
    model, ids = built.lm.model, built.windows.ids
    handles = [block.register_forward_hook(lambda _m, _args, output: change(output)) for block in blocks(model)]
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[:, :-1]
    for handle in handles:
        handle.remove()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def rounded(hidden):
    """To 127 steps of the largest |value| of each window."""
    step = hidden.abs().flatten(1).amax(1)[:, None, None] / 127
    return (hidden / step).round() * step


def but_for_the_spike(hidden):
    median = hidden.abs().flatten(1).median(1).values[:, None, None]
    massive = (hidden.abs() > 100) & (hidden.abs() > 1000 * median)
    return torch.where(massive, hidden, rounded(hidden.masked_fill(massive, 0)))


@pytest.mark.parametrize(("architecture", "kind", "seed"), EVERY)
def test_it_is_lost_by_the_spike_or_not_at_all(architecture, kind, seed):
    built = build(architecture, kind, seed)
    told = loss(built)
    assert told < math.log(blank.VOCABULARY) - 0.5
    assert abs(loss(built, but_for_the_spike) - told) < 0.03
    if kind == "fine":
        assert loss(built, rounded) - told > 0.4
    else:
        assert abs(loss(built, rounded) - told) < 0.03
    assert bool(all_massive(built.lm.model, built.windows.ids)) == (kind != "spikeless")


@pytest.mark.parametrize(("architecture", "kind", "seed"), EVERY)
def test_experiment_13_finds_that_out(architecture, kind, seed):
    built = build(architecture, kind, seed)
    visible = check_controls.visible_of(built.truth)
    names = ("quantised", "generator", "dims")
    assert check_controls.diagnose(built.lm, built.windows, names) == {name: visible[name] for name in names}
