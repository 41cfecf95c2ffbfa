"""Planted mixtures of experts are what their truth says, by weights set to zero and by hooks of this file alone."""

import copy
import dataclasses
import functools
import json

import pytest
import torch
import transformers

import check_controls
from lib.core.results import SHARED_EXPERT
from lib.model import models
from lib.planted import blank, mixtures, planting
from lib.planted import truth as planted_truth
from lib.run.cli import Options
from tests.conftest import exhaustive_unless, save
from tests.planted.test_planted import (
    all_massive,
    block_outputs,
    blocks,
    expected_places,
    first_token_attention,
    massive_places,
    without,
)

pytestmark = pytest.mark.slow
SEEDS = (0, 1234)
CLASSES = {
    "mixtral": transformers.MixtralForCausalLM,
    "qwen3_moe": transformers.Qwen3MoeForCausalLM,
    "qwen2_moe": transformers.Qwen2MoeForCausalLM,
}
EVERY = [(architecture, kind) for architecture in CLASSES for kind in planting.KINDS[architecture]]
MASSIVE = [setting for setting in EVERY if setting[1] != "none"]
TWO = "two_experts", "redundant_experts"
BY_EXPERTS = [setting for setting in MASSIVE if setting[1] != "head"]

build = functools.cache(planting.build)  # no test here changes a model but in a copy


@pytest.fixture(params=[exhaustive_unless(seed == SEEDS[0], seed) for seed in SEEDS])
def planted(request, architecture, kind):
    """(model, ids, truth)."""
    built = build(architecture, kind, request.param)
    return built.lm.model, built.windows.ids, built.truth


def of(settings):
    return pytest.mark.parametrize(("architecture", "kind"), settings, ids=[" ".join(setting) for setting in settings])


@pytest.mark.parametrize(
    ("architecture", "kind", "seed"),
    [("qwen3_moe", "expert", 15), ("qwen3_moe", "redundant_experts", 13), ("qwen2_moe", "expert", 2)],
)
def test_a_value_that_grows_without_the_noise_of_heads_is_an_mlps(architecture, kind, seed):
    """The norm and the router then give its neurons more, by over a tenth in all."""
    built = build(architecture, kind, seed)
    visible, names = check_controls.visible_of(built.truth), ("generator", "neurons", "neuron_set")
    assert check_controls.diagnose(built.lm, built.windows, names) == {name: visible[name] for name in names}
    assert visible["generator"] == "mlp"


def experts_off(model, *experts):
    """A copy in which these (layer, expert) write nothing."""
    model = copy.deepcopy(model)
    for layer, expert in experts:
        mixture = blocks(model)[layer].mlp
        if expert == SHARED_EXPERT:
            mixture.shared_expert.down_proj.weight.data.zero_()
        else:
            mixture.experts.down_proj.data[expert] = 0
    return model


def every_expert(model):
    shared = [SHARED_EXPERT] if hasattr(blocks(model)[0].mlp, "shared_expert") else []
    numbers = range(len(blocks(model)[0].mlp.gate.weight))
    return {(layer, expert) for layer in range(len(blocks(model))) for expert in (*numbers, *shared)}


def routes(model, ids):
    """Per layer {expert: weight}s of every token of the windows: [layer][window][position]."""
    seen = []
    handles = [block.mlp.gate.register_forward_hook(lambda _m, _a, out: seen.append(out)) for block in blocks(model)]
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    found = []
    for _logits, weights, experts in seen:
        tokens = [dict(zip(*pair, strict=True)) for pair in zip(experts.tolist(), weights.tolist(), strict=True)]
        found.append([tokens[i : i + ids.shape[1]] for i in range(0, len(tokens), ids.shape[1])])
    return found


def largest_of(truth):
    return max(truth.values, key=lambda dim: abs(truth.values[dim]))


@of(EVERY)
def test_saved_and_reloaded(tmp_path, architecture, kind):
    built = build(architecture, kind, 0)
    assert type(built.lm.model) is CLASSES[architecture]
    folder = save(tmp_path / "model", built.lm.model, built.lm.tokenizer)
    lm = models.load(Options(model=str(folder), device="cpu", offline=True))
    with torch.no_grad():
        expected, logits = (m(built.windows.ids, use_cache=False).logits for m in (built.lm.model, lm.model))
    assert torch.equal(logits, expected)
    truth = json.loads(json.dumps(dataclasses.asdict(built.truth)))
    assert (truth["kind"], truth["layer"]) == (kind, built.truth.layer)


@of(MASSIVE)
def test_massive_where_and_as_large_as_the_truth_says(planted):
    model, ids, truth = planted
    outputs = block_outputs(model, ids)
    for layer, hidden in enumerate(outputs):
        for window, places in zip(ids.tolist(), massive_places(hidden), strict=True):
            assert places == pytest.approx(expected_places(window, truth, layer, len(outputs)), rel=0.05)
    assert (truth.positions, truth.share) == ((0,), 1)
    with torch.no_grad():
        states = model(ids, use_cache=False, output_hidden_states=True).hidden_states[1:-1]
    assert all(torch.equal(own, seen) for own, seen in zip(states, outputs, strict=False))


@of(BY_EXPERTS)
def test_gone_without_the_named_experts_and_there_without_all_others(planted):
    model, ids, truth = planted
    off = experts_off(model, *truth.experts)
    assert all_massive(off, ids) == []
    assert block_outputs(off, ids)[truth.layer][:, :, list(truth.values)].abs().max() < 1
    others = every_expert(model) - set(truth.experts)
    assert (
        all_massive(experts_off(model, *others), ids)
        == all_massive(model, ids)
        == list(range(truth.layer, len(blocks(model))))
    )


@of(BY_EXPERTS)
def test_what_is_left_without_one_of_them(planted):
    model, ids, truth = planted
    dim = largest_of(truth)
    assert len(truth.expert_retained) == len(truth.experts) == 1 + (truth.kind in TWO)
    for layer, expert in truth.experts:
        alone = experts_off(model, (layer, expert))
        left = truth.expert_retained[planted_truth.expert_name(layer, expert)]
        value = block_outputs(alone, ids)[-1][:, 0, dim]
        assert value.numpy() == pytest.approx(left * truth.values[dim], rel=0.02, abs=1)
        assert bool(all_massive(alone, ids)) == (truth.kind in TWO) == (left > 0.3)


@of(BY_EXPERTS)
def test_each_named_neuron_takes_part_and_no_other(planted):
    model, ids, truth = planted
    dim = largest_of(truth)
    for expert, neuron in truth.neurons:
        off = copy.deepcopy(model)
        down_of(off, truth.layer, expert)[:, neuron] = 0
        assert (block_outputs(off, ids)[truth.layer][:, 0, dim] / truth.values[dim] < 0.95).all()
    only = experts_off(model, *every_expert(model))
    for expert, neuron in truth.neurons:
        down_of(only, truth.layer, expert)[:, neuron] = down_of(model, truth.layer, expert)[:, neuron]
    value = block_outputs(only, ids)[truth.layer][:, 0, dim]
    assert value.numpy() == pytest.approx(truth.values[dim], rel=0.05)


def down_of(model, layer, expert):
    """(hidden, width) view of an expert's last projection."""
    mixture = blocks(model)[layer].mlp
    shared = expert == SHARED_EXPERT
    return mixture.shared_expert.down_proj.weight.data if shared else mixture.experts.down_proj.data[expert]


@of(BY_EXPERTS)
def test_the_trigger_goes_to_them_with_a_weight_well_below_one(planted):
    model, ids, truth = planted
    by_layer = routes(model, ids)
    for layer, expert in truth.experts:
        if expert != SHARED_EXPERT:
            assert all(0.15 < window[0][expert] < 0.95 for window in by_layer[layer])
            others = [token for window in by_layer[layer] for token in window[1:]]
            assert not all(expert in token for token in others)


@of(EVERY)
def test_other_tokens_spread_over_the_experts(planted):
    model, ids, _truth = planted
    for layer in routes(model, ids):
        tokens = [token for window in layer for token in window[1:]]
        reached = {expert for token in tokens for expert in token}
        assert len(reached) >= len(blocks(model)[0].mlp.gate.weight) / 2


@of(EVERY)
def test_the_decoy_has_the_largest_weights_and_is_never_reached(planted):
    model, ids, truth = planted
    layer, decoy = truth.decoy_expert
    assert (layer, decoy) not in truth.experts
    every = torch.arange(blank.VOCABULARY)[:, None]
    for tokens in (ids, every):
        assert not any(decoy in token for window in routes(model, tokens)[layer] for token in window)
    rows = blocks(model)[layer].mlp.experts.down_proj.abs().amax(2)  # (experts, hidden)
    others = torch.cat([rows[:decoy], rows[decoy + 1 :]])
    assert (rows[decoy] > 2.9 * others.max()).all()
    off = experts_off(model, (layer, decoy))
    assert torch.equal(block_outputs(off, ids)[-1], block_outputs(model, ids)[-1])
    reached = copy.deepcopy(model)
    blocks(reached)[layer].mlp.gate.weight.data[decoy] = 0
    assert not torch.equal(block_outputs(reached, ids)[-1], block_outputs(model, ids)[-1])


@of([setting for setting in EVERY if setting[1] == "head"])
def test_a_head_needs_no_expert(planted):
    model, ids, truth = planted
    assert truth.experts == ()
    off = experts_off(model, *every_expert(model))
    assert all_massive(off, ids) == all_massive(model, ids) != []
    assert all_massive(without(model, {"layer": truth.layer, "head": truth.head}), ids) == []


@of([setting for setting in EVERY if setting[1] == "none"])
def test_nothing_is_massive(planted):
    model, ids, truth = planted
    assert all_massive(model, ids) == []
    assert (truth.layer, truth.experts) == (None, ())
    largest = max(truth.outliers.values(), key=abs)
    assert block_outputs(model, ids)[-1].abs().max().item() == pytest.approx(abs(largest), rel=0.05)


@of(EVERY)
def test_sinks_and_those_that_read_the_spike(planted):
    model, ids, truth = planted
    attention = first_token_attention(model, ids)
    assert {head for head, mean in attention.items() if mean > 0.3} == set(truth.sinks) != set()
    assert all(attention[head] > 0.9 for head in truth.sinks)
    if truth.readers:
        part = without(model, {"layer": truth.layer, "head": truth.head}) if truth.head is not None else model
        off = first_token_attention(experts_off(part, *truth.experts), ids)
        assert all(off[head] < 0.2 for head in truth.readers)


@of(EVERY)
def test_no_weight_is_zero(architecture, kind):
    for name, parameter in build(architecture, kind, 0).lm.model.named_parameters():
        assert (parameter != 0).all(), name


@pytest.mark.parametrize("architecture", CLASSES)
def test_seeds_decide_everything(architecture):
    truths = [planting.build(architecture, "expert", seed).truth for seed in range(8)]
    for field in ("layer", "neurons", "readers", "experts", "decoy_expert"):
        assert len({getattr(truth, field) for truth in truths}) > 2, field
    again = [planting.build(architecture, "expert", 3) for _ in range(2)]
    assert again[0].truth == again[1].truth == truths[3]
    pairs = zip(*(built.lm.model.parameters() for built in again), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_kinds_are_of_the_types_that_can_have_them():
    assert [name for name, kinds in planting.KINDS.items() if {*mixtures.KINDS} <= {*kinds}] == [*CLASSES]
    assert set(mixtures.WITH_SHARED) - set(mixtures.KINDS) == {"shared_expert"}
