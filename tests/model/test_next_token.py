"""Losses are cross entropies of the logits, whether the model forms these or they are formed part by part."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.testing import assert_close

from lib.model import next_token
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from tests import reference
from tests.conftest import tiny_model, token_ids


def expected(model, ids):
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits.double()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
        len(ids), -1
    )


@pytest.fixture
def small_parts(monkeypatch):
    """Parts that neither the positions nor the vocabulary can be divided into without a rest."""
    monkeypatch.setattr(next_token, "POSITIONS", 7)
    monkeypatch.setattr(next_token, "TOKENS", 9)
    monkeypatch.setattr(next_token, "CHUNK", 7)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("plain", [True, False])
def test_losses(lm, plain, monkeypatch):
    ids = token_ids(3, 20)
    assert lm.plain_head is lm.model.get_output_embeddings()
    monkeypatch.setitem(vars(lm), "plain_head", lm.plain_head if plain else None)
    losses = next_token.losses(lm, ids)
    assert losses.shape == (3, 19)
    assert losses.dtype == torch.float32
    logits = reference.observe(lm.model, ids).logits
    assert losses.mean(1).tolist() == pytest.approx(
        [reference.loss(*pair) for pair in zip(logits, ids, strict=True)], rel=1e-5
    )


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_are_rounded_as_the_model_rounds_them(dtype):
    model = tiny_model("llama").to(dtype)
    lm, ids = LanguageModel(model, Architecture(model), None, {}), token_ids(2, 12)
    assert lm.plain_head is not None
    assert_close(next_token.losses(lm, ids).double(), expected(model, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_parts")
def test_biases_of_the_output_embeddings():
    model = tiny_model("llama")
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    head.weight = model.lm_head.weight
    with torch.inference_mode():
        head.bias.normal_(std=3.0)
    model.lm_head = head
    lm, ids = LanguageModel(model, Architecture(model), None, {}), token_ids(2, 12)
    assert lm.plain_head is head
    assert_close(next_token.losses(lm, ids).double(), expected(model, ids), rtol=1e-5, atol=1e-5)


def capped():
    config = transformers.Gemma2Config(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config).eval()


def scaled():
    config = transformers.CohereConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, logit_scale=0.25,
    )  # fmt: skip
    return transformers.CohereForCausalLM(config).eval()


def masked():
    """As Chameleon does with its image tokens, in place."""
    model = tiny_model("llama")
    forward = model.forward

    def without_some(**kwargs):
        output = forward(**kwargs)
        output.logits[..., 3:9] = torch.finfo(output.logits.dtype).min
        return output

    model.forward = without_some
    return model


class Doubled(torch.nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden)


def of_another_kind():
    model = tiny_model("llama")
    head = Doubled(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    return model


def patched():
    """As accelerate does, and whoever patches a forward by hand."""
    model = tiny_model("llama")
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 2 * forward(hidden)
    return model


@pytest.mark.parametrize("build", [capped, scaled, masked, of_another_kind, patched])
def test_logits_that_are_not_what_the_output_embeddings_give(build):
    model = build()
    lm, ids = LanguageModel(model, Architecture(model), None, {}), token_ids(2, 12) % 50
    assert lm.plain_head is None
    assert_close(next_token.losses(lm, ids).double(), expected(model, ids), rtol=1e-5, atol=1e-5)


def test_a_hook_on_the_output_embeddings_is_heard(lm):
    ids, seen = token_ids(2, 12), []
    assert lm.plain_head is not None
    for register in (lm.plain_head.register_forward_hook, lm.plain_head.register_forward_pre_hook):
        handle = register(
            lambda _module, args, output=None: seen.append(1) or (0.5 * args[0] if output is None else 0.5 * output)
        )
        try:
            assert_close(next_token.losses(lm, ids).double(), expected(lm.model, ids), rtol=1e-5, atol=1e-5)
        finally:
            handle.remove()
    assert len(seen) == 4


def test_the_model_is_as_it_was_after_an_error(lm):
    ids = token_ids(2, 12)
    before = next_token.losses(lm, ids)
    with pytest.raises(IndexError):
        next_token.losses(lm, ids + 10**6)
    assert torch.equal(next_token.losses(lm, ids), before)
    assert not lm.plain_head._forward_pre_hooks


@pytest.mark.parametrize("plain", [True, False])
def test_losses_are_exact_over_a_large_vocabulary(plain):
    """A float32 sum of 50,000 terms one after the other would be off by more than a hundred times the bound."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 50_000, generator=generator)
    ids = torch.randint(50_000, (2, 6), generator=generator)
    head = torch.nn.Linear(12, 50_000, bias=False)
    head.weight = torch.nn.Parameter(logits.view(12, -1).T)
    one_hot = torch.eye(12).view(2, 6, 12)
    lm = SimpleNamespace(
        device="cpu", model=lambda **_: SimpleNamespace(logits=head(one_hot)), plain_head=head if plain else None
    )
    exact = torch.nn.functional.cross_entropy(logits[:, :-1].double().transpose(1, 2), ids[:, 1:], reduction="none")
    assert_close(next_token.losses(lm, ids).double(), exact, rtol=1e-6, atol=0)
