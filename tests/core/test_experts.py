"""What each expert of a mixture writes, against copies of the model in which it writes nothing."""

import copy

import numpy as np
import pytest
import torch

from lib.core import attribution
from lib.core.ablation import Condition
from lib.model import edits, experts
from tests import every_type
from tests.core.test_sweep import fixed_place, windows_of

IDS = torch.randint(3, 100, (3, 12), generator=torch.Generator().manual_seed(3))
POSITIONS, DIM = [0, 5, 11], 3
# routing that is normalised and that is not, a shared expert and a gated one, biases, interleaved and transposed
# weights, no gate, a norm after the mixture, other implementations of transformers'
MIXTURES = ["mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss", "nemotron_h", "flex_olmo", "afmoe", "jamba"]
WITH_SHARED = ["qwen2_moe", "deepseek_v3", "nemotron_h", "afmoe"]


@pytest.fixture(params=MIXTURES, scope="module")
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def lm(model_type):
    return every_type.loaded(model_type)


def ledger(lm):
    place = fixed_place(POSITIONS, lm.arch.n_layers)
    return attribution.measure(lm, windows_of(IDS), place, Condition("nothing", "nothing off"), 2)


def block_output(model, lm, layer):
    """(windows,) at the place."""
    found = {}
    own = lm.arch.blocks[layer]
    path = next(path for path, module in lm.model.named_modules() if module is own)
    handle = model.get_submodule(path).register_forward_hook(
        lambda _m, _a, output: found.update(value=output[0] if isinstance(output, tuple) else output)
    )
    with torch.inference_mode():
        model(input_ids=IDS, use_cache=False)
    handle.remove()
    return found["value"][torch.arange(3), torch.tensor(POSITIONS), DIM].double().numpy()


def of_layer(lm):
    layer = lm.arch.with_role("experts")[0]
    path = next(path for path, module in lm.model.named_modules() if module is lm.arch.module(layer, "experts"))
    return layer, path


def test_an_expert_off_takes_its_write_away(lm, model_type):
    layer, path = of_layer(lm)
    writes = [write for write in ledger(lm).writes if (write.layer, write.kind) == (layer, "expert")]
    assert len(writes) >= 2
    if lm.arch.layers[layer].mlp_write != lm.arch.layers[layer].experts_sum:
        return  # a norm after the mixture changes with it
    before = block_output(lm.model, lm, layer)
    for write in writes:
        without = copy.deepcopy(lm.model)
        module = without.get_submodule(path)
        module.down_proj.data[write.head] = 0
        if module.has_bias:
            module.down_proj_bias.data[write.head] = 0
        np.testing.assert_allclose(before - block_output(without, lm, layer), write.values, atol=1e-5)


def test_writes_of_a_mixture_add_up(lm, model_type):
    layer, _path = of_layer(lm)
    found = ledger(lm)
    assert found.check().relative_error < 1e-5
    shared = [write for write in found.writes if write.kind == "shared expert"]
    assert bool(shared) == (model_type in WITH_SHARED)
    assert not any(write.layer == layer and write.kind == "mlp" for write in found.writes)
    largest = max((w for w in found.writes if w.kind == "expert"), key=lambda write: np.abs(write.values).max())
    left = attribution.Ledger(found.place, [write for write in found.writes if write is not largest])
    assert left.check().relative_error > 1e-4


@pytest.mark.parametrize("mistake", ["weight forgotten", "index shifted"])
def test_a_mistake_shows(lm, mistake, monkeypatch):
    rightly = experts.writes

    def wrongly(module, of, dim):
        if mistake == "weight forgotten":
            return rightly(module, experts.Chosen(of.hidden, of.experts, torch.ones_like(of.weights)), dim)
        shifted = (of.experts + 1) % len(module.down_proj)
        return rightly(module, experts.Chosen(of.hidden, shifted, of.weights), dim)

    monkeypatch.setattr(experts, "writes", wrongly)
    layer, _path = of_layer(lm)
    if lm.arch.layers[layer].shared_expert is None:
        assert ledger(lm).check().relative_error > 1e-4


def test_all_mlps_off_is_no_expert_at_all(lm):
    with edits.mlps_off(lm.arch, lm.arch.mlps):
        writes = ledger(lm).writes
    assert not any(write.values.any() for write in writes if write.kind in attribution.OF_MLP)
