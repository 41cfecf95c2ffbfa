"""Small GPT-2 and Llama models with a planted mechanism: what a diagnosis must find in them is known.

Every weight is noise; a mechanism is written over a few of them, alike in both architectures:
- A signal is a pair of dims with opposite values, read as their difference, which LayerNorm's centring leaves alone.
  FLAG stands at the trigger only (a position or a token). ONE stands at every token and serves as a threshold where
  an MLP reads, so that no bias is needed, and as the query of a head that looks the same way from everywhere.
- The norm does the rest: a large value takes all of the normed vector, so that FLAG and ONE read as about 0 beside it.
  A generator that reads FLAG is silent where another has written before.
- The few dims that carry signals and spikes have noise too, but QUIET times as much: a head's value is linear, and
  the weight that makes a spike of one token would make outliers of the others' noise.
- Text is random, so no model can lose by an ablation what it never had. Where a loss must depend on the spike, a head
  that has its sink there SHOUTS one token into the logits as soon as it has to look elsewhere.
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

FLAG_SIZE, SECOND_FLAG_SIZE, ONE_SIZE = 2.0, 1.0, 0.5
SHOUTS, TELLS = 5.0, 3.0
TOKENS = 12
PLANTED_LOGITS = ("needs_head", "ten", "several", "informed")  # there GPT-2's output embeddings are its own
CONSTANT, AS_IT_IS = "needed, a constant is enough", "needed as it is"
ANYWHERE, HALF, SEVERAL_TOKENS = ("content", "half"), ("half",), ("noisy",)
TIMES_WINDOWS = {"half": 3, "informed": 6}  # where only some of the windows tell something
QUIET = 1e-4
NOISE = (
    # part of the parameter's name, standard deviation, the axis along which it writes to the residual stream or
    # scales it (None: it only reads)
    ("wte", 0.05, -1),
    ("wpe", 0.02, -1),
    ("ln_", 0.05, -1),
    ("c_attn", 0.05, None),
    ("attn.c_proj", 0.01, -1),
    ("c_fc", 0.05, None),
    ("mlp.c_proj", 0.005, -1),
    ("embed_tokens", 0.05, -1),
    ("norm", 0.05, -1),
    ("q_proj", 0.05, None),
    ("k_proj", 0.05, None),
    ("v_proj", 0.05, None),
    ("o_proj", 0.01, 0),
    ("gate_proj", 0.05, None),
    ("up_proj", 0.05, None),
    ("down_proj", 0.01, 0),
    ("lm_head", 0.05, None),
)


@dataclass(frozen=True)
class Truth:
    """What is planted. Layers, heads, neurons, dims and positions count from 0.

    generator: "mlp", "head", "both" (an MLP that needs a head's write) or "none"; layer: the first whose output is
    massive; neurons or head: its part that writes; most: the fewest of the neurons that give 90 % of it.
    values: {dim: signed value} where it is massive; trigger: what makes a place massive; positions: where the windows
    have it; share: of the windows that have it; tokens: those that trigger it, where some do and others do not.
    retained, repair: {part: number} of the MLPs and attention blocks that write it: what is left of the value without
    this part, and what share of its write the others make good then.
    sinks: (layer, head) of all that look at the first token; readers: of those that do so for the massive activation.
    costly: (layer, head) of those that the loss misses.
    need: what the loss needs of it, "not needed", "needed, a constant is enough" or "needed as it is".
    first_step, second_generator, eraser: {"layer", "neurons" or "head"} of what else takes part.
    later: {"token", "values"} of another spike, of a token that stands later in the windows.
    informed: {"token", "dim"} of a second dim that is massive only where that token is the first.
    noise: parts that write up to a twentieth of the value.
    decoy_neurons: of `layer`, with the largest weights to the largest dim; decoy_head: (layer, head) with the highest
    attention to the first token. outliers: {dim: value} that are written and not massive.
    """

    architecture: str
    kind: str
    seed: int
    generator: str
    trigger: str
    positions: tuple
    share: float
    layer: int | None = None
    neurons: tuple = ()
    most: tuple = ()
    head: int | None = None
    values: dict = field(default_factory=dict)
    tokens: tuple = ()
    retained: dict = field(default_factory=dict)
    repair: dict = field(default_factory=dict)
    sinks: tuple = ()
    readers: tuple = ()
    costly: tuple = ()
    need: str = "not needed"
    first_step: dict | None = None
    second_generator: dict | None = None
    eraser: dict | None = None
    later: dict | None = None
    informed: dict | None = None
    noise: tuple = ()
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
    it is the BOS token, which begins every window and stands nowhere else (TOKENS of them in SEVERAL_TOKENS). The kinds
    of ANYWHERE are triggered by another token, anywhere, in both.
    """
    rng = np.random.default_rng([seed, ARCHITECTURES.index(architecture), list(KINDS).index(kind)])
    tokens = () if architecture == "gpt2" else (BOS,)
    if kind in ANYWHERE:
        tokens = (int(rng.integers(BOS + 1, VOCABULARY)),)
    elif tokens and kind in SEVERAL_TOKENS:
        tokens = tuple(sorted(rng.choice(np.arange(BOS + 1, VOCABULARY), size=TOKENS, replace=False).tolist()))
    builder = _Builder(architecture, rng, *tokens, tied=kind not in PLANTED_LOGITS)
    found = KINDS[kind](builder)
    windows = _windows(builder, kind)
    trigger, where = "none", np.zeros(windows.ids.shape, dtype=bool)
    if found["generator"] != "none":
        where = np.isin(windows.ids.numpy(), builder.tokens)
        trigger = "position 0"
        if kind in ANYWHERE:
            trigger = f"token {token_text(tokens[0])}"
        elif builder.tokens == (BOS,):
            trigger += f", always {BOS_TEXT}"
        where[:, 0] |= not builder.tokens
        if "later" in found:
            trigger += f" and token {found['later']['token']}"
            where |= windows.ids.numpy() == builder.second_token
    tokens = builder.tokens
    if builder.tokens and "later" in found:
        tokens += (builder.second_token,)
    part = {"layer": found.get("layer"), "kind": "attention" if found["generator"] == "head" else "mlp"}
    alone = {} if found["generator"] == "none" else {"{kind} {layer}".format(**part): 0.0}
    defaults = {"retained": alone, "repair": alone, "most": found.get("neurons", ())}
    for name in ("sinks", "readers"):
        found[name] = tuple(sorted(found.get(name, found.get("readers", ()))))
    truth = Truth(
        architecture,
        kind,
        seed,
        trigger=trigger,
        positions=tuple(where.any(0).nonzero()[0].tolist()),
        share=float(where.any(1).mean()),
        tokens=() if found["generator"] == "none" else tuple(map(token_text, tokens)),
        **defaults | found,
    )
    return Planted(builder.lm, windows, truth)


def _windows(b, kind="mlp"):
    """Random tokens, with those that trigger something: each window begins with one of them, or has it (half of the
    windows, in HALF) and a second token of the kind "several" at two random places."""
    n = TIMES_WINDOWS.get(kind, 1) * N_WINDOWS
    ordinary = np.array([t for t in range(VOCABULARY) if t not in {BOS, *b.tokens, b.second_token}])
    ids = b.rng.choice(ordinary, size=(n, SEQLEN))
    if kind == "informed":  # half of the windows, which have another half of the vocabulary
        for rows, first, half in zip(np.split(b.rng.permutation(n), 2), *b.informed, strict=True):
            ids[rows] = b.rng.choice(np.intersect1d(ordinary, half), size=(len(rows), SEQLEN))
            ids[rows, 0] = ids[rows, 0] if first is None else first
    elif b.tokens and kind not in ANYWHERE:
        ids[:, 0] = np.resize(b.tokens, n)
    elif b.tokens:
        for row in b.rng.permutation(n)[: n // 2] if kind in HALF else range(n):
            ids[row, b.rng.choice(SEQLEN, size=2, replace=False)] = b.tokens[0]
    if kind == "several":
        for row in range(n):
            ids[row, b.rng.choice(np.arange(1, SEQLEN), size=2, replace=False)] = b.second_token
    bos = int(b.tokens == (BOS,))
    counts = np.bincount(ids[:, bos:].flatten(), minlength=VOCABULARY)
    return Windows(torch.from_numpy(ids), n, bos, "random tokens", counts=counts)


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
    head = b.head_writes(last, b.spike, _times(-1, b.values))
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
    erasing = b.neurons_write(last, b.spike - b.one, _times(-1, b.values))
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


def _needs_head(b):
    """As "two_steps", but a head takes the first step; and a reader shouts when it has to look elsewhere."""
    first, layer = b.layers(2, before=b.n_layers - 1)
    readers = b.readers(layer + 1, b.n_layers - 1, shout=True)
    early = {b.spare_dims.pop(): b.sign() * b.rng.uniform(20, 60)}
    head = b.head_writes(first, b.flag, early)
    return {
        "generator": "both",
        "layer": layer,
        "neurons": b.neurons_write(layer, b.reading(early) - b.one, b.values),
        "values": b.values,
        "readers": readers,
        "costly": ((first, head),),
        "need": CONSTANT,
        "first_step": {"layer": first, "head": head},
        "outliers": early,
    }


def _redundant(b):
    """Two MLPs, each sufficient: the later one writes only where the earlier has not."""
    return _second_writes(b, given_first=0, alone=1)


def _repair(b):
    """As "redundant", but the later MLP makes half of it."""
    return _second_writes(b, given_first=0, alone=b.rng.uniform(0.35, 0.65))


def _partial(b):
    """Two MLPs, and 60 % with either of them alone: the later writes 40 % after the earlier, 60 % without it."""
    return _second_writes(b, given_first=0.4, alone=0.6)


def _second_writes(b, given_first, alone):
    """An MLP writes 1 - given_first of the value, a later one given_first, or `alone` where the earlier has not."""
    layer, second = b.layers(2, before=b.n_layers - 1)
    b.values = {b.largest: b.values[b.largest]}  # a part of a second dim might not be massive
    # the later first, so that its weights fit what it reads without the earlier
    second_neurons = b.neurons_write(second, b.flag - b.one, _times(alone, b.values))
    neurons = b.neurons_write(layer, b.flag - b.one, _times(1 - given_first, b.values))
    retained, repair = {f"mlp {layer}": alone}, {f"mlp {layer}": 1 - (1 - alone) / (1 - given_first)}
    if given_first:
        second_neurons += b.neurons_write(second, b.spike - b.one, _times(given_first, b.values))
        retained[f"mlp {second}"], repair[f"mlp {second}"] = 1 - given_first, 0.0
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": b.readers(second + 1, b.n_layers - 1),
        "second_generator": {"layer": second, "neurons": tuple(sorted(second_neurons)), "share": given_first},
        "retained": retained,
        "repair": repair,
    }


def _noisy(b):
    """As "mlp", but the value differs from token to token, by up to a tenth, and a head and the MLPs of later layers
    write up to a twentieth of it, along it or against it."""
    layer = b.layers(1, before=2)[0]
    neurons = b.neurons_write(layer, b.flag - b.one + b.token_noise(), b.values)
    readers = b.readers(layer + 1, b.n_layers - 1)
    size = b.sign() * b.rng.uniform(0.03, 0.05)
    noise = [{"layer": layer + 1, "head": b.head_writes(layer + 1, b.spike, _times(size, b.values)), "size": size}]
    for at in range(layer + 1, b.n_layers):
        size = -np.sign(size) * b.rng.uniform(0.02, 0.05)
        own = b.neurons_write(at, b.spike - b.one, _times(size, b.values))
        noise.append({"layer": at, "neurons": own, "size": float(size)})
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": readers,
        "noise": tuple(noise),
    }


def _ten(b):
    """As "mlp", by ten neurons, of which nine give 93 %; and a reader that shouts when it has to look elsewhere."""
    layer = b.layers(1, before=b.n_layers - 1)[0]
    readers = b.readers(layer + 1, b.n_layers - 1, shout=True)
    shares = 0.8 / 9 + 0.2 * b.rng.dirichlet(np.ones(9))
    most = b.neurons_write(layer, b.flag - b.one, _times(0.93, b.values), shares)
    least = b.neurons_write(layer, b.flag - b.one, _times(0.07, b.values), [1.0])
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": tuple(sorted(most + least)),
        "most": most,
        "values": b.values,
        "readers": readers,
        "need": CONSTANT,
    }


def _several(b):
    """As "mlp", and another token has a spike of its own, of another size, whose second dim has the other sign.

    A reader reads that sign, so it keeps to the first token, and shouts when it has to look elsewhere.
    """
    layer = b.layers(1, before=b.n_layers - 1)[0]
    size = abs(b.values[b.largest])
    second, sign = b.spare_dims.pop(), b.sign()
    b.values = {b.largest: b.values[b.largest], second: sign * 0.8 * size}
    later = {b.largest: 0.3 * b.values[b.largest], second: -sign * 0.5 * size}
    b.spike = 1.5 * b.reading({second: sign})
    second_flag = b.add_second_token(FLAG_SIZE)
    readers = b.readers(layer + 1, b.n_layers - 1, shout=True)
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    b.neurons_write(layer, second_flag - b.one, later, ids=[1, b.second_token])
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": readers,
        "need": CONSTANT,
        "later": {"token": token_text(b.second_token), "values": later},
    }


def _informed(b):
    """As "ten", and a second token, the first of half of the windows, adds a second dim to the spike there.

    A head reads that dim and tells which half of the vocabulary the rest of the window is of: no constant can do that.
    """
    layer = b.layers(1, before=b.n_layers - 1)[0]
    second = b.spare_dims.pop()
    size = abs(b.values[b.largest])
    b.values = {b.largest: b.values[b.largest]}
    more = {second: b.sign() * 0.6 * size}
    second_flag = b.add_second_token(SECOND_FLAG_SIZE)
    readers = b.readers(layer + 1, b.n_layers - 1, n=2, shout=True)
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    if b.tokens:
        b.embedding[b.second_token] += FLAG_SIZE * b.flag
        b.tokens = tuple(sorted((*b.tokens, b.second_token)))
    b.neurons_write(layer, second_flag - b.one, more, ids=[b.second_token])
    half = b.rng.permutation(VOCABULARY)[: VOCABULARY // 2]
    told = b.tell(readers, b.reading(more), half)
    b.informed = (BOS if b.tokens else None, b.second_token), (np.setdiff1d(np.arange(VOCABULARY), half), half)
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": readers,
        "need": AS_IT_IS,
        "costly": (told,),
        "informed": {"token": token_text(b.second_token), "values": more},
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
    sinks = (*truth["readers"], (layer, head))
    return truth | {"decoy_neurons": neurons, "decoy_head": (layer, head), "sinks": sinks}


def _content(b):
    """As "mlp", but a token triggers it anywhere, so that no head has its sink on the first token."""
    layer = b.layers(1, before=b.n_layers)[0]
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    return {"generator": "mlp", "layer": layer, "neurons": neurons, "values": b.values}


def _unread(b):
    """As "mlp", and no head reads it."""
    return _content(b)


def _sinks(b):
    """Heads have their sink on the first token, whose embedding they read; nothing is massive."""
    b.spike = 0.5 * b.flag
    return {"generator": "none", "sinks": b.readers(0, b.n_layers - 1)}


def _none(b):
    """As "mlp", but too small: below 100, or above it in a residual stream with a large median."""
    if b.rng.random() < 0.5:
        b.enlarge_residual(20)
        largest = b.rng.uniform(150, 450)
    else:
        largest = b.rng.uniform(40, 90)
    b.values = _times(largest / abs(b.values[b.largest]), b.values)
    return {"generator": "none", "sinks": _mlp(b)["readers"], "outliers": b.values}


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
    "needs_head": _needs_head,
    "repair": _repair,
    "partial": _partial,
    "noisy": _noisy,
    "ten": _ten,
    "several": _several,
    "informed": _informed,
    "half": _content,
    "unread": _unread,
    "sinks": _sinks,
}


class _Builder:
    """A model of noise, and the tools that write a mechanism over it.

    tokens: that carry FLAG; none: position 0 does. second_token: another that triggers something, or None.
    informed: None, or (first tokens, halves of the vocabulary that the windows beginning with them are of).
    values: {dim: signed value} to plant; largest: the dim of the largest. flag, one, spike: (hidden,) directions in
    which a part reads the normed residual stream: FLAG, ONE and the largest value, all positive.
    spare_neurons: per layer; spare_heads: (layer, head); spare_dims: what no mechanism uses yet, in random order.
    """

    def __init__(self, architecture, rng, *tokens, tied=True):
        self.rng, self.tokens = rng, tokens
        self.second_token = self.informed = None
        self.n_layers = int(rng.integers(4, 7))
        self.model = _zeros(architecture, self.n_layers, tied)
        self.arch = Architecture(self.model)
        self.lm = LanguageModel(self.model, self.arch, tokenizer(), {"planted": architecture})
        self.private = rng.permutation(HIDDEN)[:12].tolist()
        _add_noise(self.model, rng, self.private)
        self.flag, self.one, self.second_flag = (_contrast(*self.private[i : i + 2]) for i in (0, 2, 8))
        self.rest, *self.spare_dims = self.private[4:8]
        self.shouted, self.told = self.private[10:]
        self.embedding = self.model.get_input_embeddings().weight
        self.embedding += ONE_SIZE * self.one
        triggers = self.embedding if tokens else self.model.transformer.wpe.weight
        triggers[list(tokens or (0,))] += FLAG_SIZE * self.flag

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

    def add_second_token(self, size):
        """Give another token a flag of its own; returns that."""
        others = np.setdiff1d(np.arange(BOS + 1, VOCABULARY), self.tokens)
        self.second_token = int(self.rng.choice(others))
        self.embedding[self.second_token] += size * self.second_flag
        return self.second_flag

    def token_noise(self):
        """A direction in which tokens differ, for a part that reads FLAG beside it."""
        noise = torch.from_numpy(self.rng.standard_normal(HIDDEN).astype(np.float32))
        noise[self.private] = 0
        return (0.8 if self.arch.is_gated else 3.0) * noise / noise.norm()

    def readers(self, first, last, n=None, shout=False):
        """One or two (or `n`) heads in layers `first` to `last` whose keys are the largest value, at any query.

        They write next to nothing; but the first may shout a token into the logits where it finds no such key.
        """
        able = [head for head in self.spare_heads if first <= head[0] <= last]
        chosen = able[: int(self.rng.integers(1, 3)) if n is None else n]
        for layer, head in chosen:
            self.spare_heads.remove([layer, head])
            self.head_looks(layer, head, self.rng.uniform(0.6, 0.75) * self.spike)
            self.mute(layer, head)
        if shout:
            layer, head = chosen[0]
            token = int(self.rng.integers(VOCABULARY))
            self.model.get_output_embeddings().weight[token, self.shouted] = 1.0
            self.head_moves(layer, head, 0.5 * self.one, {self.shouted: SHOUTS}, ids=[1] * 8)
        return tuple(map(tuple, chosen))

    def neurons_write(self, layer, reads, values, shares=None, ids=None):
        """One to three neurons (or one a share) that fire where `reads` is positive and write {dim: value} there (at
        the last of `ids`); returns them."""
        if shares is None:  # each neuron is needed for 90 % of the sum
            n = int(self.rng.integers(1, 4))
            shares = 0.2 + (1 - 0.2 * n) * self.rng.dirichlet(np.ones(n))
        neurons = [self.spare_neurons[layer].pop() for _ in shares]
        self._neurons_read(layer, neurons, reads)
        for neuron, share in zip(neurons, shares, strict=True):
            self._write(layer, "down", neuron, _times(share, values), ids)
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
        self.head_moves(layer, head, 0.5 * reads, values)
        return head

    def tell(self, readers, reads, half):
        """Let the last of the readers write which half of the vocabulary comes: `half`, where `reads` is positive at
        its sink; returns it. The logits of `half` rise by it, the others' fall."""
        signs = -torch.ones(VOCABULARY)
        signs[half] = 1
        self.model.get_output_embeddings().weight[:, self.told] = 0.2 * signs
        self.head_moves(*readers[-1], 0.5 * reads, {self.told: TELLS}, ids=[self.second_token])
        return readers[-1]

    def head_moves(self, layer, head, reads, values, ids=None):
        """Let a head write {dim: value} in proportion to what `reads` finds where it looks (from the last of `ids`)."""
        channel = int(self.rng.integers(HEAD_DIM))
        self._head_reads(layer, head, "v", channel, reads)
        self._write(layer, "head_projection", head * HEAD_DIM + channel, values, ids)

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

    def _write(self, layer, role, column, values, ids=None):
        """Set one input's weights in an output projection so that it writes {dim: value} at the last of `ids`; default:
        on average over the tokens that carry FLAG, each as the first."""
        seen = {}
        windows = [[token] for token in self.tokens or range(VOCABULARY)] if ids is None else [ids]
        with hooks.watch_inputs(self.arch, role, seen.__setitem__, [layer]):
            hooks.forward(self.lm, torch.tensor(windows))
        for dim, value in values.items():
            there = seen[layer].reshape(len(windows), -1, seen[layer].shape[-1])[:, -1, column]
            self.arch.weight(layer, role)[dim, column] = value / there.mean().item()

    def enlarge_residual(self, factor):
        """Multiply all that is written to the residual stream; through the norms, nothing else changes."""
        for name, parameter in self.model.named_parameters():
            is_norm = "ln_" in name or "norm" in name
            if _noise_of(name)[1] is not None and not is_norm:
                parameter *= factor


def _zeros(architecture, n_layers, tied=True):
    """A model whose parameters are zero, but for the norms' weights, which are one."""
    shared = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": BOS}
    if architecture == "gpt2":
        config = GPT2Config(
            n_layer=n_layers, n_head=HEADS, n_embd=HIDDEN, n_positions=POSITIONS, tie_word_embeddings=tied, **shared
        )
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


def _times(factor, values):
    """{dim: factor x value}."""
    return {dim: factor * value for dim, value in values.items()}
