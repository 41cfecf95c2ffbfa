"""Attention logits are what softmax makes the model's own eager attention maps of."""

import copy
import math
from unittest import mock

import pytest
import torch
from torch.testing import assert_close
from transformers.integrations import sdpa_attention

from lib.core import sinks
from lib.core.results import FirstTokenLogits
from lib.model import attention, hooks
from tests import architectures
from tests.cases import close, run


@pytest.mark.parametrize("grouped", [True, False])
def test_logits_give_the_maps(case, grouped):
    """Also where transformers does not leave the grouping of queries to PyTorch, as for heads wider than 256."""
    seen = {}
    with mock.patch.object(sdpa_attention, "use_gqa_in_sdpa", return_value=grouped):
        logits = run(case, attention.watch_logits(case.lm, seen.__setitem__))[0]
    close(logits, case.real.logits)
    for layer, maps in enumerate(case.real.maps):
        assert_close(seen[layer].softmax(-1), maps, rtol=0, atol=1e-5)
        assert torch.equal(seen[layer] == -torch.inf, maps == 0)


def test_logits_are_what_the_softmax_of_eager_attention_takes(case):
    """Not only up to a constant a row, which no map would show."""
    if "ALiBi" in case.variant and case.family == "falcon":
        pytest.skip("eager Falcon adds ALiBi twice")
    seen, taken = {}, []
    with attention.watch_logits(case.lm, seen.__setitem__):
        hooks.forward(case.lm, case.ids)
    model = copy.deepcopy(case.lm.model)
    model.config._attn_implementation = "eager"
    softmax = torch.nn.functional.softmax

    def take(scores, *args, **kwargs):
        taken.append(scores)
        return softmax(scores, *args, **kwargs)

    with mock.patch.object(torch.nn.functional, "softmax", take), torch.no_grad():
        model.base_model(case.ids, use_cache=False)
    for layer, scores in enumerate(taken):
        visible = seen[layer] > -torch.inf
        close(seen[layer][visible], scores[visible], 1e-5)
    assert len(taken) == architectures.LAYERS


def test_first_token_logits_by_hand():
    """The third query does not see the first token."""
    hidden = -torch.inf
    head = torch.tensor([[5.0, hidden, hidden], [1.0, 3.0, hidden], [hidden, 2.0, 4.0]])
    means = sinks.first_token_logits(head)
    assert (means.first, means.others) == (1, 3)
    assert means.probability == pytest.approx(1 / (1 + math.exp(2)))
    assert sinks.first_token_logits(head[:1, :1]) == FirstTokenLogits(None, None, None)


def test_logits_of_one_layer(case):
    seen = {}
    with attention.watch_logits(case.lm, seen.__setitem__, [1]):
        hooks.forward(case.lm, case.ids)
    assert list(seen) == [1]
    assert_close(seen[1].softmax(-1), case.real.maps[1], rtol=0, atol=1e-5)
    assert len(case.real.maps) == architectures.LAYERS


def test_restored_after_an_error(case):
    def fail(*_args):
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"), attention.watch_logits(case.lm, fail):
        hooks.forward(case.lm, case.ids)
    assert torch.equal(run(case)[0], case.real.logits)
