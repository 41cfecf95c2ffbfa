"""Sets of neurons against planted ones, copies with zero weights, and products made here by hand."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import exp4_neuron_sets
from lib import hooks, neurons, planted, plots, report
from tests import reference
from tests.conftest import MASSIVE_DIM, SPIKE_TOKEN, language_model, planted_model, token_ids
from tests.reference import matrix
from tests.test_architectures import LAYER, by_hand, captured, case, close, observe  # noqa: F401 (a fixture)
from tests.test_sweep import DIM, fixed_place, windows_of

KINDS = ("mlp", "two_steps", "decoy", "content", "redundant", "mlp_eraser", "head_eraser")
SEEDS = range(5)
POSITIONS = [5, 9]
WHERE = [4, 0, 11]


def experiment(lm, windows, **options):
    options = exp4_neuron_sets.Options(batch_size=8, **{"n_random": 0, **options})
    return exp4_neuron_sets.run(lm, windows, options)


def flag_dims(built):
    """The pair of dims with opposite values in the trigger's embedding that stand out of its noise."""
    model, truth = built.lm.model, built.truth
    token = truth.trigger.rpartition(" ")[2]
    if token == "0":
        trigger = model.transformer.wpe.weight[0]
    else:
        trigger = model.get_input_embeddings().weight[planted.BOS if token == planted.BOS_TEXT else int(token[1:])]
    return set(trigger.abs().topk(2).indices.tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_planted_neurons(architecture, kind):
    for seed in SEEDS:
        built = planted.build(architecture, kind, seed)
        truth = built.truth
        result = experiment(built.lm, built.windows)
        chosen = [row["neuron"] for row in result.minimal_set]
        assert result.layer == truth.layer
        assert sorted(chosen) == list(truth.neurons)
        assert not {*chosen} & {*truth.decoy_neurons}
        assert result.conclusion["verdict"] == f"{len(chosen)} of {result.width} neurons"
        assert result.keep_only_share > 0.9
        assert abs(result.remove_share) < 0.1
        # only where a second MLP is sufficient does the value come back
        assert (abs(result.runs["remove_only"]["end_share"]["mean"]) > 0.9) == (kind == "redundant")
        assert result.contribution_check["relative_error"] < 1e-4
        for row in result.reads["neurons"]:
            for projection in row["projections"].values():
                dims = [i["dim"] for i in projection["inputs"]]
                assert projection["relative_error"] < 1e-4
                if kind == "two_steps":
                    assert dims[0] == next(iter(truth.outliers))
                else:
                    assert {*dims[:2]} == flag_dims(built)


@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_what_a_head_writes_is_not_of_the_mlp(architecture):
    for seed in SEEDS:
        built = planted.build(architecture, "head", seed)
        result = experiment(built.lm, built.windows, layer_id=built.truth.layer)
        assert result.conclusion["verdict"] == "not written by this MLP"
        assert abs(result.written["share"]) < 0.1
        assert result.remove_share > 0.9


@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_nothing_massive(architecture):
    built = planted.build(architecture, "none", 0)
    result = experiment(built.lm, built.windows, n_random=1)
    assert result.conclusion["verdict"] == "none found"
    assert result.keep_only_share is result.remove_share is None


def with_spikes(family, tokenizer):
    lm, ids = language_model(planted_model(family), tokenizer), token_ids(3, 16)
    ids[torch.arange(3), WHERE] = SPIKE_TOKEN
    return lm, windows_of(ids)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("layer", "gain", "verdict"),
    [
        (0, 1, "none found"),  # what this MLP writes there is exactly zero
        (1, 1, "1 of {width} neurons"),
        (2, 0.5, "not written by this MLP"),  # less than the MLP before
        (2, 3, "1 of {width} neurons, not confirmed"),  # more, but what that one wrote is left
    ],
)
def test_verdicts(family, layer, gain, verdict, tokenizer):
    lm, windows = with_spikes(family, tokenizer)
    matrix(reference.parts(reference.blocks(lm.model)[2]).down)[MASSIVE_DIM, 0] *= gain
    result = experiment(lm, windows, layer_id=layer, n_random=2)
    assert result.conclusion["verdict"] == verdict.format(width=result.width)
    if layer == 2:
        hidden = reference.observe(lm.model, windows.ids).hidden
        before, after = (of[range(3), WHERE, MASSIVE_DIM] for of in hidden[1:])
        assert result.written["share"] == pytest.approx(1 - (before.mean() / after.mean()).item(), abs=1e-4)
        assert result.remove_share == pytest.approx((before / after).mean().item(), abs=1e-4)
    payload = {
        "provenance": {"model": {"name": "tiny", "type": family}, "data": {"windows": 3, "seqlen": 16}},
        "config": {"model_name": "tiny"},
        "results": report.plain(result),
    }
    payload["provenance"] |= {"dtype": "", "device": "", "seed": 0, "time": "", "command": ""}
    payload["provenance"]["data"] |= {"bos": False, "dataset": "random"}
    assert f"Conclusion: {result.conclusion['verdict']}\n" in exp4_neuron_sets.summarise(payload)
    for draw in exp4_neuron_sets.EXPERIMENT.figures.values():
        plots.plt.close(draw(payload))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_random_set_that_does_as_much_is_no_confirmation(family, tokenizer, monkeypatch):
    lm, windows = with_spikes(family, tokenizer)
    monkeypatch.setattr(neurons, "_random_sets", lambda *_args: [(0,)])  # the planted neuron
    assert experiment(lm, windows, layer_id=1).conclusion["verdict"].endswith(", not confirmed")


def test_runs_equal_zeroed_copies(case):  # noqa: F811
    """Without a norm on the way, at this layer the value falls by exactly what was zeroed."""
    place = fixed_place(POSITIONS, case.lm.arch.n_layers)
    width = case.lm.arch.weight(LAYER, "down").shape[1]
    chosen = [1, 4, width - 1]
    options = SimpleNamespace(batch_size=2, n_random=2, seed=0)
    runs, null = neurons.prove(case.lm, windows_of(case.ids), place, LAYER, 2, chosen, options)
    everything = [(chosen, runs), *((draw["neurons"], draw) for draw in null)]
    for on, of in everything:
        off = [n for n in range(width) if n not in on]
        for columns, run in ((off, of["keep_only"]), (on, of["remove_only"])):
            model = copy.deepcopy(case.lm.model)
            matrix(model.get_submodule(case.tested.blocks)[LAYER].get_submodule(case.tested.mlp_out))[:, columns] = 0
            expected = observe(case.tested, model, case.ids)
            at = [hidden[[0, 1], POSITIONS, DIM].mean().item() for hidden in expected.hidden[1:]]
            assert [run["value"]["mean"], run["end_value"]["mean"]] == pytest.approx([at[LAYER], at[2]], abs=1e-4)
            loss = cross_entropy(expected.logits[:, :-1].transpose(1, 2), case.ids[:, 1:]).item()
            assert np.log(run["perplexity"]["value"]) == pytest.approx(loss, rel=1e-4)
    assert runs["baseline"]["value"]["mean"] == pytest.approx(
        case.real.hidden[LAYER + 1][[0, 1], POSITIONS, DIM].mean().item(), abs=1e-4
    )


def test_reads_add_up_to_a_hand_made_pre_activation(case):  # noqa: F811
    architecture = case.lm.arch
    at = neurons.at_place(case.lm, windows_of(case.ids), fixed_place(POSITIONS, 3), LAYER, 1)
    full = captured(case, "up", hooks.watch_inputs)[LAYER]
    normed = full[[0, 1], POSITIONS].mean(0)
    gate, up, _inner, output = (None if x is None else x[[0, 1], POSITIONS].mean(0) for x in by_hand(case, full))
    close(at["mlp_output"].mean(0).float(), output, 1e-4)
    rows = neurons.reads(architecture, LAYER, at, [2, 7], top=architecture.hidden_size)
    assert [row["neuron"] for row in rows] == [2, 7]
    block = case.lm.model.get_submodule(case.tested.blocks)[LAYER]
    first = torch.cat([matrix(block.get_submodule(path)) for path in case.tested.mlp_in])
    weights = dict(zip(("gate", "up"), first.chunk(2), strict=True)) if case.tested.gated else {"up": first}
    for row in rows:
        assert list(row["projections"]) == list(weights)
        for role, projection in row["projections"].items():
            neuron = row["neuron"]
            expected = (gate if role == "gate" else up)[neuron].item()
            assert projection["pre_activation"] == pytest.approx(expected, abs=1e-4)
            assert projection["sum"] + projection["bias"] == pytest.approx(expected, abs=1e-4)
            by_dim = {i["dim"]: i for i in projection["inputs"]}
            products = normed * weights[role][neuron]
            mine = torch.tensor([by_dim[dim]["contribution"] for dim in range(len(products))])
            close(mine, products, 1e-4)
            sizes = [abs(i["contribution"]) for i in projection["inputs"]]
            assert sizes == sorted(sizes, reverse=True)
            along = sorted((products * np.sign(expected)).tolist(), reverse=True)
            reached = [n for n in range(1, len(along) + 1) if sum(along[:n]) >= abs(expected) / 2]
            assert projection["dims_to_half"] == (reached[0] if reached else None)


def test_residual_is_what_enters_the_norm(case):  # noqa: F811
    """Block input + attention's write; the block input alone in a parallel block."""
    at = neurons.at_place(case.lm, windows_of(case.ids), fixed_place(POSITIONS, 3), LAYER, 2)
    expected = case.real.hidden[LAYER]
    if "parallel" not in case.variant:
        scale = getattr(case.lm.model.config, "residual_multiplier", 1)
        expected = expected + scale * captured(case, "attention_write")[LAYER]
    close(at["residual"].float(), expected[[0, 1], POSITIONS])


def test_random_sets():
    others = list(range(10, 16))
    sets = neurons._random_sets(others, 2, 5, seed=0)
    assert len({*sets}) == 5
    assert all(len({*chosen}) == 2 and {*chosen} <= {*others} for chosen in sets)
    assert sets == neurons._random_sets(others, 2, 5, seed=0) != neurons._random_sets(others, 2, 5, seed=1)
    assert len(neurons._random_sets(others, 6, 5, seed=0)) == 1
    assert neurons._random_sets(others, 7, 5, seed=0) == neurons._random_sets(others, 0, 5, seed=0) == []
