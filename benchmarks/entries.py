"""What `benchmarks.bench` measures: one function an entry.

A function gets the options, loads what it needs, and returns one pass: a function of (windows, seq) token ids that
returns what it measured as {key: array with one row a window}. All entries that give a key must give equal values.
To add an entry, write its function under @entry; what must hold of it goes into TARGETS.
"""

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.compare import NOTHING, AtMost, Faster, LeastMemory


@dataclass(frozen=True)
class Entry:
    """label: of the table. tool: whose code measures. gives: what, in words; entries that give the same are compared.

    prepare: (options) -> the pass.
    """

    label: str
    tool: str
    gives: str
    prepare: object


ENTRIES = {}


def entry(label, tool, gives):
    def register(prepare):
        ENTRIES[prepare.__name__] = Entry(label, tool, gives, prepare)
        return prepare

    return register


OURS, TRANSFORMERS, LENS, NNSIGHT = "this repository", "transformers", "TransformerLens", "nnsight"
LAYERS, BOTH = "layers", "layers + heads"
TARGETS = [
    AtMost("layers_heads", "bare", 1.10),
    Faster("layers_heads", NNSIGHT, 1.25),
    Faster("layers_heads", TRANSFORMERS, 1.4),
    Faster("layers_heads", LENS, 1.9),
    LeastMemory("layers_heads"),
]


def load(options):
    from lib import models

    return models.load(options)


def by_window(options, measure):
    """A pass from `measure`, (batch, seq) token ids -> {key: array with one row a window}."""

    def run(ids):
        with torch.inference_mode():
            parts = [measure(batch) for batch in ids.split(options.batch_size)]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return run


def statistics(hidden):
    """(batch, 4) top-1, top-2, top-3 and median of the magnitudes in (batch, seq, hidden_size)."""
    magnitude = hidden.abs().flatten(1)
    return torch.cat([magnitude.topk(3, dim=1).values, magnitude.median(dim=1, keepdim=True).values], dim=1)


def stacked(rows):
    """(batch, layers, ...) array of one (batch, ...) tensor a layer."""
    return torch.stack(list(rows), dim=1).numpy()


def largest(hidden):
    return hidden.abs().amax((1, 2)).numpy()


@entry("forward of base_model, no hooks", TRANSFORMERS, NOTHING)
def bare(options):
    model = load(options).model.base_model
    return by_window(options, lambda ids: {"output": largest(model(ids, use_cache=False).last_hidden_state)})


@entry("LayerStatistics", OURS, LAYERS)
def layers(options):
    from lib import hooks
    from lib.massive import LayerStatistics

    lm = load(options)

    def measure(ids):
        found = LayerStatistics(lm.arch, lm.tokenizer)
        found.begin_batch(ids)
        with hooks.watch_outputs(lm.arch, "block", found.update):
            hooks.forward(lm, ids)
        found.end_batch()
        return {"layers": found.rows.array}

    return by_window(options, measure)


@entry("LayerStatistics, sinks.watch", OURS, BOTH)
def layers_heads(options):
    from lib import hooks, sinks
    from lib.massive import LayerStatistics

    lm = load(options)

    def measure(ids):
        found, heads = LayerStatistics(lm.arch, lm.tokenizer), sinks.HeadScores(lm.arch)
        found.begin_batch(ids)
        with sinks.watch(lm, heads.update), hooks.watch_outputs(lm.arch, "block", found.update):
            hooks.forward(lm, ids)
        found.end_batch()
        heads.end_batch()
        return {"layers": found.rows.array, "heads": heads.scores}

    return by_window(options, measure)


@entry("output_hidden_states", TRANSFORMERS, LAYERS)
def hidden_states(options):
    return _transformers(options)


@entry("output_hidden_states, eager output_attentions", TRANSFORMERS, BOTH)
def attentions(options):
    return _transformers(options, output_attentions=True)


def _transformers(options, **wanted):
    """The last of hidden_states is after the final norm: the last layer's statistics are not to be had."""
    model = load(options).model.base_model
    if wanted:
        model.set_attn_implementation("eager")

    def measure(ids):
        output = model(ids, use_cache=False, output_hidden_states=True, **wanted)
        values = {
            "layers": stacked(map(statistics, output.hidden_states[1:-1])),
            "output": largest(output.last_hidden_state),
        }
        if wanted:
            values["heads"] = stacked(attention[..., 0].mean(-1) for attention in output.attentions)
        return values

    return by_window(options, measure)


@entry("run_with_cache", LENS, BOTH)
def lens_cache(options):
    return _lens(options)


@entry("run_with_cache, names_filter on both", LENS, BOTH)
def lens_both(options):
    return _lens(options, ("hook_resid_post", "hook_pattern"))


@entry("run_with_cache, names_filter on block outputs", LENS, LAYERS)
def lens_layers(options):
    return _lens(options, ("hook_resid_post",), heads=False)


def _lens(options, names=None, heads=True):
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(options.model, device="cpu", dtype=getattr(torch, options.dtype))
    wanted = {} if names is None else {"names_filter": lambda name: name.endswith(names)}

    def measure(ids):
        _, cache = model.run_with_cache(ids, return_type=None, **wanted)
        layers = [f"blocks.{layer}" for layer in range(model.cfg.n_layers)]
        values = {"layers": stacked(statistics(cache[f"{layer}.hook_resid_post"]) for layer in layers)}
        if heads:
            values["heads"] = stacked(cache[f"{layer}.attn.hook_pattern"][..., 0].mean(-1) for layer in layers)
        return values

    return by_window(options, measure)


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
    family = lm.arch.family
    blocks = model.get(family.blocks)
    attention = family.head_projection.rpartition(".")[0]

    def measure(ids):
        with model.trace(ids, use_cache=False):
            rows, scores = nnsight.save([]), nnsight.save([])
            for block in blocks:
                if heads:
                    scores.append(block.get(attention).output[1][..., 0].mean(-1))
                rows.append(statistics(block.output))
        return {"layers": stacked(rows)} | ({"heads": stacked(scores)} if heads else {})

    return by_window(options, measure)
