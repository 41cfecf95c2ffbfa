"""Small GPT-2 and Llama models with a planted mechanism: what a diagnosis must find in them is known.

Every weight is noise; a mechanism is written over a few of them, alike in both architectures:
- A signal is a pair of dims with opposite values, read as their difference, which LayerNorm's centring leaves alone.
  FLAG stands at the trigger only (a position or a token). ONE stands at every token and serves as a threshold where
  an MLP reads, so that no bias is needed, and as the query of a head that looks the same way from everywhere.
- The norm does the rest: a large value takes all of the normed vector, so that FLAG and ONE read as about 0 beside it.
  A generator that reads FLAG is silent where another has written before.
- The few dims that carry signals and spikes have noise too, but QUIET times as much: a head's value is linear, and
  the weight that makes a spike of one token would make outliers of the others' noise.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lib import hooks
from lib.arch import Architecture
from lib.data import Windows
from lib.models import LanguageModel

ARCHITECTURES = ("gpt2", "llama")
HIDDEN, HEADS, VOCABULARY, POSITIONS = 64, 4, 128, 64
HEAD_DIM = HIDDEN // HEADS
N_WINDOWS, SEQLEN = 8, 32
BOS, BOS_TEXT = 0, "<s>"

FLAG_SIZE, ONE_SIZE = 2.0, 0.5
QUIET = 1e-4
NOISE = (
    # part of the parameter's name, standard deviation, the axis along which it writes to the residual stream or
    # scales it (None: it only reads)
    ("wte", 0.05, -1),
    ("wpe", 0.02, -1),
    ("ln_", 0.05, -1),
    ("c_attn", 0.05, None),
    ("attn.c_proj", 0.02, -1),
    ("c_fc", 0.05, None),
    ("mlp.c_proj", 0.005, -1),
    ("embed_tokens", 0.05, -1),
    ("norm", 0.05, -1),
    ("q_proj", 0.05, None),
    ("k_proj", 0.05, None),
    ("v_proj", 0.05, None),
    ("o_proj", 0.02, 0),
    ("gate_proj", 0.05, None),
    ("up_proj", 0.05, None),
    ("down_proj", 0.01, 0),
    ("lm_head", 0.05, None),
)


@dataclass(frozen=True)
class Truth:
    """What is planted. Layers, heads, neurons, dims and positions count from 0.

    generator: "mlp", "head" or "none"; layer: the first whose output is massive; neurons or head: its part that writes.
    values: {dim: signed value} where it is massive; trigger: what makes a place massive; positions: where the windows
    have it. readers: (layer, head) of those whose sink on the first token needs the massive activation.
    first_step, second_generator, eraser: {"layer", "neurons" or "head"} of what else takes part.
    decoy_neurons: of `layer`, with the largest weights to the largest dim; decoy_head: (layer, head) with the highest
    attention to the first token. outliers: {dim: value} that are written and not massive.
    """

    architecture: str
    kind: str
    seed: int
    generator: str
    trigger: str
    positions: tuple
    layer: int | None = None
    neurons: tuple = ()
    head: int | None = None
    values: dict = field(default_factory=dict)
    readers: tuple = ()
    first_step: dict | None = None
    second_generator: dict | None = None
    eraser: dict | None = None
    decoy_neurons: tuple = ()
    decoy_head: tuple | None = None
    outliers: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Planted:
    """A planted model (in `lm`, ready for every script's `run`), windows that show its mechanism, and its truth."""

    lm: LanguageModel
    windows: Windows
    truth: Truth


def build(architecture, kind, seed):
    """The Planted model of one of ARCHITECTURES and KINDS; the seed decides everything else.

    In GPT-2 the first position's embedding triggers, whatever the token; in Llama, which has no position embeddings,
    it is the BOS token, which begins every window and stands nowhere else. The kind "content" is triggered by another
    token, anywhere, in both.
    """
    rng = np.random.default_rng([seed, ARCHITECTURES.index(architecture), list(KINDS).index(kind)])
    token = int(rng.integers(BOS + 1, VOCABULARY)) if kind == "content" else BOS if architecture == "llama" else None
    builder = _Builder(architecture, rng, token)
    found = KINDS[kind](builder)
    windows = _windows(rng, token)
    trigger, positions = "none", ()
    if found["generator"] != "none":
        trigger = f"token {token_text(token)}" if kind == "content" else "position 0"
        if token == BOS:
            trigger += f", always {token_text(token)}"
        positions = tuple((windows.ids == token).any(0).nonzero().flatten().tolist()) if token is not None else (0,)
    truth = Truth(architecture, kind, seed, trigger=trigger, positions=positions, **found)
    return Planted(builder.lm, windows, truth)


def _windows(rng, token):
    """Random tokens; BOS stands first if it is the trigger, another trigger at two random places of each window."""
    ids = rng.choice([t for t in range(VOCABULARY) if t not in (BOS, token)], size=(N_WINDOWS, SEQLEN))
    if token == BOS:
        ids[:, 0] = BOS
    elif token is not None:
        for window in ids:
            window[rng.choice(SEQLEN, size=2, replace=False)] = token
    return Windows(torch.from_numpy(ids), N_WINDOWS, token == BOS, "random tokens")


def token_text(token):
    return BOS_TEXT if token == BOS else f"t{token}"


@cache
def tokenizer():
    """One word a token: `<s> t1 t2 ...`."""
    words = Tokenizer(models.WordLevel({token_text(t): t for t in range(VOCABULARY)}, unk_token=BOS_TEXT))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=BOS_TEXT, eos_token=BOS_TEXT)


# The kinds: each plants its mechanism and returns its fields of Truth. By causality a reader is in a later layer than
# the generator, and not in a later one than the eraser.


def _mlp(b):
    """Neurons of one MLP write it."""
    layer = b.layers(1, before=b.n_layers - 1)[0]
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    readers = b.readers(layer + 1, b.n_layers - 1)
    return {"generator": "mlp", "layer": layer, "neurons": neurons, "values": b.values, "readers": readers}


def _head(b):
    """One head writes it; no MLP is needed."""
    layer = b.layers(1, before=b.n_layers - 1)[0]
    head = b.head_writes(layer, b.flag, b.values)
    readers = b.readers(layer + 1, b.n_layers - 1)
    return {"generator": "head", "layer": layer, "head": head, "values": b.values, "readers": readers}


def _head_eraser(b):
    """A later head takes away what an MLP has written."""
    layer, last = b.layers(2, before=b.n_layers)
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    head = b.head_writes(last, b.spike, {dim: -value for dim, value in b.values.items()})
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": b.readers(layer + 1, last),
        "eraser": {"layer": last, "head": head},
    }


def _mlp_eraser(b):
    """A later MLP takes away what an MLP has written."""
    layer, last = b.layers(2, before=b.n_layers)
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    erasing = b.neurons_write(last, b.spike - b.one, {dim: -value for dim, value in b.values.items()})
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": b.readers(layer + 1, last),
        "eraser": {"layer": last, "neurons": erasing},
    }


def _two_steps(b):
    """An MLP writes a value that is not massive; a later MLP reads it through the norm and makes the spike."""
    first, layer = b.layers(2, before=b.n_layers - 1)
    early = {b.spare_dims.pop(): b.sign() * b.rng.uniform(20, 60)}
    first_neurons = b.neurons_write(first, b.flag - b.one, early)
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": b.neurons_write(layer, b.reading(early) - b.one, b.values),
        "values": b.values,
        "readers": b.readers(layer + 1, b.n_layers - 1),
        "first_step": {"layer": first, "neurons": first_neurons},
        "outliers": early,
    }


def _redundant(b):
    """Two MLPs, each sufficient: the later one writes only where the earlier has not."""
    layer, second = b.layers(2, before=b.n_layers - 1)
    # the later first, so that its weights fit what it reads without the earlier
    second_neurons = b.neurons_write(second, b.flag - b.one, b.values)
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": b.neurons_write(layer, b.flag - b.one, b.values),
        "values": b.values,
        "readers": b.readers(second + 1, b.n_layers - 1),
        "second_generator": {"layer": second, "neurons": second_neurons},
    }


def _decoy(b):
    """As "mlp", beside neurons with larger weights that never fire and a head with a stronger sink that writes nothing.

    The head avoids ONE, which the norm shrinks at the first token whatever else is large there.
    """
    truth = _mlp(b)
    neurons = b.silent_neurons(truth["layer"], b.largest)
    layer, head = b.spare_heads.pop()
    b.head_looks(layer, head, -1.6 * b.one)
    b.mute(layer, head)
    return truth | {"decoy_neurons": neurons, "decoy_head": (layer, head)}


def _content(b):
    """As "mlp", but a token triggers it anywhere, so that no head has its sink on the first token."""
    layer = b.layers(1, before=b.n_layers)[0]
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    return {"generator": "mlp", "layer": layer, "neurons": neurons, "values": b.values}


def _none(b):
    """As "mlp", but too small: below 100, or above it in a residual stream with a large median."""
    if b.rng.random() < 0.5:
        b.enlarge_residual(20)
        largest = b.rng.uniform(150, 450)
    else:
        largest = b.rng.uniform(40, 90)
    b.values = {dim: value * largest / abs(b.values[b.largest]) for dim, value in b.values.items()}
    _mlp(b)
    return {"generator": "none", "outliers": b.values}


KINDS = {
    "mlp": _mlp,
    "head": _head,
    "head_eraser": _head_eraser,
    "mlp_eraser": _mlp_eraser,
    "two_steps": _two_steps,
    "redundant": _redundant,
    "decoy": _decoy,
    "content": _content,
    "none": _none,
}


class _Builder:
    """A model of noise, and the tools that write a mechanism over it.

    values: {dim: signed value} to plant; largest: the dim of the largest. flag, one, spike: (hidden,) directions in
    which a part reads the normed residual stream: FLAG, ONE and the largest value, all positive.
    spare_neurons: per layer; spare_heads: (layer, head); spare_dims: what no mechanism uses yet, in random order.
    """

    def __init__(self, architecture, rng, token):
        self.rng = rng
        self.n_layers = int(rng.integers(4, 7))
        self.model = _zeros(architecture, self.n_layers)
        self.arch = Architecture(self.model)
        self.lm = LanguageModel(self.model, self.arch, tokenizer(), {"planted": architecture})
        private = rng.permutation(HIDDEN)[:8].tolist()
        _add_noise(self.model, rng, private)
        self.flag, self.one = _contrast(*private[:2]), _contrast(*private[2:4])
        self.rest, *self.spare_dims = private[4:]
        self.first_token = 1 if token is None else token
        embedding = self.model.get_input_embeddings().weight
        embedding += ONE_SIZE * self.one
        triggers = self.model.transformer.wpe.weight[0] if token is None else embedding[token]
        triggers += FLAG_SIZE * self.flag

        width = self.arch.weight(0, "down").shape[1]
        self.spare_neurons = [rng.permutation(width).tolist() for _ in range(self.n_layers)]
        self.spare_heads = rng.permutation([(i, h) for i in range(self.n_layers) for h in range(HEADS)]).tolist()
        size = float(np.exp(rng.uniform(np.log(500), np.log(3000))))
        self.largest = self.spare_dims.pop()
        self.values = {self.largest: self.sign() * size}
        if rng.random() < 0.5:
            self.values[self.spare_dims.pop()] = self.sign() * rng.uniform(0.3, 0.6) * size
        self.spike = self.reading(self.values)

    def sign(self):
        return float(self.rng.choice([-1, 1]))

    def layers(self, n, before):
        """`n` different layers below `before`, in order."""
        return sorted(self.rng.choice(before, size=n, replace=False).tolist())

    def reading(self, values):
        """The direction that reads the largest of {dim: value} as positive."""
        dim = max(values, key=lambda d: abs(values[d]))
        return np.sign(values[dim]) * _contrast(dim, self.rest)

    def readers(self, first, last):
        """One or two heads in layers `first` to `last` whose keys are the largest value, at any query."""
        able = [head for head in self.spare_heads if first <= head[0] <= last]
        chosen = able[: int(self.rng.integers(1, 3))]
        for layer, head in chosen:
            self.spare_heads.remove([layer, head])
            self.head_looks(layer, head, self.rng.uniform(0.6, 0.75) * self.spike)
        return tuple(sorted(map(tuple, chosen)))

    def neurons_write(self, layer, reads, values):
        """One to three neurons that fire where `reads` is positive and write {dim: value} there; returns them."""
        neurons = [self.spare_neurons[layer].pop() for _ in range(self.rng.integers(1, 4))]
        self._neurons_read(layer, neurons, reads)
        # each is needed for 90 % of the sum
        shares = 0.2 + (1 - 0.2 * len(neurons)) * self.rng.dirichlet(np.ones(len(neurons)))
        for neuron, share in zip(neurons, shares, strict=True):
            self._write(layer, "down", neuron, {dim: share * value for dim, value in values.items()})
        return tuple(sorted(neurons))

    def silent_neurons(self, layer, dim):
        """Three neurons that never fire, with by far the largest weights to `dim`."""
        neurons = [self.spare_neurons[layer].pop() for _ in range(3)]
        self._neurons_read(layer, neurons, -self.flag - self.one)
        weights = self.arch.weight(layer, "down")[dim]
        largest = weights.abs().max().item()
        for neuron in neurons:
            weights[neuron] = self.sign() * self.rng.uniform(3, 5) * largest
        return tuple(sorted(neurons))

    def _neurons_read(self, layer, neurons, reads):
        gains = {"gate": 2.0, "up": 0.2} if self.arch.is_gated else {"up": 2.0}
        for role, gain in gains.items():
            weight = self.arch.weight(layer, role)
            weight[neurons] = QUIET * weight[neurons] + gain * reads

    def head_writes(self, layer, reads, values):
        """A head that writes {dim: value} where `reads` is positive; returns it.

        Later queries do not look there: they would get the value too.
        """
        _layer, head = able = next(spare for spare in self.spare_heads if spare[0] == layer)
        self.spare_heads.remove(able)
        self.head_looks(layer, head, -reads)
        channel = int(self.rng.integers(HEAD_DIM))
        self._head_reads(layer, head, "v", channel, 0.5 * reads)
        self._write(layer, "head_projection", head * HEAD_DIM + channel, values)
        return head

    def head_looks(self, layer, head, keys):
        """Attention to where the direction `keys` is positive, away from where it is negative; from every query."""
        channel = HEAD_DIM - 1  # Llama's rotation is slowest here
        self._head_reads(layer, head, "q", channel, self.one)
        self._head_reads(layer, head, "k", channel, keys)

    def _head_reads(self, layer, head, name, channel, reads):
        block = self.arch.blocks[layer]
        row = head * HEAD_DIM + channel
        if self.model.config.model_type == "gpt2":
            row += "qkv".index(name) * HIDDEN
            weight, bias = block.attn.c_attn.weight.T, block.attn.c_attn.bias
            bias[row] *= QUIET
        else:
            weight = getattr(block.self_attn, f"{name}_proj").weight
        weight[row] = QUIET * weight[row] + reads

    def mute(self, layer, head):
        """Let a head write next to nothing."""
        self.arch.weight(layer, "head_projection")[:, head * HEAD_DIM : (head + 1) * HEAD_DIM] *= QUIET

    def _write(self, layer, role, column, values):
        """Set one input's weights in an output projection so that it writes {dim: value} at the trigger."""
        seen = {}
        with hooks.watch_inputs(self.arch, role, seen.__setitem__, [layer]):
            hooks.forward(self.lm, torch.tensor([[self.first_token]]))
        for dim, value in values.items():
            self.arch.weight(layer, role)[dim, column] = value / seen[layer].flatten()[column].item()

    def enlarge_residual(self, factor):
        """Multiply all that is written to the residual stream; through the norms, nothing else changes."""
        for name, parameter in self.model.named_parameters():
            is_norm = "ln_" in name or "norm" in name
            if _noise_of(name)[1] is not None and not is_norm:
                parameter *= factor


def _zeros(architecture, n_layers):
    """A model whose parameters are zero, but for the norms' weights, which are one."""
    shared = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": BOS}
    if architecture == "gpt2":
        config = GPT2Config(n_layer=n_layers, n_head=HEADS, n_embd=HIDDEN, n_positions=POSITIONS, **shared)
        model = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            num_hidden_layers=n_layers,
            num_attention_heads=HEADS,
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=False,
            **shared,
        )
        model = LlamaForCausalLM(config)
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.zero_()
    return model


def _add_noise(model, rng, private):
    """Add noise to every parameter; QUIET times as much to what writes to the `private` dims or scales them."""
    for name, parameter in model.named_parameters():
        std, axis = _noise_of(name)
        noise = std * rng.standard_normal(parameter.shape, dtype=np.float32)
        if axis is not None:
            np.moveaxis(noise, axis, 0)[private] *= QUIET
        parameter += torch.from_numpy(noise)


def _noise_of(name):
    return next((std, axis) for part, std, axis in NOISE if part in name)


def _contrast(plus, minus):
    """(hidden,) direction: one dim minus another."""
    direction = torch.zeros(HIDDEN)
    direction[plus], direction[minus] = 1, -1
    return direction
