"""Massive activations set to something else, against forward passes with the test's own hooks; planted readers."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import exp5_interventions
import main_llm
from lib import interventions, place, planted, sweep
from lib.cli import UserError
from lib.data import Windows
from tests import reference
from tests.conftest import MASSIVE_DIM, SECOND_DIM, SPIKE_TOKEN, language_model, planted_model, tiny_model, token_ids

LAYER = 1
WHERE = [4, 0, 11, 7, 2]  # of SPIKE_TOKEN, by window: 0, 2 and 4 estimate, 1 and 3 are measured
MEASURED = [1, 3]


def spiked(family, tokenizer):
    """A planted model and windows with SPIKE_TOKEN at WHERE; at layer 1 SECOND_DIM is massive there too."""
    ids = token_ids(5, 16)
    ids[torch.arange(5), torch.tensor(WHERE)] = SPIKE_TOKEN
    return language_model(planted_model(family), tokenizer), Windows(ids, 5, False, "test")


def massive_by_hand(hidden):
    """{(position, dim)} of one window's (seq, hidden_size) block output."""
    size = hidden.abs()
    return {tuple(at) for at in ((size > 100) & (size > 1000 * size.median())).nonzero().tolist()}


def expected_values(hidden, set_to):
    """[{(window, layer, position, dim): value}] to set, from the block outputs of the model as it is."""
    sites = {w: massive_by_hand(hidden[LAYER][w]) for w in range(5)}
    values = {}
    for w in MEASURED:
        for position, dim in sites[w]:
            for layer in range(LAYER, len(hidden)):
                own = hidden[layer][w, position, dim].item()
                others = [hidden[layer][v, p, d].item() for v in (0, 2, 4) for p, d in sites[v] if d == dim]
                medians = [hidden[layer][v].abs().median().item() for v in (0, 2, 4)]
                values[w, layer, position, dim] = (
                    {
                        "zero": 0,
                        "mean": sum(others) / len(others),
                        "median": sum(medians) / 3 * (1 if own > 0 else -1),
                    }.get(set_to)
                    if isinstance(set_to, str)
                    else set_to * own
                )
    return values


def by_hand(model, ids, values, where):
    """(block outputs, losses) of the measured windows in a copy that hooks of its own change."""
    model = copy.deepcopy(model)
    kept = {}

    def hook(layer):
        def change(_module, _args, output):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            for row, window in enumerate(MEASURED):
                for (w, at, position, dim), value in values.items():
                    if w == window and at == layer and (where == "onward" or layer == LAYER):
                        hidden[row, position, dim] = value
            kept[layer] = hidden
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return change

    for layer, block in enumerate(reference.blocks(model)):
        block.register_forward_hook(hook(layer))
    with torch.no_grad():
        logits = model(ids[MEASURED], use_cache=False).logits
    losses = cross_entropy(logits[:, :-1].transpose(1, 2), ids[MEASURED][:, 1:], reduction="none").mean(1)
    return [kept[layer] for layer in sorted(kept)], losses


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_equals_a_forward_with_hooks_of_its_own(family, tokenizer):
    lm, windows = spiked(family, tokenizer)
    options = exp5_interventions.Options(layer_id=LAYER, factors=(0.5, -1.0), batch_size=2)
    result = exp5_interventions.run(lm, windows, options)
    hidden = reference.observe(lm.model, windows.ids).hidden
    assert massive_by_hand(hidden[LAYER][1]) == {(0, MASSIVE_DIM), (0, SECOND_DIM)}
    plain = by_hand(lm.model, windows.ids, {}, "layer")[1]
    assert len(result.conditions) == 11
    for name, set_to in (
        ("zero", "zero"),
        ("mean", "mean"),
        ("median", "median"),
        ("times_0.5", 0.5),
        ("times_-1", -1),
    ):
        values = expected_values(hidden, set_to)
        for where in ("layer", "onward"):
            blocks, losses = by_hand(lm.model, windows.ids, values, where)
            condition = result.conditions[f"{name}_{where}"]
            at_place = [np.mean([h[r, WHERE[w], MASSIVE_DIM].item() for r, w in enumerate(MEASURED)]) for h in blocks]
            got = [cell["mean"] for cell in condition["values"]]
            assert got == pytest.approx(at_place, rel=1e-4, abs=1e-3), (name, where)
            assert condition["loss_change"]["mean"] == pytest.approx((losses - plain).mean().item(), abs=2e-5)
            assert condition["perplexity"]["value"] == pytest.approx(losses.mean().exp().item(), rel=1e-4)
    assert result.conditions["zero_layer"]["loss_change"]["mean"] != 0


def test_sites_are_those_of_the_layer_and_the_means_those_of_the_other_windows(tokenizer):
    lm, windows = spiked("llama", tokenizer)
    result = exp5_interventions.run(lm, windows, exp5_interventions.Options(layer_id=LAYER, batch_size=2))
    hidden = reference.observe(lm.model, windows.ids).hidden
    rows = {row["dim"]: row for row in result.sites["dims"]}
    assert list(rows) == [MASSIVE_DIM, SECOND_DIM]
    for dim, row in rows.items():
        means = [np.mean([h[w, WHERE[w], dim].item() for w in (0, 2, 4)]) for h in hidden[LAYER:]]
        assert row["means"] == pytest.approx(means, rel=1e-5)
        assert row["positions"] == {0: 1, 7: 1}
        assert row["value"] == pytest.approx(np.mean([hidden[LAYER][w, WHERE[w], dim].item() for w in MEASURED]))
    assert (result.sites["estimation_windows"], result.sites["windows"], result.sites["left_alone"]) == (3, 2, 0)
    assert result.sites["place_changed_windows"] == 2


def test_a_dim_without_an_estimate_is_left_alone(tokenizer):
    lm, windows = spiked("gpt2", tokenizer)
    ids = windows.ids.clone()
    ids[[0, 2, 4], torch.tensor(WHERE)[[0, 2, 4]]] = SPIKE_TOKEN + 1
    result = exp5_interventions.run(lm, Windows(ids, 5, False, "test"), exp5_interventions.Options(layer_id=LAYER))
    assert result.conclusion["verdict"] == "none found"
    assert result.sites["left_alone"] == 4
    assert list(result.conditions) == ["baseline"]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_its_own_value_changes_no_bit(family, batch_size, tokenizer):
    lm, windows = spiked(family, tokenizer)
    at = place.find(lm, windows, batch_size)
    sites = interventions.find_sites(lm, windows, LAYER, batch_size)
    assert len(sites.index) == 10
    own = [interventions.Intervention("own", where, sites, sites.values) for where in ("layer", "onward")]
    measured = sweep.measure(lm, windows, at, own, batch_size)
    baseline = measured.pop(sweep.BASELINE)
    assert list(measured) == ["own_layer", "own_onward"]
    for same in measured.values():
        assert np.array_equal(same.values, baseline.values)
        assert np.array_equal(same.losses, baseline.losses)
        assert np.array_equal(same.attention, baseline.attention)


def test_restored_after_an_error(tokenizer):
    lm, windows = spiked("gpt2", tokenizer)
    with torch.inference_mode():
        before = lm.model(windows.ids, use_cache=False).logits
    sites = interventions.find_sites(lm, windows, LAYER, 5)
    change = interventions.Intervention("inf", "onward", sites, np.full_like(sites.values, np.inf))
    with pytest.raises(UserError, match="non-finite"):
        sweep.measure(lm, windows, place.find(lm, windows, 5), [change], 5)
    with torch.inference_mode():
        assert torch.equal(lm.model(windows.ids, use_cache=False).logits, before)
    assert not any(block._forward_hooks or "forward" in vars(block) for block in lm.arch.blocks)


@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_readers_need_the_value_not_its_exact_size(architecture):
    built = planted.build(architecture, "mlp", 1)
    result = exp5_interventions.run(built.lm, built.windows, exp5_interventions.Options(batch_size=4))
    assert result.layer == built.truth.layer
    assert {row["dim"] for row in result.sites["dims"]} == set(built.truth.values)
    share = len(built.truth.readers) / (built.lm.arch.n_layers * built.lm.arch.n_heads)
    rates = {name: c["sink_rates"]["0.3"]["mean"] for name, c in result.conditions.items()}
    for where in ("layer", "onward"):
        assert rates[f"zero_{where}"] == pytest.approx(rates["baseline"] - share)
        assert rates[f"median_{where}"] == rates[f"zero_{where}"]
        assert rates[f"mean_{where}"] == rates["baseline"]
    assert abs(result.conditions["zero_layer"]["comes_back"]["share"]["mean"]) < 0.01
    assert result.conditions["mean_layer"]["comes_back"]["share"]["mean"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_a_second_generator_brings_it_back(architecture):
    """Unless it is held at zero in the later layers too."""
    built = planted.build(architecture, "redundant", 1)
    result = exp5_interventions.run(built.lm, built.windows, exp5_interventions.Options(batch_size=4))
    second = built.truth.second_generator["layer"]
    zero = result.conditions["zero_layer"]
    values = [cell["mean"] for cell in zero["values"]]
    assert abs(values[second - 1]) < 1 < 100 < abs(values[second])
    assert zero["comes_back"]["share"]["mean"] > 0.5
    rates = {name: c["sink_rates"]["0.3"]["mean"] for name, c in result.conditions.items()}
    assert rates["zero_layer"] == rates["baseline"] > rates["zero_onward"]


def test_nothing_massive_is_none_found(tokenizer):
    lm = language_model(tiny_model("gpt2"), tokenizer)
    windows = Windows(token_ids(2, 16), 2, False, "test")
    for script, options in (
        (exp5_interventions.run, exp5_interventions.Options()),
        (main_llm.run_intervention, main_llm.Options(layer_id=0)),
    ):
        result = script(lm, windows, options)
        assert result.conclusion["verdict"] == "none found"
        assert list(result.conditions) == ["baseline"]
    with pytest.raises(UserError, match="at least 2"):
        exp5_interventions.run(lm, Windows(windows.ids[:1], 1, False, "test"), exp5_interventions.Options())
    with pytest.raises(UserError, match="between 0 and 1"):
        exp5_interventions.run(lm, windows, exp5_interventions.Options(epsilons=(1.5,)))


@pytest.mark.parametrize("set_to", ["zero", "mean"])
def test_exp3_is_one_of_them(set_to, tokenizer):
    lm, windows = spiked("llama", tokenizer)
    one = main_llm.run_intervention(lm, windows, main_llm.Options(layer_id=LAYER, reset_type=f"set_{set_to}"))
    every = exp5_interventions.run(lm, windows, exp5_interventions.Options(layer_id=LAYER, epsilons=(0.3,)))
    name = f"{set_to}_layer"
    assert list(one.conditions) == ["baseline", name]
    assert one.conditions[name] == every.conditions[name]
    assert one.conclusion["verdict"] == one.conditions[name]["cost"]


@pytest.mark.parametrize(
    ("zero", "mean", "verdict"),
    [
        (0.01, 0.0, "not needed"),
        (1.0, 0.01, "a constant is enough"),
        (1.0, -0.5, "a constant is enough"),
        (1.0, 0.3, "needed as it is"),
        ((1.0, -0.1), 0.0, "undecided"),
        (1.0, (0.2, -0.1), "undecided"),
    ],
)
def test_conclusion_follows_its_rule(zero, mean, verdict):
    conditions = {"baseline": {}}
    for set_to, change in (("zero", zero), ("mean", mean)):
        value, low = change if isinstance(change, tuple) else (change, change - 0.01)
        loss = {"mean": value, "ci95": [low, value + 1]}
        for where in ("layer", "onward"):
            conditions[f"{set_to}_{where}"] = {
                "set_to": set_to,
                "where": where,
                "loss_change": loss,
                "cost": interventions._cost(loss),
            }
    assert interventions._conclusion(conditions, single=False)["verdict"] == verdict
