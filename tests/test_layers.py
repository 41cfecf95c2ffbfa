"""Experiment 2B: off, kept and cumulative against zeroed copies; frozen by really freezing; planted truth."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import exp2b_mlp_layer_sweep as exp2b
from lib import hooks, judges, layers, place, planted, report, sweep
from lib.evidence import Test
from tests import reference
from tests.conftest import LAYERS, MASSIVE_DIM, SPIKE_TOKEN, language_model, planted_model, token_ids
from tests.test_sweep import windows_of

EVERY = set(range(LAYERS))


def sweep_of(built, **flags):
    """What a run stores of a planted model, with its conclusion."""
    options = exp2b.Options(batch_size=8, **flags)
    return judges.judged("exp2b", exp2b.run(built.lm, built.windows, options))


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
    baseline = reference.observe(lm.model, ids)
    before = [at_place(hidden, where) for hidden in baseline.hidden]
    assert results.baseline["value"]["mean"] == pytest.approx(before[2].mean(), rel=1e-5)
    loss_before = np.mean([reference.loss(*of) for of in zip(baseline.logits, ids, strict=True)])
    off = {
        "alone": lambda layer: {layer},
        "only": lambda layer: EVERY - {layer},
        "only_with_first": lambda layer: EVERY - {0, layer},
        "from_front": lambda layer: set(range(layer + 1)),
        "from_back": lambda layer: set(range(layer, LAYERS)),
    }
    for kind, keyword in (("mlp", "mlps"), ("attention", "attentions")):
        runs = [run for run in off if kind == "mlp" or run != "only_with_first"]
        for layer in range(LAYERS):
            row = results.kinds[kind][layer]
            assert set(row) == {"layer", "write", "repair", *runs}
            for run in runs:
                expected = reference.observe(reference.without(lm.model, **{keyword: off[run](layer)}), ids)
                after = [at_place(hidden, where) for hidden in expected.hidden]
                assert row[run]["values"] == pytest.approx([x.mean() for x in after], rel=1e-4, abs=1e-3)
                assert row[run]["retained"]["mean"] == pytest.approx(after[2].sum() / before[2].sum(), abs=1e-4)
                losses = [reference.loss(logits, window) for logits, window in zip(expected.logits, ids, strict=True)]
                assert row[run]["perplexity"]["value"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
                assert row[run]["loss_change"]["mean"] == pytest.approx(np.mean(losses) - loss_before, abs=1e-4)


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
    assert repair["ratio"]["mean"] == pytest.approx((free - expected).sum() / write.sum(), abs=1e-3)
    assert abs(repair["ratio"]["mean"]) > 0.1 or layer == 2


def test_the_place_is_measured_in_all_windows_and_no_later_token_runs(spiking):
    """Values are those of whole windows; with one window run whole, only that one reaches the last token."""
    lm, ids, where = spiking
    windows, found = windows_of(ids), place.find(lm, windows_of(ids), 2)
    longest = []

    def see(_layer, value):
        longest.append(tuple(value.shape[:2]))

    with hooks.watch_inputs(lm.arch, "block", see, [LAYERS - 1]):
        counted, baseline, kinds = layers.sweep_layers(lm, windows, found, 1, 4)
    assert counted["all"] == 3 and counted["whole"] == 1
    assert baseline["value"]["n"] == 3 and baseline["sink_rate"]["n"] == 1
    assert np.allclose(baseline["values"], found.values.mean(0), rtol=1e-6)
    # two models' passes over whole windows beside those of the sweep: the ledger and, of two MLPs, what is elsewhere
    n = len({(kind, off) for kind in layers.KINDS for of in layers.off_sets(kind, LAYERS).values() for off in of.values()})
    assert sum(n for n, length in longest if length == 16) == (n + 1) + 3 + 3
    condition = sweep.measure(lm, windows, found, [layers.Condition("x", "", mlps=(1,))], 3)["x"]
    assert kinds["mlp"][1]["alone"]["values"] == pytest.approx(condition.values.mean(0), rel=1e-5, abs=1e-3)
    assert kinds["mlp"][1]["alone"]["loss_change"]["n"] == 1


def expected_of(truth):
    """(necessary, sufficient) as (kind, layer), from what was planted."""
    part = ["mlp" if truth.generator == "mlp" else "attention", truth.layer]
    if truth.kind == "redundant":
        return [], [part, ["mlp", truth.second_generator["layer"]]]
    if truth.kind == "two_steps":
        first = truth.first_step["layer"]
        return [["mlp", first], part], [part] if first == 0 else []  # MLP 0 is kept
    return [part], [part]


@pytest.mark.parametrize("kind", [kind for kind in planted.KINDS if kind != "none"])
@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_planted_layers_are_judged_right(architecture, kind):
    built = planted.build(architecture, kind, 31)
    found = sweep_of(built, n_whole=2)["conclusion"]["values"]
    necessary, sufficient = expected_of(built.truth)
    assert found["necessary"] == necessary
    assert found["sufficient"] == sufficient
    assert found["redundant"] == [part for part in sufficient if part not in necessary]
    assert found["cannot_tell"] == []
