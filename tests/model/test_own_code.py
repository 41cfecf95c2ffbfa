"""A model of a folder's own code, of an architecture that exists nowhere: gated parallel blocks whose weights are
(in, out), whose writes are scaled, and whose parts have names of their own."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lib.core import attribution, massive
from lib.core.ablation import Condition
from lib.model import attention, edits, hooks
from lib.model.models import load
from lib.run.cli import Options, UserError
from tests.cases import close
from tests.conftest import save, token_ids
from tests.core.test_sweep import fixed_place, windows_of

CODE = """
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, BaseModelOutput


class OddConfig(PretrainedConfig):
    model_type = "odd-of-this-test"

    def __init__(self, vocab_size=320, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, share=0.5, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.share = num_attention_heads, share
        super().__init__(**kwargs)


class Product(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) / n_in ** 0.5)

    def forward(self, value):
        return value @ self.weight


class Looks(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n = config.num_attention_heads
        width = config.hidden_size
        self.all_three, self.back = Product(width, 3 * width), Product(width, width)

    def forward(self, value):
        b, s, width = value.shape
        q, k, v = (x.view(b, s, self.n, -1).transpose(1, 2) for x in self.all_three(value).chunk(3, dim=-1))
        scores = q @ k.transpose(2, 3) / (width // self.n) ** 0.5
        scores = scores.masked_fill(torch.ones(s, s).triu(1).bool(), -torch.inf)
        return self.back((torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(b, s, width))


class Thinks(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.both, self.bend, self.out = Product(config.hidden_size, 80), nn.ReLU(), Product(40, config.hidden_size)

    def forward(self, value):
        one, other = self.both(value)[..., ::2], self.both(value)[..., 1::2]
        return self.out(one * self.bend(other))


class Step(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.even, self.looks, self.thinks = nn.LayerNorm(config.hidden_size), Looks(config), Thinks(config)
        self.share = config.share

    def forward(self, stream):
        value = self.even(stream)
        return stream + self.share * (self.thinks(value) + self.looks(value))


class OddModel(PreTrainedModel):
    config_class, base_model_prefix = OddConfig, "inner"

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.steps = nn.ModuleList(Step(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, **kwargs):
        stream = self.words(input_ids)
        for step in self.steps:
            stream = step(stream)
        return BaseModelOutput(last_hidden_state=stream)


class OddForCausalLM(PreTrainedModel, GenerationMixin):
    config_class, base_model_prefix = OddConfig, "inner"

    def __init__(self, config):
        super().__init__(config)
        self.inner = OddModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.inner.words

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, **kwargs):
        return CausalLMOutput(logits=self.head(self.inner(input_ids).last_hidden_state))
"""
MAP = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}


EAGER = """
        scores = q @ k.transpose(2, 3) / (width // self.n) ** 0.5
        scores = scores.masked_fill(torch.ones(s, s).triu(1).bool(), -torch.inf)
        return self.back((torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(b, s, width))
"""
SDPA = """
        return self.back(CALL(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, width))
"""
SUPPORTED = 'config_class, base_model_prefix, _supports_sdpa = OddConfig, "inner", True'
EARLY = "from torch.nn.functional import scaled_dot_product_attention as bound_early"
SUM = "return stream + self.share * (self.thinks(value) + self.looks(value))"
IN_PLACE = "return stream.add_(self.share * (self.thinks(value) + self.looks(value)))"
assert CODE.count(EAGER) == CODE.count(SUM) == 1


def saved(where, tokenizer, code=CODE):
    spaces = {}
    exec(code, spaces)
    torch.manual_seed(0)
    model = spaces["OddForCausalLM"](spaces["OddConfig"]())
    save(where, model, tokenizer)
    (where / "odd.py").write_text(code)
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps(config | {"auto_map": MAP}))
    return where


def loaded(folder):
    return load(Options(model=str(folder), device="cpu", offline=True, trust_remote_code=True))


@pytest.fixture
def folder(tmp_path, tokenizer):
    return saved(tmp_path / "odd", tokenizer)


def test_code_that_exists_nowhere(folder):
    lm = loaded(folder)
    layer = lm.arch.layers[1]
    assert (layer.n_heads, layer.head_projection, layer.attention_write) == (4, "looks.back", "looks.back")
    assert (layer.mlp_norm, layer.down, layer.activation) == ("even", "thinks.out", "thinks.bend")
    assert (layer.gate, layer.up) == ("thinks.both", "thinks.both")
    assert layer.slices == {"gate": slice(1, None, 2), "up": slice(0, None, 2)}
    assert layer.scales == {"looks.back": 0.5, "thinks.out": 0.5}
    ids = torch.randint(8, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    ledger = attribution.measure(lm, windows_of(ids), fixed_place([0, 9], 3), Condition("nothing", ""), 2)
    assert ledger.check().relative_error < 1e-5
    with edits.heads_off(lm.arch, [(1, 2)]), torch.inference_mode():
        off = lm.model(ids).logits
    with torch.no_grad():
        lm.model.inner.steps[1].looks.back.weight[16:24] = 0
        close(off, lm.model(ids).logits)


@pytest.mark.parametrize(
    ("line", "instead", "why"),
    [
        ("CausalLMOutput(logits=self.head(self.inner(input_ids).last_hidden_state))", "input_ids", "gives no 'logits'"),
        ("self.words(input_ids)", "self.words(input_ids) + torch.randn(())", "other logits each time, by"),
    ],
)
def test_code_that_gives_no_logits_or_others_each_time(line, instead, why, folder):
    assert CODE.count(line) == 1
    (folder / "odd.py").write_text(CODE.replace(line, instead))
    with pytest.raises(UserError, match=why):
        loaded(folder)


def test_an_activation_function_that_is_no_module(folder):
    """As in much code: F.gelu(x)."""
    code = CODE.replace("one * self.bend(other)", "one * F.silu(other)")
    assert code != CODE
    (folder / "odd.py").write_text(code)
    lm = loaded(folder)
    layer = lm.arch.layers[1]
    assert (layer.function, layer.activation, layer.inner) == ("SiLU", None, None)
    assert layer.slices == {"gate": slice(1, None, 2), "up": slice(0, None, 2)}
    ids = torch.randint(8, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with edits.activation_replaced(lm.arch, 1, torch.relu), torch.inference_mode():
        replaced = lm.model(ids).logits
    assert torch.equal(replaced, relu_logits(folder, ids))
    with edits.mlps_off(lm.arch, [1]), torch.inference_mode():
        off = lm.model(ids).logits
    with torch.no_grad():
        lm.model.inner.steps[1].thinks.out.weight.zero_()
        close(off, lm.model(ids).logits)


def relu_logits(folder, ids):
    """Of the same weights with ReLU in layer 1, by other code."""
    code = CODE.replace("one * self.bend(other)", "one * (F.relu(other) if self.relu else F.silu(other))")
    spaces = {}
    exec(code, spaces)
    model = spaces["OddForCausalLM"](spaces["OddConfig"]()).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    for i, step in enumerate(model.inner.steps):
        step.thinks.relu = i == 1
    with torch.inference_mode():
        return model(ids).logits


def test_it_does_not_run_unless_it_is_trusted(folder):
    with pytest.raises(UserError, match="--trust_remote_code"):
        load(Options(model=str(folder), device="cpu", offline=True))


@pytest.mark.parametrize(("call", "by_name"), [("F.scaled_dot_product_attention", True), ("bound_early", False)])
def test_attention_is_seen_however_it_is_called(call, by_name, folder, tmp_path, tokenizer):
    code = CODE.replace('config_class, base_model_prefix = OddConfig, "inner"', SUPPORTED)
    lm = loaded(saved(tmp_path / "other", tokenizer, EARLY + code.replace(EAGER, SDPA.replace("CALL", call))))
    assert (lm.arch.looks_up is not None) == by_name
    ids = token_ids(2, 12)
    for here, there in zip(first_token(lm, ids), first_token(loaded(folder), ids), strict=True):
        close(here, there)


def first_token(lm, ids):
    seen = []
    with attention.watch_first_token(lm, lambda _layer, probability, _visible: seen.append(probability)):
        hooks.forward(lm, ids)
    assert len(seen) == lm.arch.n_layers
    return seen


@pytest.mark.parametrize(("code", "stay"), [(CODE, True), (CODE.replace(SUM, IN_PLACE), False)])
def test_outputs_that_later_blocks_change(code, stay, tmp_path, tokenizer):
    lm, ids = loaded(saved(tmp_path / "odd", tokenizer, code)), token_ids(2, 12)
    assert lm.arch.outputs_stay == stay
    tops = []
    with hooks.watch_outputs(lm.arch, "block", lambda _layer, hidden: tops.append(hidden.abs().amax((1, 2)))):
        hooks.forward(lm, ids)
    found = massive.LayerStatistics(lm.arch, lm.tokenizer)
    found.run(ids, lambda: hooks.forward(lm, ids))
    close(torch.from_numpy(found.top1).float(), torch.stack(tops, dim=1))
