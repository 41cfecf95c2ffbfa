"""Switching a part off equals a copy of the model in which that part's weights are zero."""

import copy
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lib import ablation, hooks, stats
from lib.cli import Options, UserError
from lib.data import Windows
from tests import reference
from tests.conftest import (
    HEADS,
    HIDDEN,
    LAYERS,
    MASSIVE_DIM,
    SECOND_DIM,
    SPIKE_TOKEN,
    language_model,
    logits,
    planted_model,
    tiny_model,
    token_ids,
)

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
EVERY_HEAD = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
# name: (context manager that switches off, keywords of reference.without)
ABLATIONS = {
    "some heads": (lambda arch: hooks.heads_off(arch, [(0, 1), (2, 0), (2, 3)]), {"heads": [(0, 1), (2, 0), (2, 3)]}),
    "every head": (lambda arch: hooks.heads_off(arch, EVERY_HEAD), {"heads": EVERY_HEAD}),
    "one attention": (lambda arch: hooks.attention_off(arch, [1]), {"attentions": [1]}),
    "every attention": (lambda arch: hooks.attention_off(arch, range(LAYERS)), {"attentions": range(LAYERS)}),
    "one MLP": (lambda arch: hooks.mlps_off(arch, [1]), {"mlps": [1]}),
    "every MLP": (lambda arch: hooks.mlps_off(arch, range(LAYERS)), {"mlps": range(LAYERS)}),
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
    with hooks.heads_off(lm.arch, [(layer, head)]):
        ablated = logits(lm, ids)
    copied = reference.without(lm.model, heads=[(layer, head)])
    assert_close(ablated, logits(language_model(copied), ids), **TOLERANCE)
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
    with hooks.heads_off(lm.arch, EVERY_HEAD):
        heads_off = logits(lm, ids)
    with hooks.attention_off(lm.arch, range(LAYERS)):
        attention_off = logits(lm, ids)
    assert not torch.allclose(heads_off, attention_off, atol=0.01)


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
        (lambda arch: hooks.heads_off(arch, [(LAYERS, 0)]), "layers 0 to 2"),
        (lambda arch: hooks.heads_off(arch, [(0, HEADS)]), "heads 0 to 3"),
        (lambda arch: hooks.heads_off(arch, [(0, -1)]), "heads 0 to 3"),
        (lambda arch: hooks.mlps_off(arch, [LAYERS]), "layers 0 to 2"),
        (lambda arch: hooks.attention_off(arch, [-1]), "layers 0 to 2"),
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
                stack.enter_context(hooks.activation_replaced(lm.arch, layer, torch.relu))
            replaced = logits(lm, ids)
        assert_close(replaced, logits(language_model(copied), ids), **TOLERANCE)
        assert not torch.allclose(replaced, before, atol=0.01)
        assert torch.equal(logits(lm, ids), before)


def test_activation_restored_after_an_error(lm):
    ids = token_ids(2, 16)
    before = logits(lm, ids)
    with pytest.raises(ZeroDivisionError), hooks.activation_replaced(lm.arch, 1, lambda x: x / (1 // 0)):
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


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def planted(request, tokenizer):
    """A planted model with the reference's results, its massive dims followed."""
    lm = language_model(planted_model(request.param), tokenizer)
    return lm, reference.compare(lm.model, windows().ids, CONDITIONS)


def is_average_of(average, values):
    """Mean, sample standard deviation and number agree with `values`."""
    values = np.asarray(values, dtype=float)
    assert average["n"] == len(values)
    assert average["mean"] == pytest.approx(values.mean(), rel=1e-5, abs=2e-5 * np.abs(values).max())
    assert average["std"] == pytest.approx(values.std(ddof=1), rel=1e-4, abs=2e-5 * np.abs(values).max())
    low, high = average["ci95"]
    assert low <= average["mean"] <= high
    return True


def test_compare_conditions(planted):
    lm, expected = planted
    got = compared(lm)
    assert list(got.conditions) == ["baseline", *CONDITIONS]
    for name, condition in got.conditions.items():
        naive = expected[name]
        rows = np.array(naive.rows)
        for layer, report in enumerate(condition["layers"]):
            assert report["layer"] == layer
            for column, statistic in enumerate(("top1", "top2", "top3", "median")):
                assert is_average_of(report[statistic], rows[:, layer, column])
            assert set(report["dims"]) == {str(dim) for dim in naive.dims}
            for dim, values in naive.dims.items():
                assert is_average_of(report["dims"][str(dim)], np.array(values)[:, layer])
        perplexity = condition["perplexity"]
        assert (perplexity["value"], perplexity["n"]) == (pytest.approx(np.exp(np.mean(naive.loss)), rel=1e-5), 5)
        assert is_average_of(
            condition["massive_positions"], [len({position for _, position, _ in of}) for of in naive.massive]
        )
        off = CONDITIONS.get(name, {})
        assert condition["heads_off"] == [list(head) for head in off.get("heads", ())]
        assert condition["mlps_off"] == list(off.get("mlps", ()))


def test_compare_sink_rate_leaves_out_the_heads_that_are_off(planted):
    lm, expected = planted
    got = compared(lm).conditions
    assert got["heads"]["sink_rate"] is None
    for name in ("baseline", "few_heads", "mlp1", "mlp2", "both"):
        assert is_average_of(got[name]["sink_rate"], expected[name].sink_rate)
    pruned = reference.without(lm.model, **CONDITIONS["few_heads"])
    attentions = [reference.observe(pruned, of[None]).attentions for of in windows().ids]
    with_removed = [reference.sink_rate(lm.model.config, of) for of in attentions]
    assert got["few_heads"]["sink_rate"]["mean"] != pytest.approx(np.mean(with_removed))


def test_compare_massive_and_dims(planted):
    lm, expected = planted
    got = compared(lm)
    places = {}
    for of in expected["baseline"].massive:
        for at, (value, ratio) in of.items():
            places.setdefault(at, []).append((value, ratio))
    assert len(got.massive) == len(places)
    for entry in got.massive:
        of = places[entry["layer"], entry["position"], entry["dim"]]
        assert entry["sequences"] == len(of)
        assert (entry["value"], entry["ratio"]) == pytest.approx(tuple(np.mean(of, axis=0)), rel=1e-5)
    assert {entry["position"] for entry in got.massive} == {0, 3, 5, 9}
    assert got.dims == [MASSIVE_DIM, SECOND_DIM]
    (values,) = {layer["dims"][str(MASSIVE_DIM)]["n"] for layer in got.conditions["mlp1"]["layers"]}
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
                close_average(change[statistic], difference[:, layer, column], size)
            for dim, values in expected[name].dims.items():
                before = np.array(baseline.dims[dim])[:, layer]
                close_average(change["dims"][str(dim)], np.array(values)[:, layer] - before, np.abs(before).max())


def close_average(average, values, size):
    """Differences of large numbers: as exact as float32 numbers of that size allow."""
    assert average["n"] == len(values)
    assert average["mean"] == pytest.approx(values.mean(), rel=1e-5, abs=2e-6 * size)
    assert average["std"] == pytest.approx(values.std(ddof=1), rel=1e-5, abs=2e-6 * size)


def test_compare_verdicts(planted):
    lm, expected = planted
    got = compared(lm).verdicts
    assert {name: verdict["verdict"] for name, verdict in got.items()} == VERDICTS
    for name, verdict in got.items():
        assert is_average_of(verdict["retained"], expected[name].retained)
        assert is_average_of(verdict["still_massive"], expected[name].still)
        assert verdict["retained"]["n"] == 4


def test_still_massive_is_judged_by_the_median_without_the_part(tokenizer):
    """The planted value stays large, but MLP 2 was what kept all others small."""
    model = planted_model("gpt2")
    for layer, shift in ((1, 30), (2, -30)):
        bias = reference.parts(reference.blocks(model)[layer]).down.bias.data
        bias += shift * (torch.arange(HIDDEN) > SECOND_DIM)
    verdict = compared(language_model(model, tokenizer)).verdicts["mlp2"]
    expected = reference.compare(model, windows().ids, {"mlp2": CONDITIONS["mlp2"]})["mlp2"]
    assert is_average_of(verdict["retained"], expected.retained)
    assert verdict["retained"]["mean"] > 0.4
    assert verdict["still_massive"]["mean"] == np.mean(expected.still) == 0


def test_compare_follows_named_dims_at_the_baselines_peak(planted):
    lm, _expected = planted
    dims = (3, SECOND_DIM)
    expected = reference.compare(lm.model, windows().ids, CONDITIONS, dims)
    got = compared(lm, dims=dims)
    assert got.dims == list(dims)
    for name, condition in got.conditions.items():
        for layer, report in enumerate(condition["layers"]):
            for dim in dims:
                assert is_average_of(report["dims"][str(dim)], np.array(expected[name].dims[dim])[:, layer])
    assert {name: verdict["verdict"] for name, verdict in got.verdicts.items()} == VERDICTS


def test_compare_does_not_depend_on_the_batch_size(planted):
    lm, _expected = planted
    ones, fours = (flat(vars(compared(lm, batch_size))) for batch_size in (1, 4))
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
    assert {verdict["verdict"] for verdict in got.verdicts.values()} == {"none found"}
    assert (got.massive, got.dims) == ([], [])
    expected = reference.compare(lm.model, windows().ids, CONDITIONS)
    for name, condition in got.conditions.items():
        for layer, report in enumerate(condition["layers"]):
            assert is_average_of(report["top1"], np.array(expected[name].rows)[:, layer, 0])
        assert condition["perplexity"]["value"] == pytest.approx(np.exp(np.mean(expected[name].loss)), rel=1e-5)
        if name != "heads":
            assert is_average_of(condition["sink_rate"], expected[name].sink_rate)


def test_compare_leaves_the_model_as_it_was(planted):
    lm, _expected = planted
    before = logits(lm, windows().ids)
    compared(lm)
    assert torch.equal(logits(lm, windows().ids), before)


def test_compare_reports_intervals_of_the_paired_differences(planted):
    lm, expected = planted
    change = compared(lm).changes["mlp1"][1]["top1"]
    difference = np.array(expected["mlp1"].rows)[:, 1, 0] - np.array(expected["baseline"].rows)[:, 1, 0]
    assert change["ci95"] == pytest.approx(stats.averages(difference, seed=0)["ci95"], rel=1e-4)


def test_compare_checks_dims(planted):
    lm, _expected = planted
    with pytest.raises(UserError, match="dims 0 to 31"):
        compared(lm, dims=(HIDDEN,))
