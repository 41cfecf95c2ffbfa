"""Massive activations set to something else, against forward passes with the test's own hooks; planted readers."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import exp5_interventions
import main_llm
from experiments.interventions import judge, measure, text
from experiments.interventions.changes import Intervention, _resampled
from experiments.interventions.results import ComesBack, Condition, Results
from experiments.interventions.sites import Sites, find_massive, find_sites
from lib import catalogue
from lib.core import place, sweep
from lib.core.data import Windows
from lib.core.definitions import COST
from lib.core.evidence import Average, Perplexity
from lib.model import edits, hooks
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.planted import blank, builder, planting
from lib.report.result_files import Result
from lib.report.upgrades import upgraded
from lib.run.cli import UserError
from tests import reference
from tests.cases import build, configuration
from tests.conftest import (
    FLAG_DIM,
    MASSIVE_DIM,
    SECOND_DIM,
    SPIKE_TOKEN,
    language_model,
    planted_model,
    tiny_model,
    token_ids,
)

LAYER = 1
WHERE = [4, 5, 11, 7, 2]  # of SPIKE_TOKEN, by window: 0, 2 and 4 estimate, 1 and 3 are measured
ESTIMATED, MEASURED = [0, 2, 4], [1, 3]
OTHER_TOKEN, OTHER_FLAG = 301, 11  # of `two_sizes`


def spiked(family, tokenizer, where=WHERE):
    """A planted model and windows with SPIKE_TOKEN at `where`; at layer 1 SECOND_DIM is massive there too."""
    ids = token_ids(len(where), 16)
    ids[torch.arange(len(where)), torch.tensor(where)] = SPIKE_TOKEN
    return language_model(planted_model(family), tokenizer), Windows(ids, len(where), False, "test")


def two_sizes(family, tokenizer):
    """As `spiked`, but with SPIKE_TOKEN first, and a smaller spike, in MASSIVE_DIM alone, at
    OTHER_TOKEN, which stands at WHERE + 1; windows 3 and 4 have no spike at the first position."""
    lm, windows = spiked(family, tokenizer, [0] * 5)
    windows.ids[[3, 4], 0] = windows.ids[[3, 4], 1]
    windows.ids[torch.arange(5), torch.tensor(WHERE) + 1] = OTHER_TOKEN
    embedding = lm.model.get_input_embeddings().weight.data
    embedding[:, OTHER_FLAG] = embedding[OTHER_TOKEN] = 0
    embedding[OTHER_TOKEN, OTHER_FLAG] = 10
    for block in reference.blocks(lm.model)[:2]:
        for module in (reference.parts(block).heads, reference.parts(block).down):
            reference.matrix(module)[OTHER_FLAG] = 0
            if family == "gpt2":
                module.bias.data[OTHER_FLAG] = 0
    if family == "gpt2":
        lm.model.transformer.wpe.weight.data[:, OTHER_FLAG] = 0
    part = reference.parts(reference.blocks(lm.model)[LAYER])
    for module in part.mlp_in:
        reference.matrix(module)[1] = 0
        reference.matrix(module)[1, OTHER_FLAG] = reference.matrix(module)[0, FLAG_DIM]
        if family == "gpt2":
            module.bias.data[1] = module.bias.data[0]
    if family == "gpt2":
        part.mlp_norm.bias.data[OTHER_FLAG] = part.mlp_norm.bias.data[FLAG_DIM]
    reference.matrix(part.down)[:, 1] = 0
    reference.matrix(part.down)[MASSIVE_DIM, 1] = reference.matrix(part.down)[MASSIVE_DIM, 0] / 10
    return lm, windows


def judged(result, experiment="exp5"):
    """The conclusion."""
    return catalogue.judged(experiment, result)["conclusion"]


def massive_by_hand(hidden):
    """{(position, dim)} of one window's (seq, hidden_size) block output."""
    size = hidden.abs()
    return {tuple(at) for at in ((size > 100) & (size > 1000 * size.median())).nonzero().tolist()}


def sites_by_hand(hidden):
    """{window: {(position, dim)} that are changed}, by the rule of the module."""
    massive = {w: massive_by_hand(hidden[LAYER][w]) for w in range(5)}
    first = {dim for w in ESTIMATED for position, dim in massive[w] if position == 0}
    later = {dim for w in ESTIMATED for position, dim in massive[w] if position > 0}
    return {
        w: {(0, dim) for dim in first} | {(position, dim) for position, dim in massive[w] if position and dim in later}
        for w in range(5)
    }


def expected_values(hidden, set_to):
    """{(window, layer, position, dim): value} to set, from the block outputs of the model as it is."""
    sites = sites_by_hand(hidden)
    values = {}
    for w in MEASURED:
        for position, dim in sites[w]:
            for layer in range(LAYER, len(hidden)):
                others = [
                    hidden[layer][v, p, d].item()
                    for v in ESTIMATED
                    for p, d in sites[v]
                    if d == dim and (p == 0) == (position == 0)
                ]
                ordinary = [
                    hidden[layer][v, p, dim].item()
                    for v in ESTIMATED
                    for p in range(16)
                    if p not in {at for at, _dim in massive_by_hand(hidden[LAYER][v])}
                ]
                medians = [hidden[layer][v].abs().median().item() for v in ESTIMATED]
                values[w, layer, position, dim] = (
                    {
                        "zero": 0,
                        "mean": np.mean(others),
                        "ordinary": np.mean(ordinary),
                        "median": np.mean(medians) * (1 if sum(others) > 0 else -1),
                    }[set_to]
                    if isinstance(set_to, str)
                    else set_to * hidden[layer][w, position, dim].item()
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
    lm, windows = two_sizes(family, tokenizer)
    options = exp5_interventions.Options(layer_id=LAYER, factors=(0.5, -1.0), batch_size=2)
    result = measure.run(lm, windows, options)
    hidden = reference.observe(lm.model, windows.ids).hidden
    plain_blocks, plain = by_hand(lm.model, windows.ids, {}, "layer")
    positions = place.find(lm, windows, 5).positions
    assert len(result.conditions) == 20
    for name, set_to in (
        ("zero", "zero"),
        ("mean", "mean"),
        ("ordinary", "ordinary"),
        ("median", "median"),
        ("times_0.5", 0.5),
        ("times_-1", -1),
    ):
        values = expected_values(hidden, set_to)
        for where in ("layer", "onward"):
            blocks, losses = by_hand(lm.model, windows.ids, values, where)
            condition = result.conditions[f"{name}_{where}"]
            at_place = [
                np.mean([h[r, positions[w], MASSIVE_DIM].item() for r, w in enumerate(MEASURED)]) for h in blocks
            ]
            got = [cell.mean for cell in condition.values]
            assert got == pytest.approx(at_place, rel=1e-4, abs=2e-3), (name, where)
            assert condition.loss_change.mean == pytest.approx((losses - plain).mean().item(), abs=5e-5)
            assert condition.perplexity.value == pytest.approx(losses.mean().exp().item(), rel=1e-4)
            before = sum(plain_blocks[LAYER][r, positions[w], MASSIVE_DIM].item() for r, w in enumerate(MEASURED))
            assert condition.left.mean == pytest.approx(2 * at_place[LAYER] / before, rel=1e-4, abs=1e-6)
    assert result.conditions["zero_layer"].loss_change.mean != 0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_spikes_of_different_size_have_means_of_their_own(family, tokenizer):
    """A mean over the dim's sites, whatever their position, would be neither."""
    lm, windows = two_sizes(family, tokenizer)
    result = measure.run(lm, windows, exp5_interventions.Options(layer_id=LAYER, batch_size=2))
    hidden = reference.observe(lm.model, windows.ids).hidden[LAYER]
    rows = {(row.position, row.dim): row for row in result.sites.dims}
    assert set(rows) == {("first", MASSIVE_DIM), ("first", SECOND_DIM), ("later", MASSIVE_DIM)}
    means = {key: row.means[0] for key, row in rows.items()}
    first = [hidden[w, 0, MASSIVE_DIM].item() for w in ESTIMATED]
    later = [hidden[w, WHERE[w] + 1, MASSIVE_DIM].item() for w in ESTIMATED]
    assert max(first[:2]) < -100 < first[2], "window 4 has no spike there, and counts"
    assert means["first", MASSIVE_DIM] == pytest.approx(np.mean(first), rel=1e-5)
    assert means["later", MASSIVE_DIM] == pytest.approx(np.mean(later), rel=1e-5)
    assert abs(np.mean(first) / np.mean(later)) > 1.5
    assert rows["first", MASSIVE_DIM].positions == {0: 2}, "in window 3, too, where it is not massive"
    assert rows["first", MASSIVE_DIM].massive == 1
    assert rows["later", MASSIVE_DIM].positions == {6: 1, 8: 1}


def test_resampled_values_are_those_of_another_window():
    """The dims of one position take theirs from one window; those of later positions from sites of later ones."""

    def sites(index):
        values = np.array([[100 * window + position] for window, position, _dim in index])
        return Sites(LAYER, np.array(index), np.ones(len(index), dtype=bool), values, {})

    estimation = sites([(w, p, dim) for w in range(4) for p, dim in ((0, 5), (0, 9), (w + 1, 5))])
    measured = sites([(w, p, dim) for w in range(3) for p, dim in ((0, 5), (0, 9), (7, 5))])
    seen = set()
    for seed in range(30):
        values = _resampled(measured, estimation, np.random.default_rng(seed)).reshape(3, 3)
        assert np.array_equal(values, _resampled(measured, estimation, np.random.default_rng(seed)).reshape(3, 3))
        assert (values[:, 0] == values[:, 1]).all()
        seen.update(values.flatten().tolist())
    assert seen == {0, 100, 200, 300, 1, 102, 203, 304}


def test_a_pair_without_an_estimate_is_left_alone(tokenizer):
    lm, windows = spiked("gpt2", tokenizer)
    ids = windows.ids.clone()
    ids[ESTIMATED, torch.tensor(WHERE)[ESTIMATED]] = SPIKE_TOKEN + 1
    result = measure.run(lm, Windows(ids, 5, False, "test"), exp5_interventions.Options(layer_id=LAYER, batch_size=1))
    assert judged(result)["verdict"] == "none found"
    assert result.sites.left_alone == 4
    assert list(result.conditions) == ["baseline"]
    # nor is the first position that of the others
    lm, windows = spiked("gpt2", tokenizer, [4, 0, 11, 7, 2])
    result = measure.run(lm, windows, exp5_interventions.Options(layer_id=LAYER, batch_size=1))
    assert (result.sites.left_alone, result.sites.windows) == (2, 1)


def off_by_hand(lm, ids, there, neurons):
    """(losses, block outputs of LAYER) with these neurons of that MLP, or all it writes, zeroed at `there`."""
    model = copy.deepcopy(lm.model)
    down, mask = reference.parts(reference.blocks(model)[LAYER]).down, there[..., None]
    if neurons is None:
        down.register_forward_hook(lambda _module, _args, out: torch.where(mask, 0.0, out))
    else:
        of = torch.zeros(down.weight.shape[0 if lm.model.config.model_type == "gpt2" else 1], dtype=torch.bool)
        of[neurons] = True
        down.register_forward_pre_hook(lambda _module, args: (torch.where(mask & of, 0.0, args[0]),))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    losses = cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)
    return losses, reference.observe(model, ids).hidden[LAYER]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_off_is_off_there_alone(family, tokenizer):
    lm, windows = two_sizes(family, tokenizer)
    result = measure.run(lm, windows, exp5_interventions.Options(layer_id=LAYER, batch_size=1))
    ids = windows.ids[MEASURED]
    assert [row.neuron for row in result.mlp.neurons] == [0, 1]
    there = torch.zeros(ids.shape, dtype=torch.bool)
    there[:, 0] = there[0, 6] = there[1, 8] = True
    plain, _hidden = off_by_hand(lm, ids, there, [])
    everywhere = torch.ones_like(there)
    changes = {}
    for name, mask, neurons in (
        ("neurons_off_there", there, [0, 1]),
        ("neurons_off", everywhere, [0, 1]),
        ("mlp_off_there", there, None),
        ("mlp_off", everywhere, None),
    ):
        losses, hidden = off_by_hand(lm, ids, mask, neurons)
        condition = result.conditions[name]
        changes[name] = (losses - plain).mean().item()
        assert condition.loss_change.mean == pytest.approx(changes[name], abs=5e-5), name
        at = [hidden[r, place.find(lm, windows, 5).positions[w], MASSIVE_DIM].item() for r, w in enumerate(MEASURED)]
        assert condition.values[LAYER].mean == pytest.approx(np.mean(at), rel=1e-3, abs=2e-3), name
    assert abs(changes["mlp_off"] - changes["mlp_off_there"]) > 1e-3
    put_back = result.conditions["put_back"]
    recovered = result.conditions["neurons_off_there"].loss_change.mean - put_back.loss_change.mean
    assert put_back.recovered.mean == pytest.approx(recovered, abs=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj", "bloom", "falcon", "phi3", "olmo2", "gemma2"])
def test_off_at_some_positions_is_off_everywhere_there_and_as_ever_elsewhere(family):
    model = build(configuration(family, {}))
    arch = Architecture(model)
    lm, ids = LanguageModel(model, arch, None, {}), token_ids(2, 12) % 64
    at = torch.zeros(ids.shape, dtype=torch.bool)
    at[0, 3] = at[1, 5] = at[1, 6] = True

    def output(off):
        seen = {}
        with (
            off,
            hooks.watch_outputs(arch, "block", lambda layer, hidden: seen.update({layer: hidden.clone()}), [LAYER]),
        ):
            hooks.forward(lm, ids)
        return seen[LAYER]

    plain = output(nullcontext())
    for everywhere, there in (
        (edits.mlps_off(arch, [LAYER]), edits.mlp_off_at(arch, LAYER, at)),
        (edits.neurons_off(arch, LAYER, range(7)), edits.neurons_off(arch, LAYER, range(7), at)),
    ):
        off = output(everywhere)
        assert (off - plain).abs().amax(2).min() > 1e-3
        torch.testing.assert_close(output(there), torch.where(at[..., None], off, plain), rtol=1e-5, atol=1e-5)


def test_sinks_are_of_all_heads_and_paired(tokenizer):
    lm, windows = spiked("llama", tokenizer, [0] * 5)
    options = exp5_interventions.Options(layer_id=LAYER, epsilons=(0.05, 0.1, 0.3), batch_size=1)
    conditions = measure.run(lm, windows, options).conditions
    for condition in list(conditions.values())[1:]:
        for epsilon in options.epsilons:
            before, after = (here.sink_rates[epsilon].mean for here in (conditions["baseline"], condition))
            assert condition.sink_rate_changes[epsilon].mean == pytest.approx(after - before, abs=1e-12)
            assert after * lm.arch.n_layers * lm.arch.n_heads * 2 == pytest.approx(
                round(after * lm.arch.n_layers * lm.arch.n_heads * 2)
            )


def all_sites(lm, windows, batch_size):
    massive = find_massive(lm, windows, LAYER, batch_size)
    first = [(window, 0, dim) for window in range(5) for dim in (MASSIVE_DIM, SECOND_DIM)]
    changed = np.concatenate([massive, first])
    return find_sites(lm, windows, np.arange(5), massive, changed, LAYER, batch_size)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_its_own_value_changes_no_bit(family, batch_size, tokenizer):
    lm, windows = spiked(family, tokenizer)
    at = place.find(lm, windows, batch_size)
    sites = all_sites(lm, windows, batch_size)
    assert len(sites.index) == 2 * 5 + 2 * 5  # the first of all windows, and the spikes
    own = [Intervention("own", where, "", sites, sites.values) for where in ("layer", "onward")]
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
    sites = all_sites(lm, windows, 5)
    change = Intervention("inf", "onward", "", sites, np.full_like(sites.values, np.inf))
    with pytest.raises(UserError, match="non-finite"):
        sweep.measure(lm, windows, place.find(lm, windows, 5), [change], 5)
    with torch.inference_mode():
        assert torch.equal(lm.model(windows.ids, use_cache=False).logits, before)
    assert not any(block._forward_hooks or "forward" in vars(block) for block in lm.arch.blocks)


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_readers_need_the_value_not_its_exact_size(architecture):
    built = planting.build(architecture, "mlp", 1)
    result = measure.run(built.lm, built.windows, exp5_interventions.Options(batch_size=4))
    assert result.layer == built.truth.layer
    assert {row.dim for row in result.sites.dims} == set(built.truth.values)
    share = len(built.truth.readers) / (built.lm.arch.n_layers * built.lm.arch.n_heads)
    rates = {name: c.sink_rates[0.3].mean for name, c in result.conditions.items()}
    for where in ("layer", "onward"):
        assert rates[f"zero_{where}"] == pytest.approx(rates["baseline"] - share)
        assert rates[f"median_{where}"] == rates[f"zero_{where}"]
        assert rates[f"mean_{where}"] == rates["baseline"]
        assert rates[f"ordinary_{where}"] == rates[f"zero_{where}"]
        assert rates[f"resampled_{where}"] == rates["baseline"]
    for off in ("neurons_off", "mlp_off"):
        assert rates[f"{off}_there"] == rates[off] == pytest.approx(rates["baseline"] - share)
    assert rates["put_back"] == rates["baseline"]
    assert {row.neuron for row in result.mlp.neurons} == set(built.truth.neurons)
    assert abs(result.conditions["zero_layer"].comes_back.share.mean) < 0.01
    assert result.conditions["mean_layer"].comes_back.share.mean == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_a_second_generator_brings_it_back(architecture):
    """Unless it is held at zero in the later layers too."""
    built = planting.build(architecture, "redundant", 1)
    result = measure.run(built.lm, built.windows, exp5_interventions.Options(batch_size=4))
    second = built.truth.second_generator["layer"]
    zero = result.conditions["zero_layer"]
    values = [cell.mean for cell in zero.values]
    assert abs(values[second - 1]) < 1 < 100 < abs(values[second])
    assert zero.comes_back.share.mean > 0.5
    rates = {name: c.sink_rates[0.3].mean for name, c in result.conditions.items()}
    assert rates["zero_layer"] == rates["baseline"] > rates["zero_onward"]
    conclusion = judged(result)
    assert conclusion["values"]["counterfactual"]["cost"] == "free"
    assert conclusion["verdict"] == "cannot tell"
    assert "comes back" in conclusion["values"]["why"]


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_without_the_writer_among_the_neurons_nothing_is_told(architecture):
    """A head writes it: the MLP off leaves it there, whatever that costs."""
    built = planting.build(architecture, "head", 1)
    result = measure.run(built.lm, built.windows, exp5_interventions.Options(batch_size=4))
    assert "neurons_off_there" not in result.conditions
    assert "of the value" in result.mlp.left_out
    assert result.conditions["mlp_off_there"].left.mean == pytest.approx(1, abs=0.01)
    assert judged(result)["verdict"] == "cannot tell"


def old_verdict(conditions):
    """As experiment 5 once judged: by what zero costs, held onward, and by means."""
    zero, mean = (conditions[f"{name}_onward"].loss_change for name in ("zero", "mean"))
    words = ["free" if c.mean < 0.05 else "costs" if c.ci95[0] > 0 else "unclear" for c in (zero, mean)]
    return {"free": "not needed", "costs": {"free": "a constant is enough"}.get(words[1])}.get(words[0], "undecided")


def planted_beside(architecture, seed, looks_at_the_spike, shares=None):
    """A planted model in which the neurons that write a massive value write a small one beside it, which the norm hides
    while the massive one is there; a later head makes other tokens' losses larger. shares: of the value, by layer.

    looks_at_the_spike: the head attends to it, reads there, with all of the norm's room taken, nothing of what it
    copies elsewhere (a sink that the loss needs); otherwise it looks for the small value and copies it (a vector that
    the model never meets, but for who sets the massive value to zero).
    """
    b = builder.Builder(architecture, np.random.default_rng(seed), *[blank.BOS] * (architecture == "llama"))
    small = b.spare_dims.pop()
    b.values = {b.largest: b.values[b.largest]}
    for last, share in (shares or {LAYER: 1}).items():
        b.neurons_write(last, b.flag - b.one, builder.times(share, b.values | {small: 60.0}))
    layer, head = next(spare for spare in b.spare_heads if spare[0] > last)
    reads = builder.contrast(small, b.rest)
    b.head_looks(layer, head, b.spike if looks_at_the_spike else reads)
    b._head_reads(layer, head, "v", 0, b.one if looks_at_the_spike else reads)
    rows = b.lm.model.get_output_embeddings().weight
    rows[17] *= 12
    written = rows[17] / rows[17].norm() * (100 if looks_at_the_spike else 25)
    b.arch.weight(layer, "head_projection")[:, head * blank.HEAD_DIM] = written
    return b.lm, planting.draw_windows(b)


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_a_vector_that_the_model_never_meets_is_no_counterfactual(architecture):
    lm, windows = planted_beside(architecture, 3, looks_at_the_spike=False)
    result = measure.run(lm, windows, exp5_interventions.Options(batch_size=4))
    assert result.conditions["zero_onward"].loss_change.ci95[0] > 2 * COST
    assert old_verdict(result.conditions) == "a constant is enough"
    conclusion = judged(result)
    assert conclusion["verdict"] == "not needed"
    assert conclusion["values"]["counterfactual"]["condition"] == "neurons_off_there"
    assert conclusion["values"]["counterfactual"]["cost"] == "free"
    assert conclusion["values"]["costs"]["zero_onward"] == "costs"


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_a_sink_that_the_loss_needs_is_needed(architecture):
    lm, windows = planted_beside(architecture, 3, looks_at_the_spike=True)
    result = measure.run(lm, windows, exp5_interventions.Options(batch_size=4))
    assert judged(result)["verdict"] == "needed, a constant is enough"


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_what_two_mlps_write_is_gone_without_the_neurons_of_both(architecture):
    shares = {LAYER: 0.45, LAYER + 1: 0.55}
    lm, windows = planted_beside(architecture, 3, looks_at_the_spike=True, shares=shares)
    result = measure.run(lm, windows, exp5_interventions.Options(batch_size=4, layer_id=LAYER + 1))
    written = {layer: sum(row.share for row in result.mlp.neurons if row.layer == layer) for layer in shares}
    assert written == pytest.approx(shares, abs=0.03)
    assert result.conditions["mlp_off_there"].left.mean == pytest.approx(0.45, abs=0.03)
    gone = result.conditions["neurons_off_there"]
    assert abs(gone.left.mean) < 0.05
    assert gone.label.endswith(f"of MLPs {LAYER}-{LAYER + 1})")
    assert judged(result)["verdict"] == "needed, a constant is enough"


def test_windows_without_the_spike_have_nothing_to_lose():
    """What two of four windows lose is not spread over all; the constant is that of windows that have the spike."""
    lm, windows = planted_beside("llama", 3, looks_at_the_spike=True)
    windows.ids[[0, 1, 4, 5], 0] = windows.ids[[0, 1, 4, 5], 1]
    result = measure.run(lm, windows, exp5_interventions.Options(batch_size=4))
    assert (result.sites.estimation_windows, result.sites.windows) == (2, 2)
    assert result.sites.spiking.mean == 0.5
    (row,) = result.sites.dims
    assert row.means[0] == pytest.approx(row.value, rel=0.01)
    change = result.conditions["neurons_off_there"].loss_change
    neurons = [row.neuron for row in result.mlp.neurons]
    first = torch.zeros(4, windows.ids.shape[1], dtype=torch.bool)
    first[:, 0] = True
    ids = windows.ids[1::2]
    losses = off_by_hand(lm, ids, first, neurons)[0] - off_by_hand(lm, ids, first, [])[0]
    assert losses[[0, 2]].abs().max() < 1e-3
    assert change.mean == pytest.approx(losses[[1, 3]].mean().item(), abs=1e-4)
    assert change.n == 2


def test_nothing_massive_is_none_found(tokenizer):
    lm = language_model(tiny_model("gpt2"), tokenizer)
    windows = Windows(token_ids(2, 16), 2, False, "test")
    for script, options in (
        (measure.run, exp5_interventions.Options(batch_size=1)),
        (measure.run_single, main_llm.Options(layer_id=0, batch_size=1)),
    ):
        result = script(lm, windows, options)
        assert judged(result)["verdict"] == judged(result, "intervention")["verdict"] == "none found"
        assert list(result.conditions) == ["baseline"]
    with pytest.raises(UserError, match="at least 2"):
        measure.run(lm, Windows(windows.ids[:1], 1, False, "test"), exp5_interventions.Options(batch_size=1))
    with pytest.raises(UserError, match="between 0 and 1"):
        measure.run(lm, windows, exp5_interventions.Options(epsilons=(1.5,), batch_size=1))


@pytest.mark.parametrize("set_to", ["zero", "mean"])
def test_exp3_is_one_of_them(set_to, tokenizer):
    lm, windows = spiked("llama", tokenizer)
    one = measure.run_single(lm, windows, main_llm.Options(layer_id=LAYER, reset_type=f"set_{set_to}", batch_size=1))
    every = measure.run(lm, windows, exp5_interventions.Options(layer_id=LAYER, epsilons=(0.3,), batch_size=1))
    name = f"{set_to}_layer"
    assert list(one.conditions) == ["baseline", name]
    assert one.conditions[name] == every.conditions[name]
    assert judged(one, "intervention")["verdict"] == judged(every)["values"]["costs"][name]


def cell(low, high):
    return Average((low + high) / 2, (low, high), None, 8)


def condition_of(set_to, where, loss, **more):
    """A changed condition, as far as a judge looks."""
    rates = {0.2: cell(0, 0), 0.4: cell(0.1, 0.3)}
    return Condition(
        label=set_to,
        question="",
        set_to=set_to,
        where=where,
        perplexity=Perplexity(1.0, None, 8),
        sink_rates=rates,
        values=[],
        loss_change=loss,
        sink_rate_changes=rates,
        **({"left": GONE} | more),
    )


def results_of(conditions, first_tokens=2, positions=("first",)):
    """Of these conditions and a baseline. first_tokens: with how many the windows begin. positions: of the sites."""
    rates = {0.2: cell(0, 0), 0.4: cell(0.1, 0.3)}
    baseline = Condition(label="baseline", perplexity=Perplexity(1.0, None, 8), sink_rates=rates, values=[])
    place = SimpleNamespace(first_tokens=first_tokens)
    sites = SimpleNamespace(dims=[SimpleNamespace(position=position) for position in positions])
    changed = {"baseline": baseline} | conditions
    return Results(place=place, layer=1, epsilons=[0.2, 0.4], sites=sites, mlp=None, conditions=changed)


GONE, FREE, COSTS, EITHER = cell(-0.01, 0.02), cell(-0.2, 0.04), cell(0.06, 2.0), cell(0.01, 0.4)


def conditions_of(writer, changed):
    """All conditions, as the verdict's rule wants them for a constant, but for what is changed."""
    cells = {"off": COSTS, "left": GONE, "back": GONE, "recovered": COSTS, "mean": FREE, "zero": COSTS} | changed
    back = cells["back"] and ComesBack(5, cells["back"])
    held = {
        f"{set_to}_{where}": condition_of(set_to, where, cells.get(set_to, FREE))
        for where in ("layer", "onward")
        for set_to in judge.HELD
    }
    off = condition_of(f"{writer} off", "there", cells["off"], left=cells["left"], comes_back=back)
    put_back = condition_of("put back", "there", FREE, recovered=cells["recovered"])
    conditions = {"mlp_off_there": condition_of("mlp off", "there", FREE), f"{writer}_off_there": off}
    return conditions | {"put_back": put_back} | held


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "needed, a constant is enough"),
        ({"mean": COSTS}, "needed as it is"),
        ({"mean": EITHER}, "cannot tell"),
        ({"off": FREE}, "not needed"),
        ({"off": EITHER}, "cannot tell"),
        ({"off": FREE, "back": cell(0.05, 0.3)}, "cannot tell"),
        ({"off": FREE, "back": cell(0.2, 0.3)}, "cannot tell"),
        ({"off": FREE, "back": None}, "not needed"),
        ({"back": cell(0.2, 0.3)}, "needed, a constant is enough"),
        ({"left": cell(0.05, 0.3)}, "cannot tell"),
        ({"off": FREE, "left": cell(0.9, 1.0)}, "cannot tell"),
        ({"left": None}, "cannot tell"),
        ({"recovered": FREE}, "cannot tell"),
        ({"recovered": EITHER}, "cannot tell"),
        ({"off": Average(1.0, None, None, 1)}, "cannot tell"),
        ({"zero": FREE}, "needed, a constant is enough"),
    ],
)
@pytest.mark.parametrize("writer", ["neurons", "mlp"])
def test_conclusion_follows_its_rule(writer, changed, verdict):
    conditions = conditions_of(writer, changed)
    conclusion = judge.judge(results_of(conditions))
    assert conclusion.verdict == verdict
    assert (conclusion.values.why is not None) == (verdict == "cannot tell")
    assert conclusion.values.counterfactual.condition == f"{writer}_off_there"
    assert conclusion.values.counterfactual.epsilon == 0.2
    assert conclusion.tests


@pytest.mark.parametrize(
    ("first_tokens", "positions", "beforehand"),
    [(1, ["first"], True), (1, ["first", "later"], False), (2, ["first"], False), (None, ["later"], False)],
)
def test_what_causality_makes_constant_is_said(first_tokens, positions, beforehand):
    conclusion = judge.judge(results_of(conditions_of("neurons", {}), first_tokens, positions))
    assert conclusion.verdict == judge.CONSTANT
    assert conclusion.values.why == (judge.SAME if beforehand else None)


def test_text_calls_what_lowers_the_loss_a_gain():
    """In the table; the judged word is one of the rule."""
    said = {text._cost(word, loss) for word, loss in (("free", cell(-0.05, -0.01)), ("free", FREE), ("costs", COSTS))}
    assert said == {"gains", "free", "costs"}
    assert text._cost(None, None) == "-"
    results = results_of({"times_2_layer": condition_of("times 2", "layer", cell(-0.05, -0.01), factor=2.0)})
    assert judge.judge_single(results).verdict == "free"


def test_text_names_what_it_measures(tokenizer):
    lm, windows = spiked("llama", tokenizer)
    options = exp5_interventions.Options(layer_id=LAYER, factors=(2.0,), batch_size=1)
    results = measure.run(lm, windows, options)
    model, data = (
        {"name": "tiny", "type": "llama"},
        {"windows": len(windows.ids), "seqlen": 1, "dataset": "", "bos": False},
    )
    provenance = {"model": model, "data": data} | dict.fromkeys(("dtype", "device", "seed", "time", "command"), "")
    said = text.summarise(Result("exp5", provenance, {}, results, judge.judge(results), {}))
    assert f"these {results.sites.windows} windows; the documents above, of all {len(windows.ids)}\n" in said
    assert f"left at layer {results.place.plateau[1]}\n" in said
    assert "comes back" not in said.split("Conclusion: ")[0]
    assert "zero, median, times 2: vectors that the model may never meet" in said.replace("ordinary, ", "")


def test_the_whole_interval_decides_what_a_single_change_costs():
    for loss, word in ((FREE, "free"), (COSTS, "costs"), (EITHER, "cannot tell"), (cell(0.051, 0.06), "costs")):
        conclusion = judge.judge_single(results_of({"zero_layer": condition_of("zero", "layer", loss)}))
        assert conclusion.verdict == word


def test_a_factor_of_version_2_is_read_from_its_label():
    conditions = {"baseline": {}, "zero_layer": {"set_to": "zero"}, "times_0.5_layer": {"set_to": "times 0.5"}}
    assert upgraded("exp5", 2, {"conditions": conditions})["conditions"] == {
        **conditions,
        "times_0.5_layer": {"set_to": "times 0.5", "factor": 0.5},
    }


def test_neurons_of_older_results_are_of_the_layer_itself():
    older = {"layer": 3, "conditions": {}, "mlp": {"share": None, "neurons": [{"neuron": 7}]}}
    assert upgraded("exp5", 3, older)["mlp"]["neurons"] == [{"layer": 3, "neuron": 7}]
    newer = {"layer": 3, "conditions": {}, "mlp": {"neurons": [{"layer": 2, "neuron": 7}]}}
    assert upgraded("exp5", 3, newer) == newer
    assert upgraded("exp5", 3, {"mlp": None}) == {"mlp": None}
