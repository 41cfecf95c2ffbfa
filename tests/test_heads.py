"""What single heads write and do, against zeroed copies, eager attention maps, hooks of this file, planted heads."""

from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch

import exp7_head_sweep as exp7
from lib import heads, place, planted, plots, stats, sweep
from lib.data import Windows
from tests import reference
from tests.conftest import HEADS, LAYERS, SPIKE_TOKEN, language_model, planted_model, token_ids
from tests.test_architectures import captured, case  # noqa: F401 (a fixture)
from tests.test_sweep import DIM, fixed_place, windows_of


def test_survey_in_every_family(case):  # noqa: F811
    at = [0, 9]
    found = heads.survey(case.lm, windows_of(case.ids), fixed_place(at, case.lm.arch.n_layers), 1)
    n_heads = case.lm.model.config.num_attention_heads
    assert found.heads == [(layer, head) for layer in range(3) for head in range(n_heads)]
    scale = getattr(case.lm.model.config, "residual_multiplier", 1.0)
    written = captured(case, "attention_write")
    for layer, block in enumerate(case.lm.model.get_submodule(case.tested.blocks)):
        maps = case.real.maps[layer][:, :, :, 0]
        assert found.scores[:, layer] == pytest.approx((maps.sum(2) / (maps > 0).sum(2)).numpy(), abs=2e-5)
        projection, seen = block.get_submodule(case.tested.attention_out), {}
        handle = projection.register_forward_hook(lambda _m, args, out, seen=seen: seen.update(input=args[0], out=out))
        with torch.no_grad():
            case.lm.model(case.ids, use_cache=False)
        handle.remove()
        parts = seen["input"].view(*case.ids.shape, n_heads, -1)
        assert torch.allclose(found.outputs[layer], parts.mean((0, 1)), atol=1e-5)
        weight = reference.matrix(projection)[DIM].view(n_heads, -1)
        for window, position in enumerate(at):
            added = scale * written[layer][window, position, DIM]
            whole = seen["out"].view(*case.ids.shape, -1)[window, position, DIM]
            expected = (parts[window, position] * weight).sum(1) * added / whole
            assert found.writes[window, layer] == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)


def measured(family, tokenizer):
    """The results of exp7 on a planted model, its model, ids and positions."""
    lm = language_model(planted_model(family), tokenizer)
    ids, positions = token_ids(3, 16), [4, 0, 11]
    ids[torch.arange(3), torch.tensor(positions)] = SPIKE_TOKEN
    return exp7.run(lm, windows_of(ids), exp7.Options(batch_size=2, n_random=1)), lm.model, ids, positions


def levels(model, ids, positions, dim, layers):
    """{effect: [per window]} by an eager forward."""
    seen = [reference.observe(model, window[None]) for window in ids]
    of = {
        key: [s.hidden[layer][0, p, dim].item() for s, p in zip(seen, positions, strict=True)]
        for key, layer in zip(("birth", "end", "last"), layers, strict=True)
    }
    of["sink_rate"] = [reference.sink_rate(model.config, s.attentions) for s in seen]
    of["loss"] = [reference.loss(s.logits[0], window) for s, window in zip(seen, ids, strict=True)]
    return of


def near(expected, size):
    """Equal but for what float32 rounds off values of this size."""
    return pytest.approx(expected, rel=1e-3, abs=1e-5 + 3e-7 * np.abs(size).max())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_changes_equal_zeroed_copies_and_impossible_ones_are_zero(family, tokenizer):
    result, model, ids, positions = measured(family, tokenizer)
    dim, layers = result.place["dim"], [*result.place["plateau"], LAYERS - 1]
    before = levels(model, ids, positions, dim, layers)
    assert [(row["layer"], row["head"]) for row in result.heads] == list(np.ndindex(LAYERS, HEADS))
    impossible = 0
    for row in result.heads:
        off = levels(reference.without(model, heads=[(row["layer"], row["head"])]), ids, positions, dim, layers)
        for key, change in row["zero"].items():
            difference = np.subtract(off[key], before[key])
            if change is None:
                impossible += 1
                assert not difference.any()
                assert row["mean"][key] is None
            else:
                assert change["mean"] == near(difference.mean(), before[key])
                assert change["ci95"] == near(stats.averages(difference)["ci95"], before[key])
    first, end, last = layers
    assert impossible == HEADS * ((last - first) + (last - end) + 1)
    for name, order in result.cumulative.items():
        for step in order["steps"]:
            off = reference.without(model, heads=order["heads"][: step["removed"]])
            after = levels(off, ids, positions, dim, layers)
            for key, of in after.items():
                assert step[key]["mean"] == near(np.mean(of), before[key]), (name, step["removed"])
            assert step["perplexity"]["value"] == pytest.approx(np.exp(np.mean(after["loss"])), rel=1e-4)
    assert [step["removed"] for step in result.cumulative["write"]["steps"]] == [1, 2, 4, 8, LAYERS * HEADS]


def test_the_place_is_of_all_windows_and_the_loss_of_some_spread_evenly(tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    ids = token_ids(5, 16)
    result = exp7.run(lm, windows_of(ids), exp7.Options(batch_size=2, n_random=0, n_whole=2))
    assert {key: cell["n"] for key, cell in result.baseline.items()} == {
        **dict.fromkeys(("birth", "end", "last"), 5),
        **dict.fromkeys(("sink_rate", "loss", "perplexity"), 2),
    }
    losses = [reference.loss(reference.observe(lm.model, ids[i : i + 1]).logits[0], ids[i]) for i in (0, 2)]
    assert result.baseline["loss"]["mean"] == pytest.approx(np.mean(losses), rel=1e-5)
    shown = {
        "config": {"model_name": "m"},
        "provenance": {"data": {"windows": 5, "seqlen": 16}},
        "results": asdict(result),
    }
    titles = [ax.get_title() for ax in plots.head_sweep_cumulative(shown).axes]
    assert titles == ["in 5 of the windows", *["in 2 of the windows"] * 2]
    assert "in 2 of the windows" in plots.head_sweep_model(shown).get_suptitle()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_mean_ablation_equals_a_hook_that_writes_the_mean(family, tokenizer):
    result, model, ids, positions = measured(family, tokenizer)
    dim, layers = result.place["dim"], [*result.place["plateau"], LAYERS - 1]
    before = levels(model, ids, positions, dim, layers)
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        projection = reference.parts(reference.blocks(model)[layer]).heads
        width = reference.matrix(projection).shape[1] // HEADS
        mine, seen = slice(head * width, (head + 1) * width), []
        handle = projection.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model(ids, use_cache=False)
        handle.remove()
        mean = seen[0][:, :, mine].flatten(0, 1).mean(0)

        def hook(_module, args, mine=mine, mean=mean):
            changed = args[0].clone()
            changed[:, :, mine] = mean
            return (changed,)

        handle = projection.register_forward_pre_hook(hook)
        after = levels(model, ids, positions, dim, layers)  # observe() copies the model with its hooks
        handle.remove()
        row = result.heads[layer * HEADS + head]
        assert (row["layer"], row["head"]) == (layer, head)
        for key, change in row["mean"].items():
            if change is not None:
                assert change["mean"] == near(np.subtract(after[key], before[key]).mean(), before[key])


def test_orders():
    rng = np.random.default_rng(0)
    scores, writes = rng.random((2, 5, 4)), rng.normal(size=(2, 5, 4))
    found = heads.Survey(scores, writes, None)
    orders = heads.orders(found, 2, seed=3)
    assert list(orders) == ["score", "write", "random 0", "random 1"]
    for order in orders.values():
        assert sorted(order) == list(np.ndindex(5, 4))
    assert np.all(np.diff([scores[:, layer, head].mean() for layer, head in orders["score"]]) < 0)
    assert np.all(np.diff([abs(writes[:, layer, head].mean()) for layer, head in orders["write"]]) < 0)
    for name in ("random 0", "random 1"):
        assert [layer for layer, _head in orders[name]] == [layer for layer, _head in orders["score"]]
    assert len({tuple(order) for order in orders.values()}) == 4
    assert heads.orders(found, 2, seed=3) == orders
    assert [heads.steps(n) for n in (1, 2, 9, 16)] == [[1], [1, 2], [1, 2, 4, 8, 9], [1, 2, 4, 8, 16]]


def sweep_of(architecture, kind, seed):
    """(truth, results) of exp7 on three windows of a planted model."""
    built = planted.build(architecture, kind, seed)
    windows = Windows(built.windows.ids[:3], 3, built.windows.bos, "test")
    return built.truth, exp7.run(built.lm, windows, exp7.Options(batch_size=3, n_random=0))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_planted_heads_are_named_and_no_other(architecture, seed):
    truth, result = sweep_of(architecture, "head", seed)
    values = result.conclusion["values"]
    assert result.conclusion["verdict"] == f"{truth.layer}.{truth.head}"
    assert values["lowers"]["zero"] == [[truth.layer, truth.head]]
    assert values["raises"] == {"zero": [], "mean": []}
    assert result.through_scores.startswith("impossible")
    row = next(row for row in result.heads if [row["layer"], row["head"]] == [truth.layer, truth.head])
    largest = result.place["dim"]
    assert row["write"] == pytest.approx(truth.values[largest], rel=0.05)
    assert row["zero"]["birth"]["mean"] == pytest.approx(-truth.values[largest], rel=0.05)
    assert result.cumulative["write"]["heads"][0] == (truth.layer, truth.head)

    truth, result = sweep_of(architecture, "mlp", seed)
    assert result.conclusion["verdict"] == "no single head"

    truth, result = sweep_of(architecture, "head_eraser", seed)
    assert result.conclusion["verdict"] == "no single head"
    assert result.conclusion["values"]["raises"]["zero"] == [[truth.eraser["layer"], truth.eraser["head"]]]


@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_nothing_massive_and_another_position(architecture):
    _truth, result = sweep_of(architecture, "none", 1)
    assert result.conclusion["verdict"] == "none found"
    _truth, result = sweep_of(architecture, "content", 0)
    assert result.conclusion["verdict"] == "no single head"
    assert result.through_scores is None


def test_only_what_can_change_is_run(monkeypatch):
    """The sweep starts every head's passes at its layer."""
    built = planted.build("llama", "mlp", 0)
    started = []

    class Passes(sweep.Passes):
        def run(self, ids, rows, first=0, baseline=None):
            started.append(first)
            super().run(ids, rows, first, baseline)

    monkeypatch.setattr(sweep, "Passes", Passes)
    at = place.find(built.lm, built.windows, 8)
    found = heads.survey(built.lm, built.windows, at, 8)
    sweep.measure(built.lm, built.windows, at, heads.changes(found, {}), 8)
    n_layers, n_heads = found.scores.shape[1:]
    assert Counter(started) == {layer: 2 * n_heads + (layer == 0) for layer in range(n_layers)}


def test_spearman():
    rng = np.random.default_rng(1)
    x, y = rng.permutation(20), rng.permutation(20)
    assert stats.spearman(x, y) == pytest.approx(1 - 6 * ((x - y) ** 2).sum() / (20 * (20**2 - 1)))
    assert stats.spearman([1, 5, 9], [-2, -1.5, 30]) == pytest.approx(1)
    assert stats.spearman([1, 5, 9], [3, 2, 1]) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4
    assert stats.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert stats.spearman([1, 1, 1], [1, 2, 3]) is None
    assert stats.spearman([], []) is None
