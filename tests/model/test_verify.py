"""What does not hold on a loaded model is refused, or not measured, with the reason."""

import pytest
import torch
import transformers

from lib.model import verify
from lib.model.arch import Architecture
from lib.run.errors import UserError
from tests.conftest import language_model, tiny_model


class Rolled(torch.nn.Module):
    def forward(self, value):
        return value.roll(1, dims=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma3_text"])
def test_nothing_is_wrong(model_type, dtype):
    model = tiny_model(model_type).to(dtype)
    lm = language_model(model)
    before = list(lm.arch.layers)
    verify.verify(lm)
    assert lm.arch.layers == before
    assert model.config._attn_implementation == "sdpa"


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


def test_attention_that_is_not_that_of_the_eager_implementation(monkeypatch):
    """As where an implementation leaves out what the model's authors do to the logits."""

    def sharper(module, query, key, value, mask, scaling, **others):
        return sdpa(module, query, key, value, mask, scaling=1.1 * scaling, **others)

    every = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    sdpa, lm = every["sdpa"], language_model(tiny_model("llama", scale=0.5))
    verify.verify(lm)
    monkeypatch.setitem(every, "sdpa", sharper)
    with pytest.raises(UserError, match="of layer 0 by 'sdpa' attention is not that of eager attention: it differs by"):
        verify.verify(lm)
    assert lm.model.config._attn_implementation == "sdpa"


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
