"""Switching a part off equals a copy of the model in which that part's weights are zero."""

import copy
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import exp1_feasibility_test
from experiments.ablation import judge, measure
from experiments.ablation.results import Results
from experiments.head_pruning import judge as pruning_judge
from experiments.head_pruning.results import Results as PruningResults
from lib import catalogue
from lib.core import ablation, first_tokens
from lib.core.data import Windows
from lib.core.definitions import FATES
from lib.core.stats import independent
from lib.model import edits, hooks
from lib.model.tokens import text_of
from lib.planted import blank, builder
from lib.report import result_files, tables
from lib.run.cli import Options, UserError
from tests import reference
from tests.conftest import (
    FLAG_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    MASSIVE_DIM,
    SECOND_DIM,
    SPIKE_TOKEN,
    VOCABULARY,
    language_model,
    logits,
    planted_model,
    tiny_model,
    token_ids,
)
from tests.partial import partial

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
EVERY_HEAD = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
# name: (context manager that switches off, keywords of reference.without)
ABLATIONS = {
    "some heads": (lambda arch: edits.heads_off(arch, [(0, 1), (2, 0), (2, 3)]), {"heads": [(0, 1), (2, 0), (2, 3)]}),
    "every head": (lambda arch: edits.heads_off(arch, EVERY_HEAD), {"heads": EVERY_HEAD}),
    "one attention": (lambda arch: edits.attention_off(arch, [1]), {"attentions": [1]}),
    "every attention": (lambda arch: edits.attention_off(arch, range(LAYERS)), {"attentions": range(LAYERS)}),
    "one MLP": (lambda arch: edits.mlps_off(arch, [1]), {"mlps": [1]}),
    "every MLP": (lambda arch: edits.mlps_off(arch, range(LAYERS)), {"mlps": range(LAYERS)}),
}


def hidden_states(lm, ids):
    seen = {}
    with hooks.watch_outputs(lm.arch, "block", lambda layer, value: seen.update({layer: value})):
        hooks.forward(lm, ids)
    return seen


@pytest.mark.parametrize("which", ABLATIONS)
def test_off_equals_zero_weights(lm, which):
    switch_off, off = ABLATIONS[which]
    ids = token_ids(2, 16)
    before = logits(lm, ids)
    with switch_off(lm.arch):
        ablated, hidden = logits(lm, ids), hidden_states(lm, ids)
    expected = reference.observe(reference.without(lm.model, **off), ids)
    assert_close(ablated, expected.logits, **TOLERANCE)
    for layer in range(LAYERS):
        assert_close(hidden[layer], expected.hidden[layer], **TOLERANCE)
    assert not torch.allclose(ablated, before, atol=0.01)
    assert torch.equal(logits(lm, ids), before)


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("head", range(HEADS))
def test_each_head(lm, layer, head):
    ids = token_ids(2, 16)
    before = logits(lm, ids)
    with edits.heads_off(lm.arch, [(layer, head)]):
        ablated = logits(lm, ids)
    copied = reference.without(lm.model, heads=[(layer, head)])
    with torch.no_grad():
        assert_close(ablated, copied(ids, use_cache=False).logits, **TOLERANCE)
    assert not torch.allclose(ablated, before, atol=1e-3)


def test_a_slice_of_the_attention_output_is_not_a_head(lm):
    """Zeroing columns after the projection, as if they were the head's, must be told apart from head-off."""
    ids, head, width = token_ids(2, 16), 2, HIDDEN // HEADS

    def wrong(_layer, value):
        value = value.clone()
        value[..., head * width : (head + 1) * width] = 0
        return value

    with hooks.watch_outputs(lm.arch, "head_projection", wrong, [1]):
        wrongly = logits(lm, ids)
    right = logits(language_model(reference.without(lm.model, heads=[(1, head)])), ids)
    assert not torch.allclose(wrongly, right, atol=0.01)


def test_head_off_keeps_the_projection_bias():
    lm, ids = language_model(tiny_model("gpt2")), token_ids(2, 16)
    with edits.heads_off(lm.arch, EVERY_HEAD):
        heads_off = logits(lm, ids)
    with edits.attention_off(lm.arch, range(LAYERS)):
        attention_off = logits(lm, ids)
    assert not torch.allclose(heads_off, attention_off, atol=0.01)


def in_place(_layer, value):
    value.add_(1)


def anew(_layer, value):
    return value + 1


@pytest.mark.parametrize("change", [in_place, anew])
def test_what_another_hook_makes_of_heads_that_are_off(lm, change):
    """Behind them in order, it changes zeros; before them, what is then zeroed."""
    ids, heads = token_ids(2, 16), EVERY_HEAD[HEADS : 2 * HEADS]

    def changed(change):
        return hooks.watch_inputs(lm.arch, "head_projection", change, [1])

    with changed(lambda _layer, value: torch.ones_like(value)):
        ones = logits(lm, ids)
    with edits.heads_off(lm.arch, heads):
        off = logits(lm, ids)
        with changed(change):
            behind = logits(lm, ids)
    with changed(change), edits.heads_off(lm.arch, heads):
        before = logits(lm, ids)
    assert_close(behind, ones, **TOLERANCE)
    assert_close(before, off, **TOLERANCE)
    assert not torch.allclose(ones, off, atol=0.01)


def test_heads_that_are_all_off_are_not_computed(lm, monkeypatch):
    projections = [lm.arch.module(layer, "head_projection") for layer in range(LAYERS)]
    forwards = []
    for projection in projections:
        forward = projection.forward
        monkeypatch.setattr(projection, "forward", lambda x, forward=forward: forwards.append(1) or forward(x))
    with edits.heads_off(lm.arch, EVERY_HEAD):
        hooks.forward(lm, token_ids(2, 16))
    assert not forwards
    hooks.forward(lm, token_ids(2, 16))
    assert len(forwards) == LAYERS


@pytest.mark.parametrize("which", ABLATIONS)
@pytest.mark.parametrize("inside_hook", [False, True])
def test_restored_after_an_error(lm, which, inside_hook):
    switch_off, _off = ABLATIONS[which]
    ids = token_ids(2, 16)
    before = logits(lm, ids)

    def fail(*_):
        raise ValueError("on purpose")

    with ExitStack() as stack:
        stack.enter_context(pytest.raises(ValueError, match="on purpose"))
        stack.enter_context(switch_off(lm.arch))
        if inside_hook:
            stack.enter_context(hooks.watch_outputs(lm.arch, "block", fail, [1]))
            hooks.forward(lm, ids)
        fail()
    assert torch.equal(logits(lm, ids), before)


@pytest.mark.parametrize(
    ("switch_off", "range_given"),
    [
        (lambda arch: edits.heads_off(arch, [(LAYERS, 0)]), "layers 0 to 2"),
        (lambda arch: edits.heads_off(arch, [(0, HEADS)]), "heads 0 to 3"),
        (lambda arch: edits.heads_off(arch, [(0, -1)]), "heads 0 to 3"),
        (lambda arch: edits.mlps_off(arch, [LAYERS]), "layers 0 to 2"),
        (lambda arch: edits.attention_off(arch, [-1]), "layers 0 to 2"),
        (lambda arch: arch.check_dim(HIDDEN), "dims 0 to 31"),
    ],
)
def test_out_of_range(switch_off, range_given):
    with pytest.raises(UserError, match=range_given):
        switch_off(language_model(tiny_model("llama")).arch)


def test_activation_replaced(family):
    """In one layer, and in all of them, as if the configuration said ReLU."""
    model, ids = tiny_model(family), token_ids(2, 16)
    lm = language_model(model)
    setting = {"gpt2": "activation_function", "gemma3_text": "hidden_activation"}.get(family, "hidden_act")
    every = tiny_model(family, **{setting: "relu"})
    every.load_state_dict(model.state_dict())
    single = copy.deepcopy(model)
    reference.blocks(single)[1] = reference.blocks(every)[1]
    before = logits(lm, ids)
    for copied, layers in ((single, [1]), (every, range(LAYERS))):
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(edits.activation_replaced(lm.arch, layer, torch.relu))
            replaced = logits(lm, ids)
        assert_close(replaced, logits(language_model(copied), ids), **TOLERANCE)
        assert not torch.allclose(replaced, before, atol=0.01)
        assert torch.equal(logits(lm, ids), before)


def test_activation_restored_after_an_error(lm):
    ids = token_ids(2, 16)
    before = logits(lm, ids)
    with pytest.raises(ZeroDivisionError), edits.activation_replaced(lm.arch, 1, lambda x: x / (1 // 0)):
        logits(lm, ids)
    assert torch.equal(logits(lm, ids), before)


# compare()

CONDITIONS = {
    "heads": {"heads": EVERY_HEAD},
    "few_heads": {"heads": [(0, 1), (1, 0), (2, 3)]},
    "mlp1": {"mlps": [1]},
    "mlp2": {"mlps": [2]},
    "both": {"heads": [(2, 2)], "mlps": [0, 1]},
}
VERDICTS = {"heads": "persists", "few_heads": "persists", "mlp1": "collapses", "mlp2": "reduced", "both": "collapses"}


def windows():
    """Five windows: the spike first, elsewhere, twice; and none of it in one."""
    ids = token_ids(5, 10)  # so short that some heads are above the sink threshold and some are not
    ids[0, 0] = ids[1, 0] = ids[2, 5] = ids[4, 3] = ids[4, 9] = SPIKE_TOKEN
    return Windows(ids, available=5, bos=False, text="random")


def compared(lm, batch_size=2, dims=()):
    conditions = [
        ablation.Condition(name, name, heads=tuple(off.get("heads", ())), mlps=tuple(off.get("mlps", ())))
        for name, off in CONDITIONS.items()
    ]
    return ablation.compare(lm, windows(), conditions, Options(batch_size=batch_size), dims)


@pytest.fixture(scope="module", params=["gpt2", "llama"], name="planted")
def _planted(request, tokenizer):
    """A planted model with the reference's results, its massive dims followed."""
    lm = language_model(planted_model(request.param), tokenizer)
    return lm, reference.compare(lm.model, windows().ids, CONDITIONS)


def is_average_of(average, values):
    """Mean, sample standard deviation and number agree with `values`."""
    values = np.asarray(values, dtype=float)
    assert average.n == len(values)
    assert average.mean == pytest.approx(values.mean(), rel=1e-5, abs=2e-5 * np.abs(values).max())
    assert average.std == pytest.approx(values.std(ddof=1), rel=1e-4, abs=2e-5 * np.abs(values).max())
    low, high = average.ci95
    assert low <= average.mean <= high
    return True


def test_compare_conditions(planted):
    lm, expected = planted
    got = compared(lm)
    assert list(got.conditions) == ["baseline", *CONDITIONS]
    for name, condition in got.conditions.items():
        naive = expected[name]
        rows = np.array(naive.rows)
        for layer, found in enumerate(condition.layers):
            assert found.layer == layer
            for column, statistic in enumerate(("top1", "top2", "top3", "median")):
                assert is_average_of(getattr(found, statistic), rows[:, layer, column])
            assert found.dims.keys() == naive.dims.keys()
            for dim, values in naive.dims.items():
                assert is_average_of(found.dims[dim], np.array(values)[:, layer])
        perplexity = condition.perplexity
        assert (perplexity.value, perplexity.n) == (pytest.approx(np.exp(np.mean(naive.loss)), rel=1e-5), 5)
        assert is_average_of(
            condition.massive_positions, [len({position for _, position, _ in of}) for of in naive.massive]
        )
        off = CONDITIONS.get(name, {})
        assert condition.heads_off == off.get("heads", [])
        assert condition.mlps_off == list(off.get("mlps", ()))


def test_compare_sink_rates_are_of_all_heads_and_paired(planted):
    lm, expected = planted
    got = compared(lm).conditions
    assert got["baseline"].sink_rate_change is None
    for name, condition in got.items():
        assert is_average_of(condition.sink_rate, expected[name].sink_rate)
        if name != "baseline":
            change = np.array(expected[name].sink_rate) - expected["baseline"].sink_rate
            assert is_average_of(condition.sink_rate_change, change)


def test_sink_rate_cannot_rise_when_the_count_does_not(lm):
    """Heads of the last layer are off: no attention changes. Of the heads that are left, a larger share are sinks."""
    ids = windows().ids
    sinks = np.array(
        [[of[0, :, :, 0].mean(1) > 0.3 for of in reference.observe(lm.model, w[None]).attentions] for w in ids]
    )
    head = next(head for head in range(HEADS) if not sinks[:, -1, head].all())
    bottom = ablation.Condition("bottom", "BOTTOM heads off", heads=((LAYERS - 1, head),))
    got = ablation.compare(lm, windows(), [bottom], Options(batch_size=2)).conditions
    assert got["bottom"].sink_rate_change.mean == 0
    assert got["bottom"].sink_rate == got["baseline"].sink_rate


def test_compare_massive_and_dims(planted):
    lm, expected = planted
    got = compared(lm)
    places = {}
    for of in expected["baseline"].massive:
        for at, (value, ratio) in of.items():
            places.setdefault(at, []).append((value, ratio))
    assert len(got.massive) == len(places)
    for entry in got.massive:
        of = places[entry.layer, entry.position, entry.dim]
        assert entry.sequences == len(of)
        assert (entry.value, entry.ratio) == pytest.approx(tuple(np.mean(of, axis=0)), rel=1e-5)
    assert {entry.position for entry in got.massive} == {0, 3, 5, 9}
    assert got.dims == [MASSIVE_DIM, SECOND_DIM]
    (values,) = {layer.dims[MASSIVE_DIM].n for layer in got.conditions["mlp1"].layers}
    assert values == 4  # of 5 windows


def test_compare_changes_are_paired_differences(planted):
    lm, expected = planted
    got = compared(lm).changes
    assert list(got) == list(CONDITIONS)
    baseline = expected["baseline"]
    for name, changes in got.items():
        difference = np.array(expected[name].rows) - np.array(baseline.rows)
        for layer, change in enumerate(changes):
            for column, statistic in enumerate(("top1", "top2", "top3", "median")):
                size = np.abs(np.array(baseline.rows)[:, layer, column]).max()
                close_average(getattr(change, statistic), difference[:, layer, column], size)
            for dim, values in expected[name].dims.items():
                before = np.array(baseline.dims[dim])[:, layer]
                close_average(change.dims[dim], np.array(values)[:, layer] - before, np.abs(before).max())


def close_average(average, values, size):
    """Differences of large numbers: as exact as float32 numbers of that size allow."""
    assert average.n == len(values)
    assert average.mean == pytest.approx(values.mean(), rel=1e-5, abs=2e-6 * size)
    assert average.std == pytest.approx(values.std(ddof=1), rel=1e-5, abs=2e-6 * size)


def word_of(places, first_tokens=None):
    return judge.judged_places(places, first_tokens)[0]


def agree(places, expected):
    """Entries of results.places are what the reference has, largest first."""
    order = sorted(expected, key=lambda at: -expected[at].size)
    assert [(place.position == "first", place.dim) for place in places] == order
    for place in places:
        truth = expected[place.position == "first", place.dim]
        assert (place.windows, place.layer) == (len(truth.windows), truth.layer)
        assert place.share.mean == pytest.approx(len(truth.windows) / 5)
        assert place.retained.mean == pytest.approx(truth.retained, rel=1e-4, abs=1e-5)
        assert place.absolute_change.mean == pytest.approx(truth.moved, rel=1e-4, abs=1e-5)
        assert place.still_massive.mean == pytest.approx(np.mean(truth.still))
        assert place.size_ablated.mean / place.size_baseline.mean == pytest.approx(truth.retained, rel=1e-4, abs=1e-5)


def test_compare_places(planted):
    lm, expected = planted
    got = compared(lm).places
    assert set(expected["mlp1"].places) == {(is_first, dim) for is_first in (True, False) for dim in (5, 9)}
    for name, places in got.items():
        agree(places, expected[name].places)
        assert {place.token for place in places} == {text_of(lm.tokenizer, SPIKE_TOKEN)}
    assert {name: word_of(places) for name, places in got.items()} == VERDICTS


def test_still_massive_is_judged_by_the_median_without_the_part(tokenizer):
    """The planted value stays large, but MLP 2 was what kept all others small."""
    model = planted_model("gpt2")
    for layer, shift in ((1, 30), (2, -30)):
        bias = reference.parts(reference.blocks(model)[layer]).down.bias.data
        bias += shift * (torch.arange(HIDDEN) > SECOND_DIM)
    places = compared(language_model(model, tokenizer)).places["mlp2"]
    agree(places, reference.compare(model, windows().ids, {"mlp2": CONDITIONS["mlp2"]})["mlp2"].places)
    assert places[0].retained.mean > 0.4
    assert (places[0].massive.mean, places[0].still_massive.mean) == (1, 0)


def test_a_place_is_judged_where_it_is_massive(tokenizer):
    """After the last block its value is largest, and the median so large that it is massive no more."""
    model = planted_model("gpt2")
    reference.parts(reference.blocks(model)[2]).down.bias.data += 30 * (torch.arange(HIDDEN) > SECOND_DIM)
    places = compared(language_model(model, tokenizer)).places["mlp1"]
    agree(places, reference.compare(model, windows().ids, {"mlp1": CONDITIONS["mlp1"]})["mlp1"].places)
    assert {(place.layer, place.massive.mean) for place in places} == {(1, 1.0)}


def pooled(before, after):
    """The rule of old: `retained` over all massive (layer, position, dim) of a window, mean over windows, judged by its
    mean with one bound."""
    shares = []
    for hidden, ablated in zip(before, after, strict=True):
        medians = [np.sort(np.abs(layer), axis=None)[layer.size // 2] for layer in hidden]
        at = [(np.abs(h) > 100) & (np.abs(h) > 1000 * m) for h, m in zip(hidden, medians, strict=True)]
        kept = sum((np.sign(h[a]) * x[a]).sum() for h, x, a in zip(hidden, ablated, at, strict=True))
        shares.append(kept / sum(np.abs(h[a]).sum() for h, a in zip(hidden, at, strict=True)))
    share = np.mean(shares)
    return "persists" if share >= 0.9 else "collapses" if share <= 0.1 else "reduced"


def old_and_new(lm, ids, **off):
    """The old word on one ablation, and the new words on every place."""
    states = [
        np.stack([layer.numpy() for layer in hidden_states(of, ids).values()], axis=1)
        for of in (lm, language_model(reference.without(lm.model, **off)))
    ]
    condition = ablation.Condition("off", "off", heads=tuple(off.get("heads", ())), mlps=tuple(off.get("mlps", ())))
    results = measure.run(
        lm, Windows(ids, len(ids), False, "random"), condition, exp1_feasibility_test.Options(batch_size=2)
    )
    values = catalogue.judged("exp1", results)["conclusion"]["values"]
    return pooled(*states), [tuple(place) for place in values["places"]]


def with_second_mlp(reads, gain, writes):
    """planted_model("gpt2") whose layer-2 MLP reads and writes otherwise."""
    model = planted_model("gpt2")
    part = reference.parts(reference.blocks(model)[2])
    part.mlp_norm.bias.data[reads] = 0
    reference.matrix(part.mlp_in[0])[0] = 0
    reference.matrix(part.mlp_in[0])[0, reads] = 5 * gain
    reference.matrix(part.down)[MASSIVE_DIM, 0] = writes
    return model


def test_a_value_that_doubles_has_not_persisted(tokenizer):
    """MLP 2 takes half of it away; what is left without it is nearly twice as large."""
    lm = language_model(with_second_mlp(MASSIVE_DIM, -1, 440), tokenizer)
    old, new = old_and_new(lm, windows().ids[[0, 1, 2, 4]], mlps=[2])
    assert old == "persists"
    assert new[:2] == [("later", MASSIVE_DIM, "grows"), ("first", MASSIVE_DIM, "grows")]


def test_a_value_that_turns_negative_has_not_collapsed(tokenizer):
    """MLP 2 finds the flag where MLP 1 has written nothing, and writes the opposite."""
    lm = language_model(with_second_mlp(FLAG_DIM, 1, 600), tokenizer)
    old, new = old_and_new(lm, windows().ids[[0, 1, 2, 4]], mlps=[1])
    assert old == "collapses"
    assert ("later", MASSIVE_DIM, "reverses") in new
    assert ("later", SECOND_DIM, "collapses") in new


@pytest.mark.parametrize("seed", range(3))
def test_each_place_votes_once(seed):
    """One spike lives through all layers, a larger one only in the last, where a head writes it: heads off removes it,
    whatever the number of layers in which the other persists."""
    b = builder.Builder("gpt2", np.random.default_rng(seed))
    long, short = b.largest, b.spare_dims.pop()
    size = b.values[long]
    b.neurons_write(0, b.flag - b.one, {long: size})
    b.head_writes(b.n_layers - 1, b.spike, {short: 2 * size})
    ids = torch.from_numpy(np.random.default_rng(seed).integers(1, blank.VOCABULARY, (6, 12)))
    every = [(layer, head) for layer in range(b.n_layers) for head in range(blank.HEADS)]
    old, new = old_and_new(b.lm, ids, heads=every)
    assert old == "reduced"
    assert new == [("first", short, "collapses"), ("first", long, "persists")]


@pytest.mark.parametrize(
    ("retained", "ci95", "word"),
    [
        (1.3, [1.11, 1.5], "grows"),
        (1.3, [1.09, 1.5], "cannot tell"),
        (1.0, [0.91, 1.09], "persists"),
        (0.95, [0.89, 0.99], "cannot tell"),
        (0.5, [0.11, 0.89], "reduced"),
        (0.5, [0.09, 0.89], "cannot tell"),
        (0.0, [-0.09, 0.09], "collapses"),
        (-0.5, [-0.9, -0.11], "reverses"),
        (-0.5, [-0.9, 0.0], "cannot tell"),
        (0.5, None, "cannot tell"),
    ],
)
def test_words_have_both_bounds_and_intervals_that_hold_one_are_none(retained, ci95, word):
    cell = {"mean": retained, "std": None, "ci95": ci95, "n": 5}
    place = {"position": "first", "dim": 3, **dict.fromkeys(("absolute_change", "massive", "still_massive"), cell)}
    place |= {"retained": cell, "size_baseline": cell, "size_ablated": cell}
    judged = judged_on([place])
    assert (judged.verdict, judged.values.places) == (word, [("first", 3, word)])
    exact = judged_on([place], {"retained": 0.95, "shares": dict.fromkeys(FATES, 0.2)})
    assert (exact.verdict, exact.values.places) == ("persists", [("first", 3, "persists")])
    assert judged_on([]).verdict == "none found"


def judged_on(places, first_tokens=None):
    return judge.judge(partial(Results, {"places": places, "first_tokens": first_tokens}))


@pytest.mark.parametrize(
    ("retained", "massive", "still", "note"),
    [
        (0.7, 1.0, 0.2, None),
        (0.7, 1.0, 0.0, "of the value: in that layer it is massive in no window any more"),
        (1.0, 0.5, 0.0, "of the value: in that layer it is massive in no window any more"),
        (0.0, 1.0, 0.0, None),
        (1.0, 0.0, 0.0, None),  # of older results, whose plateau may end where it is massive in none
    ],
)
def test_what_is_left_of_a_value_may_be_no_massive_activation(retained, massive, still, note):
    cell = {"mean": retained, "std": None, "ci95": [retained - 0.01, retained + 0.01], "n": 5}
    place = {"position": "first", "dim": 3, **dict.fromkeys(("retained", "absolute_change"), cell)}
    place |= {"size_baseline": cell, "size_ablated": cell}
    place |= {"massive": cell | {"mean": massive}, "still_massive": cell | {"mean": still}}
    assert judged_on([place]).values.note == note


@pytest.mark.parametrize(
    ("shares", "mixed"),
    [((0, 0.22, 0.35, 0.24, 0.19), True), ((0, 0.5, 0.5, 0, 0), True), ((0, 0, 0.51, 0.49, 0), False)],
)
def test_an_average_of_unlike_fates_is_called_one(shares, mixed):
    cell = {"mean": 0.6, "std": None, "ci95": [0.5, 0.7], "n": 5}
    kept = ("retained", "absolute_change", "massive", "still_massive", "size_baseline", "size_ablated")
    places = [{"position": "first", "dim": 3, **dict.fromkeys(kept, cell)}]
    first = {"retained": 0.68, "shares": dict(zip(FATES, shares, strict=True))}
    conclusion = judged_on(places, first)
    assert conclusion.verdict == "reduced"
    said = "Conclusion: reduced (on average; mixed by token)\n" if mixed else "Conclusion: reduced\n"
    assert said in tables.conclusion_text(conclusion, conclusion.values.note)
    heads = {"top": [[0, 1]], "bottom": [[9, 1]]}
    places[0] |= {"layer": 5}
    both = dict.fromkeys(("top", "bottom"))
    pruned = {"places": both | dict.fromkeys(both, places), "sets": heads, "first_tokens": dict.fromkeys(both, first)}
    conclusion = pruning_judge.judge(partial(PruningResults, pruned))
    assert said in tables.conclusion_text(conclusion, conclusion.values.note)
    assert conclusion.values.bottom.note is None  # certain beforehand


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_first_tokens_are_weighted_by_the_text(family, tokenizer, monkeypatch):
    """Against one-token forwards of copies of the model, one by one."""
    monkeypatch.setattr(first_tokens, "AT_ONCE", 4)
    model = planted_model(family)
    embedding = model.get_input_embeddings().weight.data
    flags = {20: 0.5, 21: 3.0, 22: 6.0, 23: 0.0, SPIKE_TOKEN: 10.0}
    for token, flag in flags.items():
        embedding[token, FLAG_DIM] = flag
    counts = np.zeros(VOCABULARY, dtype=int)
    counts[list(flags)] = 7, 1, 4, 30, 2
    text = replace(windows(), counts=counts)
    off = {
        name: ablation.Condition(name, name, **{k: tuple(v) for k, v in CONDITIONS[name].items()})
        for name in ("mlp2", "heads")
    }
    medians = {"baseline": [0.5, 0.5, 0.5], "mlp2": [0.1, 0.1, 5.0]}
    found = first_tokens.measure(language_model(model, tokenizer), text, MASSIVE_DIM, 2, off.values(), medians)
    for name in off:
        pruned, total = reference.without(model, **CONDITIONS[name]), np.zeros(7)
        shares = np.zeros(5)
        for token, n in zip(flags, counts[list(flags)], strict=True):
            before, after = (
                np.array([h[0, 0, MASSIVE_DIM].item() for h in reference.observe(m, torch.tensor([[token]])).hidden])
                for m in (model, pruned)
            )
            if (abs(before) > 500).any():
                b, a = before[2], after[2]  # negative
                total += n * np.array([1, b, a, abs(b), abs(a) > 5000, -a, abs(a - b)])
                shares[np.searchsorted([-0.1, 0.1, 0.9, 1.1], a / b)] += n
        assert 0 < total[0] < counts.sum()
        got = found[name]
        assert list(got.shares.values()) == pytest.approx(shares / total[0])
        assert (got.tokens, got.share) == (5, pytest.approx(total[0] / counts.sum()))
        assert [got.value, got.ablated] == pytest.approx(total[1:3] / total[0], rel=1e-4, abs=0.01)
        assert [got.retained, got.absolute_change] == pytest.approx(total[5:] / total[3], rel=1e-4, abs=1e-5)
        if name in medians:
            assert got.still_massive == pytest.approx(total[4] / total[0])
            assert 0 < got.still_massive < 1
    assert found["heads"].still_massive is None


def test_first_tokens_are_of_bos_alone_where_windows_begin_with_it(planted):
    lm, _expected = planted
    ids = token_ids(4, 10)
    ids[:, 0] = SPIKE_TOKEN
    condition = ablation.Condition("mlp2", "mlp2", mlps=(2,))
    text = Windows(ids, 4, bos=1, text="random", counts=np.ones(VOCABULARY))
    options = exp1_feasibility_test.Options(batch_size=4)
    results = measure.run(lm, text, condition, options)
    assert (results.first_tokens.tokens, results.first_tokens.share) == (1, 1)
    assert results.first_tokens.retained == pytest.approx(results.places[0].retained.mean, rel=1e-5)
    unknown = replace(text, bos=0, counts=None)
    assert measure.run(lm, unknown, condition, options).first_tokens is None


def test_compare_follows_named_dims_at_the_baselines_peak(planted):
    lm, _expected = planted
    dims = (3, SECOND_DIM)
    expected = reference.compare(lm.model, windows().ids, CONDITIONS, dims)
    got = compared(lm, dims=dims)
    assert got.dims == list(dims)
    for name, condition in got.conditions.items():
        for layer, found in enumerate(condition.layers):
            for dim in dims:
                assert is_average_of(found.dims[dim], np.array(expected[name].dims[dim])[:, layer])
    assert {name: word_of(places) for name, places in got.places.items()} == VERDICTS


def test_compare_does_not_depend_on_the_batch_size(planted):
    lm, _expected = planted
    ones, fours = (flat(result_files.plain(compared(lm, batch_size))) for batch_size in (1, 4))
    assert ones.keys() == fours.keys()
    size = max(abs(x) for x in ones.values() if isinstance(x, float))
    for key, value in ones.items():
        if isinstance(value, float):
            assert fours[key] == pytest.approx(value, rel=1e-4, abs=1e-6 * size), key
        else:
            assert fours[key] == value, key


def flat(tree, path=()):
    """{path: leaf} of nested dicts, lists and tuples."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return {path: tree}
    return {k: v for key, branch in items for k, v in flat(branch, (*path, key)).items()}


def test_compare_without_massive_activations(lm):
    got = compared(lm)
    assert {word_of(places) for places in got.places.values()} == {"none found"}
    assert (got.massive, got.dims) == ([], [])
    expected = reference.compare(lm.model, windows().ids, CONDITIONS)
    for name, condition in got.conditions.items():
        for layer, found in enumerate(condition.layers):
            assert is_average_of(found.top1, np.array(expected[name].rows)[:, layer, 0])
        assert condition.perplexity.value == pytest.approx(np.exp(np.mean(expected[name].loss)), rel=1e-5)
        assert is_average_of(condition.sink_rate, expected[name].sink_rate)


def test_compare_leaves_the_model_as_it_was(planted):
    lm, _expected = planted
    before = logits(lm, windows().ids)
    compared(lm)
    assert torch.equal(logits(lm, windows().ids), before)


def test_compare_reports_intervals_of_the_paired_differences(planted):
    lm, expected = planted
    change = compared(lm).changes["mlp1"][1].top1
    difference = np.array(expected["mlp1"].rows)[:, 1, 0] - np.array(expected["baseline"].rows)[:, 1, 0]
    assert change.ci95 == pytest.approx(independent(5).averages(difference).ci95, rel=1e-4)


def test_compare_checks_dims(planted):
    lm, _expected = planted
    with pytest.raises(UserError, match="dims 0 to 31"):
        compared(lm, dims=(HIDDEN,))
