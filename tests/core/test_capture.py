"""What the hooks see is what the model computes, and the statistics of it are right."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lib.core import massive, on_device
from lib.core.massive import LayerStatistics, medians
from lib.core.stats import independent
from lib.model import hooks
from lib.model.arch import Architecture
from lib.run.cli import UserError
from tests import pretend, reference
from tests.conftest import (
    HEADS,
    LAYERS,
    MASSIVE_DIM,
    SECOND_DIM,
    SPIKE_TOKEN,
    language_model,
    planted_model,
    tiny_model,
    token_ids,
)

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def capture(lm, ids, role="block", watch=hooks.watch_outputs):
    """{layer: what a watcher saw} of one forward pass."""
    seen = {}
    with watch(lm.arch, role, lambda layer, value: seen.update({layer: value.clone()})):
        hooks.forward(lm, ids)
    return seen


def test_blocks_are_the_models_hidden_states(lm):
    ids = token_ids(3, 20)
    seen, expected = capture(lm, ids), reference.observe(lm.model, ids)
    assert list(seen) == list(range(LAYERS))
    for layer in range(LAYERS):
        assert_close(seen[layer], expected.hidden[layer], **TOLERANCE)
    assert_close(reference.final_norm(lm.model)(seen[LAYERS - 1]), expected.normed, **TOLERANCE)
    # the trap: what the model calls its last hidden state is something else
    assert not torch.allclose(seen[LAYERS - 1], expected.normed, atol=0.01)


@pytest.mark.parametrize(
    ("family", "numpy_block"),
    [
        ("gpt2", lambda x, w: reference.gpt2_block(x, w, HEADS)),
        ("llama", lambda x, w: reference.llama_block(x, w, HEADS, 2, eps=1e-6)),
    ],
)
def test_block_in_numpy(family, numpy_block):
    lm = language_model(tiny_model(family))
    ids = token_ids(2, 20)
    blocks = capture(lm, ids)
    neurons = capture(lm, ids, "down", hooks.watch_inputs)
    for layer in (1, 2):
        weights = {name: w.numpy().astype(np.float64) for name, w in lm.arch.blocks[layer].state_dict().items()}
        for sequence in range(2):
            output, inner = numpy_block(blocks[layer - 1][sequence].numpy().astype(np.float64), weights)
            assert_close(blocks[layer][sequence].double(), torch.from_numpy(output), **TOLERANCE)
            assert_close(neurons[layer][sequence].double(), torch.from_numpy(inner), **TOLERANCE)


def test_contributions_add_up_to_the_mlp_output(lm):
    """Activation x weight, neuron by neuron, as read through the architecture's roles."""
    ids = token_ids(2, 9)
    neurons = capture(lm, ids, "down", hooks.watch_inputs)
    outputs = capture(lm, ids, "down")
    for layer in range(LAYERS):
        weight, bias = lm.arch.weight(layer, "down"), lm.arch.bias(layer, "down")
        assert (bias is not None) == (lm.model.config.model_type == "gpt2")
        for dim in range(0, lm.arch.hidden_size, 5):
            total = sum(neurons[layer][..., n] * weight[dim, n] for n in range(weight.shape[1]))
            assert_close(total + (0 if bias is None else bias[dim]), outputs[layer][..., dim], **TOLERANCE)


def test_writes_add_up_to_the_block_output(lm):
    """Block output = block input + what attention writes + what the MLP writes."""
    ids = token_ids(2, 9)
    inputs, outputs = capture(lm, ids, "block", hooks.watch_inputs), capture(lm, ids)
    attention, mlp = capture(lm, ids, "attention_write"), capture(lm, ids, "mlp_write")
    after_attention = capture(lm, ids, "mlp_norm", hooks.watch_inputs)
    for layer in range(LAYERS):
        assert_close(inputs[layer] + attention[layer], after_attention[layer], **TOLERANCE)
        assert_close(after_attention[layer] + mlp[layer], outputs[layer], **TOLERANCE)


def test_stop_after(lm):
    ids, reached, stopped = token_ids(2, 9), [], {}
    whole = capture(lm, ids)
    lm.arch.blocks[2].register_forward_pre_hook(lambda *_: reached.append(2))
    with (
        hooks.watch_outputs(lm.arch, "block", lambda layer, value: stopped.update({layer: value})),
        hooks.stop_after(lm.arch, 1),
    ):
        hooks.forward(lm, ids)
    assert not reached
    assert list(stopped) == [0, 1]
    assert all(torch.equal(stopped[layer], whole[layer]) for layer in stopped)
    assert list(capture(lm, ids)) == [0, 1, 2]
    assert reached


def test_watchers_are_removed_after_an_error(lm):
    def fail(layer, _value):
        if layer == 1:
            raise ValueError("on purpose")

    for watch in (hooks.watch_inputs, hooks.watch_outputs):
        with pytest.raises(ValueError, match="on purpose"), watch(lm.arch, "block", fail):
            hooks.forward(lm, token_ids(1, 5))
        hooks.forward(lm, token_ids(1, 5))


def test_a_sum_without_float64():
    """As the docstring bounds it; a float32 sum is off by more than fifty times that."""
    rows = torch.rand(256, 50, generator=torch.Generator().manual_seed(0)) - 0.1
    bound = 256**2 * 2**-44 * 8 * rows.abs().max()
    with pretend.device():
        parts = on_device.summed(rows.to(pretend.DEVICE)).cpu()
    exact = on_device.summed(rows).sum(0)
    assert exact.dtype == torch.float64
    assert (parts.double().sum(0) - exact).abs().max() <= bound
    assert (rows.sum(0) - exact).abs().max() > 50 * bound


def spiked_ids():
    """Three windows; the spike at another position in each, twice in one, nowhere in the last."""
    ids = token_ids(3, 17)
    ids[0, 0] = ids[0, 4] = ids[1, 6] = SPIKE_TOKEN
    return ids


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_layer_statistics(family, batch_size, tokenizer):
    lm, ids = language_model(planted_model(family), tokenizer), spiked_ids()
    statistics = LayerStatistics(lm.arch, tokenizer)
    listed = []
    for start in range(0, 3, batch_size):
        batch = ids[start : start + batch_size]
        statistics.run(batch, lambda batch=batch: hooks.forward(lm, batch))
        listed += [(start + s, *rest) for s, *rest in statistics.batch_massive]

    hidden = reference.observe(lm.model, ids).hidden
    naive = [[reference.layer_statistics(layer[s].tolist()) for layer in hidden] for s in range(3)]
    rows = statistics.rows.array
    assert rows == pytest.approx(np.array([[rows for rows, _places, _massive in of] for of in naive]), rel=1e-5)

    expected = {
        (s, layer, position, dim): found
        for s, of in enumerate(naive)
        for layer, (_rows, _places, massive) in enumerate(of)
        for (position, dim), found in massive.items()
    }
    found = {tuple(at): (value, ratio) for *at, value, ratio in listed}
    assert found.keys() == expected.keys()
    assert {(s, layer, dim) for s, layer, _position, dim in found} == {
        (s, layer, dim) for s in (0, 1) for layer in (1, 2) for dim in (MASSIVE_DIM, SECOND_DIM)
    }
    for at, pair in expected.items():
        assert found[at] == pytest.approx(pair, rel=1e-5)
        assert (found[at][0] < 0) == (at[3] == MASSIVE_DIM)
    assert statistics.massive_positions.array.tolist() == [2, 1, 0]

    token = tokenizer.decode([SPIKE_TOKEN])
    entries = statistics.massive()
    assert {(e.layer, e.position, e.dim) for e in entries} == {at[1:] for at in expected}
    assert all((e.token, e.sequences) == (token, 1) for e in entries)
    for entry in entries:
        (pair,) = (x for at, x in expected.items() if at[1:] == (entry.layer, entry.position, entry.dim))
        assert (entry.value, entry.ratio) == pytest.approx(pair, rel=1e-5)

    for layer, report in enumerate(statistics.layers(independent(len(statistics.rows.rows)))):
        means = np.mean([of[layer][0] for of in naive], axis=0)
        ratio = np.mean([of[layer][0][0] / of[layer][0][3] for of in naive])
        got = [getattr(report, name).mean for name in ("top1", "top2", "top3", "median", "ratio")]
        assert got == pytest.approx([*means, ratio], rel=1e-5)
        for k, at in enumerate(report.at if layer else ()):  # layer 0: two spikes are the same to the last bit
            places = Counter(of[layer][1][k] for of in naive)
            assert places[at.position, at.dim, at.sign] == at.sequences == max(places.values())


def test_massive_values_are_averaged_over_the_sequences_that_have_them(tokenizer):
    lm, ids = language_model(planted_model("gpt2"), tokenizer), token_ids(4, 12)
    ids[:3, 2] = SPIKE_TOKEN
    statistics = LayerStatistics(lm.arch, tokenizer)
    statistics.run(ids, lambda: hooks.forward(lm, ids))
    values = reference.observe(lm.model, ids).hidden[1][:3, 2, MASSIVE_DIM]
    entry = next(e for e in statistics.massive() if (e.layer, e.dim) == (1, MASSIVE_DIM))
    assert (entry.position, entry.sequences) == (2, 3)
    assert entry.value == pytest.approx(values.mean().item(), rel=1e-5)


def test_neither_limit_alone_makes_a_value_massive(tokenizer):
    """Over 100 but under 1,000 medians, and over 1,000 medians but under 100."""
    lm = language_model(tiny_model("gpt2"), tokenizer)
    statistics = LayerStatistics(lm.arch, tokenizer)
    hidden = torch.ones(3, 2, lm.arch.hidden_size)
    hidden[0, 1, 4] = -999
    hidden[1] *= 0.05
    hidden[1, 1, 4] = -99
    hidden[2, 1, 4] = -1001
    statistics.run(torch.zeros(3, 2, dtype=torch.long), lambda: statistics.update(0, hidden))
    assert [m[:5] for m in statistics.batch_massive] == [(2, 0, 1, 4, -1001.0)]


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_non_finite_values_are_an_error(bad, tokenizer):
    model = copy.deepcopy(tiny_model("llama"))
    lm = language_model(model, tokenizer)
    reference.matrix(reference.parts(reference.blocks(model)[1]).down)[3, 2] = bad
    statistics = LayerStatistics(lm.arch, tokenizer)
    ids = token_ids(2, 5)
    with pytest.raises(UserError, match="non-finite values at layer 1"):
        statistics.run(ids, lambda: hooks.forward(lm, ids))
    with pytest.raises(UserError, match="non-finite values at layer 1"):
        Architecture(model)


def test_a_median_of_zero_makes_no_error(tokenizer):
    lm, hidden = language_model(tiny_model("gpt2"), tokenizer), torch.zeros(1, 4, 32)
    hidden[0, 2, 5] = -200
    statistics = LayerStatistics(lm.arch, tokenizer)
    statistics.run(token_ids(1, 4), lambda: statistics.update(1, hidden))
    (found,) = statistics.massive()
    assert (found.layer, found.position, found.dim, found.value) == (1, 2, 5, -200)
    assert found.ratio is None


@pytest.mark.parametrize(("positions", "dims"), [(40, 1), (2, 30), (12, 9), (3, 5), (2, 8), (17, 1)])
def test_more_massive_values_than_there_is_room_for(positions, dims, tokenizer):
    """The batch is run again until there is room for all of them; the next one has it from the start."""
    lm, passes = language_model(tiny_model("gpt2"), tokenizer), []
    hidden = torch.full((2, 50, 32), 0.01)
    hidden[1, :positions, :dims] = torch.arange(1000.0, 1000 + positions * dims).view(positions, dims)
    statistics = LayerStatistics(lm.arch, tokenizer)
    for _batch in range(2):
        statistics.run(token_ids(2, 50), lambda: passes.append(statistics.update(1, hidden)))
        found = [(seen.position, seen.dim, seen.value) for seen in statistics.batch_massive]
        assert found == [(i, j, hidden[1, i, j].item()) for i in range(positions) for j in range(dims)]
    rooms = [massive.AT_MOST * massive.GROWTH**again for again in range(5)]
    assert len(passes) == 2 + sum(room <= positions * dims for room in rooms)
    assert statistics.massive_positions.array.tolist() == [0, positions] * 2


MAGNITUDES = {
    "random": torch.randn(3, 40_000, generator=torch.Generator().manual_seed(0)).abs(),
    "one value far off": torch.cat([torch.full((2, 1), 3e4), torch.rand(2, 999)], dim=1),
    "equal": torch.ones(1, 5000),
    "two values": torch.tensor([0.0, 1.0]).repeat(2, 500),
    "every 61st misleads": torch.where(torch.arange(6100) % 61 == 0, 9.0, torch.rand(6100))[None],
    "few": torch.rand(4, 7),
    "one": torch.rand(2, 1),
}


@pytest.mark.parametrize("magnitude", MAGNITUDES.values(), ids=MAGNITUDES)
def test_medians_are_those_of_torch(magnitude):
    assert torch.equal(medians(magnitude), magnitude.median(dim=1).values)


@pytest.mark.parametrize("seq", [1, 2, 3, 50])
def test_top_three_wherever_they_are(seq, tokenizer):
    """In one position, in three, in the first and last dims: as ranking all values at once would have it."""
    lm = language_model(tiny_model("gpt2"), tokenizer)
    hidden = torch.randn(3, seq, 32, generator=torch.Generator().manual_seed(seq))
    hidden[0, seq // 2, [0, 7, 31]] = torch.tensor([50.0, -70.0, 60.0])
    hidden[1, [0, seq // 2, seq - 1], [3, 4, 5]] = torch.tensor([8.0, 9.0, -10.0])
    statistics = LayerStatistics(lm.arch, tokenizer)
    statistics.run(token_ids(3, seq), lambda: statistics.update(0, hidden))
    top = hidden.abs().flatten(1).topk(3)
    assert statistics.rows.array[:, 0, :3].tolist() == top.values.tolist()
    for k in range(3):
        expected = Counter(
            (i // 32, i % 32, hidden.flatten(1)[s, i].item() > 0) for s, i in enumerate(top.indices[:, k].tolist())
        )
        assert statistics.where[0][k] == expected
