"""Sets of neurons against planted ones, copies with zero weights, and products made here by hand."""

import copy
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from msgspec import UNSET
from torch.nn.functional import cross_entropy

import exp2c_mlp_internal_analysis
import exp4_neuron_sets
from experiments.mlp_internal import figures as mlp_internal_figures
from experiments.mlp_internal import judge as mlp_internal_judge
from experiments.mlp_internal import text as mlp_internal_text
from experiments.neuron_sets import measure, super_weights, text
from experiments.neuron_sets.judge import judge
from experiments.neuron_sets.results import NeuronsRun, Null, RandomSet, Results, Scaled, SuperWeight, Written
from lib import catalogue
from lib.core import neurons, place, stats, sweep
from lib.core.definitions import MADE
from lib.core.evidence import Average
from lib.core.results import ContributionCheck, Neuron
from lib.model import hooks
from lib.planted import blank, planting
from lib.report import result_files
from lib.run import checkout
from tests import reference
from tests.cases import LAYER, by_hand, captured, close, observe_and_spoil, some
from tests.conftest import MASSIVE_DIM, SPIKE_TOKEN, by_turns, language_model, planted_model, token_ids
from tests.core.test_sweep import DIM, windows_of
from tests.reference import matrix

pytestmark = pytest.mark.usefixtures("few_draws")
KINDS = ("mlp", "two_steps", "decoy", "content", "redundant", "mlp_eraser", "head_eraser")
POSITIONS = [5, 9]
WHERE = [4, 0, 11]


def fixed_place(positions, n_layers):
    nothing, n = np.zeros((len(positions), n_layers)), len(positions)
    return place.Place(DIM, np.array(positions), "", nothing, nothing, np.zeros(n, int), stats.independent(n))


def experiment(lm, windows, **options):
    """Stored results, judged."""
    options = exp4_neuron_sets.Options(batch_size=8, **{"n_random": 0, **options})
    return catalogue.judged("exp4", measure.run(lm, windows, options))


def flag_dims(built):
    """The pair of dims with opposite values in the trigger's embedding that stand out of its noise."""
    model, truth = built.lm.model, built.truth
    token = truth.trigger.rpartition(" ")[2]
    if token == "0":
        trigger = model.transformer.wpe.weight[0]
    else:
        trigger = model.get_input_embeddings().weight[blank.BOS if token == blank.BOS_TEXT else int(token[1:])]
    return set(trigger.abs().topk(2).indices.tolist())


@pytest.mark.parametrize(("architecture", "kind"), by_turns(blank.ARCHITECTURES, KINDS))
def test_planted_neurons(architecture, kind):
    built = planting.build(architecture, kind, 0)
    truth = built.truth
    result = experiment(built.lm, built.windows)
    chosen = [row["neuron"] for row in result["minimal_set"]]
    assert result["layer"] == truth.layer
    assert sorted(chosen) == list(truth.neurons)
    assert not {*chosen} & {*truth.decoy_neurons}
    assert result["conclusion"]["verdict"] == f"{len(chosen)} of {result['width']} neurons"
    assert result["keep_only_share"]["ci95"][0] > 0.9
    assert -0.1 < result["remove_share"]["ci95"][0] <= result["remove_share"]["ci95"][1] < 0.1
    assert result["carried"]["without_its_last"]["mean"] < 0.95 < result["carried"]["set"]["mean"]
    # only where a second MLP is sufficient does the value come back
    assert (abs(result["runs"]["remove_only"]["end_share"]["mean"]) > 0.9) == (kind == "redundant")
    assert result["contribution_check"]["relative_error"] < 1e-4
    for row in result["reads"]["neurons"]:
        for projection in row["projections"].values():
            dims = [i["dim"] for i in projection["inputs"]]
            assert projection["relative_error"] < 1e-4
            if kind == "two_steps":
                assert dims[0] == next(iter(truth.outliers))
            else:
                assert {*dims[:2]} == flag_dims(built)


def split(built, n):
    """The first planted neuron as `n` neurons that read the same and write an n-th of it each."""
    arch, layer, (first, *others) = built.lm.arch, built.truth.layer, built.truth.neurons
    taken = {first, *others, *built.truth.decoy_neurons}
    parts = [first, *[i for i in range(arch.weight(layer, "down").shape[1]) if i not in taken][: n - 1]]
    for role in ("gate", "up") if arch.is_gated(layer) else ("up",):
        arch.weight(layer, role)[parts] = arch.weight(layer, role)[first].clone()
        if arch.bias(layer, role) is not None:
            arch.bias(layer, role)[parts] = arch.bias(layer, role)[first].clone()
    arch.weight(layer, "down")[:, parts] = (arch.weight(layer, "down")[:, first] / n).clone()[:, None]
    return sorted([*parts, *others])


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_ten_neurons(architecture):
    models = (planting.build(architecture, "mlp", seed) for seed in range(20))
    built = next(model for model in models if len(model.truth.neurons) == 1)  # of ten tenths each is needed for 95 %
    expected = split(built, 10)
    result = experiment(built.lm, built.windows, n_random=5)
    chosen = [row["neuron"] for row in result["minimal_set"]]
    assert sorted(chosen) == expected
    assert result["conclusion"]["verdict"] == f"{len(expected)} of {result['width']} neurons"


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_windows_without_the_spike_have_no_say(architecture):
    """The trigger is there in most windows only: means are of these, and shares are sums over these."""
    built = planting.build(architecture, "content", 1)
    token = int(built.truth.trigger.rpartition(" ")[2][1:])
    ids = built.windows.ids.clone()
    ids[:2][ids[:2] == token] = (token + 1) % blank.VOCABULARY or 1
    result = experiment(built.lm, windows_of(ids))
    assert result["windows"]["massive"]["mean"] == 0.75
    assert [result["written"]["share"]["n"], result["keep_only_share"]["n"]] == [6, 6]
    assert sorted(row["neuron"] for row in result["minimal_set"]) == list(built.truth.neurons)
    value = result["runs"]["baseline"]["value"]["mean"]
    assert value == pytest.approx(built.truth.values[result["place"]["dim"]], rel=0.05)
    assert sum(row["contribution"] for row in result["minimal_set"]) == pytest.approx(value, rel=0.01)
    assert result["conclusion"]["verdict"].endswith("neurons")


def with_twins(architecture):
    """A planted neuron, one that does the same, and one that takes the half of it away: all three are as active."""
    built = planting.build(
        architecture, "mlp", next(s for s in range(9) if len(planting.build(architecture, "mlp", s).truth.neurons) == 1)
    )
    arch, layer, neuron = built.lm.arch, built.truth.layer, built.truth.neurons[0]
    others = [i for i in range(20) if i != neuron][:2]
    for role in ("gate", "up") if arch.is_gated(layer) else ("up",):
        arch.weight(layer, role)[others] = arch.weight(layer, role)[neuron].clone()
        if arch.bias(layer, role) is not None:
            arch.bias(layer, role)[others] = arch.bias(layer, role)[neuron].clone()
    down = arch.weight(layer, "down")
    down[:, others[0]], down[:, others[1]] = down[:, neuron].clone() * 0.99, -down[:, neuron].clone() * 0.99
    return built


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_random_sets_are_as_active(architecture, monkeypatch):
    """The set carries the value, yet another neuron would as well: any five neurons hardly hit on it."""
    built = with_twins(architecture)
    result = experiment(built.lm, built.windows, n_random=20)
    null = result["null"]
    assert (null["possible"], null["enumerated"], len(null["draws"])) == (20, True, 20)
    assert result["conclusion"]["verdict"] == f"1 of {result['width']} neurons, not confirmed"
    assert max(draw["activity"] for draw in null["draws"]) == pytest.approx(null["activity_of_set"], rel=1e-4)
    shares = sorted(draw["keep_only"]["share"]["mean"] for draw in null["draws"])
    assert [shares[0], shares[-2], shares[-1]] == pytest.approx([-0.99, 0, 0.99], abs=0.01)

    def any_five(activity, chosen, _n, seed):
        others = sorted({*range(len(activity))} - {*chosen})
        return [(int(x),) for x in np.random.default_rng(seed).choice(others, 5, replace=False)]

    monkeypatch.setattr(measure, "_matched_sets", any_five)
    assert experiment(built.lm, built.windows)["conclusion"]["verdict"] == f"1 of {result['width']} neurons"


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_what_a_head_writes_is_not_of_the_mlp(architecture):
    built = planting.build(architecture, "head", 0)
    result = experiment(built.lm, built.windows, layer_id=built.truth.layer)
    assert result["conclusion"]["verdict"] == "not mostly by this MLP"
    assert abs(result["written"]["share"]["mean"]) < 0.1
    assert result["remove_share"]["mean"] > 0.9


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_nothing_massive(architecture):
    built = planting.build(architecture, "none", 0)
    result = experiment(built.lm, built.windows, n_random=1)
    assert result["conclusion"]["verdict"] == "none found"
    assert result["keep_only_share"] is result["remove_share"] is None


def cell(mean, reach=0.01):
    return Average(mean, (mean - reach, mean + reach), None, 4, (mean - 3 * reach, mean + 3 * reach))


def random_set(alone, without, activity=1.0):
    runs = (NeuronsRun("", cell(0), share, cell(0), None) for share in (alone, without))
    return RandomSet([7, 8], activity, *runs)


def results_of(draws, **changed):
    """Of a set of two neurons that carries the value."""
    known = {
        "layer": 1,
        "width": 40,
        "written": Written(cell(1), cell(1), cell(0.98)),
        "minimal_set": [Neuron(n, 1.0, 1.0, 1.0, 0.5) for n in (3, 5)],
        "keep_only_share": cell(0.97),
        "remove_share": cell(0.02),
        "null": Null("rule", activity_of_set=100.0, possible=None, enumerated=False, draws=draws),
    }
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(Results)) | {"super_weights": UNSET}
    return Results(**nothing | known | changed)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "2 of 40 neurons"),
        ({"keep_only_share": cell(0.89, 0.02)}, "cannot tell"),
        ({"keep_only_share": cell(0.87)}, "2 of 40 neurons, not confirmed"),
        ({"keep_only_share": cell(1.2)}, "2 of 40 neurons, not confirmed"),  # what doubles is not carried
        ({"remove_share": cell(-0.5)}, "2 of 40 neurons, not confirmed"),  # nor is what turns negative gone
        ({"remove_share": cell(0.095)}, "cannot tell"),
        ({"remove_share": Average(0.0, None, None, 1)}, "cannot tell"),
        ({"most": cell(0.88)}, "cannot tell"),  # by the simultaneous interval alone
        ({"most": cell(0.95)}, "2 of 40 neurons, not confirmed"),
        ({"least": cell(0.05)}, "2 of 40 neurons, not confirmed"),
        ({"minimal_set": []}, "no set of neurons"),
        ({"written": Written(cell(1), cell(1), cell(0.5))}, "cannot tell"),
        ({"written": Written(cell(1), cell(1), cell(0.4))}, "not mostly by this MLP"),
        ({"keep_only_share": None}, "none found"),
    ],
)
def test_verdict(changed, verdict):
    most, least = changed.pop("most", cell(0.1)), changed.pop("least", cell(0.9))
    got = judge(results_of([random_set(cell(0), cell(1)), random_set(most, least)], **changed))
    assert got.verdict == verdict
    assert (got.values.why is not None) == (verdict == "cannot tell")
    assert got.values.confirmed is {"2 of 40 neurons": True, "2 of 40 neurons, not confirmed": False}.get(verdict)


def test_what_random_sets_can_do_is_known_beforehand():
    def said(cumulative, activity):
        results = results_of([random_set(cell(0), cell(0), activity)], cumulative=cumulative)
        return text._null(results.null, text._others(results))

    few = said([0.7, 0.96, 0.97, 0.98, 1.0], 5.0)
    assert "none of these is as active: at most 5.0 % of it; no other neurons, as many, give more than 2.0 %" in few
    assert few.endswith("this null is near certain beforehand\n")
    some = said([0.5, 0.8, 0.95], 100.0)  # one is left
    assert "none of these" not in some
    assert some.endswith("\nno other neurons, as many, give more than 15.0 % of the output\n")


def test_the_inside_of_an_mlp_names_its_share():
    path = checkout.ROOT / "results" / "smollm2-135m" / "exp2c_mlp_internal_analysis" / "exp2c_detailed_results.json"
    result = catalogue.concluded(json.loads(path.read_text()))
    said = mlp_internal_text.summarise(result)
    assert f"Conclusion: {result.conclusion.verdict} give at least {MADE:.0%} of the output\n" in said
    cumulative = mlp_internal_figures.dimension_analysis(result).axes[1]
    [line] = [line for line in cumulative.lines if line.get_label() == f"{MADE:.0%} of the output"]
    assert set(line.get_ydata()) == {MADE}


@pytest.mark.parametrize(
    ("contributions", "verdict", "neurons"),
    [([6.0, 3.5, 0.5], "2 of 3 neurons", [0, 1]), ([-1.0, 5.0, 3.0], "none", []), ([9.0], "1 of 1 neurons", [0])],
)
def test_verdict_on_the_inside(contributions, verdict, neurons):
    rows = [Neuron(n, 1.0, 1.0, contribution, None) for n, contribution in enumerate(contributions)]
    check = ContributionCheck(sum(contributions), 0.0, 10.0, None)
    got = mlp_internal_judge.judge(SimpleNamespace(contributions=rows, contribution_check=check, width=len(rows)))
    assert (got.verdict, got.values.neurons) == (verdict, neurons)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_inside_of_an_mlp_that_writes_nothing(family, tokenizer):
    """Parts of nothing are None, and schema 2's cells without a mean are read as that."""
    lm, windows = with_spikes(family, tokenizer)
    options = exp2c_mlp_internal_analysis.Options(layer_id=0, dim=MASSIVE_DIM, batch_size=2)
    result = catalogue.judged("exp2c", exp2c_mlp_internal_analysis.run(lm, windows, options))
    assert result["contribution_check"]["output"] == 0
    assert result["largest_activation"] is result["contributions"][0]["share"] is None
    assert {name: function["mlp_output_change"] for name, function in result["replaced"].items()} == {
        "actual": None, "identity": None, "relu": None
    }  # fmt: skip
    assert result["conclusion"]["verdict"] == "none"
    stored = catalogue.concluded(payload_of("exp2c", family, result))
    assert "in parts of the output: -\n" in mlp_internal_text.summarise(stored)
    for draw in exp2c_mlp_internal_analysis.figures().values():
        draw(stored)
    nothing = {"mean": None, "std": None, "ci95": None, "n": 3}
    replaced = {name: function | {"mlp_output_change": nothing} for name, function in result["replaced"].items()}
    older = payload_of("exp2c", family, result | {"largest_activation": nothing, "replaced": replaced})
    assert catalogue.concluded(older | {"schema_version": 2}).results == stored.results


def payload_of(experiment, family, results):
    """What a JSON of three windows holds."""
    return {
        "schema_version": result_files.SCHEMA_VERSION,
        "experiment": experiment,
        "provenance": {
            "model": {"name": "tiny", "type": family},
            "data": {"windows": 3, "seqlen": 16, "bos": False, "dataset": "random"},
            **dict.fromkeys(("dtype", "device", "time", "command"), ""),
            "seed": 0,
        },
        "config": {"model_name": "tiny"},
        "results": results,
        "files": {},
    }


def with_spikes(family, tokenizer):
    """Weights with gradients, as those of a model from a file."""
    lm, ids = language_model(planted_model(family).requires_grad_(True), tokenizer), token_ids(3, 16)
    ids[torch.arange(3), WHERE] = SPIKE_TOKEN
    return lm, windows_of(ids)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("layer", "gain", "verdict"),
    [
        (0, 1, "none found"),  # what this MLP writes there is exactly zero
        (1, 1, "1 of {width} neurons"),
        (2, 0.5, "not mostly by this MLP"),  # less than the MLP before
        (2, 3, "1 of {width} neurons, not confirmed"),  # more, but what that one wrote is left
    ],
)
def test_verdicts(family, layer, gain, verdict, tokenizer):
    lm, windows = with_spikes(family, tokenizer)
    matrix(reference.parts(reference.blocks(lm.model)[2]).down)[MASSIVE_DIM, 0] *= gain
    result = experiment(lm, windows, layer_id=layer, n_random=2)
    assert result["conclusion"]["verdict"] == verdict.format(width=result["width"])
    if layer == 2:
        with torch.no_grad():
            hidden = reference.observe(lm.model, windows.ids).hidden
        before, after = (of[range(3), WHERE, MASSIVE_DIM] for of in hidden[1:])
        left = (before.sum() / after.sum()).item()
        assert result["written"]["share"]["mean"] == pytest.approx(1 - left, abs=1e-4)
        assert result["remove_share"]["mean"] == pytest.approx(left, abs=1e-4)
    stored = catalogue.concluded(payload_of("exp4", family, result))
    share = " (they give at least 95% of the MLP's output)\n" if "neurons" in verdict else "\n"
    assert f"Conclusion: {result['conclusion']['verdict']}{share}" in text.summarise(stored)
    for draw in exp4_neuron_sets.figures().values():
        draw(stored)


@some
def test_runs_equal_zeroed_copies(case, monkeypatch):
    """Without a norm on the way, at this layer the value falls by exactly what was zeroed."""
    monkeypatch.setattr(measure, "WHOLE_DRAWS", 1)
    at = fixed_place(POSITIONS, case.lm.arch.n_layers)
    width = case.lm.arch.weight(LAYER, "down").shape[1]
    chosen = [1, 4, width - 1]
    options = SimpleNamespace(batch_size=2, n_random=2, n_whole=2, seed=0)
    runs, null, _scalars = measure.prove(
        case.lm, windows_of(case.ids), at, LAYER, 2, chosen, np.arange(width), [], options
    )
    everything = [(chosen, runs), *((draw.neurons, draw) for draw in null.draws)]
    assert len(everything) == 3
    for i, (on, pair) in enumerate(everything):
        off = [n for n in range(width) if n not in on]
        for columns, run in ((off, pair.keep_only), (on, pair.remove_only)):
            model = copy.deepcopy(case.lm.model)
            matrix(model.get_submodule(case.tested.blocks)[LAYER].get_submodule(case.tested.mlp_out))[:, columns] = 0
            expected = observe_and_spoil(case.tested, model, case.ids)
            values = [hidden[[0, 1], POSITIONS, DIM].mean().item() for hidden in expected.hidden[1:]]
            assert [run.value.mean, run.end_value.mean] == pytest.approx([values[LAYER], values[2]], abs=1e-4)
            if i > 1:
                assert run.perplexity is run.sink_rate is None
                continue
            loss = cross_entropy(expected.logits[:, :-1].transpose(1, 2), case.ids[:, 1:]).item()
            before = cross_entropy(case.real.logits[:, :-1].transpose(1, 2), case.ids[:, 1:]).item()
            assert np.log(run.perplexity.value) == pytest.approx(loss, rel=1e-4)
            assert run.loss_change.mean == pytest.approx(loss - before, abs=2e-4)
    assert runs.baseline.value.mean == pytest.approx(
        case.real.hidden[LAYER + 1][[0, 1], POSITIONS, DIM].mean().item(), abs=1e-4
    )


@some
def test_scaled_scalars_equal_copies_with_that_weight(case):
    at, weight = fixed_place(POSITIONS, case.lm.arch.n_layers), case.lm.arch.weight(LAYER, "down")
    rows = [Neuron(n, 0.0, weight[DIM, n].item(), 0.0, None) for n in (1, weight.shape[1] - 1)]
    made = super_weights.changes(case.lm.arch, LAYER, DIM, rows, seed=0)
    runs = sweep.measure(case.lm, windows_of(case.ids), at, made, 2)
    found = super_weights.super_weights(case.lm.arch, made, runs, at)
    assert [scalar.neuron for scalar in found] == [row.neuron for row in rows]
    model = copy.deepcopy(case.lm.model)
    down = matrix(model.get_submodule(case.tested.blocks)[LAYER].get_submodule(case.tested.mlp_out))
    before = cross_entropy(case.real.logits[:, :-1].transpose(1, 2), case.ids[:, 1:]).item()
    for scalar in found:
        assert [dose.factor for dose in scalar.doses] == [0.0, 0.5, 2.0, 3.0]
        assert len(scalar.random) == super_weights.RANDOM
        for dose in (*scalar.doses, *scalar.random):
            assert down[dose.dim, dose.neuron].item() == dose.weight
            down[dose.dim, dose.neuron] *= dose.factor
            with torch.no_grad():
                expected = model(case.ids, use_cache=False, output_hidden_states=True)
            down[dose.dim, dose.neuron] = dose.weight
            value = expected.hidden_states[LAYER + 1][[0, 1], POSITIONS, DIM].mean().item()
            loss = cross_entropy(expected.logits[:, :-1].transpose(1, 2), case.ids[:, 1:]).item()
            assert dose.value.mean == pytest.approx(value, abs=1e-4)
            assert dose.loss_change.mean == pytest.approx(loss - before, abs=2e-4)


def test_random_scalars_are_as_large_and_elsewhere(case):
    weight = case.lm.arch.weight(LAYER, "down")
    rows = [Neuron(n, 0.0, weight[DIM, n].item(), 0.0, None) for n in (1, 4, 7)]
    made = super_weights.changes(case.lm.arch, LAYER, DIM, rows, seed=3)
    others = [change for change in made if change.dim != DIM]
    assert len({(change.dim, change.neuron) for change in others}) == len(others) == 2 * super_weights.RANDOM
    assert not {change.neuron for change in others} & {1, 4, 7}
    kept = weight.abs().clone()
    kept[DIM], kept[:, [1, 4, 7]] = torch.nan, torch.nan
    for row, drawn in zip(rows, (others[: super_weights.RANDOM], others[super_weights.RANDOM :]), strict=False):
        far = (kept - abs(row.weight)).abs().flatten()
        rank = far[~far.isnan()].sort().values[super_weights.MATCHED + super_weights.RANDOM - 1].item()
        assert all(abs(abs(weight[c.dim, c.neuron].item()) - abs(row.weight)) <= rank for c in drawn)


def scaled(share, loss, dim=DIM, neuron=3):
    return Scaled(dim, neuron, 0.1, 0.0, cell(1.0), share, cell(loss), cell(0.0))


@pytest.mark.parametrize(
    ("zero", "random", "answer"),
    [
        (scaled(cell(0.1), 0.5), 0.0, "yes"),
        (scaled(cell(0.1), 0.01), 0.0, "no"),  # nobody misses it
        (scaled(cell(0.7), 0.5), 0.0, "no"),  # the value stays
        (scaled(cell(0.1), 0.5), 0.5, "no"),  # any other costs as much
        (scaled(cell(0.49), 0.5), 0.0, "cannot tell"),  # by the simultaneous interval alone
        (scaled(None, 0.5), 0.0, None),  # nothing massive
    ],
)
def test_what_is_a_super_weight(zero, random, answer):
    others = [scaled(cell(1.0), random, dim=1, neuron=8)]
    told = judge(results_of([], super_weights=[SuperWeight(3, 0.1, [zero], others)])).values.super_weights
    assert told == ({} if answer is None else {3: answer})


def test_reads_add_up_to_a_hand_made_pre_activation(case):
    architecture = case.lm.arch
    at = neurons.checkpoints_at_place(case.lm, windows_of(case.ids), fixed_place(POSITIONS, 3), LAYER, 1)
    full = captured(case, "up", hooks.watch_inputs)[LAYER]
    normed = full[[0, 1], POSITIONS].mean(0)
    gate, up, _inner, output = (None if x is None else x[[0, 1], POSITIONS].mean(0) for x in by_hand(case, full))
    close(at["mlp_output"].mean(0).float(), output, 1e-4)
    rows = measure.reads(architecture, LAYER, at, [2, 7], top=architecture.hidden_size)
    assert [row.neuron for row in rows] == [2, 7]
    block = case.lm.model.get_submodule(case.tested.blocks)[LAYER]
    first = torch.cat([matrix(block.get_submodule(path)) for path in case.tested.mlp_in])
    weights = dict(zip(("gate", "up"), first.chunk(2), strict=True)) if case.tested.gated else {"up": first}
    for row in rows:
        assert list(row.projections) == list(weights)
        for role, projection in row.projections.items():
            neuron = row.neuron
            expected = (gate if role == "gate" else up)[neuron].item()
            assert projection.pre_activation == pytest.approx(expected, abs=1e-4)
            assert projection.sum + projection.bias == pytest.approx(expected, abs=1e-4)
            by_dim = {i.dim: i for i in projection.inputs}
            products = normed * weights[role][neuron]
            mine = torch.tensor([by_dim[dim].contribution for dim in range(len(products))])
            close(mine, products, 1e-4)
            sizes = [abs(i.contribution) for i in projection.inputs]
            assert sizes == sorted(sizes, reverse=True)
            along = sorted((products * np.sign(expected)).tolist(), reverse=True)
            reached = [n for n in range(1, len(along) + 1) if sum(along[:n]) >= abs(expected) / 2]
            assert projection.dims_to_half == (reached[0] if reached else None)


def test_residual_is_what_enters_the_norm(case):
    """Block input + attention's write; the block input alone in a parallel block."""
    at = neurons.checkpoints_at_place(case.lm, windows_of(case.ids), fixed_place(POSITIONS, 3), LAYER, 2)
    expected = case.real.hidden[LAYER]
    if "parallel" not in case.variant:
        scale = getattr(case.lm.model.config, "residual_multiplier", 1)
        expected = expected + scale * captured(case, "attention_write")[LAYER]
    close(at["residual"].float(), expected[[0, 1], POSITIONS])


def test_matched_sets():
    """Of the 20 nearest in rank that are left, by a plain loop; each different, the same for a seed."""
    rng = np.random.default_rng(0)
    activity, chosen = rng.exponential(size=100), [7, 50, 93]
    rank = {int(neuron): i for i, neuron in enumerate(activity.argsort())}
    sets = measure._matched_sets(activity, chosen, 10, seed=0)
    assert len({*sets}) == 10
    near = set()
    for neuron in chosen:
        others = sorted((abs(rank[i] - rank[neuron]), i) for i in range(100) if i not in chosen)
        near |= {i for distance, i in others if distance <= others[19 + 2][0]}  # two may have been drawn before
    for found in sets:
        assert len({*found}) == 3
        assert not {*found} & {*chosen}
        assert {*found} <= near
    assert sets == measure._matched_sets(activity, chosen, 10, seed=0) != measure._matched_sets(activity, chosen, 10, 1)
    single = measure._matched_sets(activity, [50], 30, seed=0)
    assert len(single) == 20  # as many as are possible
    nearest = sorted((abs(rank[i] - rank[50]), i) for i in range(100) if i != 50)
    assert {i for distance, i in nearest if distance < nearest[19][0]} <= {i for (i,) in single}
    everyone = measure._matched_sets(activity, list(range(60)), 3, seed=0)
    assert everyone == []
    assert len(measure._matched_sets(activity, list(range(50)), 3, seed=0)) == 1
    assert measure._matched_sets(activity, [], 5, seed=0) == []
