"""Every supported architecture as a tiny model, with what transformers itself says of it: the fixture `case`."""

import copy
import functools
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.testing import assert_close
from transformers.models.falcon import modeling_falcon

from lib.model import arch, hooks, verify
from lib.model.models import LanguageModel
from tests import architectures
from tests.reference import matrix, silence

SEQUENCES, LENGTH = 2, 16
LAYER = 1
some = pytest.mark.parametrize("case", architectures.SOME, ids=": ".join, indirect=True)
firsts = pytest.mark.parametrize("case", architectures.FIRSTS, ids=": ".join, indirect=True)


def configuration(family, changes):
    config = {**architectures.TOKENS, **architectures.TESTED[family].config, **changes}
    return transformers.AutoConfig.for_model(family, **config)


def build(config, scale=0.25):
    """A random model in which no bias is zero and no norm weight is its default."""
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = scale * torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data.copy_(parameter + noise if is_norm else noise)
    return model.requires_grad_(False)


@functools.cache  # no test changes a case but in a copy
def case_of(family, variant):
    """One variant: its description, its paths, the tiny model, token ids, and what the model itself says of them."""
    tested = architectures.TESTED[family]
    model = build(configuration(family, tested.variants[variant]))
    vocabulary = architectures.TOKENS["vocab_size"]
    ids = torch.randint(vocabulary, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
    words = WordLevel({str(token): token for token in range(vocabulary)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    lm = LanguageModel(model, arch.Architecture(model), tokenizer, {})
    verify.verify(lm)
    real = observe(tested, model, ids)
    with torch.no_grad(), eager(copy.deepcopy(model)) as other:
        close(other(ids, use_cache=False).logits, real.logits)
    return SimpleNamespace(
        family=family,
        variant=variant,
        tested=tested,
        lm=lm,
        ids=ids,
        real=real,
        heads=[(0, 1), (1, 0), (2, model.config.num_attention_heads - 1)],
    )


@contextmanager
def eager(model):
    """The model, which from now on attends eagerly."""
    model.config._attn_implementation = "eager"  # set_attn_implementation does not do it in every family
    # eager Falcon adds ALiBi twice: once in the mask, once to the scores
    alibi = modeling_falcon.build_alibi_tensor
    with mock.patch.object(modeling_falcon, "build_alibi_tensor", lambda *a, **k: alibi(*a, **k) / 2):
        yield model


def observe(tested, model, ids):
    """logits; hidden: input of the first block and outputs of all; maps: (batch, heads, seq, seq) of each layer."""
    return observe_and_spoil(tested, copy.deepcopy(model), ids)


@torch.no_grad()
def observe_and_spoil(tested, model, ids):
    """The same of a model that nothing else uses."""
    logits = model(ids, use_cache=False).logits
    for path in tested.after_blocks:
        parent, _dot, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, torch.nn.Identity())
    with eager(model):
        output = model.base_model(ids, use_cache=False, output_hidden_states=True, output_attentions=True)
    return SimpleNamespace(logits=logits, hidden=output.hidden_states, maps=output.attentions)


def close(got, expected, tolerance=2e-5):
    """Equal within a share of the largest value."""
    assert_close(got, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def without(case, heads=(), attentions=(), mlps=()):
    """What a copy does whose weights are zero for (layer, head) pairs, for whole attentions, for whole MLPs."""
    model = copy.deepcopy(case.lm.model)
    blocks = model.get_submodule(case.tested.blocks)
    for layer, head in heads:
        weight = matrix(blocks[layer].get_submodule(case.tested.attention_out))
        width = weight.shape[1] // model.config.num_attention_heads
        weight[:, head * width : (head + 1) * width] = 0
    for layers, path in ((attentions, case.tested.attention_out), (mlps, case.tested.mlp_out)):
        for layer in layers:
            silence(blocks[layer].get_submodule(path))
    return observe_and_spoil(case.tested, model, case.ids)


def run(case, *watchers):
    """(logits, [block outputs]) under context managers."""
    hidden = {}
    with ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(watcher)
        stack.enter_context(hooks.watch_outputs(case.lm.arch, "block", lambda la, value: hidden.update({la: value})))
        with torch.inference_mode():
            logits = case.lm.model(case.ids, use_cache=False).logits
    return logits, [hidden[layer] for layer in range(architectures.LAYERS)]


def captured(case, role, watch=hooks.watch_outputs):
    """[value] of a role, one a layer, each (batch, seq, width)."""
    values = {}
    run(case, watch(case.lm.arch, role, lambda la, value: values.update({la: value.clone()})))
    return [values[layer].view(SEQUENCES, LENGTH, -1) for layer in range(architectures.LAYERS)]


def by_hand(case, mlp_input):
    """(gate or None, first projection, input of the last projection, its output) of LAYER's MLP."""
    block = case.lm.model.get_submodule(case.tested.blocks)[LAYER]

    def linear(value, path):
        module = block.get_submodule(path)
        return value @ matrix(module).T + (0 if module.bias is None else module.bias)

    first = torch.cat([linear(mlp_input, path) for path in case.tested.mlp_in], dim=-1)
    gate, up = first.chunk(2, dim=-1) if case.tested.gated else (None, first)
    inner = case.tested.act(up) if gate is None else case.tested.act(gate) * up
    return gate, up, inner, linear(inner, case.tested.mlp_out)
