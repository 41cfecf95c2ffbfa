"""Experts of mixtures: numbers against NumPy and zeroed copies, verdicts on models in which known experts write."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import exp2a_mlp_feasibility_test
import exp8_experts
from experiments.ablation import judge as ablation_judge
from experiments.experts import judge, text
from experiments.experts.results import MeasuredExpert, Run
from lib import catalogue
from lib.core.evidence import Average
from lib.model import experts, hooks
from lib.report import figures as report_figures
from lib.report.result_files import Result
from lib.run.errors import UserError
from tests import every_type, mixtures
from tests.conftest import MASSIVE_DIM, SPIKE_TOKEN, language_model
from tests.core.test_sweep import windows_of
from tests.mixtures import FLAG, OTHER_FLAG, OTHER_TOKEN, STEP, writes

IDS = torch.randint(3, 100, (5, 12), generator=torch.Generator().manual_seed(3))
TYPES = ["mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss"]
OPTIONS = exp8_experts.Options(batch_size=2, n_whole=3, n_random=1)
SIZE = -3000.0


def measured(lm, windows, **flags):
    """Judged, as they are stored."""
    return catalogue.judged("exp8", exp8_experts.run(lm, windows, dataclasses.replace(OPTIONS, **flags)))


def typed(stored):
    return catalogue.typed("exp8", json.loads(json.dumps(stored)))


@pytest.fixture(params=TYPES, scope="module")
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def random_model(model_type):
    """(language model, Results) of a tiny model of noise."""
    lm = dataclasses.replace(every_type.loaded(model_type), tokenizer=mixtures.tokenizer())
    return lm, typed(measured(lm, windows_of(IDS), dim=3, position=4))


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


def output_by_hand(module, expert, hidden):
    """(hidden,) of one expert for one token, in NumPy."""
    first, down = (weight[expert].detach().double().numpy() for weight in (module.gate_up_proj, module.down_proj))
    if module.is_transposed:  # gpt-oss: interleaved, clamped, with biases
        both = hidden @ first + module.gate_up_proj_bias[expert].detach().double().numpy()
        gate, up = np.minimum(both[::2], module.limit), np.clip(both[1::2], -module.limit, module.limit)
        inner = (up + 1) * gate * sigmoid(gate * module.alpha)
        return inner @ down + module.down_proj_bias[expert].detach().double().numpy()
    gate, up = np.split(first @ hidden, 2)
    return down @ (gate * sigmoid(gate) * up)


def calls_of(lm):
    """{layer: (hidden (windows, seq, dims), experts (windows, seq, k), weights) that its experts are called with}."""
    calls, handles = {}, []
    for layer in lm.arch.with_role("experts"):
        module = lm.arch.module(layer, "experts")

        def keep(_module, args, kwargs, layer=layer):
            calls[layer] = [value.view(*IDS.shape, -1).numpy() for value in (*args, *kwargs.values())]

        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.inference_mode():
        lm.model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return calls


def test_experts_are_as_numpy_finds_them(random_model):
    lm, results = random_model
    calls = calls_of(lm)
    rows = {(row.layer, row.expert): row for row in results.experts}
    n_experts = 4
    found = 0
    for layer, (hidden, chosen, weights) in calls.items():
        module = lm.arch.module(layer, "experts")
        for expert in range(n_experts):
            row, sent = rows[layer, expert], (chosen == expert).any(-1)
            assert row.share_of_tokens == pytest.approx(sent.mean())
            outputs = [output_by_hand(module, expert, token) for token in hidden[sent].astype(float)]
            largest = max((np.abs(output).max() for output in outputs), default=None)
            assert row.largest_output == (None if largest is None else pytest.approx(largest, rel=1e-4))
            there, weight = sent[:, 4], np.where(chosen == expert, weights, 0).sum(-1)[:, 4]
            if not there.any():
                assert row.write.mean == 0
                continue
            given = [output_by_hand(module, expert, token)[3] for token in hidden[:, 4].astype(float)]
            assert row.write.mean == pytest.approx((weight * given).mean(), rel=1e-3, abs=1e-6)
            assert row.routed.mean == pytest.approx(there.mean())
            assert row.weight.mean == pytest.approx(weight[there].mean(), rel=1e-5)
            found += 1
    assert found > len(calls)


def test_super_experts_are_by_the_published_definition(random_model):
    _lm, results = random_model
    sizes = {row.name: row.largest_output for row in results.experts if row.expert is not None and row.largest_output}
    percentile = np.percentile(list(sizes.values()), 99.5)
    assert results.percentile == pytest.approx(percentile)
    wanted = {name for name, size in sizes.items() if size > percentile and size > 0.1 * max(sizes.values())}
    assert {row.name for row in results.experts if row.super} == wanted
    assert wanted <= {row.name for row in results.candidates}


def observed(model, blocks, layer):
    """(values in dim 3 at position 4 after a layer, losses) of a model, by transformers alone."""
    seen = {}
    block = model.get_submodule(blocks)[layer]
    handle = block.register_forward_hook(lambda _m, _a, out: seen.update(out=out[0] if isinstance(out, tuple) else out))
    with torch.inference_mode():
        logits = model(input_ids=IDS, use_cache=False).logits[:, :-1]
    handle.remove()
    losses = cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten(), reduction="none").view(len(IDS), -1)
    return seen["out"][:, 4, 3].double().numpy(), losses.double().mean(1).numpy()


def without(model, path, *off):
    """A copy in which the down projections of (layer, expert) are zero."""
    model = copy.deepcopy(model)
    for layer, expert in off:
        block = model.get_submodule(path)[layer]
        if expert is None:
            block.mlp.shared_expert.down_proj.weight.data.zero_()
            continue
        module = next(of for of in block.modules() if experts.is_experts(of))
        module.down_proj.data[expert] = 0
        if module.has_bias:
            module.down_proj_bias.data[expert] = 0
    return model


def test_runs_are_those_of_zeroed_copies(random_model):
    lm, results = random_model
    end, rows = results.place.plateau[1], slice(0, 3)
    names = [row.name for row in results.candidates]
    assert len(names) > 2
    before, losses = observed(lm.model, "model.layers", end)
    there = np.sign(before)
    assert results.baseline.loss.mean == pytest.approx(losses[rows].mean(), rel=1e-4)
    for row in [*results.candidates[:4], *results.random[:1], results.experts[-1]]:
        if not isinstance(row.off, Run):
            continue
        sets = {"off": [row.name], "alone": [name for name in names if name != row.name]}
        for kind, off in sets.items():
            run = getattr(row, kind)
            if isinstance(run, Run):
                after, lost = observed(without(lm.model, "model.layers", *off), "model.layers", end)
                assert run.value.mean == pytest.approx(after.mean(), rel=1e-3, abs=1e-5)
                assert run.retained.mean == pytest.approx(
                    (there * after).sum() / np.abs(before).sum(), rel=1e-3, abs=1e-5
                )
                assert run.loss.mean == pytest.approx(lost[rows].mean(), rel=1e-4)
                assert run.loss_change.mean == pytest.approx((lost - losses)[rows].mean(), rel=1e-2, abs=1e-5)
    after, _lost = observed(without(lm.model, "model.layers", *names), "model.layers", end)
    assert results.together.value.mean == pytest.approx(after.mean(), rel=1e-3, abs=1e-5)


def test_renormalised_differs_from_as_it_was(random_model):
    _lm, results = random_model
    rows = [row for row in results.candidates if row.expert is not None and row.layer <= results.place.plateau[1]]
    rows = [row for row in rows if row.name != (0, None) and row.write.mean]
    assert any(row.off.value.mean != pytest.approx(row.off_renormalised.value.mean, rel=1e-4) for row in rows)


def spiked(*makers, model_type="mixtral", tokens=(SPIKE_TOKEN,), n=6, embedded=0.0, **flags):
    """(Results, conclusion) of a model in which these write."""
    lm = language_model(mixtures.model_of(model_type, *makers, embedded=embedded), mixtures.tokenizer())
    stored = measured(lm, mixtures.windows(n, tokens=tokens), **flags)
    return typed(stored), stored["conclusion"]


def large(layer, expert, reads=FLAG, part=1.0):
    return writes(layer, expert, reads, {MASSIVE_DIM: part * SIZE})


def named(conclusion):
    return [tuple(expert) for expert in conclusion["values"]["experts"]]


def test_one_expert():
    results, conclusion = spiked(large(1, 3))
    assert conclusion["verdict"] == "one expert"
    assert named(conclusion) == [(1, 3)]
    row = next(row for row in results.experts if row.name == (1, 3))
    assert row.super
    assert row.write.mean == pytest.approx(SIZE, rel=0.1)
    assert row.routed.mean == 1
    assert row.weight.mean == pytest.approx(1, abs=0.01)
    assert abs(row.off.retained.mean) < 0.01
    assert len(results.random) >= 1
    assert min(row.off.retained.mean for row in results.random) > 0.99


def test_the_shared_expert():
    results, conclusion = spiked(large(1, None), model_type="qwen2_moe")
    assert conclusion["verdict"] == "the shared expert"
    assert named(conclusion) == [(1, None)]
    assert results.place.massive


def test_two_halves_make_it_together():
    _results, conclusion = spiked(large(1, 0), large(1, 2))
    assert conclusion["verdict"] == "several experts together"
    assert named(conclusion) == [(1, 0), (1, 2)]


def test_a_step_and_a_writer_make_it_together():
    """The first writes what the second reads, and nothing into the dim: it is no candidate unless all are."""
    makers = writes(0, 1, FLAG, {STEP: 300.0}), large(1, 2, reads=STEP)
    _results, conclusion = spiked(*makers)
    assert conclusion["verdict"] == "one expert"
    assert named(conclusion) == [(1, 2)]
    _results, conclusion = spiked(*makers, all=True)
    assert conclusion["verdict"] == "several experts together"
    assert named(conclusion) == [(0, 1), (1, 2)]


def test_a_backup_is_found():
    """The second is silent where the first has written."""
    results, conclusion = spiked(large(0, 1), large(1, 2, part=1.15))
    assert conclusion["verdict"] == "several experts, each is enough"
    assert named(conclusion) == [(0, 1), (1, 2)]
    assert {row.name: row.tried for row in results.candidates}[1, 2] == "backup"


def test_other_experts_in_other_windows():
    makers = large(1, 0), large(1, 2, reads=OTHER_FLAG)
    _results, conclusion = spiked(*makers, tokens=(SPIKE_TOKEN, OTHER_TOKEN), n=16)
    assert conclusion["verdict"] == "several experts, others in other windows"
    assert named(conclusion) == [(1, 0), (1, 2)]


def test_not_the_experts():
    results, conclusion = spiked(embedded=SIZE)
    assert results.place.massive
    assert conclusion["verdict"] == "not the experts"
    assert named(conclusion) == []


def test_in_part_the_experts():
    results, conclusion = spiked(large(1, 3, reads=MASSIVE_DIM, part=4.0), embedded=SIZE)
    assert conclusion["verdict"] == "in part the experts"
    assert 0.1 < results.together.retained.mean < 0.9


def test_nothing_massive():
    _results, conclusion = spiked(large(1, 3, part=0.001))
    assert conclusion["verdict"] == "none found"
    assert named(conclusion) == []


def test_all_of_them():
    lm = language_model(mixtures.model_of("qwen2_moe", large(1, 3)), mixtures.tokenizer())
    results = typed(measured(lm, mixtures.windows(), all=True))
    reached = [row for row in results.experts if row.largest_output is not None]
    assert [row.name for row in results.candidates] == [row.name for row in reached]
    assert not results.random
    assert all(isinstance(row.alone, Run) for row in reached)


@pytest.mark.parametrize(
    ("model_type", "changed", "why"),
    [
        ("llama", {}, "$"),
        ("inkling_text", {}, " whose experts can be told apart: mlp_sconv may be one$"),
        ("nemotron_h", {"moe_latent_size": 32}, " whose experts can be told apart: no projection gives what"),
    ],
)
def test_a_model_without_known_mixtures_is_refused(monkeypatch, model_type, changed, why):
    lm = every_type.loaded(model_type, **changed)
    monkeypatch.setattr(hooks, "forward", None)
    with pytest.raises(UserError, match=f"this model has no mixture of experts{why}"):
        exp8_experts.run(lm, windows_of(IDS), OPTIONS)


def payload_of(results):
    """An experiment's Result without its conclusion."""
    data = {"windows": 6, "seqlen": 16, "dataset": "test", "bos": 0}
    origin = {"model": {"name": "tiny", "type": ""}, "data": data}
    origin |= dict.fromkeys(("dtype", "device", "seed", "time", "command"), "")
    return Result("", origin, {"model_name": "tiny"}, results, None, {})


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_every_implementation_and_half_precision(implementation, dtype):
    model = mixtures.model_of("qwen2_moe", large(1, 3), implementation=implementation).to(dtype)
    stored = measured(language_model(model, mixtures.tokenizer()), mixtures.windows())
    assert stored["conclusion"]["verdict"] == "one expert"
    row = next(row for row in typed(stored).experts if row.name == (1, 3))
    assert row.largest_output == pytest.approx(-SIZE, rel=0.1)
    assert row.share_of_tokens >= 1 / 16


def ablated(model):
    """(results and values of experiment 2A, whether its TXT speaks of experts)."""
    lm = language_model(model, mixtures.tokenizer())
    options = exp2a_mlp_feasibility_test.Options(batch_size=3)
    stored = catalogue.judged("exp2a", exp2a_mlp_feasibility_test.run(lm, mixtures.windows(), options))
    results = catalogue.typed("exp2a", stored)
    result = dataclasses.replace(payload_of(results), conclusion=ablation_judge.judge(results))
    return stored, "With all experts off" in exp2a_mlp_feasibility_test.summarise(result)


@pytest.mark.parametrize(("maker", "word"), [(3, "collapses"), (None, "persists")])
def test_all_experts_off_beside_all_mlps_off(maker, word):
    stored, is_said = ablated(mixtures.model_of("qwen2_moe", large(1, maker)))
    assert stored["conclusion"]["verdict"] == "collapses"
    assert stored["conclusion"]["values"]["experts_off"] == word
    assert is_said
    assert stored["conditions"]["all_experts_off"]["experts_off"] == [0, 1, 2]
    assert "experts_off" not in stored["conditions"]["all_mlps_off"]
    what = [test["what"] for test in stored["conclusion"]["tests"]]
    assert any(name.endswith(", all experts off") for name in what)


def test_all_experts_off_is_left_out_where_it_is_all_mlps_off():
    stored, is_said = ablated(mixtures.model_of("mixtral", large(1, 3)))
    assert list(stored["conditions"]) == ["baseline", "all_mlps_off"]
    assert "experts_off" not in stored
    assert "experts_off" not in stored["conclusion"]["values"]
    assert not is_said


def cell(mean, low=None, high=None):
    limits = (mean if low is None else low, mean if high is None else high)
    return Average(mean, limits, 0.1, 9, limits)


def run_of(*retained):
    share = cell(*retained)
    return Run(cell(-3000.0 * share.mean), cell(0.1), cell(3.0), share, cell(0.0), cell(0.0))


@pytest.fixture(scope="module")
def real():
    """Results of one expert that makes it, to be changed."""
    return spiked(large(1, 3))[0]


def handmade(real, *rows, together=0.0, most_needed=0.0):
    """rows: (off, alone) of experts 1.0, 1.1 ..., each a number or (mean, low, high)."""

    def as_run(retained):
        return run_of(*(retained if isinstance(retained, tuple) else (retained,)))

    made = [
        MeasuredExpert(
            layer=1,
            expert=i,
            share_of_tokens=0.5,
            largest_output=1.0,
            super=False,
            write=run_of(1.0).retained,
            tried="candidate",
            off=as_run(off),
            alone=as_run(alone),
        )
        for i, (off, alone) in enumerate(rows)
    ]
    left = as_run(most_needed).retained
    return dataclasses.replace(real, experts=made, together=as_run(together), most_needed=left)


@pytest.mark.parametrize(
    ("rows", "beside", "verdict"),
    [
        ([(0.0, 1.0), (1.0, 0.0)], {}, "one expert"),
        ([((0.05, -0.1, 0.2), 1.0), (1.0, 0.0)], {}, "cannot tell"),
        ([(0.0, 1.0), ((0.15, 0.05, 0.3), 0.0)], {}, "cannot tell"),
        ([(0.0, 1.0), ((0.15, 0.11, 0.3), 0.0)], {}, "one expert"),
        ([(0.0, 0.0), (0.0, 0.0), ((0.15, 0.05, 0.3), 0.0)], {}, "several experts together"),
        ([(1.0, 1.0), (1.0, 0.95)], {"most_needed": 1.0}, "several experts, each is enough"),
        ([(1.0, 1.0), (1.0, (0.95, 0.85, 1.0))], {"most_needed": 1.0}, "cannot tell"),
        ([(1.0, 1.0), (1.0, 0.2)], {"most_needed": 1.0}, "several experts together"),
        ([(0.5, 0.5), (0.5, 0.5)], {"most_needed": 0.5}, "several experts together"),
        ([(0.5, 0.5), (0.5, 0.5)], {"most_needed": 0.0}, "several experts, others in other windows"),
        ([(0.5, 0.5), (0.5, 0.5)], {"most_needed": (0.0, -0.1, 0.2)}, "cannot tell"),
        ([(1.0, 1.0), (1.0, 1.0)], {"together": 0.95}, "not the experts"),
        ([(1.0, 1.0), (1.0, 1.0)], {"together": (0.95, 0.85, 1.0)}, "cannot tell"),
        ([(1.0, 1.0), (1.0, 1.0)], {"together": 0.5}, "in part the experts"),
        ([(1.0, 1.0), (1.0, 1.0)], {"together": (0.15, 0.05, 0.2)}, "cannot tell"),
    ],
)
def test_a_threshold_in_an_interval_is_no_verdict(real, rows, beside, verdict):
    conclusion = judge.judge(handmade(real, *rows, **beside))
    assert conclusion.verdict == verdict
    assert bool(conclusion.values.experts) == (verdict.startswith(("one", "several")))


def test_a_random_expert_that_it_needs_counts(real):
    results = handmade(real, (0.0, 1.0), (0.0, 1.0))
    second = dataclasses.replace(results.experts[1], tried="random")
    results = dataclasses.replace(results, experts=[results.experts[0], second])
    assert judge.judge(results).verdict == "several experts together"


def test_text_and_figures_say_what_the_json_says(tmp_path):
    results, _conclusion = spiked(large(1, 3), model_type="qwen2_moe")
    stored = dataclasses.replace(payload_of(results), conclusion=judge.judge(results))
    written = text.summarise(stored)
    assert "Conclusion: one expert" in written
    assert "Named: 1.3" in written
    assert "2 of 4 experts and a shared one in layers 0-2" in written
    for name, draw in exp8_experts.figures().items():
        report_figures.write(tmp_path / name, draw, stored)
        assert (tmp_path / name).stat().st_size > 1000
