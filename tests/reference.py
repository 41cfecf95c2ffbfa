"""Slow, plain implementations of what lib/ measures. They share nothing with it: eager attention maps, copies of the
model with weights zeroed, statistics and two transformer blocks in NumPy.
"""

import copy
from collections import Counter
from types import SimpleNamespace

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D


def blocks(model):
    return model.transformer.h if model.config.model_type == "gpt2" else model.model.layers


def final_norm(model):
    return model.transformer.ln_f if model.config.model_type == "gpt2" else model.model.norm


def parts(block):
    """heads: output projection of the attention; mlp_in, down: first and last projections of the MLP."""
    if hasattr(block, "attn"):
        return SimpleNamespace(
            heads=block.attn.c_proj, mlp_norm=block.ln_2, mlp_in=[block.mlp.c_fc], down=block.mlp.c_proj
        )
    norm = getattr(block, "pre_feedforward_layernorm", block.post_attention_layernorm)
    mlp = block.mlp
    return SimpleNamespace(
        heads=block.self_attn.o_proj, mlp_norm=norm, mlp_in=[mlp.gate_proj, mlp.up_proj], down=mlp.down_proj
    )


def matrix(module):
    """A view of the weight as (out, in); writing to it changes the module."""
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


def silence(module):
    module.weight.data.zero_()
    if module.bias is not None:
        module.bias.data.zero_()


def without(model, heads=(), attentions=(), mlps=()):
    """A copy whose weights are zero for (layer, head) pairs, for whole attentions, for whole MLPs."""
    model = copy.deepcopy(model)
    for layer, head in heads:
        weight = matrix(parts(blocks(model)[layer]).heads)
        width = weight.shape[1] // model.config.num_attention_heads
        weight[:, head * width : (head + 1) * width] = 0
    for layer in attentions:
        silence(parts(blocks(model)[layer]).heads)
    for layer in mlps:
        silence(parts(blocks(model)[layer]).down)
    return model


def observe(model, ids):
    """hidden: outputs of all blocks; normed: the last one after the final norm; attentions; logits."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(ids, use_cache=False, output_hidden_states=True, output_attentions=True)
        inner = model.transformer if model.config.model_type == "gpt2" else model.model
        setattr(inner, "ln_f" if model.config.model_type == "gpt2" else "norm", torch.nn.Identity())
        raw = inner(ids, use_cache=False, output_hidden_states=True).hidden_states
    return SimpleNamespace(
        hidden=[*output.hidden_states[1:-1], raw[-1]],
        normed=output.hidden_states[-1],
        attentions=output.attentions,
        logits=output.logits,
    )


# Statistics of one sequence


def layer_statistics(hidden):
    """top1, top2, top3, median; places of the three; {(position, dim): (value, ratio)} of what is massive."""
    hidden = np.asarray(hidden)
    size = np.abs(hidden)
    order = np.argsort(size, axis=None)
    median = size.flat[order[(size.size - 1) // 2]]  # of the two in the middle the lower, as torch.median
    massive = [tuple(at) for at in np.argwhere((size > 100) & (size > 1000 * median)).tolist()]
    places = [tuple(map(int, np.unravel_index(at, size.shape))) for at in order[:-4:-1]]
    return (
        [*(size[at] for at in places), median],
        [(*at, "+" if hidden[at] > 0 else "-") for at in places],
        {at: (hidden[at], size[at] / median) for at in massive},
    )


def can_see_first(config, layer, query):
    """Whether a sliding window still reaches token 0."""
    kinds = getattr(config, "layer_types", None)
    sliding = kinds[layer] == "sliding_attention" if kinds else config.model_type == "mistral"
    return not sliding or query < config.sliding_window


def first_token_attention(config, attention, layer, first_query=0, queries=None):
    """Mean of (seq, seq) probabilities on token 0, over the first `queries` queries that can see it."""
    seen = [attention[q][0].item() for q in range(len(attention)) if can_see_first(config, layer, q)]
    seen = seen[first_query:queries]
    return sum(seen) / len(seen)


def sink_rate(config, attentions):
    """Share of heads with over 0.3 on the first token in the first 64 queries."""
    sinks = [
        first_token_attention(config, head_map, layer, queries=64) > 0.3
        for layer, maps in enumerate(attentions)
        for head_map in maps[0]
    ]
    return sum(sinks) / len(sinks)


def loss(logits, ids):
    """Mean next-token loss in nats of one sequence."""
    logits = logits[:-1].double().numpy()
    top = logits.max(1)
    return np.mean(top + np.log(np.exp(logits - top[:, None]).sum(1)) - logits[np.arange(len(top)), ids[1:].numpy()])


def compare(model, ids, conditions, dims=()):
    """What lib.core.ablation.compare must find; conditions: {name: keywords of without()}. Lists hold one entry
    a sequence.

    results[name]: rows (layers x 4), where, loss, sink_rate, dims {dim: (layers,)}, massive, and places.
    Sequences in which a followed dim is not massive are left out of `dims`.
    """
    everything = {"baseline": {}, **conditions}
    variants = {name: without(model, **off) for name, off in everything.items()}
    results = {name: SimpleNamespace(rows=[], where=[], massive=[], loss=[], sink_rate=[]) for name in everything}
    for result in results.values():
        result.dims = {}
    every = {name: [] for name in everything}  # hidden states
    for sequence in ids:
        hidden = {}
        for name, variant in variants.items():
            seen = observe(variant, sequence[None])
            hidden[name] = [layer[0].double().numpy() for layer in seen.hidden]
            every[name].append(hidden[name])
            rows, where, massive = zip(*map(layer_statistics, hidden[name]), strict=True)
            result = results[name]
            result.rows.append(rows)
            result.where.append(where)
            result.massive.append({(layer, *at): x for layer, of in enumerate(massive) for at, x in of.items()})
            result.loss.append(loss(seen.logits[0], sequence))
            result.sink_rate.append(sink_rate(model.config, seen.attentions))
        sites = results["baseline"].massive[-1]
        for dim in dims or {dim for _layer, _position, dim in sites}:
            at = _peak(hidden["baseline"], dim)
            for name, result in results.items():
                result.dims.setdefault(dim, []).append([layer[at][dim] for layer in hidden[name]])
    for name, result in results.items():
        result.places = _places(every["baseline"], every[name], results["baseline"].massive)
    return results


def _places(baseline, ablated, massive):
    """{(is first, dim): what of it is left at the end of its plateau}: windows, size, layer, retained, moved, still.

    baseline, ablated: hidden[window][layer][position][dim]. still: one share a window.
    """
    places = {}
    for is_first, dim in {(position == 0, dim) for of in massive for _layer, position, dim in of}:
        positions = [sorted({p for _layer, p, d in of if d == dim and (p == 0) == is_first}) for of in massive]
        windows = [w for w, of in enumerate(positions) if of]
        layers = range(len(baseline[0]))
        mean = [np.mean([np.sum([abs(baseline[w][i][p][dim]) for p in positions[w]]) for w in windows]) for i in layers]
        times = [sum((i, p, dim) in massive[w] for w in windows for p in positions[w]) for i in layers]
        often = [i for i in layers if times[i] >= 0.5 * max(times)]
        end = max(i for i in often if mean[i] >= 0.5 * max(mean[j] for j in often))
        size = sum(
            max(abs(baseline[w][i][p][dim]) for i, p, d in massive[w] if d == dim and (p == 0) == is_first)
            for w in windows
        )
        total, kept, moved, still = 0.0, 0.0, 0.0, []
        for w in windows:
            median = layer_statistics(ablated[w][end])[0][3]
            passes = []
            for p in positions[w]:
                before, after = baseline[w][end][p][dim], ablated[w][end][p][dim]
                total, moved = total + abs(before), moved + abs(after - before)
                kept += after if before > 0 else -after
                passes.append(abs(after) > 100 and abs(after) > 1000 * median)
            still.append(np.mean(passes))
        numbers = {"retained": kept / total, "moved": moved / total, "still": still}
        places[is_first, dim] = SimpleNamespace(windows=windows, size=size, layer=end, **numbers)
    return places


def _peak(hidden, dim):
    """Position where |value| in `dim` is largest over all layers."""
    return np.abs([layer[:, dim] for layer in hidden]).max(0).argmax()


def most_common(values):
    return Counter(values).most_common(1)[0]


# One block in NumPy; x: (seq, hidden), w: weights by their names in the block


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def causal_attention(q, k, v, n_heads, n_kv_heads):
    """q: (seq, heads x width); query heads share key heads in order."""
    seq, width = len(q), q.shape[1] // n_heads
    outputs = []
    for head in range(n_heads):
        shared = head // (n_heads // n_kv_heads)
        mine, theirs = slice(head * width, (head + 1) * width), slice(shared * width, (shared + 1) * width)
        scores = q[:, mine] @ k[:, theirs].T / np.sqrt(width)
        scores[np.triu_indices(seq, 1)] = -np.inf
        outputs.append(softmax(scores) @ v[:, theirs])
    return np.concatenate(outputs, axis=1)


def gpt2_block(x, w, n_heads):
    """(block output, input of the MLP's last projection); weights are (in, out)."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    q, k, v = np.split(linear(norm(x, "ln_1"), "attn.c_attn"), 3, axis=1)
    x = x + linear(causal_attention(q, k, v, n_heads, n_heads), "attn.c_proj")
    inner = linear(norm(x, "ln_2"), "mlp.c_fc")
    gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    return x + linear(gelu, "mlp.c_proj"), gelu


def llama_block(x, w, n_heads, n_kv_heads, eps, theta=10000.0):
    """(block output, input of the MLP's last projection); weights are (out, in)."""

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T

    def rotate(x):
        """RoPE: the pairs are dim i and dim i + width / 2 of each head."""
        width = w["self_attn.q_proj.weight"].shape[0] // n_heads
        x = x.reshape(len(x), -1, width)
        first, second = x[..., : width // 2], x[..., width // 2 :]
        angles = np.arange(len(x))[:, None] / theta ** (np.arange(0, width, 2) / width)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return turned.reshape(len(x), -1)

    normed = norm(x, "input_layernorm")
    q, k, v = (linear(normed, f"self_attn.{name}_proj") for name in "qkv")
    x = x + linear(causal_attention(rotate(q), rotate(k), v, n_heads, n_kv_heads), "self_attn.o_proj")
    normed = norm(x, "post_attention_layernorm")
    gate, up = linear(normed, "mlp.gate_proj"), linear(normed, "mlp.up_proj")
    inner = gate / (1 + np.exp(-gate)) * up
    return x + linear(inner, "mlp.down_proj"), inner
