"""Attention to every key, and what it finds at the first, equal what eager maps and NumPy say."""

import copy
import sys
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from lib.core import keys
from lib.core.keys import ATTENDS, SPLIT
from lib.core.on_device import OnDevice
from lib.model import attention, attention_rows, hooks
from tests import every_type, reference
from tests.conftest import HEADS, LAYERS, POSITIONS, language_model, logits, planted_model, tiny_model, token_ids

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=[2**18, 2 * 4 * 16 * 5, 1], ids=["whole map", "five queries", "one query"])
def chunks(request, monkeypatch):
    """How many values of a map are looked at together."""
    monkeypatch.setattr(keys, "AT_ONCE", request.param)


def reduced(lm, ids):
    seen = {}
    with attention_rows.watch_rows(lm, lambda layer, attended: seen.update({layer: keys.reduced(attended)})):
        hooks.forward(lm, ids)
    return seen


def means_of(maps):
    """(batch, heads, keys) means of (batch, heads, queries, keys) over the queries that can see a key; and of later
    ones alone, of which there may be none."""
    visible = maps > 0
    later = visible & ~torch.eye(maps.shape[3], dtype=torch.bool)
    return maps.sum(2) / visible.sum(2), (maps * later).sum(2) / later.sum(2)


def test_means_equal_those_of_eager_maps(case, chunks):
    seen = reduced(case.lm, case.ids)
    assert [*seen] == [layer for layer in range(3) if case.lm.arch.layers[layer].n_heads]
    for layer, got in seen.items():
        maps = case.real.maps[layer]
        expected, later = means_of(maps)
        assert_close(got.on_keys / got.counts, expected, **TOLERANCE)
        n_later = got.counts - got.own_counts
        assert_close(((got.on_keys - got.own) / n_later)[..., :-1], later[..., :-1], **TOLERANCE)
        assert_close(got.on_first, maps[..., 0], **TOLERANCE)
        assert torch.equal(got.sees_first.expand(maps.shape[:3]), maps[..., 0] > 0)


@pytest.mark.parametrize(
    "model_type", ["gpt_oss", "qwen3_next", "deepseek_v3", "llama4_text", "codegen", "minimax_m3_vl_text"]
)
def test_means_equal_those_of_eager_maps_of_other_types(model_type):
    """Learned sinks, layers without attention, latent attention, chunked windows, logits that are divided once they are
    masked, masks that differ from head to head."""
    lm = every_type.loaded(model_type)
    ids = torch.randint(3, 100, (2, 20), generator=torch.Generator().manual_seed(3))
    seen = reduced(lm, ids)
    model = copy.deepcopy(lm.model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    with_attention = [layer for layer in range(lm.arch.n_layers) if lm.arch.layers[layer].n_heads]
    assert [*seen] == with_attention
    for (layer, got), of_layer in zip(seen.items(), [m for m in maps if m is not None], strict=True):
        expected, _later = means_of(of_layer)
        assert_close(got.on_keys / got.counts, expected, **TOLERANCE)
        assert got.around is not None, layer


def probed(model, ids):
    """[(query, key, value)] of each layer, as transformers gives them to an attention function, and eager maps."""
    seen = []

    def attend(module, query, key, value, mask, **kwargs):
        seen.append((query, key, value))
        own = sys.modules[type(module).__module__].eager_attention_forward
        return own(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("probe", attend)
    AttentionMaskInterface.register("probe", eager_mask)
    model = copy.deepcopy(model)
    model.set_attn_implementation("probe")
    with torch.no_grad():
        maps = model(ids, use_cache=False, output_attentions=True).attentions
    return [SimpleNamespace(query=q, key=k, value=v, map=m) for (q, k, v), m in zip(seen, maps, strict=True)]


def projected(model, ids):
    """The same of models that compute attention themselves, and have no rotation: what their projections give."""
    fused = {"bloom": "query_key_value", "mpt": "Wqkv"}[model.config.model_type]
    seen = []
    handles = [
        module.register_forward_hook(lambda _module, _args, output: seen.append(output))
        for name, module in model.named_modules()
        if name.endswith(fused)
    ]
    with torch.no_grad():
        maps = model(ids, use_cache=False, output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    layers = []
    for output, of_layer in zip(seen, maps, strict=True):
        order = (-1, 3, 16) if fused == "query_key_value" else (3, -1, 16)
        parts = output.unflatten(2, order).movedim(order.index(3) + 2, 0).transpose(2, 3)
        layers.append(SimpleNamespace(query=parts[0], key=parts[1], value=parts[2], map=of_layer))
    return layers


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def split_of(query, key, value, weights):
    """What NumPy makes of one head: (seq, width) query, key, value, and its (seq, seq) map."""
    output = weights @ value
    queries = [q for q in range(1, len(query)) if weights[q, 0] > 0]
    size = np.linalg.norm
    seen = {q: [k for k in range(1, len(key)) if weights[q, k] > 0] for q in queries}
    return {
        "value": size(value[0]),
        "value_others": np.mean([size(v) for v in value[1:]]),
        "key": size(key[0]),
        "key_others": np.mean([size(k) for k in key[1:]]),
        "query": np.mean([size(query[q]) for q in queries]),
        "cosine": np.mean([cosine(query[q], key[0]) for q in queries]),
        "cosine_others": np.mean([np.mean([cosine(query[q], key[k]) for k in seen[q]]) for q in queries]),
        "from_first": sum(weights[q, 0] * value[0] @ output[q] for q in queries),
        "output": sum(output[q] @ output[q] for q in queries),
    }


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2", "bloom", "mpt"])
def test_split_of_the_first_key(model_type, chunks):
    """Grouped heads, sliding windows, soft caps, learned sinks, ALiBi; by scaled_dot_product_attention and softmax."""
    lm = every_type.loaded(model_type)
    ids = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(4))
    kept = OnDevice()
    measured = keys.KeyMeans(lm.arch, [0.3], kept)
    with attention_rows.watch_rows(lm, measured.update):
        hooks.forward(lm, ids)
    measured.end_batch(kept.take())
    got = dict(zip(ATTENDS + SPLIT, np.moveaxis(measured.heads.array, 3, 0), strict=True))
    expected = projected if model_type in ("bloom", "mpt") else probed
    for layer, of_layer in enumerate(expected(lm.model, ids)):
        n_heads = of_layer.query.shape[1]
        groups = n_heads // of_layer.key.shape[1]
        for window, head in np.ndindex(2, n_heads):
            parts = [of_layer.query[window, head], *(x[window, head // groups] for x in (of_layer.key, of_layer.value))]
            weights = of_layer.map[window, head].double().numpy()
            for name, value in split_of(*(part.double().numpy() for part in parts), weights).items():
                assert got[name][window, layer, head] == pytest.approx(value, rel=1e-4, abs=1e-6), (layer, head, name)
    assert np.isfinite(measured.heads.array).all()


def test_rates_are_shares_of_heads(lm, monkeypatch):
    monkeypatch.setattr(keys, "SINK_QUERIES", 3)
    ids, kept = token_ids(3, 14), OnDevice()
    measured = keys.KeyMeans(lm.arch, [0.2, 0.4], kept)
    listed = []
    with attention_rows.watch_rows(lm, measured.update):
        for batch in ids.split(2):
            hooks.forward(lm, batch)
            measured.end_batch(kept.take())
            listed.extend(measured.listed)
    maps = torch.stack(reference.observe(lm.model, ids).attentions)  # (layers, windows, heads, seq, seq)
    means, later = (torch.stack(of) for of in zip(*map(means_of, maps), strict=True))
    n_later = torch.stack([((of > 0).any(0).any(0)).sum(0) - 1 for of in maps])[:, None, None]
    for i, epsilon in enumerate((0.2, 0.4)):
        assert measured.rates.array[:, i] == pytest.approx((means > epsilon).double().mean((0, 2)).numpy())
    assert measured.by_layer.total == pytest.approx((means > 0.2).double().mean(2).sum(1).numpy())
    is_listed = (later > 0.2) & (n_later >= 3)
    assert np.array_equal(np.array(listed), is_listed.sum(2).permute(1, 0, 2).numpy())
    assert is_listed[..., 1:].any()
    elsewhere = measured.heads.array[..., ATTENDS.index("elsewhere")]
    assert np.array_equal(elsewhere, is_listed[..., 1:].any(3).permute(1, 0, 2).double().numpy())


def test_half_precision_is_summed_in_float32():
    model = tiny_model("llama")
    ids = token_ids(2, 30)
    exact = reduced(language_model(model), ids)
    half = reduced(language_model(copy.deepcopy(model).bfloat16()), ids)
    for layer, of in half.items():
        assert of.on_keys.dtype == torch.float32
        assert_close(of.on_keys / of.counts, exact[layer].on_keys / exact[layer].counts, rtol=0, atol=0.03)
        assert_close(of.on_keys.sum(2), torch.full((2, HEADS), 30.0), rtol=1e-5, atol=0)


def test_watching_changes_nothing(lm):
    ids = token_ids(2, 30)
    before = logits(lm, ids)
    with attention_rows.watch_rows(lm, lambda _layer, attended: [*attended.rows(100)]):
        assert torch.equal(logits(lm, ids), before)
    assert torch.equal(logits(lm, ids), before)


def test_restored_after_an_error(lm):
    def fail(layer, *_):
        if layer == 1:
            raise ValueError("on purpose")

    ids = token_ids(2, 30)
    before = logits(lm, ids)
    with pytest.raises(ValueError, match="on purpose"), attention_rows.watch_rows(lm, fail):
        hooks.forward(lm, ids)
    assert torch.equal(logits(lm, ids), before)


def test_others_that_watch_softmax_do_not_see_the_rows():
    """In whichever order they are entered."""
    lm, ids = language_model(tiny_model("llama")), token_ids(1, 12)
    for rows_first in (True, False):
        rows = attention_rows.watch_rows(lm, lambda _layer, attended: [*attended.rows(1)])
        learned = attention.watch_learned_sinks(lm, lambda *_: pytest.fail("there is none"))
        first, second = (rows, learned) if rows_first else (learned, rows)
        with first, second:
            hooks.forward(lm, ids)


@pytest.mark.parametrize("alike", [0.01, 0.1, 0.4])
def test_secondary_sinks_equal_those_of_hidden_states(alike, tokenizer, monkeypatch):
    monkeypatch.setattr(keys, "ALIKE", alike)
    lm = language_model(planted_model("gpt2"), tokenizer)
    lm.arch.weight(2, "down")[:, 0] = 0  # so that the largest rise is before the last layer
    ids = token_ids(4, 12)
    ids[:, 0] = 7  # SPIKE_TOKEN
    ids[1, 5] = ids[2, 3] = ids[3, 4] = 7
    kept = OnDevice()
    listed = np.random.default_rng(0).random((4, LAYERS, 12)) < 0.4
    listed[1, :, 5] = listed[2, :, 3] = True
    listed[3, :, 4] = [True, True, False]  # of the layers that read what is like the first: not
    measured = keys.LikeFirst(lm.arch, kept)
    with measured.watching():
        for rows in (slice(0, 3), slice(3, 4)):
            hooks.forward(lm, ids[rows])
            measured.end_batch(ids[rows], kept.take(), listed[rows].astype(int))
    model = copy.deepcopy(lm.model)
    model.transformer.ln_f = torch.nn.Identity()
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    hidden = [of.double().numpy() for of in hidden]
    n_alike, unseen = [0] * 4, 0
    expected = {}
    for window in range(4):
        norms = [np.linalg.norm(of[window, 0]) for of in hidden]
        changes = np.diff(norms).tolist()
        rise = int(np.argmax(changes))
        falls = changes[rise + 1 :]
        last = rise + int(np.argmin(falls)) if falls and min(falls) < -0.1 * changes[rise] else LAYERS - 1
        assert measured.between[rise, last] > 0
        for position in range(1, 12):
            like = {
                layer for layer in range(rise, last + 1)
                if abs(cosine(hidden[layer + 1][window, position], hidden[layer + 1][window, 0])) > alike
            }  # fmt: skip
            n_alike[window] += bool(like)
            lives = [
                (start, n) for start in range(LAYERS) for n in range(1, LAYERS + 1)
                if {*range(start, start + n)} <= like and not {start - 1, start + n} & like
                and any(listed[window, reader, position] for reader in range(start + 1, min(start + n + 1, LAYERS)))
            ]  # fmt: skip
            unseen += bool(like) and not lives
            if lives:
                longest = max(lives, key=lambda life: life[1])
                place = int(ids[window, position]), *longest
                expected.setdefault(place, []).append((window, position))
    got = {place: sorted(at.elements()) for place, at in measured.found.items()}
    assert got == {place: sorted(position for _window, position in at) for place, at in expected.items()} != {}
    n_secondary = [sum(window == of for at in expected.values() for of, _position in at) for window in range(4)]
    later = listed[:, :, 1:].any(1).sum(1)
    assert measured.counts.array.T.tolist() == [n_secondary, n_alike, later.tolist()]
    assert unseen > 0


def test_runs():
    assert keys.runs(np.array([False, True, False, True, True, False])) == [(1, 1), (3, 2)]
    assert keys.runs(np.array([True, False, True])) == [(0, 1), (2, 1)]
    assert keys.runs(np.array([False])) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([1, 5, 1, -3, -1], (1, 2)),
        ([-9, 5, 1, -3, -4], (1, 3)),
        ([1, 5, 1, 2], (1, 3)),
        ([1, 2, 5], (2, 2)),
        ([1, 5, -0.6, 1], (1, 1)),
        ([1, 5, -0.4, 1], (1, 3)),  # no more than noise
    ],
)
def test_between_the_largest_rise_and_the_largest_fall_after_it(changes, expected):
    assert keys.between(np.array(changes)) == expected


class Largest(TorchDispatchMode):
    """Keeps the largest number of values that a tensor has."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        for value in output if isinstance(output, (tuple, list)) else [output]:
            self.values = max(self.values, value.numel() if isinstance(value, torch.Tensor) else 0)
        return output


def test_no_map_is_made(monkeypatch):
    monkeypatch.setattr(keys, "AT_ONCE", 8 * HEADS * POSITIONS)
    lm, ids = language_model(tiny_model("llama")), token_ids(1, POSITIONS)
    largest = {}
    for name, watching in (
        ("bare", nullcontext()),
        ("rows", attention_rows.watch_rows(lm, keys.KeyMeans(lm.arch, [0.3], OnDevice()).update)),
    ):
        with watching, Largest() as seen:
            hooks.forward(lm, ids)
        largest[name] = seen.values
    assert largest["rows"] <= max(largest["bare"], 8 * HEADS * POSITIONS) < HEADS * POSITIONS**2


def test_rows_are_let_go(monkeypatch):
    """Each is of an array of NumPy's, which lives as long as something looks at it."""
    monkeypatch.setattr(keys, "AT_ONCE", 2 * 8)
    arrays = []

    def rows_of(first, last):
        arrays.append(weakref.ref(array := np.ones((1, 2, last - first, last), dtype=np.float32)))
        assert sum(array() is not None for array in arrays) <= 2
        return attention_rows.Rows(first, torch.from_numpy(array), torch.ones(1, 1, last - first, last).bool())

    keys.reduced(attention_rows.Attended((1, 2, 8), torch.device("cpu"), None, rows_of))
