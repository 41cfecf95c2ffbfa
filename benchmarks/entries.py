"""What `benchmarks.bench` measures: one function an entry.

A function gets the options, loads what it needs, and returns one pass: a function of (windows, seq) token ids that
returns what it measured as {key: array with one row a window}. All entries that give a key must give equal values.
The ids are on the host; what a pass measures stays on the model's device until its end.
Where a pass measures many alike, its `units` say how many, and its time is that of one.
To add an entry, write its function under @entry; what must hold of it goes into TARGETS.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.compare import AtMost, Faster, FlatMemory, LeastMemory, Within
from lib.core.definitions import SINK_WINDOW
from lib.core.massive import is_massive
from lib.model import edits
from lib.run.cli import Options


@dataclass(frozen=True)
class Entry:
    """label: of the table. tool: whose code measures. gives: what, in words; entries that give the same are compared.

    timed: whether it is run in each round, or once, for its values and memory. prepare: (options) -> the pass.
    """

    label: str
    tool: str
    gives: str
    timed: bool
    prepare: Callable


ENTRIES: dict[str, Entry] = {}


def entry(label, tool, gives, timed=True):
    def register(prepare):
        ENTRIES[prepare.__name__] = Entry(label, tool, gives, timed, prepare)
        return prepare

    return register


OURS, TRANSFORMERS, LENS, NNSIGHT = "this repository", "transformers", "TransformerLens", "nnsight"
NOTHING, LAYERS, BOTH = "nothing", "layers", "layers + heads"
MLPS_OFF, HEADS_OFF, CENSUS = "without MLPs", "without heads", "census"
HEAD_AT_PLACE, HEAD_WHOLE = "a head off: value", "a head off: value, sinks, loss"
TARGETS: list[AtMost | Faster | LeastMemory | FlatMemory | Within] = [
    AtMost("layers_heads", "bare", 1.10),
    Faster("layers_heads", NNSIGHT, 1.25),
    Faster("layers_heads", TRANSFORMERS, 1.4),
    Faster("layers_heads", LENS, 1.9),
    LeastMemory("layers_heads", (LAYERS, BOTH)),
    AtMost("mlps_off", "bare", 0.50),
    AtMost("heads_off", "bare", 0.75),
    Faster("head_at_place", TRANSFORMERS, 50),
    AtMost("head_resumed", "head_floor", 1.10),
    Faster("head_resumed", TRANSFORMERS, 1 / 0.6),
    AtMost("census", "census_products", 1.3),
    FlatMemory("thousand_windows", "ten_windows", 1.05),
    Within("cached_model", 2),
]
REGIME_ENTRIES = ("bare", "layers_heads", "attentions")


def regime(most):
    return AtMost("layers_heads", "bare", most), Faster("layers_heads", TRANSFORMERS, 1)


REGIME_TARGETS = {(1, 16): regime(1.15), (1, 64): regime(1.12), (16, 64): regime(1.08), (1, 1024): regime(1.06)}


def load(options):
    from lib.model import models

    return models.load(options)


@dataclass(frozen=True)
class ByWindow:
    """A pass from `measure`, (batch, seq) token ids -> {key: array with one row a window}."""

    options: Options
    measure: Callable
    units: int = 1

    def __call__(self, ids):
        with torch.inference_mode():
            parts = [self.measure(batch) for batch in ids.split(self.options.batch_size)]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def statistics(hidden):
    """Of the magnitudes in (batch, seq, hidden_size): {"layers": top-1, top-2, top-3 and median, "positions", "dims":
    where these three are, dims from 1 on with the value's sign, "massive": how many are}, (batch, ...) each."""
    magnitude = hidden.abs().flatten(1)
    top, median = magnitude.topk(3, dim=1), magnitude.median(dim=1, keepdim=True).values
    positions, dims = top.indices // hidden.shape[2], top.indices % hidden.shape[2]
    return {
        "layers": torch.cat([top.values, median], dim=1),
        "positions": positions,
        "dims": (dims + 1) * hidden.flatten(1).gather(1, top.indices).sign().int(),
        "massive": is_massive(magnitude, median).sum(1),
    }


def head_means(probability):
    """Of (batch, heads, seq) on the first token: {key: (batch, heads)}, means over all queries, all but the first, and
    the first of a window."""
    return {
        "heads": probability.mean(2),
        "later": probability[..., 1:].mean(2),
        "window": probability[..., :SINK_WINDOW].mean(2),
    }


def stacked(rows):
    """(batch, layers, ...) of one (batch, ...) tensor a layer."""
    return torch.stack(list(rows), dim=1)


def by_key(rows):
    """{key: (batch, layers, ...)} of one {key: (batch, ...)} a layer."""
    rows = list(rows)
    return {key: stacked(row[key] for row in rows) for key in rows[0]}


def largest(hidden):
    return hidden.abs().amax((1, 2))


def on_host(values):
    """{key: array} of {key: tensor}, in one copy, which waits for the device."""
    from lib.core.on_device import OnDevice

    kept = OnDevice()
    for key, value in values.items():
        kept.keep(key, value)
    return kept.take()


@entry("bare forward", TRANSFORMERS, NOTHING)
def bare(options):
    lm = load(options)
    model = lm.model.base_model

    def measure(ids):
        return on_host({"output": largest(model(ids.to(lm.device), use_cache=False).last_hidden_state)})

    return ByWindow(options, measure)


@entry("layerwise pass", OURS, LAYERS)
def layers(options):
    from lib.core.massive import LayerStatistics
    from lib.model import hooks

    lm = load(options)

    def measure(ids):
        found = LayerStatistics(lm.arch, lm.tokenizer)
        return as_statistics(found, found.run(ids, lambda: hooks.forward(lm, ids)))

    return ByWindow(options, measure)


@entry("layerwise + heads pass", OURS, BOTH)
def layers_heads(options):
    from lib.core import sinks
    from lib.core.massive import LayerStatistics
    from lib.core.on_device import OnDevice
    from lib.model import attention, hooks

    lm = load(options)

    def measure(ids):
        kept = OnDevice()
        found, heads = LayerStatistics(lm.arch, lm.tokenizer, kept), sinks.HeadScores(lm.arch, kept)
        with attention.watch_parts(lm, heads.update):
            taken = found.run(ids, lambda: hooks.forward(lm, ids))
        heads.end_batch(taken)
        return as_statistics(found, taken) | {"heads": heads.scores, "later": heads.later, "window": heads.window}

    return ByWindow(options, measure)


def as_statistics(found, taken):
    """What `statistics` gives, of LayerStatistics and of what its one pass has `taken`."""

    def of_layers(name):
        return np.concatenate([value for (what, _layers), value in taken.items() if what == name]).swapaxes(0, 1)

    positions, dims = np.divmod(of_layers("places")[..., :3], found.arch.hidden_size)
    signs = np.sign(of_layers("values")[..., :3]).astype(int)
    return {
        "layers": found.rows.array,
        "positions": positions,
        "dims": (dims + 1) * signs,
        "massive": is_massive(of_layers("largest"), of_layers("median")[..., None]).sum(2),
    }


@entry("output_hidden_states", TRANSFORMERS, LAYERS)
def hidden_states(options):
    return _transformers(options)


@entry("output_hidden_states, eager output_attentions", TRANSFORMERS, BOTH)
def attentions(options):
    return _transformers(options, output_attentions=True)


def _transformers(options, **wanted):
    """The last of hidden_states is after the final norm: the last layer's statistics are not to be had."""
    lm = load(options)
    model = lm.model.base_model
    if wanted:
        model.set_attn_implementation("eager")

    def measure(ids):
        output = model(ids.to(lm.device), use_cache=False, output_hidden_states=True, **wanted)
        values = by_key(map(statistics, output.hidden_states[1:-1]))
        if wanted:
            values |= by_key(head_means(attention[..., 0]) for attention in output.attentions)
        return on_host(values | {"output": largest(output.last_hidden_state)})

    return ByWindow(options, measure)


@entry("run_with_cache", LENS, BOTH)
def lens_cache(options):
    return _lens(options)


@entry("run_with_cache, names_filter on both", LENS, BOTH)
def lens_both(options):
    return _lens(options, names_filter=lambda name: name.endswith(("hook_resid_post", "hook_pattern")))


def _lens(options, **wanted):
    from transformer_lens.model_bridge import TransformerBridge

    from lib.model import models

    device, dtype = models.chosen_device(options.device), getattr(torch, options.dtype)
    model = TransformerBridge.boot_transformers(options.model, device=str(device), dtype=dtype)
    blocks = [f"blocks.{layer}" for layer in range(model.cfg.n_layers)]

    def measure(ids):
        _, cache = model.run_with_cache(ids.to(device), return_type=None, **wanted)
        layers = by_key(statistics(cache[f"{block}.hook_resid_post"]) for block in blocks)
        heads = by_key(head_means(cache[f"{block}.attn.hook_pattern"][..., 0]) for block in blocks)
        return on_host(layers | heads)

    return ByWindow(options, measure)


@entry("trace of base_model", NNSIGHT, LAYERS)
def nnsight_layers(options):
    return _nnsight(options, heads=False)


@entry("trace of base_model, eager attention", NNSIGHT, BOTH)
def nnsight_both(options):
    return _nnsight(options, heads=True)


def _nnsight(options, heads):
    import nnsight

    lm = load(options)
    base = lm.model.base_model
    if heads:
        base.set_attn_implementation("eager")
    model = nnsight.NNsight(base)
    path = next(path for path, module in base.named_modules() if module is lm.arch.blocks[0]).removesuffix(".0")
    blocks, attention = model.get(path), lm.arch.layers[0].attention_module

    def measure(ids):
        with model.trace(ids.to(lm.device), use_cache=False):
            rows, scores = nnsight.save([]), nnsight.save([])
            for block in blocks:
                if heads:
                    scores.append(head_means(block.get(attention).output[1][..., 0]))
                rows.append(statistics(block.output))
        return on_host(by_key(rows) | (by_key(scores) if heads else {}))

    return ByWindow(options, measure)


def changed(options, what, manager):
    """A pass over the model inside `manager(lm)`: {what: largest |value| of each dim in the last block's output}."""
    from lib.model import hooks

    lm = load(options)

    def measure(ids):
        values = {}

        def see(_layer, hidden):
            values[what] = hidden.abs().amax(1)

        with manager(lm), hooks.watch_outputs(lm.arch, "block", see, [lm.arch.n_layers - 1]):
            hooks.forward(lm, ids)
        return on_host(values)

    return ByWindow(options, measure)


def zeroed(arch, role, inputs):
    """PyTorch hooks that put zeros in the place of what every layer's `role` module takes, or gives."""
    stack = ExitStack()
    for layer in range(arch.n_layers):
        module = arch.module(layer, role)
        if inputs:
            handle = module.register_forward_pre_hook(lambda _module, args: (torch.zeros_like(args[0]), *args[1:]))
        else:
            handle = module.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
        stack.callback(handle.remove)
    return stack


def every_head(arch):
    return [(layer, head) for layer in range(arch.n_layers) for head in range(arch.n_heads)]


@entry("all MLPs off", OURS, MLPS_OFF)
def mlps_off(options):

    return changed(options, MLPS_OFF, lambda lm: edits.mlps_off(lm.arch, range(lm.arch.n_layers)))


@entry("all MLPs run, their outputs zeroed", TRANSFORMERS, MLPS_OFF, timed=False)
def mlps_zeroed(options):
    return changed(options, MLPS_OFF, lambda lm: zeroed(lm.arch, "mlp_write", inputs=False))


@entry("all heads off", OURS, HEADS_OFF)
def heads_off(options):

    return changed(options, HEADS_OFF, lambda lm: edits.heads_off(lm.arch, every_head(lm.arch)))


@entry("all heads run, their outputs zeroed", TRANSFORMERS, HEADS_OFF, timed=False)
def heads_zeroed(options):
    return changed(options, HEADS_OFF, lambda lm: zeroed(lm.arch, "head_projection", inputs=True))


def middle_head(arch):
    """(layer, head) of the middle layer; of two, the first, so that it costs no less than a sweep does a head."""
    return (arch.n_layers - 1) // 2, 0


def largest_dim(lm):
    """The dim of the largest |value| in the last block's output for one token alone."""
    from lib.model import hooks

    dims = []
    with hooks.watch_outputs(
        lm.arch, "block", lambda _layer, hidden: dims.append(hidden[0, 0].abs().argmax().item()), [lm.arch.n_layers - 1]
    ):
        hooks.forward(lm, torch.zeros(1, 1, dtype=torch.long))
    return dims[0]


def at_first(ids, lm, dim):
    """The Place at position 0 of each window; nothing is known there."""
    from lib.core.place import Place
    from lib.core.stats import independent

    first, unknown = np.zeros(len(ids), dtype=int), np.empty((len(ids), lm.arch.n_layers))
    return Place(dim, first, "", unknown, unknown, first, independent(len(ids)))


@entry("each head off, position 0: sweep.at_place, time a head", OURS, HEAD_AT_PLACE)
def head_at_place(options):
    from lib.core import data, heads, sweep

    lm = load(options)
    dim = largest_dim(lm)
    changes = {head: heads.HeadsSet(heads.label([head]), {head: 0.0}) for head in every_head(lm.arch)}

    def measure(ids):
        windows = data.Windows(ids, len(ids), False, "")
        values = sweep.values_at_place(lm, windows, at_first(ids, lm, dim), list(changes.values()), options.batch_size)
        return {HEAD_AT_PLACE: values[changes[middle_head(lm.arch)].name]}

    return ByWindow(options, measure, len(changes))


@entry("one head off, whole window: output_hidden_states", TRANSFORMERS, HEAD_AT_PLACE)
def head_forward(options):
    lm = load(options)
    model, dim = lm.model.base_model, largest_dim(lm)
    switch_off(lm, middle_head(lm.arch))

    def measure(ids):
        output = model(ids.to(lm.device), use_cache=False, output_hidden_states=True)
        return on_host({HEAD_AT_PLACE: stacked(hidden[:, 0, dim] for hidden in output.hidden_states[1:-1])})

    return ByWindow(options, measure)


def switch_off(lm, which):
    """Zero a head's part of the input of its layer's attention output projection, for good."""
    layer, head = which
    columns = slice(head * lm.arch.head_dims[layer], (head + 1) * lm.arch.head_dims[layer])

    def zero(_module, args):
        value = args[0].clone()
        value[..., columns] = 0
        return (value, *args[1:])

    lm.arch.module(layer, "head_projection").register_forward_pre_hook(zero)


def whole(values, losses, attention):
    """What is measured with one head of the middle layer off, in whole windows."""
    return {HEAD_AT_PLACE: values, "a head off: loss": losses, "a head off: sinks": attention}


@entry("one head off: sweep.Passes from its layer on", OURS, HEAD_WHOLE)
def head_resumed(options):
    return _passes(options, resumed=True)


@entry("one head off: sweep.Passes from the first layer on", OURS, HEAD_WHOLE)
def head_from_start(options):
    return _passes(options, resumed=False)


def _passes(options, resumed):
    from lib.core import heads, sweep
    from lib.model import hooks

    lm = load(options)
    dim, head = largest_dim(lm), middle_head(lm.arch)
    change, first = heads.HeadsSet("off", {head: 0.0}), head[0] if resumed else 0

    def baseline(ids):
        """What a sweep measures once, for all its changes."""
        passes = sweep.Passes(lm, at_first(ids, lm, dim))
        passes.run(ids, slice(0, len(ids)))
        return passes

    before = Unchanged(lm, baseline)

    def measure(ids):
        rows = slice(0, len(ids))
        kept, known = before(ids) if resumed else ({}, None)
        passes = sweep.Passes(lm, at_first(ids, lm, dim))
        with hooks.resume_at(lm.arch, first, kept), change.hooks(lm.arch):
            passes.run(ids, rows, first, known)
        return whole(*passes.arrays(rows))

    return ByWindow(options, measure)


class Unchanged:
    """What each batch of ids gives as the model is, run when it is first asked for."""

    def __init__(self, lm, run):
        self.lm, self.run, self.known = lm, run, {}

    def __call__(self, ids):
        """(what each block returns, run(ids))."""
        from lib.model import hooks

        key = ids.numpy().tobytes()
        if key not in self.known:
            kept: dict[int, Any] = {}
            with hooks.keep_block_outputs(self.lm.arch, kept):
                self.known[key] = kept, self.run(ids)
        return self.known[key]


@entry("one head off: its layer and all after it, and the losses, unwatched", OURS, NOTHING)
def head_floor(options):
    """What a pass cannot avoid that tells the loss with a part of that layer off."""
    from lib.model import hooks, next_token

    lm = load(options)
    first, _head = middle_head(lm.arch)
    before = Unchanged(lm, lambda ids: next_token.losses(lm, ids))

    def measure(ids):
        kept, _losses = before(ids)
        with hooks.resume_at(lm.arch, first, kept):
            next_token.losses(lm, ids)
        return {}

    return ByWindow(options, measure)


@entry("one head off: output_hidden_states, eager output_attentions", TRANSFORMERS, HEAD_WHOLE)
def head_transformers(options):
    lm = load(options)
    dim = largest_dim(lm)
    lm.model.base_model.set_attn_implementation("eager")
    switch_off(lm, middle_head(lm.arch))

    def measure(ids):
        ids = ids.to(lm.device)
        output = lm.model(ids, use_cache=False, output_hidden_states=True, output_attentions=True)
        logits, targets = output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").view(len(ids), -1)
        values = stacked(hidden[:, 0, dim] for hidden in output.hidden_states[1:-1])
        sinks = stacked(attention[:, :, :SINK_WINDOW, 0].mean(2) for attention in output.attentions)
        return on_host(whole(values, losses.mean(1), sinks))

    return ByWindow(options, measure)


CENSUS_TOKENS = 1024
LISTED = 100


def first_tokens(lm):
    """(CENSUS_TOKENS, 1) token ids."""
    return torch.arange(CENSUS_TOKENS)[:, None] % lm.model.config.vocab_size


def listed(values, ids):
    """{CENSUS: (windows, LISTED) largest magnitudes of (CENSUS_TOKENS,) values}, the same for every window."""
    return {CENSUS: np.tile(np.sort(np.abs(values))[-LISTED:], (len(ids), 1))}


@entry(f"census of {CENSUS_TOKENS} tokens: census.Probe", OURS, CENSUS)
def census(options):
    from experiments.census import measure

    lm = load(options)
    probe = measure.Probe(lm, lm.arch.n_layers - 2, largest_dim(lm), sign=1, median=1.0)
    tokens = first_tokens(lm)
    return lambda ids: listed(probe.values(tokens, measure.TOKENS_AT_ONCE, "census")[:, 0], ids)


@entry(f"census of {CENSUS_TOKENS} tokens: output_hidden_states", TRANSFORMERS, CENSUS, timed=False)
def census_whole(options):
    lm = load(options)
    model, dim = lm.model.base_model, largest_dim(lm)

    def measure(ids):
        with torch.inference_mode():
            output = model(first_tokens(lm).to(lm.device), use_cache=False, output_hidden_states=True)
            values = on_host({CENSUS: output.hidden_states[-2][:, 0, dim]})
        return listed(values[CENSUS], ids)

    return measure


def _is_projection(module):
    return getattr(module, "weight", None) is not None and module.weight.ndim == 2


@entry(f"census of {CENSUS_TOKENS} tokens: matrix products alone", TRANSFORMERS, NOTHING)
def census_products(options):
    """The projections of every block but the last, on zeros."""
    lm = load(options)
    projections = [m for block in lm.arch.blocks[:-1] for m in block.modules() if _is_projection(m)]
    widths = [m.weight.shape[isinstance(m, torch.nn.Linear)] for m in projections]
    inputs = [torch.zeros(CENSUS_TOKENS, n, dtype=lm.model.dtype, device=lm.device) for n in widths]

    def measure(_ids):
        with torch.inference_mode():
            for projection, value in zip(projections, inputs, strict=True):
                projection(value)
        return {}

    return measure


MANY, TOKENS = 1000, 4


@entry(f"experiment 1 on 10 windows of {TOKENS} tokens", OURS, NOTHING, timed=False)
def ten_windows(options):
    return _experiment(options, 10)


@entry(f"experiment 1 on {MANY:,} windows of {TOKENS} tokens", OURS, NOTHING, timed=False)
def thousand_windows(options):
    return _experiment(options, MANY)


def _experiment(options, n):
    import exp1_feasibility_test as exp1
    from lib.core import data

    lm = load(options)

    def measure(ids):
        short = ids.reshape(-1, TOKENS)
        windows = data.Windows(short[torch.arange(n) % len(short)], n, False, "")
        exp1.run(lm, windows, exp1.Options(batch_size=10))
        return {}

    return measure


@entry("load a cached model", OURS, NOTHING)
def cached_model(options):
    def measure(_ids):
        load(options)
        return {}

    return measure
