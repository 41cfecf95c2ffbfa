"""Models whose weights tell of what they do not do are so, by their weights and their own hidden states."""

import copy
import functools

import pytest
import torch

import check_controls
from lib.planted import blank, forecasts, planting
from tests.conftest import exhaustive_unless
from tests.planted.test_planted import all_massive, block_outputs, blocks, massive_places

pytestmark = pytest.mark.slow
build = functools.cache(planting.build)  # no test here changes a model but in a copy
SEEDS = (0, 7)
EVERY = [
    exhaustive_unless(seed == first, of, kind, seed)
    for of, first in zip(blank.ARCHITECTURES, SEEDS, strict=True)
    for kind in forecasts.KINDS
    for seed in SEEDS
]


def asleep(truth):
    """(layer, dim, sign) of what is foreseen."""
    _mlp, layer, told = truth.foreseen.split()
    return int(layer), int(told[1:]), 1 if told[0] == "+" else -1


def largest_weight(model, layer, dim):
    """Of the last projection of a layer's MLP, to a dim."""
    mlp = blocks(model)[layer].mlp
    weight = mlp.c_proj.weight.T if hasattr(mlp, "c_proj") else mlp.down_proj.weight
    return weight[dim].abs().max().item()


@pytest.mark.parametrize(("architecture", "kind", "seed"), EVERY)
def test_no_token_wakes_them(architecture, kind, seed):
    """Alone, in the windows, or behind another."""
    built = build(architecture, kind, seed)
    layer, dim, _sign = asleep(built.truth)
    every = torch.arange(blank.VOCABULARY)
    for ids in (every[:, None], torch.stack([every.roll(1), every], dim=1), built.windows.ids):
        for hidden in block_outputs(built.lm.model, ids):
            assert hidden[..., dim].abs().max() < 30
    found = all_massive(built.lm.model, built.windows.ids)
    assert bool(found) == (kind == "unforeseen")
    if kind == "unforeseen":
        assert built.truth.layer != layer
        outputs = block_outputs(built.lm.model, built.windows.ids)[built.truth.layer]
        assert {d for place in massive_places(outputs) for _position, d in place} == set(built.truth.values)


@pytest.mark.parametrize(("architecture", "kind", "seed"), EVERY)
def test_they_write_it_where_something_does(architecture, kind, seed):
    """What wakes them, as the neuron with the largest weight to the dim reads it, added to a token's embedding."""
    built = build(architecture, kind, seed)
    layer, dim, sign = asleep(built.truth)
    model = copy.deepcopy(built.lm.model)
    mlp = blocks(model)[layer].mlp
    plain = architecture == "gpt2"
    down = mlp.c_proj.weight.T if plain else mlp.down_proj.weight
    reads = mlp.c_fc.weight.T if plain else mlp.gate_proj.weight
    row = reads[down[dim].abs().argmax()]
    embedding = model.get_input_embeddings().weight.data
    flag = row.where(embedding.mean(0).abs() < 0.2, 0).abs().topk(2).indices  # the others are a threshold
    embedding[5, flag] += 2 * row[flag].sign()
    ids = torch.tensor([[1, 5]])
    value = block_outputs(model, ids)[layer][0, 1, dim].item()
    assert sign * value > 100


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_their_weights_are_the_largest(architecture):
    for seed in SEEDS:
        built = build(architecture, "unforeseen", seed)
        layer, dim, _sign = asleep(built.truth)
        largest = max(built.truth.values, key=lambda d: abs(built.truth.values[d]))
        weights = [largest_weight(built.lm.model, *at) for at in ((layer, dim), (built.truth.layer, largest))]
        assert weights[0] > 1.3 * weights[1]


@pytest.mark.parametrize(("architecture", "kind", "seed"), EVERY)
def test_the_scripts_find_that_out(architecture, kind, seed):
    built = build(architecture, kind, seed)
    visible = check_controls.visible_of(built.truth)
    assert visible["forecast"] == {"unwoken": "none found", "unforeseen": "miss"}[kind]
    names = ("foreseen", "forecast", "layer", "dims", "generator")
    assert check_controls.diagnose(built.lm, built.windows, names) == {name: visible[name] for name in names}


def test_a_forecast_that_comes_true_and_one_of_a_head():
    for kind, verdict in (("mlp", "hit"), ("head", "miss")):
        built = build("llama", kind, 0)
        visible = check_controls.visible_of(built.truth)
        names = [name for name in ("foreseen", "forecast") if name in visible]
        assert visible["forecast"] == verdict
        assert check_controls.diagnose(built.lm, built.windows, names) == {name: visible[name] for name in names}
