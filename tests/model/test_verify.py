"""What does not hold on a loaded model is refused, or not measured, with the reason."""

import itertools

import pytest
import torch
import transformers

from lib.model import attention, verify
from lib.model.arch import Architecture
from lib.run.errors import UserError
from tests import every_type
from tests.conftest import language_model, tiny_model


class Rolled(torch.nn.Module):
    def __init__(self, by=1):
        super().__init__()
        self.by = by

    def forward(self, value):
        return value.roll(self.by, dims=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma3_text"])
def test_nothing_is_wrong(model_type, dtype):
    model = tiny_model(model_type).to(dtype)
    lm = language_model(model)
    before = list(lm.arch.layers)
    verify.verify(lm)
    assert lm.arch.layers == before
    assert model.config._attn_implementation == "sdpa"


def test_parts_that_compute_attention_otherwise_than_the_whole_still_do():
    config = every_type.loaded("got_ocr2").model.config
    assert (config._attn_implementation, config.text_config._attn_implementation) == ("eager", "sdpa")


def test_heads_that_are_not_side_by_side():
    """One dim of each head stands in the columns of the next."""
    model = tiny_model("llama")
    layer = model.model.layers[1].self_attn
    layer.o_proj = torch.nn.Sequential(Rolled(), layer.o_proj)
    lm = language_model(model)
    assert lm.arch.layers[1].head_projection == "self_attn.o_proj.1"
    verify.verify(lm)
    assert [parts.head_projection for parts in lm.arch.layers] == ["self_attn.o_proj", None, "self_attn.o_proj"]
    with pytest.raises(UserError, match="layer 1 has no heads that can be told apart: its projection does not take"):
        lm.arch.check_head(1, 0)


@pytest.mark.parametrize("n_heads", [4, 14, 15, 40])
def test_heads_in_another_order(n_heads):
    """Also of more heads than tokens: these are off at several each. Where they are in order, nothing is wrong."""
    heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), n_heads)
    for by, found in ((8, [None] * 3), (0, ["self_attn.o_proj.1"] * 3)):
        model = tiny_model("llama", **heads, head_dim=8, hidden_size=2 * n_heads)
        for block in model.model.layers:
            block.self_attn.o_proj = torch.nn.Sequential(Rolled(by), block.self_attn.o_proj)
        lm = language_model(model)
        verify.verify(lm)
        assert [parts.head_projection for parts in lm.arch.layers] == found


@pytest.mark.parametrize(("n_tokens", "n_heads"), [(14, 1), (14, 14), (14, 15), (14, 232), (4, 6), (10, 128)])
def test_no_heads_tokens_are_among_anothers(n_tokens, n_heads):
    tokens = [set(of_head.nonzero().flatten().tolist()) for of_head in verify._heads_off(n_tokens, n_heads).T]
    assert len(tokens) == n_heads
    assert not any(one <= other for one, other in itertools.permutations(tokens, 2))


def sharper(sdpa, module, query, key, value, mask, scaling, **others):
    return sdpa(module, query, key, value, mask, scaling=1.1 * scaling, **others)


def without_mask(sdpa, module, query, key, value, mask, **others):
    return sdpa(module, query, key, value, torch.zeros(query.shape[2], query.shape[2]), **others)


def more(sdpa, *args, **others):
    output, weights = sdpa(*args, **others)
    return torch.cat([1.1 * output[..., :1], output[..., 1:]], dim=-1), weights


def swapped(sdpa, module, query, key, value, *args, **others):
    return sdpa(module, query, key, value.flip(1), *args, **others)


def more_in_layer_2(sdpa, module, *args, **others):
    return more(sdpa, module, *args, **others) if module.layer_idx == 2 else sdpa(module, *args, **others)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize(
    ("changed", "layer"), [(sharper, 0), (without_mask, 0), (more, 0), (swapped, 0), (more_in_layer_2, 2)]
)
def test_attention_that_is_not_that_of_the_eager_implementation(changed, layer, family, monkeypatch):
    """As where an implementation leaves out what the model's authors do to the logits, or does more to the values."""
    every = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    sdpa, lm = every["sdpa"], language_model(tiny_model(family, scale=0.5))
    verify.verify(lm)
    monkeypatch.setitem(every, "sdpa", lambda *args, **others: changed(sdpa, *args, **others))
    said = f"of layer {layer} by 'sdpa' attention is not that of eager attention: it differs by"
    with pytest.raises(UserError, match=said):
        verify.verify(lm)
    assert lm.model.config._attn_implementation == "sdpa"


def test_probabilities_that_are_not_those_of_the_eager_map(monkeypatch):
    """As where a kernel means another log sum."""

    def other(*args):
        output, log_sum = kernel(*args)
        return output, log_sum + 0.1

    kernel, lm = attention._flash_on_cpu, language_model(tiny_model("llama"))
    verify.verify(lm)
    monkeypatch.setattr(attention, "_flash_on_cpu", other)
    with pytest.raises(UserError, match="the attention to the first token of layer 0 by 'sdpa' attention is not that"):
        verify.verify(lm)


def test_the_model_is_as_it_was(monkeypatch):
    """Also after an error in a block."""
    lm = language_model(tiny_model("llama"))
    hooks_of = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in lm.model.modules()]
    monkeypatch.setattr(lm.model.model.layers[1].self_attn.k_proj, "forward", lambda _value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verify.verify(lm)
    monkeypatch.undo()
    verify.verify(lm)
    assert hooks_of == [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in lm.model.modules()]
    assert not any("forward" in vars(part) for part in lm.model.modules())


def test_a_block_that_adds_what_no_module_gives():
    model = tiny_model("llama")
    model.model.layers[2].register_forward_hook(lambda _module, _args, output: output + 0.01)
    with pytest.raises(UserError, match="unsupported architecture 'llama': layer 2: its output is not its input plus"):
        Architecture(model)


def test_a_layer_of_zeros_is_like_the_others():
    """As in models that were made deeper: added blocks write nothing yet."""
    model = tiny_model("llama")
    for layer in (0, 2):
        model.model.layers[layer].self_attn.o_proj.weight.zero_()
        model.model.layers[layer].mlp.down_proj.weight.zero_()
    arch = Architecture(model)
    assert arch.layers[0] == arch.layers[1] == arch.layers[2]
    assert arch.layers[0].down == "mlp.down_proj"
