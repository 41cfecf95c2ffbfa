"""Attention to the first token without attention maps equals what the maps say."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lib.core import sinks
from lib.core.data import Windows
from lib.model import attention, hooks
from tests import every_type, reference
from tests.conftest import HEADS, LAYERS, language_model, logits, tiny_model, token_ids
from tests.core.test_sweep import windows_of

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
LENGTH = 72  # longer than SINK_WINDOW


@pytest.fixture
def long_lm(family, tokenizer):
    position_table = {"n_positions": LENGTH} if family == "gpt2" else {}
    return language_model(tiny_model(family, **position_table), tokenizer)


def head_scores(lm, ids, batch_size):
    scores = sinks.HeadScores(lm.arch)
    with attention.watch_parts(lm, scores.update):
        for batch in ids.split(batch_size):
            hooks.forward(lm, batch)
            scores.end_batch()
    return scores


@pytest.mark.parametrize(
    ("name", "queries"), [("scores", {}), ("later", {"first_query": 1}), ("window", {"queries": 64})]
)
def test_scores_equal_means_over_attention_maps(long_lm, kernel, name, queries):
    ids = token_ids(3, LENGTH)
    config = long_lm.model.config
    seen = reference.observe(long_lm.model, ids)
    expected = [
        [
            [reference.first_token_attention(config, seen.attentions[la][s, h], la, **queries) for h in range(HEADS)]
            for la in range(LAYERS)
        ]
        for s in range(3)
    ]
    got = getattr(head_scores(long_lm, ids, batch_size=2), name)
    assert got == pytest.approx(np.array(expected), abs=1e-5)


def test_where_inference_mode_is_replaced(long_lm, kernel, monkeypatch):
    """By who brings subclasses of tensors, which cannot live in it."""
    ids = token_ids(2, LENGTH)
    expected = head_scores(long_lm, ids, batch_size=2).scores
    for known in (attention._all, attention._number):
        known.cache_clear()
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    assert np.array_equal(head_scores(long_lm, ids, batch_size=2).scores, expected)


def test_only_queries_that_can_see_the_first_token_count(long_lm):
    ids, visible = token_ids(1, 20), {}
    with attention.watch_first_token(long_lm, lambda layer, _p, seen: visible.update({layer: seen[0, 0].tolist()})):
        hooks.forward(long_lm, ids)
    attentions = reference.observe(long_lm.model, ids).attentions
    for layer in range(LAYERS):
        assert visible[layer] == (attentions[layer][0, :, :, 0] > 0).any(0).tolist()
    sliding = {"mistral": [0, 1, 2], "gemma3_text": [0, 2]}.get(long_lm.model.config.model_type, [])
    assert [layer for layer in range(LAYERS) if not all(visible[layer])] == sliding


def test_sink_rate(lm):
    ids = token_ids(4, 12)
    seen = [reference.observe(lm.model, of[None]).attentions for of in ids]
    scores = head_scores(lm, ids, batch_size=4)
    expected = [reference.sink_rate(lm.model.config, of) for of in seen]
    assert 0 < np.mean(expected) < 1
    assert scores.sink_rates() == pytest.approx(np.array(expected))


def test_sparse_attention_sees_the_first_token_as_each_window_lets_it():
    lm, ids = every_type.loaded("glm_moe_dsa"), token_ids(3, 12) % 128
    got = head_scores(lm, ids, batch_size=3).scores
    lm.model.set_attn_implementation("eager")
    with torch.inference_mode():
        maps = lm.model(ids, use_cache=False, output_attentions=True).attentions
    first = torch.stack(maps, dim=1)[..., 0].double()  # (windows, layers, heads, queries)
    assert len({tuple(row) for row in (first[:, 0, 0] > 0).tolist()}) > 1
    assert got == pytest.approx((first.sum(3) / (first > 0).sum(3)).numpy(), abs=1e-4)


def test_sink_rate_is_that_of_64_tokens():
    scores = sinks.HeadScores(language_model(tiny_model("gpt2")).arch)
    probability = torch.full((1, HEADS, 128), 0.4)
    probability[..., 64:] = 0
    probability[:, 0] = 0.29
    for layer in range(LAYERS):
        scores.update(layer, torch.ones(1, 1, 128, dtype=torch.bool), probability)
    scores.end_batch()
    assert scores.sink_rates() == pytest.approx([0.75])


class Counted(TorchDispatchMode):
    """n: how many of PyTorch's operations ran."""

    n = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.n += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_short_pass_has_few_more_operations_in_each_layer(lm):
    """Each costs more than its work; what is left is done for all layers together."""
    scores, counts = sinks.HeadScores(lm.arch), []
    for watched in (nullcontext(), attention.watch_parts(lm, scores.update)):
        with watched, torch.inference_mode(), Counted() as counted:
            hooks.forward(lm, token_ids(1, 16))
        counts.append(counted.n)
    bare, measured = counts
    assert measured - bare < 5 * LAYERS


def test_watching_changes_nothing(lm, kernel):
    ids = token_ids(2, 30)
    before = logits(lm, ids)
    with attention.watch_first_token(lm, lambda *_: None):
        assert_close(logits(lm, ids), before, **({"rtol": 0, "atol": 0} if kernel == "log sum exp" else TOLERANCE))
    assert lm.model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(lm, ids), before)


def test_restored_after_an_error(lm):
    def fail(layer, *_):
        if layer == 1:
            raise ValueError("on purpose")

    ids = token_ids(2, 30)
    before = logits(lm, ids)
    with pytest.raises(ValueError, match="on purpose"), attention.watch_first_token(lm, fail):
        hooks.forward(lm, ids)
    assert torch.equal(logits(lm, ids), before)
    with attention.watch_first_token(lm, lambda *_: None):
        hooks.forward(lm, ids)


def test_measure_stops_after_the_last_layer(lm):
    windows = Windows(token_ids(3, 9), 3, False, "test")
    reached = []
    lm.arch.blocks[2].register_forward_pre_hook(lambda *_: reached.append(2))
    part = sinks.measure(lm, windows, batch_size=2, last_layer=1).scores
    assert not reached
    whole = sinks.measure(lm, windows, batch_size=2).scores
    assert np.array_equal(part[:, :2], whole[:, :2])
    assert np.isnan(part[:, 2]).all()
    assert not np.isnan(whole).any()


def test_rank():
    ranking = sinks.rank(np.array([[0.1, 0.9], [0.5, 0.1]]))
    assert [(row.layer, row.head) for row in ranking] == [(0, 1), (1, 0), (0, 0), (1, 1)]
    assert [row.score for row in ranking] == [0.9, 0.5, 0.1, 0.1]


@pytest.mark.parametrize("own", [False, True], ids=["looked up", "a reference of its own"])
def test_attention_functions_are_found_wherever_a_model_has_them(own, monkeypatch):
    """A model's code may look them up in torch.nn.functional or have imported them."""
    sdpa = torch.nn.functional.scaled_dot_product_attention
    lm, ids = language_model(tiny_model("llama")), token_ids(2, 12)
    expected = head_scores(lm, ids, 2)

    def attend(_module, query, key, value, mask, scaling=None, **_kwargs):
        call = sdpa if own else torch.nn.functional.scaled_dot_product_attention
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        return call(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", attend)
    assert_close(head_scores(lm, ids, 2).scores, expected.scores, **TOLERANCE)


def test_learned_sinks_are_what_is_missing_of_the_maps():
    """gpt-oss: a learned logit stands in softmax beside the keys, and what it takes is in no map."""
    lm = every_type.loaded("gpt_oss")
    ids = torch.randint(3, 100, (3, 12), generator=torch.Generator().manual_seed(3))
    learned = sinks.LearnedSinks(lm.arch)
    scores = sinks.measure(lm, windows_of(ids), 2, learned=learned).scores
    with torch.inference_mode():
        maps = lm.model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    for layer, of_layer in enumerate(maps):
        missing = (1 - of_layer.sum(-1)).mean(-1)
        assert_close(torch.from_numpy(learned.scores[:, layer]).float(), missing, rtol=0, atol=1e-5)
        seen = (of_layer[..., 0] > 0).any(0).any(0)  # sliding windows: later queries do not see the first token
        first = of_layer[..., 0][..., seen].mean(-1)
        assert_close(torch.from_numpy(scores[:, layer]).float(), first, rtol=0, atol=1e-5)
    assert learned.scores.max() > 0.1


def test_a_model_without_learned_sinks_has_none():
    lm = every_type.loaded("mixtral")
    learned = sinks.LearnedSinks(lm.arch)
    sinks.measure(lm, windows_of(torch.ones(1, 8, dtype=torch.long)), 1, learned=learned)
    assert not learned
