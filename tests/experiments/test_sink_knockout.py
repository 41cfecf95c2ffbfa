"""Edges to the sink masked, and its value zero, equal eager attention in which the test does so itself."""

import dataclasses
import itertools
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

import exp10_sink_knockout
from experiments.sink_knockout import changes, figures, judge, measure, text
from experiments.sink_knockout.results import (
    CONTROLS,
    EQUAL_MASS,
    ITSELF,
    MIDDLE,
    ONLY_SINK,
    POSITION,
    PREVIOUS,
    RANDOM,
    RANDOM_VALUES,
    RECENT,
    SINK,
    SINK_FIRST,
    SINK_SECOND,
    VALUE_ZERO,
    Moved,
    Results,
    sink_at,
)
from lib import catalogue
from lib.core import keys
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Average
from lib.model import hooks
from lib.planted import planting
from lib.report.figures import make_axes
from lib.report.result_files import Result
from lib.run.errors import UserError
from tests import cases, every_type, reference
from tests.conftest import token_ids
from tests.core.test_sweep import windows_of
from tests.partial import partial

pytestmark = pytest.mark.usefixtures("few_draws")
KINDS = ["gpt2", "llama", "gemma2", "gemma3_text", "bloom", "gpt_oss"]
SOFTMAX_ALONE = {"gemma2", "bloom", "gpt_oss"}
VALUES = VALUE_ZERO, RANDOM_VALUES
N = 14
WHOLE_MAP = 2**18
VOCABULARY = 96


@pytest.fixture(scope="module")
def words():
    known = WordLevel({str(token): token for token in range(128)}, unk_token="0")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(known))


def tiny(kind, words):
    if kind in cases.architectures.TESTED:
        return cases.case_of(kind, next(iter(cases.architectures.TESTED[kind].variants))).lm
    return dataclasses.replace(every_type.loaded(kind), tokenizer=words)


def windows(n=3):
    return windows_of(torch.randint(3, 60, (n, N), generator=torch.Generator().manual_seed(2)))


def measured(lm, windows, **flags):
    """As it is stored and read again."""
    options = exp10_sink_knockout.Options(batch_size=2, **flags)
    return catalogue.typed("exp10", catalogue.judged("exp10", exp10_sink_knockout.run(lm, windows, options)))


@contextmanager
def eager(model):
    before, model.config._attn_implementation = model.config._attn_implementation, "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = before


def observed(model, ids, layers=(), off=None, silent=None):
    """One window by eager attention. off(call), silent(call): (heads, queries, keys) bool of a layer's call, edges that
    have no score in these layers, and weights that are zero after softmax. Per layer, maps before and after, and how
    many edges are off."""
    softmax = torch.nn.functional.softmax
    seen = SimpleNamespace(before=[], after=[], off=[], visible=[])

    def edited(scores, *args, **kwargs):
        weights = softmax(scores, *args, **kwargs)
        if scores.ndim != 4:
            return weights
        before = weights[0, :, :, :N].double()
        visible = (scores[0, 0, :, :N] > -1e30) & torch.ones(N, N, dtype=torch.bool).tril()
        call = SimpleNamespace(layer=len(seen.before), weights=before, visible=visible)
        here = torch.zeros(before.shape, dtype=torch.bool)
        if call.layer in layers:
            here = (off or silent)(call)
        if off is not None:
            scores = scores.clone()
            scores[0, :, :, :N].masked_fill_(here, -torch.inf)
            weights = softmax(scores, *args, **kwargs)
        else:
            weights = weights.clone()
            weights[0, :, :, :N].masked_fill_(here, 0)
        for kept, value in zip(
            (seen.before, seen.after, seen.off, seen.visible),
            (before, weights[0, :, :, :N].double(), here, visible),
            strict=True,
        ):
            kept.append(value)
        return weights

    with torch.no_grad(), eager(model), mock.patch.object(torch.nn.functional, "softmax", edited):
        output = model(ids, use_cache=False, output_hidden_states=True)
    seen.loss = reference.loss(output.logits[0], ids[0])
    seen.hidden = output.hidden_states
    return seen


def each(call, position, choose):
    """(heads, queries, keys): of each head and later query that sees the sink, the keys that
    `choose(head, query, its other keys)` gives."""
    here = torch.zeros(call.weights.shape, dtype=torch.bool)
    for query in range(position + 1, N):
        if call.visible[query, position]:
            others = [key for key in range(N) if call.visible[query, key] and key != position]
            for head in range(len(here)):
                here[head, query, choose(head, query, others)] = True
    return here


def edits(position, has_sink, window, shape):
    """{condition: off() of observed} in one window. has_sink: (layers, heads) bool; shape: of all windows' ids."""
    rng = np.random.default_rng(0)
    order, start, drawn = (rng.random(shape, dtype=np.float32)[window] for _ in range(3))
    shift = rng.random(has_sink.shape, dtype=np.float32)

    def equal_mass(call, head, query, others):
        gone, wanted = [], call.weights[head, query, position].item()
        turned = (order + start[query] + shift[call.layer, head]) % np.float32(1)
        for key in sorted(others, key=turned.__getitem__):
            mass = call.weights[head, query, [*gone, key]].sum().item()
            if abs(mass - wanted) >= abs(call.weights[head, query, gone].sum().item() - wanted):
                break
            gone.append(key)
        return gone

    choices = {
        SINK: lambda _call, _head, _query, _others: position,
        RECENT: lambda _call, _head, query, others: max((key for key in others if key < query), default=query),
        MIDDLE: lambda _call, _head, _query, others: others[(len(others) + 1) // 2 - 1],
        RANDOM: lambda _call, _head, query, others: others[int(drawn[query] * np.float32(len(others)))],
        EQUAL_MASS: equal_mass,
        ONLY_SINK: lambda call, head, _query, others: others if has_sink[call.layer, head] else [],
    }
    return {
        name: lambda call, choose=choose: each(call, position, lambda *which: choose(call, *which))
        for name, choose in choices.items()
    }


@pytest.mark.parametrize(
    ("kind", "position", "at_once"),
    [*((kind, position, WHOLE_MAP) for kind in KINDS for position in (0, 4)), ("llama", 4, 1), ("gemma2", 0, 1)],
)
def test_edges_off_equal_eager_attention(kind, position, at_once, words, monkeypatch):
    monkeypatch.setattr(keys, "AT_ONCE", at_once)
    lm, data = tiny(kind, words), windows()
    results = measured(lm, data, position=position)
    n_layers = lm.arch.n_layers
    layers = range(n_layers)
    plain = [observed(lm.model, ids[None]) for ids in data.ids]
    sees = [visible[:, position].sum().item() for visible in plain[0].visible]
    assert results.baseline.loss.mean == pytest.approx(np.mean([seen.loss for seen in plain]), abs=1e-4)
    means = np.mean([[seen.before[i][:, :, position].sum(1).numpy() / sees[i] for i in layers] for seen in plain], 0)
    assert [[head.mean for head in heads] for heads in results.heads] == [
        pytest.approx(expected, abs=1e-4) for expected in means
    ]
    of_window = [edits(position, means > 0.3, window, data.ids.shape) for window in range(len(data.ids))]
    every = dict.fromkeys(of_window[0], layers) | {
        SINK_FIRST: range(n_layers // 2),
        SINK_SECOND: range(n_layers // 2, n_layers),
        sink_at(n_layers - 1): [n_layers - 1],
        **({} if kind in SOFTMAX_ALONE else {VALUE_ZERO: layers}),
    }
    for name, where in every.items():
        cell = results.conditions[name]
        how = "silent" if name == VALUE_ZERO else "off"
        seen = [
            observed(lm.model, ids[None], where, **{how: off.get(name, off[SINK])})
            for ids, off in zip(data.ids, of_window, strict=True)
        ]
        assert cell.layers == [*where]
        pairs = [*zip(seen, plain, strict=True)]
        assert cell.loss_change.mean == pytest.approx(
            np.mean([one.loss - before.loss for one, before in pairs]), abs=2e-4
        )
        if name == VALUE_ZERO:
            assert (cell.edges, cell.mass.mean) == (0, 0)
            continue
        edges = np.mean([sum(one.off[i].sum().item() for i in where) for one in seen])
        asked = sum(len(means[i]) * (sees[i] - 1) for i in where)
        mass = np.mean([sum(one.before[i][one.off[i]].sum().item() for i in where) for one in seen])
        assert cell.edges == pytest.approx(edges)
        assert cell.mass.mean == pytest.approx(mass / asked, abs=1e-4)
        rates = [
            np.mean([(one.after[i][:, :, position].sum(1) / sees[i] > 0.3).tolist() for i in layers]) for one in seen
        ]
        assert cell.sink_rate_after.mean == pytest.approx(np.mean(rates))
        gains = np.mean([gained(one, before, where, position) for one, before in pairs], 0)
        for moved in cell.moved_to:
            index = {ITSELF: N, PREVIOUS: N + 1, POSITION: moved.position}.get(moved.key)
            assert index is None or moved.gain.mean == pytest.approx(gains[index], abs=1e-4)
        assert max(gains) < 1e-5 or cell.moved_to[0].gain.mean >= max(gains) - 1e-4
        peak = results.place.peak_layer
        if peak < n_layers - 1 and len(results.place.positions) == 1:
            (at,) = results.place.positions
            value = np.mean([one.hidden[peak + 1][0, at, results.place.dim].item() for one in seen])
            assert cell.value.mean == pytest.approx(value, abs=1e-3, rel=1e-3)
    assert len({cell.loss_change.mean for cell in results.conditions.values()}) > 6
    assert results.conditions[RECENT].edges == results.conditions[SINK].edges == results.conditions[RANDOM].edges
    assert (results.left_out is not None) == (kind in SOFTMAX_ALONE)
    assert any(name in results.conditions for name in VALUES) == (kind not in SOFTMAX_ALONE)


def gained(seen, before, layers, position):
    """(N + 2,) of each key, the query's own, the previous one: mean over heads of the layers and later queries."""
    gains, heads = np.zeros(N + 2), sum(len(seen.before[i]) for i in layers)
    for i in layers:
        change = (seen.after[i] - before.before[i]).sum(0).numpy()
        for query in range(position + 1, N):
            for key in range(query + 1):
                own, previous = key == query, key == query - 1 and key != position
                gains[N if own else N + 1 if previous else key] += change[query, key]
    return gains / heads / (N - 1 - position)


def of_kind(architecture, kind):
    built = (planting.build(architecture, kind, seed) for seed in range(20))
    return next(model for model in built if kind == "content" or len(model.truth.readers) == 2)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_planted_sinks_are_knocked_out(architecture):
    built = of_kind(architecture, "decoy")
    results = measured(built.lm, built.windows)
    found = [(i, h) for i, row in enumerate(results.heads) for h, head in enumerate(row) if head.mean > 0.3]
    assert found == sorted(built.truth.sinks)
    n_heads = sum(map(len, results.heads))
    assert results.baseline.sink_rate.mean == pytest.approx(len(found) / n_heads)
    assert results.conditions[SINK].sink_rate_after.mean == 0
    assert results.conditions[ONLY_SINK].sink_rate_after.mean >= results.baseline.sink_rate.mean
    for layer, cell in results.by_layer.items():
        here = [of for of, _head in found if of == layer]
        assert cell.sink_rate_after.mean == pytest.approx((len(found) - len(here)) / n_heads)
        assert cell.retained.mean == pytest.approx(1)  # position 0 sees no other key
    first = measure.random_values_at(results.place.plateau[0])
    assert first in results.conditions
    assert judge.judge(results).values.heads == len(found)


@pytest.mark.parametrize(("kind", "verdict"), [("ten", judge.EDGE), ("decoy", judge.NOT_NEEDED)])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_sink_is_needed_where_its_heads_shout_without_it(architecture, kind, verdict):
    built = of_kind(architecture, kind)
    assert judge.judge(measured(built.lm, built.windows)).verdict == verdict


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_model_without_sinks_has_nothing_to_knock_out(architecture):
    built = of_kind(architecture, "content")
    assert judge.judge(measured(built.lm, built.windows)).verdict == NONE_FOUND


def test_attention_that_makes_the_value_goes_with_random_values():
    """Planted: heads bring the spike from another token, so it hangs on values; an MLP's does not."""
    retained = {}
    for kind in ("head", "mlp"):
        built = planting.build("llama", kind, 0)
        cell = measured(built.lm, built.windows).conditions[RANDOM_VALUES]
        retained[kind] = cell.retained.mean
    assert abs(retained["head"]) < 0.5 < retained["mlp"]


class Values(TorchFunctionMode):
    """What attention is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is scaled_dot_product_attention:
            self.given.append((args[2] if len(args) > 2 else kwargs["value"]).clone())
        return function(*args, **(kwargs or {}))


def test_random_values_have_the_norms_of_the_values(words):
    lm, data = tiny("llama", words), windows()
    with Values() as plain:
        hooks.forward(lm, data.ids)
    change = changes.RandomValues("", "", lm, [0], seed=0)
    seen = {}
    for rows in (slice(0, 3), slice(1, 2)):
        with Values() as seen[rows.start], change.hooks(lm.arch, rows):
            hooks.forward(lm, data.ids[rows])
    value, drawn = plain.given[0], seen[0].given[0]
    assert torch.allclose(drawn.norm(dim=3), value.norm(dim=3), rtol=1e-5)
    assert torch.nn.functional.cosine_similarity(drawn, value, dim=3).mean().abs() < 0.15
    assert torch.equal(seen[1].given[0][0], drawn[1])  # a window's own, whatever the batch
    assert not torch.allclose(drawn[0] / value[0], drawn[1] / value[1])


@pytest.mark.parametrize("kind", ["llama", "bloom"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(kind, dtype, words):
    lm, data = tiny(kind, words), windows()
    expected = measured(lm, data).conditions[SINK]
    model = cases.copy.deepcopy(lm.model).to(dtype)
    other = dataclasses.replace(lm, model=model, arch=type(lm.arch)(model))
    got = measured(other, data).conditions[SINK]
    assert got.edges == expected.edges
    assert got.mass.mean == pytest.approx(expected.mass.mean, abs=2e-2)
    assert got.loss_change.mean == pytest.approx(expected.loss_change.mean, abs=0.1)


def test_layers_without_attention_are_left_out(words):
    lm, data = dataclasses.replace(every_type.loaded("jamba"), tokenizer=words), windows()
    results = measured(lm, data)
    with_attention = lm.arch.with_role("attention_module")
    assert len(with_attention) < lm.arch.n_layers
    assert [*results.by_layer] == results.conditions[SINK].layers == with_attention
    drawn(shown(results, data))


def test_sparse_attention_has_no_number_of_edges(words):
    lm, ids = dataclasses.replace(every_type.loaded("glm_moe_dsa"), tokenizer=words), token_ids(3, 12) % 128
    with pytest.raises(UserError, match=r"layer \d: which queries see the sink differs .*\(sparse attention\)"):
        measure.run(lm, windows_of(ids), exp10_sink_knockout.Options(batch_size=3))


def test_what_cannot_be_measured_is_refused_and_the_model_is_as_before(words, monkeypatch):
    lm, data = tiny("llama", words), windows()
    for position in (-1, N - 1, N):
        with pytest.raises(UserError, match=f"--position {position} is out of range: .* it is 0 to {N - 2}"):
            measured(lm, data, position=position)
    with pytest.raises(UserError, match="this model has no attention heads"):
        measured(dataclasses.replace(every_type.loaded("mamba"), tokenizer=words), data)
    before, here = lm.model(data.ids).logits, n_hooks(lm.model)  # transformers may have put some there

    def fails(*_args):
        raise KeyError("in a pass")

    monkeypatch.setattr(changes, "middle", fails)
    monkeypatch.setattr(measure, "middle", fails)
    with pytest.raises(KeyError, match="in a pass"):
        measured(lm, data)
    assert torch.equal(lm.model(data.ids).logits, before)
    assert n_hooks(lm.model) == here


def n_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def shown(results, windows):
    told = dict.fromkeys(("dtype", "device", "seed", "time", "command"), "")
    data = {"windows": len(windows.ids), "seqlen": windows.ids.shape[1], "dataset": "test", "bos": 0}
    origin = {"model": {"name": "tiny", "type": ""}, "data": data} | told
    return Result("exp10", origin, {"model_name": "tiny"}, results, judge.judge(results), {})


def drawn(stored):
    assert all(draw(stored).axes for draw in (figures.knockout, figures.layers, figures.moves))
    return text.summarise(stored) + text.details(stored)


def test_what_is_left_out_is_said(words):
    data = windows()
    assert "Left out, all that sets values: this model computes" in drawn(
        shown(measured(tiny("bloom", words), data), data)
    )
    said = drawn(shown(measured(tiny("gpt2", words), data), data))
    assert "Left out" not in said
    assert not any(name in said for name in (*CONTROLS, "sink_", "_all"))  # as the JSON names them
    assert "random keys of the sink's mass masked" in said


def test_no_plateau_is_drawn_of_what_is_not_massive(words):
    data = windows()
    results = measured(tiny("gpt2", words), data)
    for massive in (True, False):
        place = dataclasses.replace(results.place, massive=massive)
        loss = figures.layers(shown(dataclasses.replace(results, place=place), data)).axes[0]
        assert ("plateau of the massive activation" in loss.get_legend_handles_labels()[1]) == massive


@pytest.mark.parametrize("gain", [0.0062, 0.0051, 0.00033, 0.4])
def test_ticks_of_tiny_gains_do_not_touch(gain):
    drawn, (ax, *_others) = make_axes(1, 3, size=(15, 4))
    figures._gains(ax, [Moved(POSITION, 100, "W" * 20, Average(gain, None, None, 8))], 0)
    drawn.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert len(boxes) > 1
    assert all(before.x1 + 10 < after.x0 for before, after in itertools.pairwise(boxes))


def cell(low, high):
    return Average((low + high) / 2, (low, high), None, 8, (low, high))


COSTS, FREE, OPEN = (0.2, 0.3), (0.0, 0.01), (0.0, 0.1)
MORE, LESS, EITHER = (0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1)


@pytest.mark.parametrize(
    ("masked", "zero", "beyond", "probability", "verdict"),
    [
        (COSTS, FREE, {}, (0.4, 0.5), judge.EDGE),
        (COSTS, None, {}, (0.4, 0.5), judge.EDGE),
        (COSTS, COSTS, {}, (0.4, 0.5), judge.BOTH),
        (COSTS, OPEN, {}, (0.4, 0.5), CANNOT_TELL),
        (COSTS, FREE, {EQUAL_MASS: LESS}, (0.4, 0.5), judge.AS_OTHERS),
        (COSTS, FREE, {MIDDLE: EITHER}, (0.4, 0.5), CANNOT_TELL),
        (COSTS, FREE, {MIDDLE: EITHER, RECENT: LESS}, (0.4, 0.5), judge.AS_OTHERS),
        (COSTS, COSTS, {RECENT: LESS}, (0.4, 0.5), judge.VALUE),
        (OPEN, FREE, {}, (0.4, 0.5), CANNOT_TELL),
        (OPEN, FREE, {RECENT: LESS}, (0.4, 0.5), CANNOT_TELL),
        (OPEN, COSTS, {RECENT: LESS}, (0.4, 0.5), judge.VALUE),
        (OPEN, COSTS, {}, (0.4, 0.5), CANNOT_TELL),
        (FREE, FREE, {RECENT: LESS}, (0.4, 0.5), judge.NOT_NEEDED),
        (FREE, None, {}, (0.4, 0.5), judge.NOT_NEEDED),
        (FREE, OPEN, {}, (0.4, 0.5), CANNOT_TELL),
        (FREE, COSTS, {}, (0.4, 0.5), judge.VALUE),
        (COSTS, FREE, {}, (0.2, 0.4), CANNOT_TELL),
        (COSTS, FREE, {}, (0.1, 0.2), NONE_FOUND),
    ],
)
def test_verdicts(masked, zero, beyond, probability, verdict):
    judged = judged_of(masked, zero, beyond, probability)
    assert judged.verdict == verdict
    assert (judged.values.why is not None) == (verdict == CANNOT_TELL or (zero is None and verdict != NONE_FOUND))


def judged_of(masked, zero, beyond, probability, queries=30):
    """queries: later ones, that see the sink."""
    losses = {SINK: masked, **({VALUE_ZERO: zero} if zero else {}), **dict.fromkeys(CONTROLS, FREE)}
    more = dict.fromkeys(CONTROLS, MORE) | beyond
    conditions = {
        name: {
            "label": name,
            "edges": float(queries),
            "loss_change": cell(*loss),
            "beyond": cell(*more[name]) if name in more else None,
            "moved_to": [],
        }
        for name, loss in losses.items()
    }
    found = {"heads": [[cell(*probability)], []], "epsilon": 0.3, "left_out": None if zero else "no values"}
    return judge.judge(partial(Results, found | {"conditions": conditions, "position": 0}))


def test_nothing_is_told_where_attending_evenly_is_a_sink():
    """The first of 9 keys gets 0.314 of even attention, of 10 it gets 0.293."""
    short = judged_of(COSTS, FREE, {}, (0.4, 0.5), queries=8)
    assert (short.verdict, short.values.why) == (CANNOT_TELL, judge.SHORT)
    assert judged_of(COSTS, FREE, {}, (0.4, 0.5), queries=9).verdict == judge.EDGE
    assert judged_of(COSTS, FREE, {}, (0.1, 0.2), queries=8).verdict == NONE_FOUND
