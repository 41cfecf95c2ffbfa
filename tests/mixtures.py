"""Tiny mixtures of experts in which known experts make a spike."""

from types import SimpleNamespace

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lib.core.data import Windows
from lib.planted.truth import Planted
from tests import every_type
from tests.conftest import MASSIVE_DIM, SPIKE_TOKEN, VOCABULARY, language_model

FLAG, OTHER_FLAG, STEP = 7, 11, 13
PRIVATE = [FLAG, OTHER_FLAG, STEP, MASSIVE_DIM]
OTHER_TOKEN = 9
SURE = 4.0  # of a router, what a flag adds to a logit


def model_of(model_type, *experts, embedded=0.0, implementation="batched_mm", **changed):
    """A tiny model of noise. experts: of `writes`; embedded: what SPIKE_TOKEN has in MASSIVE_DIM from the start.

    SPIKE_TOKEN carries FLAG, OTHER_TOKEN carries OTHER_FLAG, and nothing else is in the PRIVATE dims.
    """
    model = AutoModelForCausalLM.from_config(every_type.configuration(model_type, vocab_size=VOCABULARY, **changed))
    model = model.eval().requires_grad_(False)
    model.set_experts_implementation(implementation)
    noise = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        is_norm = weight.ndim == 1 and "norm" in name
        weight.copy_(0.05 * torch.randn(weight.shape, generator=noise) + is_norm)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[PRIVATE] = 0
        elif name.endswith(("o_proj.bias", "down_proj_bias", "embed_tokens.weight")):
            weight[..., PRIVATE] = 0
        elif name.endswith("down_proj"):
            weight[(..., PRIVATE) if weight.shape[-1] == model.config.hidden_size else (slice(None), PRIVATE)] = 0
    embedding = model.get_input_embeddings().weight
    for token, flag in ((SPIKE_TOKEN, FLAG), (OTHER_TOKEN, OTHER_FLAG)):
        embedding[token] = 0
        embedding[token, flag] = 10
    embedding[SPIKE_TOKEN, MASSIVE_DIM] = embedded
    for write in experts:
        write(model)
    return model


def writes(layer, expert, reads, values):
    """Let one neuron of an expert (None: the shared one) fire where the dim `reads` stands out, and write about
    {dim: value}; tokens with that dim are sent to it."""

    def write(model):
        block = model.model.layers[layer].mlp
        gain = 0.3 if reads == MASSIVE_DIM else 1.0
        sign = -1.0 if reads == MASSIVE_DIM else 1.0
        if expert is None:
            for projection in (block.shared_expert.gate_proj, block.shared_expert.up_proj):
                projection.weight[0] = 0
                projection.weight[0, reads] = gain * sign
            block.shared_expert_gate.weight[0, reads] = SURE
            for dim, value in values.items():
                block.shared_expert.down_proj.weight[dim, 0] = value / 64
            return
        router = next(p for p in block.parameters() if p.shape == (block.experts.num_experts, model.config.hidden_size))
        router[:, reads] = torch.where(router[:, reads] >= 1, router[:, reads], -sign * SURE)
        router[expert, reads] = sign * SURE
        first = block.experts.gate_up_proj[expert]
        width = first.shape[0] // 2
        first[[0, width]] = 0
        first[[0, width], reads] = gain * sign
        for dim, value in values.items():
            block.experts.down_proj[expert][dim, 0] = value / 64

    return write


def windows(n=6, length=16, tokens=(SPIKE_TOKEN,)):
    """Random tokens; one of `tokens`, in turn, at position 2 of each window, and nowhere else."""
    ids = torch.randint(OTHER_TOKEN + 1, 300, (n, length), generator=torch.Generator().manual_seed(1))
    ids[:, 2] = torch.tensor(np.resize(tokens, n))
    return Windows(ids, n, 0, "random tokens", counts=np.bincount(ids.flatten(), minlength=VOCABULARY))


def tokenizer(n=VOCABULARY):
    words = Tokenizer(WordLevel({f"t{token}": token for token in range(n)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def planted():
    """A mixture of experts, one of which writes the spike, with shared experts and a dense layer.

    Its truth is no more than tests of every script ask for.
    """
    model = model_of("ernie4_5_moe", writes(1, 3, FLAG, {MASSIVE_DIM: -3000}))
    truth = SimpleNamespace(architecture="ernie4_5_moe", layer=1, values={MASSIVE_DIM: -3000.0})
    return Planted(language_model(model, tokenizer()), windows(), truth)
