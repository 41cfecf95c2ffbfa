"""Experiment 2B: off, kept and cumulative against zeroed copies; frozen by really freezing; planted truth."""

import copy
import itertools
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

import exp2b_mlp_layer_sweep
from experiments.layer_sweep import measure
from experiments.layer_sweep.results import Baseline, Repair, Results, Swept, SweptLayer, SweptWindows
from lib import catalogue
from lib.core import place, sweep
from lib.core.ablation import Condition
from lib.core.data import Windows
from lib.core.definitions import COLLAPSES, PERSISTS, REPAIRS
from lib.core.evidence import Average, Perplexity, StoredTest
from lib.core.results import FollowedPlace
from lib.model import hooks
from lib.planted import blank, builder, kinds, planting
from lib.report import tables
from lib.report.upgrades import upgraded
from tests import reference
from tests.conftest import LAYERS, MASSIVE_DIM, SPIKE_TOKEN, language_model, planted_model, save, tiny_model, token_ids
from tests.core.test_sweep import windows_of
from tests.planted import test_planted
from tests.scripts import test_scripts

pytestmark = pytest.mark.usefixtures("few_draws")
EVERY = set(range(LAYERS))
# of others check_controls.py tells the same
ELSEWHERE = {"none", "sinks"}.union(*(kinds for of, kinds in test_planted.SOME if of in blank.ARCHITECTURES))
MASSIVE = [kind for kind in kinds.KINDS if kind not in ELSEWHERE]


def sweep_of(built, **flags):
    """What a run stores of a planted model, with its conclusion."""
    options = exp2b_mlp_layer_sweep.Options(batch_size=8, **flags)
    return catalogue.judged("exp2b", measure.run(built.lm, built.windows, options))


@pytest.fixture(params=["gpt2", "llama"])
def spiking(request, tokenizer):
    """(lm, ids, where): a model with a spike in layer 1, to which layer 2 adds."""
    lm = language_model(planted_model(request.param), tokenizer)
    ids = token_ids(3, 16)
    where = torch.tensor([4, 0, 11])
    ids[torch.arange(3), where] = SPIKE_TOKEN
    return lm, ids, where


def at_place(hidden, where):
    return hidden[torch.arange(3), where, MASSIVE_DIM].numpy()


def test_every_run_equals_a_zeroed_copy(spiking):
    lm, ids, where = spiking
    results = measure.run(lm, windows_of(ids), exp2b_mlp_layer_sweep.Options(batch_size=2))
    baseline = reference.observe(lm.model, ids)
    before = [at_place(hidden, where) for hidden in baseline.hidden]
    assert results.baseline.value.mean == pytest.approx(before[2].mean(), rel=1e-5)
    loss_before = np.mean([reference.loss(*of) for of in zip(baseline.logits, ids, strict=True)])
    off = {
        "alone": lambda layer: {layer},
        "only": lambda layer: EVERY - {layer},
        "only_with_first": lambda layer: EVERY - {0, layer},
        "from_front": lambda layer: set(range(layer + 1)),
        "from_back": lambda layer: set(range(layer, LAYERS)),
    }
    for kind, keyword in (("mlp", "mlps"), ("attention", "attentions")):
        runs = [run for run in off if kind == "mlp" or run != "only_with_first"]
        for layer in range(LAYERS):
            row = results.kinds[kind][layer]
            assert set(row.runs) == set(runs)
            for run in runs:
                expected = reference.observe(reference.without(lm.model, **{keyword: off[run](layer)}), ids)
                after = [at_place(hidden, where) for hidden in expected.hidden]
                assert row.runs[run].values == pytest.approx([x.mean() for x in after], rel=1e-4, abs=1e-3)
                assert row.runs[run].retained.mean == pytest.approx(after[2].sum() / before[2].sum(), abs=1e-4)
                losses = [reference.loss(logits, window) for logits, window in zip(expected.logits, ids, strict=True)]
                assert row.runs[run].perplexity.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
                assert row.runs[run].loss_change.mean == pytest.approx(np.mean(losses) - loss_before, abs=1e-4)


@pytest.mark.parametrize("layer", [1, 2])
def test_frozen_is_what_freezing_gives(spiking, layer):
    """A copy without one MLP in which all later writes are replaced by what they were."""
    lm, ids, where = spiking
    results = measure.run(lm, windows_of(ids), exp2b_mlp_layer_sweep.Options(batch_size=3))
    repair = results.kinds["mlp"][layer].repair
    model, kept = copy.deepcopy(lm.model), {}
    writing = [
        module
        for block in reference.blocks(model)[layer:]
        for module in (reference.parts(block).heads, reference.parts(block).down)
    ][1:]  # without the layer's own attention, which runs before

    def hook(module, _args, output):
        kept.setdefault(module, output)  # the first run keeps, the second is given it
        return kept[module]

    handles = [module.register_forward_hook(hook) for module in writing]
    with torch.no_grad():
        model(ids, use_cache=False)
        kept[reference.parts(reference.blocks(model)[layer]).down] *= 0
    frozen = []
    handles.append(reference.blocks(model)[-1].register_forward_hook(lambda _m, _a, output: frozen.append(output)))
    with torch.no_grad():
        model(ids, use_cache=False)
    expected = at_place(frozen[0], where)
    assert repair.frozen.mean == pytest.approx(expected.mean(), rel=1e-4, abs=1e-2)
    free = at_place(reference.observe(reference.without(lm.model, mlps=[layer]), ids).hidden[-1], where)
    write = at_place(reference.observe(lm.model, ids).hidden[-1], where) - expected
    assert repair.ratio.mean == pytest.approx((free - expected).sum() / write.sum(), abs=1e-3)
    assert abs(repair.ratio.mean) > 0.1 or layer == 2


def test_the_place_is_measured_in_all_windows_and_no_later_token_runs(spiking):
    """Values are those of whole windows; with one window run whole, only that one reaches the last token."""
    lm, ids, _where = spiking
    windows, found = windows_of(ids), place.find(lm, windows_of(ids), 2)
    longest = []

    def see(_layer, value):
        longest.append(tuple(value.shape[:2]))

    with hooks.watch_inputs(lm.arch, "block", see, [LAYERS - 1]):
        counted, baseline, kinds = measure.sweep_layers(lm, windows, found, 1, 4)
    assert counted.all == 3
    assert counted.whole == 1
    assert baseline.value.n == 3
    assert baseline.sink_rate.n == 1
    assert np.allclose(baseline.values, found.values.mean(0), rtol=1e-6)
    # of the sweep over the one whole window, of the ledger over three, of what is elsewhere: the baseline and two MLPs
    n = len(
        {(kind, off) for kind in measure.KINDS for of in measure.off_sets(kind, LAYERS).values() for off in of.values()}
    )
    assert sum(n for n, length in longest if length == 16) == (n + 1) + 3 + 3
    condition = sweep.measure(lm, windows, found, [Condition("x", "", mlps=(1,))], 3)["x"]
    assert kinds["mlp"][1].alone.values == pytest.approx(condition.values.mean(0), rel=1e-5, abs=1e-3)
    assert kinds["mlp"][1].alone.loss_change.n == 1


def expected_of(truth):
    """(necessary, sufficient) as (kind, layer), from what was planted."""
    part = ["attention" if truth.generator == "head" else "mlp", truth.layer]
    if truth.second_generator:
        second = ["mlp", truth.second_generator["layer"]]
        return [], {"redundant": [part, second], "repair": [part], "partial": []}[truth.kind]
    if truth.kind == "needs_head":  # of its kind each is enough
        both = [part, ["attention", truth.first_step["layer"]]]
        return both, both
    if truth.kind == "two_steps":
        first = truth.first_step["layer"]
        return [["mlp", first], part], [part] if first == 0 else []  # MLP 0 is kept
    return [part], [part]


@pytest.mark.parametrize(("kind", "architecture"), zip(MASSIVE, itertools.cycle(blank.ARCHITECTURES), strict=False))
def test_planted_layers_are_judged_right(architecture, kind):
    built = planting.build(architecture, kind, 31)
    found = sweep_of(built, n_whole=1)["conclusion"]["values"]
    necessary, sufficient = expected_of(built.truth)
    assert found["necessary"] == necessary
    assert found["sufficient"] == sufficient
    assert found["redundant"] == [part for part in sufficient if part not in necessary]
    assert found["cannot_tell"] == []


def without_trigger(built, n):
    """A "content" model whose first `n` windows have another token where the trigger was."""
    ids, token = built.windows.ids.clone(), int(built.truth.trigger.split(" t")[1])
    some = ids[:n]
    some[some == token] = token % (blank.VOCABULARY - 1) + 1
    return replace(built, windows=replace(built.windows, ids=ids))


@pytest.mark.parametrize(("seed", "n"), [*((seed, 1) for seed in range(4)), (0, 4), (1, 4)])
def test_windows_without_the_spike_decide_nothing(seed, n):
    built = without_trigger(planting.build("gpt2", "content", seed), n)
    results = sweep_of(built, n_whole=1)
    part, values = ["mlp", built.truth.layer], results["conclusion"]["values"]
    assert values["necessary"] == values["sufficient"] == [part]
    assert values["redundant"] == values["repaired"] == values["cannot_tell"] == []
    assert results["windows"]["spiking"]["mean"] == 1 - n / 8
    row = results["kinds"]["mlp"][built.truth.layer]
    assert row["repair"]["ratio"]["mean"] == pytest.approx(0, abs=1e-3)
    assert row["alone"]["retained"]["n"] == 8 - n
    # the rule of before, means of the windows' own ratios, errs on the same numbers
    at = place.find(built.lm, built.windows, 8)
    alone = Condition("alone", "", mlps=(built.truth.layer,))
    values = sweep.values_at_place(built.lm, built.windows, at, [alone], 8)
    before, after = (version[:, at.plateau[1]] for version in values.values())
    assert (after / before).mean() > COLLAPSES[1]


class Rebuilding(builder.Builder):
    """What one MLP writes into one dim, a later one writes into another, if the former has not."""

    def __init__(self, architecture):
        super().__init__(architecture, np.random.default_rng(5), blank.BOS)
        self.layer, second = self.layers(2, before=self.n_layers - 1)
        self.other = {self.spare_dims.pop(): 800.0}
        self.neurons_write(second, self.flag - self.one, self.other)
        self.neurons_write(self.layer, self.flag - self.one, self.values)
        ids = self.rng.integers(1, blank.VOCABULARY, size=(6, 16))
        ids[:, 3] = blank.BOS
        self.windows = Windows(torch.from_numpy(ids), 6, False, "random tokens")


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_what_is_rebuilt_in_another_dim_is_seen(architecture):
    """At the place nothing comes back, so that the ratio alone would say: no compensation."""
    built = Rebuilding(architecture)
    results = sweep_of(built, n_whole=3)
    row = results["kinds"]["mlp"][built.layer]
    assert results["conclusion"]["values"]["necessary"] == [["mlp", built.layer]]
    assert row["repair"]["ratio"]["mean"] == pytest.approx(0, abs=0.05)
    found = row["repair"]["elsewhere"]
    assert found["share"]["mean"] == 1
    assert found["share"]["n"] == 3
    assert found["largest"]["dim"] in built.other
    assert found["largest"]["position"] == 3
    assert found["largest"]["token"] == blank.BOS_TEXT
    # by brute force over all that blocks give, in the windows 0, 2 and 4
    ids = built.windows.ids[::2]
    before, after = (
        torch.stack(reference.observe(of, ids).hidden[1:])
        for of in (built.model, reference.without(built.model, mlps=[built.layer]))
    )
    new = massive(after) & ~massive(before)
    new[:, :, 3, results["place"]["dim"]] = False
    largest = torch.where(new, after, 0).abs().max().item()
    assert abs(found["largest"]["value"]) == pytest.approx(largest, rel=1e-5)


def massive(hidden):
    """Of (layers, windows, tokens, dims): Sun et al.'s test against each window's median."""
    size = hidden.abs()
    return (size > 100) & (size > 1000 * size.flatten(2).median(2).values[..., None, None])


def test_nothing_is_found_elsewhere_where_nothing_is_rebuilt():
    built = planting.build("llama", "mlp", 3)
    for place_of in (built, planting.build("gpt2", "head", 3)):
        kinds = sweep_of(place_of, n_whole=2)["kinds"]
        found = [row["repair"]["elsewhere"] for rows in kinds.values() for row in rows if row["repair"]]
        assert [(of["share"]["mean"], of["largest"]) for of in found] == [(0, None)]


def test_redundant_generators_repair_each_other():
    for architecture in blank.ARCHITECTURES:
        built = planting.build(architecture, "redundant", 3)
        results = sweep_of(built, n_whole=1)
        rows = results["kinds"]["mlp"]
        assert rows[built.truth.layer]["repair"]["ratio"]["mean"] == pytest.approx(1, abs=0.05)
        assert rows[built.truth.second_generator["layer"]]["repair"] is None  # it writes nothing in the baseline
        assert results["conclusion"]["values"]["repaired"] == [["mlp", built.truth.layer]]


def test_nothing_massive():
    results = sweep_of(planting.build("llama", "none", 3), n_whole=1)
    assert results["conclusion"]["verdict"] == "none found"
    assert results["conclusion"]["values"]["necessary"] == []


def test_a_single_layer(tokenizer, text_file, tmp_path):
    """There is no other to be off or kept."""
    save(tmp_path / "model", tiny_model("llama", num_hidden_layers=1), tokenizer)
    flags = [
        "--model",
        tmp_path / "model",
        "--dataset",
        text_file,
        "--nsamples",
        "2",
        "--seqlen",
        "8",
        "--n_whole",
        "1",
    ]
    assert test_scripts.run("exp2b_mlp_layer_sweep.py", *flags, "--savedir", tmp_path / "out") == 0


def test_of_a_dim_that_is_zero_everywhere_nothing_is_retained():
    built, dim = planting.build("llama", "none", 3), 5
    built.lm.model.get_input_embeddings().weight.data[:, dim] = 0
    for block in reference.blocks(built.lm.model):
        parts = reference.parts(block)
        for projection in (parts.heads, parts.down):
            projection.weight.data[dim] = 0
    results = sweep_of(built, n_whole=1, dim=dim)
    rows = [row for kind in measure.KINDS for row in results["kinds"][kind]]
    assert all(row["alone"]["retained"] is row["repair"] is None for row in rows)
    assert results["conclusion"]["values"]["all_off"] == {"mlp": None, "attention": None}
    older = copy.deepcopy(results)
    untold = {"mean": None, "std": None, "ci95": None, "n": 8, "family95": None}
    for row in (row for kind in measure.KINDS for row in older["kinds"][kind]):
        for run in measure.off_sets("mlp", LAYERS):
            if row[run] is None:
                del row[run]
            else:
                row[run]["retained"] = untold
        row["repair"] = {"frozen": untold, "free": untold, "ratio": untold, "elsewhere": None}
    read, expected = (msgspec.convert(of, Results, str_keys=True) for of in (upgraded("exp2b", 2, older), results))
    assert read == expected


def stored(alone, only, with_first=0.0, first=0.0, all_off=0.0, repair=None, layer=1, end=1):
    """Results in which `layer` of two has these cells: (mean, low, high), or a number that is surely so."""
    one, perplexity = Average(1.0, (1.0, 1.0), None, 8), Perplexity(1.0, None, 8)

    def cell(number):
        mean, *limits = number if isinstance(number, tuple) else (number, number, number)
        return Average(mean, tuple(limits), None, 8, tuple(limits))

    def swept(retained):
        return Swept(
            value=one, values=[], perplexity=perplexity, sink_rate=one, loss_change=one, sink_rate_change=one,
            retained=cell(retained),
        )  # fmt: skip

    rows = [
        SweptLayer(
            layer=i,
            alone=swept(1.0),
            only=swept(first if i == 0 else 0.0),
            from_front=swept(all_off if i == 1 else 1.0),
            from_back=swept(1.0),
            write=one,
            repair=None,
        )
        for i in range(2)
    ]
    rows[layer] = replace(
        rows[layer],
        alone=swept(alone),
        only=swept(only),
        only_with_first=swept(with_first),
        repair=None if repair is None else Repair(one, one, cell(repair), elsewhere=None),
    )
    place_at = FollowedPlace(
        rule="", definition="", dim=0, positions={0: 8}, token="", massive=True, peak_layer=0, sign=1,
        plateau=(0, end), spiking=one, values=[], first_tokens=None,
    )  # fmt: skip
    return Results(
        place_at, SweptWindows(8, one, 8), Baseline(one, [], perplexity, one), {"mlp": rows}, first_tokens=None
    )


SPREAD = (0.0, -0.05, 0.11)  # its mean lies well inside; its interval holds the bound


@pytest.mark.parametrize(
    ("results", "yes", "open_"),
    [
        (stored(alone=0.05, only=1.0), ["necessary", "sufficient"], []),
        (stored(alone=SPREAD, only=1.0), ["sufficient"], ["necessary", "redundant"]),
        (stored(alone=-0.5, only=1.0), ["sufficient", "redundant"], []),  # reversed, not gone
        (stored(alone=1.0, only=(1.0, 0.89, 1.05)), [], ["sufficient", "redundant"]),
        (stored(alone=1.0, only=2.0), [], []),  # doubled: it has not persisted
        (stored(alone=1.0, only=1.0, all_off=0.6), [], []),  # what is there without any is not made by one
        (stored(alone=1.0, only=1.0, all_off=SPREAD), [], ["sufficient", "redundant"]),
        (stored(alone=0.0, only=0.0, with_first=1.0), ["necessary", "sufficient", "with_first"], []),
        (stored(alone=0.0, only=0.0, with_first=1.0, first=1.0), ["necessary"], []),  # MLP 0 alone makes it
        (stored(alone=0.0, only=0.0, with_first=1.0, first=SPREAD), ["necessary"], ["sufficient"]),
        (stored(alone=0.0, only=0.0, repair=0.2), ["necessary", "repaired"], []),
        (stored(alone=0.0, only=0.0, repair=(0.2, 0.09, 0.4)), ["necessary"], ["repaired"]),
        (stored(alone=0.0, only=1.0, end=0), [], []),  # it runs after the end of the plateau
    ],
)
def test_judged_by_intervals(results, yes, open_):
    conclusion = catalogue.judged("exp2b", results)["conclusion"]
    values, part = conclusion["values"], ["mlp", 1]
    words = ("necessary", "sufficient", "redundant", "repaired", "with_first")
    assert [word for word in words if part in values[word]] == [word for word in words if word in yes]
    assert values["cannot_tell"] == [[word, *part] for word in open_]
    for word in open_:
        assert f"{word}: none (cannot tell: mlp 1" in conclusion["verdict"]
        tests = [test for test in conclusion["tests"] if test["side"] == "holds it"]
        assert tests
        assert all(test["distance"] == 0 for test in tests)
    assert ("mlp 1 (with mlp 0 kept)" in conclusion["verdict"]) == ("with_first" in yes)


def test_one_window_is_no_verdict():
    built = planting.build("gpt2", "mlp", 3)
    one = replace(built, windows=replace(built.windows, ids=built.windows.ids[:1]))
    results = sweep_of(one, n_whole=1)
    assert results["conclusion"]["values"]["necessary"] == []
    assert ["necessary", "mlp", built.truth.layer] in results["conclusion"]["values"]["cannot_tell"]


def test_the_tests_that_decide_are_listed():
    """Of each word those of the layers that are named, and the nearest of the others, of MLPs and of attention."""
    built = planting.build("llama", "mlp", 3)
    conclusion = sweep_of(built, n_whole=1)["conclusion"]
    whats = [(test["what"], test["wanted"]) for test in conclusion["tests"]]
    assert len(set(whats)) == len(whats)
    named = f"mlp {built.truth.layer}"
    asked = {(t["wanted"], t["threshold"]) for t in conclusion["tests"] if t["what"] == f"retained without {named}"}
    assert asked == {("above", COLLAPSES[0]), ("below", COLLAPSES[1])}
    asked = {
        t["threshold"] for t in conclusion["tests"] if t["what"].startswith(f"retained with {named} as the only one")
    }
    assert asked == set(PERSISTS)
    assert any(t["what"] == f"self-repair without {named}" and t["threshold"] == REPAIRS for t in conclusion["tests"])
    others = [t for t in conclusion["tests"] if t["what"].startswith("retained without") and named not in t["what"]]
    assert {t["what"].split()[2] for t in others if "any" not in t["what"]} == {"mlp", "attention"}
    assert tables.tests_table([StoredTest(**test) for test in conclusion["tests"]])


def test_what_the_baseline_has_is_not_elsewhere(spiking):
    """Without MLP 2 the second massive dim of the same token stays, as it was."""
    lm, ids, _where = spiking
    row = measure.run(lm, windows_of(ids), exp2b_mlp_layer_sweep.Options(batch_size=3)).kinds["mlp"][2]
    assert row.repair.elsewhere.share.mean == 0


def test_the_place_is_not_elsewhere():
    """Without its eraser the value stays, where the baseline has none: at the place, and nowhere else."""
    built = planting.build("gpt2", "mlp_eraser", 4)
    assert len(built.truth.values) == 1
    at = place.find(built.lm, built.windows, 8)
    alone = Condition("alone", "", mlps=(built.truth.eraser["layer"],))
    (found,) = measure.elsewhere(built.lm, built.windows, at, [alone], 8).values()
    assert found.largest is None
    values = sweep.values_at_place(built.lm, built.windows, at, [alone], 8)
    assert abs(values["alone"][:, -1]).min() > 100 > abs(values[sweep.BASELINE][:, -1]).max()
