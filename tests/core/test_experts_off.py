"""Experts off, against copies of the model whose weights are zero and against routing made anew here."""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch.testing import assert_close

from lib.core import ablation, experts, sweep
from lib.model import edits
from lib.model.experts import Off
from lib.run.errors import UserError
from tests import every_type, mixtures
from tests.conftest import language_model
from tests.core.test_sweep import fixed_place, windows_of

IDS = torch.randint(3, 100, (3, 12), generator=torch.Generator().manual_seed(3))
# routing that is normalised and that is not, shared experts, biases, transposed and interleaved weights, no gate, a
# norm after the mixture
MIXTURES = ["mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss", "nemotron_h", "afmoe", "jamba"]
IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]


@pytest.fixture(params=MIXTURES, scope="module")
def lm(request):
    return every_type.loaded(request.param)


def outputs(model, *managers):
    """Logits."""
    with ExitStack() as stack, torch.inference_mode():
        for manager in managers:
            stack.enter_context(manager)
        return model(input_ids=IDS, use_cache=False).logits


def path_of(lm, module):
    return next(path for path, own in lm.model.named_modules() if own is module)


def zeroed(lm, *off):
    """A copy in which the down projections and biases of (layer, expert) are zero."""
    model = copy.deepcopy(lm.model)
    for layer, expert in off:
        if expert is None:
            shared = model.get_submodule(path_of(lm, lm.arch.module(layer, "shared_expert")))
            last = [module for module in shared.modules() if isinstance(module, torch.nn.Linear)][-1]
            last.weight.data.zero_()
            assert last.bias is None
            continue
        module = model.get_submodule(path_of(lm, lm.arch.module(layer, "experts")))
        module.down_proj.data[expert] = 0
        if module.has_bias:
            module.down_proj_bias.data[expert] = 0
    return model


def mixed_layers(lm):
    return lm.arch.with_role("experts")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_expert_that_is_off_writes_nothing(lm, implementation):
    first, last = mixed_layers(lm)[0], mixed_layers(lm)[-1]
    lm.model.set_experts_implementation(implementation)
    before = outputs(lm.model)
    for off in [((first, 1),), ((first, 0), (first, 2), (last, 3))]:
        got = outputs(lm.model, edits.experts_off(lm.arch, Off(off)))
        assert_close(got, outputs(zeroed(lm, *off)), rtol=0, atol=1e-5)
        assert (got - before).abs().max() > 1e-3
    assert_close(outputs(lm.model), before, rtol=0, atol=1e-5)


def test_the_shared_expert_can_be_off(lm):
    layers = lm.arch.with_role("shared_expert")
    for layer in layers:
        got = outputs(lm.model, edits.experts_off(lm.arch, Off(((layer, None),))))
        assert_close(got, outputs(zeroed(lm, (layer, None))), rtol=0, atol=1e-5)
        assert (got - outputs(lm.model)).abs().max() > 1e-3
    if not layers:
        with pytest.raises(UserError, match=f"layer {mixed_layers(lm)[0]} has no shared expert"):
            edits.experts_off(lm.arch, Off(((mixed_layers(lm)[0], None),))).__enter__()


def by_hand(model, path, off):
    """Logits where each token's weights are made anew, in plain Python, before that module of experts is called."""
    seen = []

    def reweigh(_module, args, kwargs):
        hidden, chosen, weights = (*args, *kwargs.values())
        weights = weights.clone()
        for row, experts_of_token in zip(weights, chosen.tolist(), strict=True):
            before = sum(row.tolist())
            left = sum(
                weight for weight, expert in zip(row.tolist(), experts_of_token, strict=True) if expert not in off
            )
            seen.append(left)
            for i, expert in enumerate(experts_of_token):
                row[i] = 0.0 if expert in off else row[i].item() * before / left
        return (hidden, chosen, weights), {}

    handle = model.get_submodule(path).register_forward_pre_hook(reweigh, with_kwargs=True)
    logits = outputs(model)
    handle.remove()
    return logits, seen


@pytest.mark.parametrize("off", [[1], [0, 2], [0, 1, 2, 3]], ids=str)
def test_renormalised_weights_sum_to_what_they_did(lm, off):
    layer = mixed_layers(lm)[0]
    path = path_of(lm, lm.arch.module(layer, "experts"))
    these = tuple((layer, expert) for expert in off)
    got = outputs(lm.model, edits.experts_off(lm.arch, Off(these, renormalised=True)))
    expected, left = by_hand(lm.model, path, off)
    assert_close(got, expected, rtol=0, atol=1e-5)
    as_it_was = outputs(lm.model, edits.experts_off(lm.arch, Off(these)))
    none_remains = len(off) == 4
    assert none_remains == torch.equal(got, as_it_was)
    assert min(left) == 0 if none_remains else max(left) > 0


def test_top_1():
    lm = language_model(mixtures.model_of("mixtral", num_experts_per_tok=1))
    layer = mixed_layers(lm)[0]
    off = tuple((layer, expert) for expert in range(2))
    one, other = (outputs(lm.model, edits.experts_off(lm.arch, Off(off, flag))) for flag in (False, True))
    assert torch.equal(one, other)
    assert_close(one, outputs(zeroed(lm, *off)), rtol=0, atol=1e-5)


def test_several_versions_share_a_pass(lm):
    first, last = mixed_layers(lm)[0], mixed_layers(lm)[-1]
    sets = [
        Off(((first, 1),)),
        Off(((first, 1),), True),
        Off(((first, 0), (last, 2))),
        Off(((first, 3), (last, 3)), True),
    ]
    if lm.arch.layers[first].shared_expert is not None:
        sets.append(Off(((first, None), (last, 1))))
    changes = [experts.ExpertsOff(str(i), off) for i, off in enumerate(sets)]
    place = fixed_place([4, 0, 3], lm.arch.n_layers)
    got = sweep.values_at_place(lm, windows_of(IDS), place, changes, 3)
    for change in changes:
        full = sweep.Passes(lm, place)
        with change.hooks(lm.arch):
            full.run(IDS, slice(0, 3))
        assert_close(torch.from_numpy(got[change.name]), torch.from_numpy(full.values), rtol=1e-4, atol=1e-5)
    differ = {tuple(got[change.name][:, -1].round(4)) for change in changes}
    assert len(differ) == len(changes)


def test_all_experts_off_leaves_what_else_is_there(lm):
    layers = mixed_layers(lm)
    every = [(layer, i) for layer in layers for i in range(len(lm.arch.module(layer, "experts").down_proj))]
    got = outputs(lm.model, edits.all_experts_off(lm.arch, layers))
    assert_close(got, outputs(zeroed(lm, *every)), rtol=0, atol=1e-5)
    condition = ablation.all_experts_off(lm.arch)
    all_mlps = outputs(lm.model, edits.mlps_off(lm.arch, lm.arch.mlps))
    assert (condition is None) == torch.allclose(all_mlps, got, atol=1e-5)
    if condition is not None:
        assert_close(outputs(lm.model, condition.hooks(lm.arch)), got, rtol=0, atol=0)


def test_what_stays_on_is_said():
    labels = {
        "qwen2_moe": "all experts off (shared experts stay on in 3 of 3 layers)",
        "jamba": "all experts off (MLPs without experts in 2 of 3 layers stay on)",
    }
    for model_type, label in labels.items():
        assert ablation.all_experts_off(every_type.loaded(model_type).arch).label == label
    assert ablation.all_experts_off(every_type.loaded("mixtral").arch) is None
    assert ablation.all_experts_off(every_type.loaded("llama").arch) is None


def test_half_precision():
    lm = every_type.loaded("mixtral")
    model = lm.model.bfloat16()
    for expert in range(4):
        got = outputs(model, edits.experts_off(lm.arch, Off(((0, expert),))))
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, outputs(zeroed(lm, (0, expert))))
        got = outputs(model, edits.experts_off(lm.arch, Off(((2, expert),), renormalised=True)))
        expected, _left = by_hand(model, path_of(lm, lm.arch.module(2, "experts")), [expert])
        assert_close(got, expected, rtol=0.02, atol=0.02)
