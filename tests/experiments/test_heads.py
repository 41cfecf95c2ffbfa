"""What single heads write and do, against zeroed copies, eager attention maps, hooks of this file, planted heads."""

from collections import Counter
from copy import deepcopy
from itertools import combinations, permutations, product
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch

import exp7_head_sweep
import test_head_pruning_on_massive
from experiments.head_pruning import measure
from experiments.head_pruning.results import OfSets, Sets
from experiments.head_sweep import figures
from experiments.head_sweep import judge as head_sweep_judge
from experiments.head_sweep import measure as head_sweep_measure
from experiments.head_sweep.results import VALUE_EFFECTS, Simultaneous
from lib import catalogue
from lib.core import heads, place, stats, sweep
from lib.core.data import Windows
from lib.core.results import Head
from lib.planted import blank, planting
from lib.report import result_files
from tests import reference
from tests.cases import captured
from tests.conftest import HEADS, LAYERS, MASSIVE_DIM, SPIKE_TOKEN, by_turns, language_model, planted_model, token_ids
from tests.core.test_sweep import DIM, fixed_place, windows_of


def test_survey_in_every_family(case):
    at = [0, 9]
    found = head_sweep_measure.survey(case.lm, windows_of(case.ids), fixed_place(at, case.lm.arch.n_layers), 1)
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
    """The results of exp7 on a planted model whose last window has no spike, its model, ids and positions."""
    lm = language_model(planted_model(family), tokenizer)
    ids, positions = token_ids(4, 16), [4, 0, 11]
    ids[torch.arange(3), torch.tensor(positions)] = SPIKE_TOKEN
    hidden = torch.stack(reference.observe(lm.model, ids[3:]).hidden[:LAYERS])[:, 0, :, MASSIVE_DIM]
    positions.append(int(hidden.abs().amax(0).argmax()))
    return (
        head_sweep_measure.run(lm, windows_of(ids), exp7_head_sweep.Options(batch_size=2, n_random=1)),
        lm.model,
        ids,
        positions,
    )


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
    dim, layers = result.place.dim, [*result.place.plateau, LAYERS - 1]
    before, sign = levels(model, ids, positions, dim, layers), result.place.sign
    assert result.place.spiking.mean == 0.75
    assert [(head.layer, head.head) for head in result.heads] == list(np.ndindex(LAYERS, HEADS))
    impossible = 0
    for head in result.heads:
        off = levels(reference.without(model, heads=[(head.layer, head.head)]), ids, positions, dim, layers)
        for effect in before:
            change, difference = head.zero.effect(effect), np.subtract(off[effect], before[effect])
            if change is None:
                impossible += 1
                assert not difference.any()
                assert head.mean.effect(effect) is None
            else:
                assert change.mean == near(difference.mean(), before[effect])
                assert change.ci95 == near(stats.independent(4).averages(difference).ci95, before[effect])
                low, high = change.ci95
                assert change.family95[0] <= low <= high <= change.family95[1]
            if change is not None and effect in VALUE_EFFECTS:
                size = sum(sign * value for value in before["birth" if effect == "birth" else "end"][:3])
                assert change.relative.mean == near(sign * difference[:3].sum() / size, 1)
    first, end, last = layers
    assert impossible == HEADS * ((last - first) + (last - end) + 1)
    (random,) = result.cumulative.random
    for removal in (result.cumulative.score, result.cumulative.write, random):
        for step in removal.steps:
            off = reference.without(model, heads=removal.heads[: step.removed])
            after = levels(off, ids, positions, dim, layers)
            for effect, values in after.items():
                assert step.average(effect).mean == near(np.mean(values), before[effect]), step.removed
            assert step.perplexity.value == pytest.approx(np.exp(np.mean(after["loss"])), rel=1e-4)
    assert [step.removed for step in result.cumulative.write.steps] == [1, 2, 4, 8, LAYERS * HEADS]


def test_the_place_is_of_all_windows_and_the_loss_of_some_spread_evenly(tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    ids = token_ids(5, 16)
    result = head_sweep_measure.run(lm, windows_of(ids), exp7_head_sweep.Options(batch_size=2, n_random=0, n_whole=2))
    assert {name: cell.n for name, cell in vars(result.baseline).items() if cell} == {
        **dict.fromkeys(("birth", "end", "last"), 5),
        **dict.fromkeys(("sink_rate", "loss", "perplexity"), 2),
    }, "nothing is massive: nothing is retained"
    losses = [reference.loss(reference.observe(lm.model, ids[i : i + 1]).logits[0], ids[i]) for i in (0, 2)]
    assert result.baseline.loss.mean == pytest.approx(np.mean(losses), rel=1e-5)
    shown = result_files.Result(
        experiment="exp7",
        provenance={"data": {"windows": 5, "seqlen": 16}},
        config={"model_name": "m"},
        results=result,
        conclusion=head_sweep_judge.judge(result),
        files={},
    )
    titles = [ax.get_title() for ax in figures.head_sweep_cumulative(shown).axes]
    assert titles == ["in 5 of the windows", *["in 2 of the windows"] * 2]
    assert "in 2 of the windows" in figures.head_sweep_model(shown).get_suptitle()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_mean_ablation_equals_a_hook_that_writes_the_mean(family, tokenizer):
    result, model, ids, positions = measured(family, tokenizer)
    dim, layers = result.place.dim, [*result.place.plateau, LAYERS - 1]
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
        swept = result.heads[layer * HEADS + head]
        assert (swept.layer, swept.head) == (layer, head)
        for effect in VALUE_EFFECTS:
            change = swept.mean.effect(effect)
            if change is not None:
                assert change.mean == near(np.subtract(after[effect], before[effect]).mean(), before[effect])


def test_orders():
    rng = np.random.default_rng(0)
    scores, writes = rng.random((2, 5, 4)), rng.normal(size=(2, 5, 4))
    surveyed = head_sweep_measure.Survey(scores, writes, None)
    orders = head_sweep_measure.orders(surveyed, 2, seed=3)
    assert orders.every == [orders.score, orders.write, *orders.random]
    assert len(orders.random) == 2
    for order in orders.every:
        assert sorted(order) == list(np.ndindex(5, 4))
    assert np.all(np.diff([scores[:, layer, head].mean() for layer, head in orders.score]) < 0)
    assert np.all(np.diff([abs(writes[:, layer, head].mean()) for layer, head in orders.write]) < 0)
    for order in orders.random:
        assert [layer for layer, _head in order] == [layer for layer, _head in orders.score]
    assert len({tuple(order) for order in orders.every}) == 4
    assert head_sweep_measure.orders(surveyed, 2, seed=3) == orders
    assert [head_sweep_measure.steps(n) for n in (1, 2, 9, 16)] == [[1], [1, 2], [1, 2, 4, 8, 9], [1, 2, 4, 8, 16]]


def effects_of(n=12, n_whole=6, n_layers=8, n_heads=3, seed=0):
    """(Effects of a sweep that never ran: random numbers, six of twelve windows with a spike; {version: layer})."""
    rng = np.random.default_rng(seed)
    versions = {f"off {heads.label([head])}": head[0] for head in np.ndindex(n_layers, n_heads)}
    spike = np.where(np.arange(n) % 2, 1.0, -2000.0)[:, None] * np.linspace(1, 1.2, n_layers)
    names = [sweep.BASELINE, *versions]
    values = {name: spike * (1 + 0.2 * rng.normal(size=(n, n_layers)) * (name in versions)) for name in names}
    whole = {
        name: sweep.Measured(None, rng.normal(3, 0.3, size=n_whole), rng.random((n_whole, n_layers, n_heads)))
        for name in names
    }
    at = place.Place(0, np.zeros(n, int), "", spike, np.ones((n, n_layers)), np.arange(n), stats.independent(n))
    return head_sweep_measure.Effects(values, whole, at, slice(0, n, n // n_whole)), versions


def test_effects_are_of_the_windows_with_the_spike_and_of_all_heads_that_can():
    effects, versions = effects_of()
    assert effects.layers == [0, 7, 7]
    changes, baseline = effects.changes(versions), effects.values[sweep.BASELINE]
    for key, at in (("birth", 0), ("end", 7)):
        able = [name for name, layer in versions.items() if layer <= at]
        differences = np.stack([effects.values[name][:, at] - baseline[:, at] for name in able], axis=1)
        spiking, rows = np.arange(0, 12, 2), slice(None, len(able))
        single = stats.independent(12).averages(differences, family=True)
        relative = stats.independent(6).ratios(-differences[spiking], -baseline[spiking, at], family=True)
        assert [row[key].mean for row in changes[rows]] == [average.mean for average in single]
        assert [row[key].family95 for row in changes[rows]] == [average.family95 for average in single]
        for row, cell, difference in zip(changes, relative, differences.T, strict=False):
            assert row[key].relative == Simultaneous(cell.mean, cell.ci95, cell.family95)
            expected = -difference[spiking].sum() / -baseline[spiking, at].sum()
            assert row[key].relative.mean == pytest.approx(expected)
        assert not any(row[key] for row in changes[len(able) :])
    assert effects.described("off 2.1").retained.mean == pytest.approx(1 + changes[7]["end"].relative.mean, abs=1e-12)


def test_layers_and_quarters_are_of_absolute_changes_in_a_window():
    effects, versions = effects_of()
    losses = {name: of.losses for name, of in effects.whole.items()}
    sizes = np.zeros((6, 8))
    for name, layer in versions.items():
        sizes[:, layer] += abs(losses[name] - losses[sweep.BASELINE]) / 3
    rows = effects.by_layer(versions)
    assert [row["loss"].mean for row in rows] == pytest.approx(sizes.mean(0))
    assert all(row["loss"].family95[0] <= row["loss"].ci95[0] < row["loss"].ci95[1] for row in rows)
    assert [row["birth"] is None for row in rows] == [False] + [True] * 7
    early = effects.early(versions)
    assert [quarter.layers for quarter in early.quarters] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    quarters = sizes.reshape(6, 4, 2).mean(2)
    assert [quarter.loss.mean for quarter in early.quarters] == pytest.approx(quarters.mean(0))
    assert [more.mean for more in early.first_minus] == pytest.approx((quarters[:, :1] - quarters[:, 1:]).mean(0))
    assert early.first_minus_from_2 is None
    effects, versions = effects_of(n_layers=12)
    early, third = effects.early(versions), [name for name, layer in versions.items() if layer == 2]
    change = np.mean([abs(effects.whole[n].losses - effects.whole[sweep.BASELINE].losses).mean() for n in third])
    assert early.first_minus_from_2[2].mean == pytest.approx(change - early.quarters[3].loss.mean)
    effects, versions = effects_of(n_layers=3)
    assert effects.early(versions) is None


def sweep_of(architecture, kind, seed, n=3):
    """(truth, results) of exp7 on windows of a planted model."""
    built = planting.build(architecture, kind, seed)
    windows = Windows(built.windows.ids[:n], n, built.windows.bos, "test")
    return built.truth, catalogue.judged(
        "exp7", head_sweep_measure.run(built.lm, windows, exp7_head_sweep.Options(batch_size=n, n_random=0))
    )


def test_what_no_head_can_change_is_said_of_a_single_layer():
    """Its attention is that of the embeddings."""
    followed = SimpleNamespace(plateau=(0, 0), values=np.zeros((2, 1)), draws=SimpleNamespace(of=lambda _rows: None))
    effects = head_sweep_measure.Effects({}, {}, followed, slice(2)).effects
    assert effects["sink_rate"].impossible == "all heads: a head changes only the attention of later layers"
    assert effects["loss"].impossible is None


@pytest.mark.parametrize(("architecture", "seed"), by_turns(blank.ARCHITECTURES, [0, 3]))
def test_planted_heads_are_named_and_no_other(architecture, seed):
    truth, result = sweep_of(architecture, "head", seed)
    values, planted_head = result["conclusion"]["values"], [truth.layer, truth.head]
    assert result["conclusion"]["verdict"] == f"{truth.layer}.{truth.head} lowers"
    assert {tuple(of[:3]) for of in values["moves"]["zero"]} == {(*planted_head, "lowers")}
    assert result["through_scores"].startswith("impossible")
    row = next(row for row in result["heads"] if [row["layer"], row["head"]] == planted_head)
    largest = result["place"]["dim"]
    assert row["write"] == pytest.approx(truth.values[largest], rel=0.05)
    assert row["zero"]["birth"]["mean"] == pytest.approx(-truth.values[largest], rel=0.05)
    assert result["cumulative"]["write"]["heads"][0] == planted_head
    assert result["cumulative"]["write"]["steps"][0]["retained"]["mean"] == pytest.approx(0, abs=0.01)

    truth, result = sweep_of(architecture, "mlp", seed)
    assert result["conclusion"]["verdict"] == "no single head"

    truth, result = sweep_of(architecture, "head_eraser", seed)
    assert result["conclusion"]["verdict"] == "no single head"
    eraser = [truth.eraser["layer"], truth.eraser["head"], "raises", "last"]
    assert result["conclusion"]["values"]["moves"]["zero"] == [eraser]


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_nothing_massive_and_another_position(architecture):
    _truth, result = sweep_of(architecture, "none", 1)
    assert result["conclusion"]["verdict"] == "none found"
    assert not result["conclusion"]["values"]["moves"]["zero"]
    assert result["heads"][0]["zero"]["birth"]["relative"] is None
    _truth, result = sweep_of(architecture, "content", 0)
    assert result["conclusion"]["verdict"] == "no single head"
    assert result["through_scores"] is None
    _truth, result = sweep_of(architecture, "head", 0, n=1)
    assert result["conclusion"]["verdict"] == "cannot tell", "one window has no interval"


def opposed(b):
    """As "mlp", and two heads of one later layer add 0.2 times the value and take it away again."""
    layer, later = b.layers(2, before=b.n_layers - 1)
    b.neurons_write(layer, b.flag - b.one, b.values)
    adds, takes = (
        b.head_writes(later, b.spike, {dim: share * value for dim, value in b.values.items()}) for share in (0.2, -0.2)
    )
    return {"generator": "mlp", "layer": later, "head": adds, "eraser": {"layer": later, "head": takes}}


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_a_head_that_raises_is_named_like_one_that_lowers(architecture, monkeypatch):
    monkeypatch.setitem(planting.KINDS[architecture], "opposed", opposed)
    truth, result = sweep_of(architecture, "opposed", 0, n=8)
    adds, takes = [truth.layer, truth.head], [truth.layer, truth.eraser["head"]]
    expected = [[*adds, "lowers", "end"], [*takes, "raises", "end"]]
    assert sorted(of for of in result["conclusion"]["values"]["moves"]["zero"] if of[3] == "end") == sorted(expected)
    rows = {(row["layer"], row["head"]): row["zero"]["end"] for row in result["heads"]}
    assert rows[*adds]["relative"]["mean"] == pytest.approx(-0.2, abs=0.02)
    assert rows[*takes]["relative"]["mean"] == pytest.approx(0.2, abs=0.02)

    sign, size = result["place"]["sign"], abs(result["baseline"]["end"]["mean"])
    old_rule = [
        head for head, c in rows.items() if c and sign * c["mean"] / size <= -0.1 and c["ci95"][0] * c["ci95"][1] > 0
    ]
    assert old_rule == [tuple(adds)]


def cell(mean, low, high):
    return {"mean": mean, "ci95": [low, high], "family95": [low, high]}


@pytest.fixture(scope="module")
def stored():
    """A whole result of exp7, as JSON types."""
    return sweep_of("gpt2", "mlp", 0)[1]


@pytest.fixture
def conclusion_of(stored):
    def concluded(*changed, kind="zero", key="end"):
        """The conclusion on six heads that do nothing, but for the first ones' cells."""
        place_only = {effect: cell(0, -9, 9) | {"relative": cell(0, -0.01, 0.01)} for effect in VALUE_EFFECTS}
        nothing = {
            "zero": place_only | {effect: cell(0, -0.01, 0.01) for effect in ("sink_rate", "loss")},
            "mean": place_only,
        }
        rows = [{"layer": i // 3, "head": i % 3, "score": i / 10, "write": i} | deepcopy(nothing) for i in range(6)]
        for row, changed_cell in zip(rows, changed, strict=False):
            row[kind][key] = changed_cell if key == "loss" else cell(0, -9, 9) | {"relative": changed_cell}
        shown = ["birth", "end", "last", "sink_rate", "loss"]
        results = stored | {"place": stored["place"] | {"massive": True}, "shown": shown, "heads": rows}
        return catalogue.judged("exp7", results)["conclusion"]

    return concluded


def test_an_interval_that_holds_the_threshold_is_no_verdict(conclusion_of):
    """0.5 lowered by 10.1 % [4.8, 16.4] and was named; 2.2 raised by 11.1 % and was not."""
    assert conclusion_of()["verdict"] == "no single head"
    unclear = cell(-0.101, -0.164, -0.048)
    found = conclusion_of(unclear)
    assert found["verdict"] == "cannot tell"
    assert found["values"]["cannot_tell"] == {"zero": [[0, 0]], "mean": []}
    assert [test["side"] for test in found["tests"] if test["interval"] == [-0.164, -0.048]] == ["holds it"]
    assert len(found["tests"]) == 5, "and the nearest of the others, of each effect"
    assert conclusion_of(unclear, kind="mean")["verdict"] == "no single head"
    assert conclusion_of({"mean": 0.2, "ci95": [0.11, 0.3], "family95": [0.09, 0.4]})["verdict"] == "cannot tell"
    assert conclusion_of({"mean": 0.2, "ci95": None, "family95": None})["verdict"] == "cannot tell"
    for side, does in ((-1, "lowers"), (1, "raises")):
        beyond = cell(side * 0.15, *sorted((side * 0.105, side * 0.2)))
        found = conclusion_of(unclear, beyond)
        assert found["verdict"] == f"0.1 {does}"
        assert found["values"]["moves"] == {"zero": [[0, 1, does, "end"]], "mean": []}
        assert found["values"]["cannot_tell"]["zero"] == [[0, 0]]
        found = conclusion_of(beyond, key="last")
        assert (found["verdict"], found["values"]["moves"]["zero"]) == ("no single head", [[0, 0, does, "last"]])
    assert conclusion_of(unclear, key="last")["values"]["cannot_tell_last"]["zero"] == [[0, 0]]


def test_costs_are_judged_of_every_head(conclusion_of):
    cells = [(0.6, 0.3, 0.9), (0.06, 0.04, 0.08), (0.04, 0.03, 0.049), (-0.2, -0.3, -0.1), (-0.06, -0.08, -0.04)]
    values = conclusion_of(*(cell(*of) for of in cells), key="loss")["values"]
    assert (values["costs"], values["gains"], values["costs_cannot_tell"]) == ([[0, 0]], [[1, 0]], [[0, 1], [1, 1]])
    correlation = values["correlations"]["score_loss"]
    assert correlation["rho"] == pytest.approx(stats.spearman(range(6), [*(of[0] for of in cells), 0]))
    assert correlation["heads"] == 6


def test_only_what_can_change_is_run(monkeypatch):
    """The sweep starts every head's passes at its layer."""
    built = planting.build("llama", "mlp", 0)
    started = []

    class Passes(sweep.Passes):
        def run(self, ids, rows, first=0, baseline=None, others=()):
            started.extend([first] * (1 + len(others)))
            super().run(ids, rows, first, baseline, others)

    monkeypatch.setattr(sweep, "Passes", Passes)
    at = place.find(built.lm, built.windows, 8)
    found = head_sweep_measure.survey(built.lm, built.windows, at, 8)
    changes = [*head_sweep_measure.heads_off(found, []), *head_sweep_measure.heads_at_mean(found)]
    sweep.measure(built.lm, built.windows, at, changes, 8)
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


def test_correlation_within_strata():
    rng = np.random.default_rng(0)
    x, y, strata = rng.normal(size=(3, 12))
    strata = np.repeat(["a", "b", "c"], [3, 4, 5])
    rho, _p = stats.stratified_spearman(x, y, strata)

    def ranked(of):
        parts = [scipy.stats.rankdata(of[strata == name]) for name in "abc"]
        return np.concatenate([part - part.mean() for part in parts])

    assert rho == pytest.approx(scipy.stats.pearsonr(ranked(x), ranked(y)).statistic)
    rows = [np.flatnonzero(strata == name) for name in "ab"]
    few = np.concatenate(rows)
    observed = ranked(x)[few] @ ranked(y)[few]
    every = [
        ranked(x)[few] @ ranked(y)[np.concatenate(orders)]
        for orders in product(*(permutations(of.tolist()) for of in rows))
    ]
    exact = np.mean(np.abs(every) >= abs(observed) - 1e-9)
    assert stats.stratified_spearman(x[few], y[few], strata[few])[1] == pytest.approx(exact, abs=0.03)
    one = stats.stratified_spearman(x, y, np.zeros(12))
    assert one[0] == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert one[1] == pytest.approx(scipy.stats.spearmanr(x, y).pvalue, abs=0.03)
    assert stats.stratified_spearman([1, 2], [3, 4], ["a", "b"]) == (None, None)


def test_what_depth_alone_explains_is_no_correlation_within_layers():
    """Both follow depth, and nothing else: rho is -0.9; within layers there is nothing."""
    rng, depth = np.random.default_rng(1), np.repeat(np.arange(30), 9)
    x, y = depth + rng.normal(size=270), -depth + rng.normal(size=270)
    assert stats.spearman(x, y) < -0.9
    rho, p = stats.stratified_spearman(x, y, depth)
    assert abs(rho) < 0.15
    assert p > 0.05
    rho, p = stats.stratified_spearman(x, -depth + x, depth)
    assert (rho, p) == (pytest.approx(1), pytest.approx(1 / 4001))


def of_heads(n_heads):
    return SimpleNamespace(layers=[SimpleNamespace(n_heads=n_heads)] * 4)


def test_random_heads_are_all_draws_where_they_are_few():
    sets = Sets((Head(1, 0), Head(1, 1), Head(3, 2)), (Head(1, 2), Head(0, 0), Head(3, 3)), "here")
    draws, possible = measure.random_heads(of_heads(8), sets, "top", seed=0)
    free = [3, 4, 5, 6, 7], [0, 1, 4, 5, 6, 7]
    expected = {(*((1, head) for head in two), (3, one)) for two in combinations(free[0], 2) for one in free[1]}
    assert possible == len(draws) == len(expected) == 60
    assert set(draws) == expected
    assert draws != sorted(draws), "those run whole are random ones"
    draws, possible = measure.random_heads(of_heads(16), sets, "top", seed=0)
    assert possible == 78 * 14
    assert len(set(draws)) == len(draws) == measure.NULL
    assert all([layer for layer, _head in draw] == [1, 1, 3] for draw in draws)
    assert not {head for draw in draws for head in draw} & {*sets.top, *sets.bottom}


def test_documents_drawn_anew_rank_other_heads():
    """One document of three windows ranks heads by their numbers, one of one window the other way round."""
    arch = SimpleNamespace(heads=[(0, head) for head in range(8)])
    scores = np.stack([np.arange(8.0)] * 3 + [7 - np.arange(8.0)])[:, None]
    rising, falling = ((Head(0, a), Head(0, b), Head(0, c)) for a, b, c in ((7, 6, 5), (0, 1, 2)))
    rankings = measure.ranked_anew(scores, stats.Draws(np.array([5, 5, 5, 9])), arch)
    drawn = Counter(rankings)
    assert set(drawn) == {OfSets(rising, falling), OfSets(falling, rising)}
    expected = scipy.stats.binom(measure.RANKINGS, 1 / 4)  # the other document, and it again
    assert expected.cdf(5) < 1e-6 < expected.cdf(drawn[OfSets(falling, rising)]) < 1 - 1e-6
    assert len(rankings) == measure.RANKINGS
    assert set(measure.ranked_anew(scores, stats.Draws(np.zeros(4, int)), arch)) == {OfSets(rising, falling)}


def test_how_sure_the_sets_are_is_told_of_those_ranked_here():
    """The change without each set that other documents would pick, by plain forward passes without these heads."""
    built = planting.build("llama", "head", 1)
    result = pruned(built, top=("0.1",))
    null, place_at = result["null"], result["place"]
    assert (null["top"]["ranked_anew"], null["top"]["picked_again"]) == ([], None)
    bottom, end, dim = null["bottom"], place_at["plateau"][1], place_at["dim"]
    assert len(bottom["ranked_anew"]) == measure.RANKINGS
    options = test_head_pruning_on_massive.Options(batch_size=8, n_random=1, top=("0.1",))
    sets, rankings = measure.choose_sets(built.lm, built.windows, options)
    picks = [set(heads) for heads in rankings.bottom]
    assert 0 < bottom["picked_again"] == picks.count(set(sets.bottom)) / len(picks) < 1

    def value(of):
        return reference.observe(of, built.windows.ids).hidden[end][:, 0, dim].double().numpy()

    before = value(built.lm.model)
    for heads_off, got in dict(zip(map(frozenset, picks), bottom["ranked_anew"], strict=True)).items():
        after = value(reference.without(built.lm.model, heads=tuple(heads_off)))
        assert got == pytest.approx(np.abs(after - before).sum() / np.abs(before).sum(), rel=1e-3, abs=1e-5)


def pruned(built, **sets):
    """Judged results of head pruning."""
    options = test_head_pruning_on_massive.Options(batch_size=8, n_random=1, **sets)
    return catalogue.judged("head_pruning", measure.run(built.lm, built.windows, options))


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_the_null_is_of_all_draws_at_the_place(architecture):
    built = planting.build(architecture, "head", 0)
    truth, model = built.truth, built.lm.model
    layer, planted_head = truth.layer, truth.head
    others = [head for head in range(blank.HEADS) if head != planted_head]
    result = pruned(built, top=(f"{layer}.{planted_head}",), bottom=(f"{layer}.{others[0]}",))
    place_at, null = result["place"], result["null"]
    end, dim = place_at["plateau"][1], place_at["dim"]
    assert place_at["first_tokens"] is not None

    def value(of):
        return reference.observe(of, built.windows.ids).hidden[end][:, 0, dim].double().numpy()

    before = value(model)
    for name, head in (("top", planted_head), ("bottom", others[0])):
        assert null[name]["draws"] == [[[layer, h]] for h in np.array(null[name]["draws"])[:, 0, 1]]
        assert sorted(h for ((_layer, h),) in null[name]["draws"]) == others[1:]
        for heads_off, got in (
            (((layer, head),), null[name]["of_set"]),
            (null[name]["draws"][0], null[name]["absolute_change"][0]),
        ):
            change = np.abs(value(reference.without(model, heads=heads_off)) - before).sum() / np.abs(before).sum()
            assert got == pytest.approx(change, rel=1e-3, abs=1e-6)
    assert null["top"]["of_set"] == pytest.approx(1, abs=0.01)
    assert (null["top"]["at_least_as_large"], null["top"]["p"]) == (0, pytest.approx(1 / 3))
    assert len(null["top"]["perplexity"]) == len(null["top"]["run_whole"]) == 1
    values = result["conclusion"]["values"]
    assert (result["conclusion"]["verdict"], values["bottom"]["verdict"]) == ("collapses", "persists")
    assert {test["what"].split(":")[0] for test in result["conclusion"]["tests"]} == {"TOP", "BOTTOM"}


def test_heads_that_run_after_the_plateau_are_no_evidence():
    """An eraser ends the plateau; the last layer's heads come after it. The old verdict: persists."""
    seed = next(s for s in range(20) if planting.build("gpt2", "mlp_eraser", s).truth.eraser["layer"] < 4)
    built = planting.build("gpt2", "mlp_eraser", seed)
    last = built.lm.arch.n_layers - 1
    result = pruned(built, top=(f"{last}.0",), bottom=("0.1",))
    assert result["place"]["plateau"][1] < last
    null, conclusion = result["null"]["top"], result["conclusion"]
    assert conclusion["verdict"] == "certain beforehand"
    assert conclusion["values"]["top"]["retained"]["mean"] == pytest.approx(1, abs=1e-6)
    assert null["impossible"].startswith("causality")
    assert (null["of_set"], null["p"]) == (0, None)
    assert conclusion["values"]["bottom"]["verdict"] == "persists"
    assert result["null"]["bottom"]["impossible"] is None
