"""Experiment 2B: off, kept and cumulative against zeroed copies; frozen by really freezing; planted truth."""

import copy

import numpy as np
import pytest
import torch

import exp2b_mlp_layer_sweep as exp2b
from lib import layers, place, planted
from tests import reference
from tests.conftest import LAYERS, MASSIVE_DIM, SPIKE_TOKEN, language_model, planted_model, token_ids
from tests.test_sweep import windows_of

EVERY = set(range(LAYERS))


@pytest.fixture(params=["gpt2", "llama"])
def spiking(request, tokenizer):
    """(lm, ids, where): a model with a spike in layer 1, to which layer 2 adds."""
    lm = language_model(planted_model(request.param), tokenizer)
    ids = token_ids(3, 16)
    where = torch.tensor([4, 0, 11])
    ids[torch.arange(3), where] = SPIKE_TOKEN
    return lm, ids, where


def at_place(hidden, where):
    return hidden[torch.arange(3), where, MASSIVE_DIM].numpy()


def test_every_run_equals_a_zeroed_copy(spiking):
    lm, ids, where = spiking
    results = exp2b.run(lm, windows_of(ids), exp2b.Options(batch_size=2))
    before = [at_place(hidden, where) for hidden in reference.observe(lm.model, ids).hidden]
    assert results.baseline["value"]["mean"] == pytest.approx(before[2].mean(), rel=1e-5)
    off = {
        "alone": lambda layer: {layer},
        "only": lambda layer: EVERY - {layer},
        "from_front": lambda layer: set(range(layer + 1)),
        "from_back": lambda layer: set(range(layer, LAYERS)),
    }
    for kind, keyword in (("mlp", "mlps"), ("attention", "attentions")):
        for layer in range(LAYERS):
            row = results.kinds[kind][layer]
            for run, of in off.items():
                expected = reference.observe(reference.without(lm.model, **{keyword: of(layer)}), ids)
                after = [at_place(hidden, where) for hidden in expected.hidden]
                assert row[run]["values"] == pytest.approx([x.mean() for x in after], rel=1e-4, abs=1e-3)
                assert row[run]["retained"]["mean"] == pytest.approx((after[2] / before[2]).mean(), abs=1e-4)
                losses = [reference.loss(logits, window) for logits, window in zip(expected.logits, ids, strict=True)]
                assert row[run]["perplexity"]["value"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)


@pytest.mark.parametrize("layer", [1, 2])
def test_frozen_is_what_freezing_gives(spiking, layer):
    """A copy without one MLP in which all later writes are replaced by what they were."""
    lm, ids, where = spiking
    results = exp2b.run(lm, windows_of(ids), exp2b.Options(batch_size=3))
    repair = results.kinds["mlp"][layer]["repair"]
    model, kept = copy.deepcopy(lm.model), {}
    writing = [
        module
        for block in reference.blocks(model)[layer:]
        for module in (reference.parts(block).heads, reference.parts(block).down)
    ][1:]  # without the layer's own attention, which runs before

    def hook(module, _args, output):
        kept.setdefault(module, output)  # the first run keeps, the second is given it
        return kept[module]

    handles = [module.register_forward_hook(hook) for module in writing]
    with torch.no_grad():
        model(ids, use_cache=False)
        kept[reference.parts(reference.blocks(model)[layer]).down] *= 0
    frozen = []
    handles.append(reference.blocks(model)[-1].register_forward_hook(lambda _m, _a, output: frozen.append(output)))
    with torch.no_grad():
        model(ids, use_cache=False)
    expected = at_place(frozen[0], where)
    assert repair["frozen"]["mean"] == pytest.approx(expected.mean(), rel=1e-4, abs=1e-2)
    free = at_place(reference.observe(reference.without(lm.model, mlps=[layer]), ids).hidden[-1], where)
    write = at_place(reference.observe(lm.model, ids).hidden[-1], where) - expected
    assert repair["ratio"]["mean"] == pytest.approx(((free - expected) / write).mean(), abs=1e-3)
    assert abs(repair["ratio"]["mean"]) > 0.1 or layer == 2


def test_baseline_is_the_place(spiking):
    lm, ids, _where = spiking
    found = place.find(lm, windows_of(ids), 2)
    baseline, _kinds = layers.sweep_layers(lm, windows_of(ids), found, 2, 0)
    assert np.allclose(baseline["values"], found.values.mean(0), rtol=1e-6)


def expected_of(truth):
    """(necessary, sufficient) as (kind, layer), from what was planted."""
    part = ["mlp" if truth.generator == "mlp" else "attention", truth.layer]
    if truth.kind == "redundant":
        return [], [part, ["mlp", truth.second_generator["layer"]]]
    if truth.kind == "two_steps":
        return [["mlp", truth.first_step["layer"]], part], []
    return [part], [part]


@pytest.mark.parametrize("kind", [kind for kind in planted.KINDS if kind != "none"])
@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_planted_layers_are_judged_right(architecture, kind):
    built = planted.build(architecture, kind, 31)
    found = exp2b.run(built.lm, built.windows, exp2b.Options(batch_size=8)).conclusion["values"]
    necessary, sufficient = expected_of(built.truth)
    assert found["necessary"] == necessary
    assert found["sufficient"] == sufficient
    assert found["redundant"] == [part for part in sufficient if part not in necessary]


def test_redundant_generators_repair_each_other():
    for architecture in planted.ARCHITECTURES:
        built = planted.build(architecture, "redundant", 3)
        rows = exp2b.run(built.lm, built.windows, exp2b.Options(batch_size=8)).kinds["mlp"]
        assert rows[built.truth.layer]["repair"]["ratio"]["mean"] == pytest.approx(1, abs=0.05)
        assert rows[built.truth.second_generator["layer"]]["repair"] is None  # it writes nothing in the baseline


def test_nothing_massive():
    built = planted.build("llama", "none", 3)
    assert exp2b.run(built.lm, built.windows, exp2b.Options(batch_size=8)).conclusion["verdict"] == "none found"
