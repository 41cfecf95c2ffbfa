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


def head(lm):
    return lm.model.get_output_embeddings()


def is_plain(lm):
    return next_token.is_plain(head(lm), lm.model)


def right_twice(lm, ids, plain):
    for _pass in range(2):
        assert_close(next_token.losses(lm, ids).double(), expected(lm.model, ids), rtol=1e-5, atol=1e-5)
        assert is_plain(lm) == plain


@pytest.mark.usefixtures("small_parts")
def test_losses(lm):
    """In the first pass, which shows that the logits are plain, and in the next."""
    ids = token_ids(3, 20)
    logits = reference.observe(lm.model, ids).logits
    expected = [reference.loss(*pair) for pair in zip(logits, ids, strict=True)]
    for plain in (False, True):
        assert is_plain(lm) == plain
        losses = next_token.losses(lm, ids)
        assert losses.shape == (3, 19)
        assert losses.dtype == torch.float32
        assert losses.mean(1).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_are_rounded_as_the_model_rounds_them(dtype):
    model = tiny_model("llama").to(dtype)
    lm, ids = LanguageModel(model, Architecture(model), None, {}), token_ids(2, 12)
    right_twice(lm, ids, plain=True)


@pytest.mark.usefixtures("small_parts")
def test_biases_of_the_output_embeddings():
    model = tiny_model("llama")
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    head.weight = model.lm_head.weight
    with torch.inference_mode():
        head.bias.normal_(std=3.0)
    model.lm_head = head
    lm, ids = LanguageModel(model, Architecture(model), None, {}), token_ids(2, 12)
    right_twice(lm, ids, plain=True)


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
    right_twice(lm, ids, plain=False)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_on_the_output_embeddings_is_heard(lm, register, known):
    ids = token_ids(2, 12)
    if known:
        right_twice(lm, ids, plain=True)
    handle = getattr(head(lm), register)(
        lambda _module, args, output=None: args[0] / 2 if output is None else output / 2
    )
    halved = expected(lm.model, ids)
    for _pass in range(2):
        assert_close(next_token.losses(lm, ids).double(), halved, rtol=1e-5, atol=1e-5)
    handle.remove()
    right_twice(lm, ids, plain=True)


def test_output_embeddings_put_in_the_place_of_others(lm):
    ids = token_ids(2, 12)
    right_twice(lm, ids, plain=True)
    doubled = Doubled(head(lm).in_features, head(lm).out_features, bias=False)
    doubled.weight = head(lm).weight
    lm.model.set_output_embeddings(doubled)
    right_twice(lm, ids, plain=False)


def test_the_model_is_as_it_was_after_an_error(lm):
    ids = token_ids(2, 12)
    for _pass in range(2):
        with pytest.raises(IndexError):
            next_token.losses(lm, ids + 10**6)
        assert not head(lm)._forward_pre_hooks
        assert not head(lm)._forward_hooks
        right_twice(lm, ids, plain=True)


class OfLogits(torch.nn.Module):
    def __init__(self, head, hidden):
        super().__init__()
        self.head, self.hidden = head, hidden

    def get_output_embeddings(self):
        return self.head

    def forward(self, **_):
        return SimpleNamespace(logits=self.head(self.hidden))


@pytest.mark.parametrize("plain", [True, False])
def test_losses_are_exact_over_a_large_vocabulary(plain):
    """A float32 sum of 50,000 terms one after the other would be off by more than a hundred times the bound."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 50_000, generator=generator)
    ids = torch.randint(50_000, (2, 6), generator=generator)
    head = torch.nn.Linear(12, 50_000, bias=False)
    head.weight = torch.nn.Parameter(logits.view(12, -1).T)
    one_hot = torch.eye(12).view(2, 6, 12)
    model = OfLogits(head, one_hot)
    lm = SimpleNamespace(device="cpu", model=model)
    if plain:
        next_token.losses(lm, ids)
    exact = torch.nn.functional.cross_entropy(logits[:, :-1].double().transpose(1, 2), ids[:, 1:], reduction="none")
    assert next_token.is_plain(head, model) == plain
    assert_close(next_token.losses(lm, ids).double(), exact, rtol=1e-6, atol=0)
