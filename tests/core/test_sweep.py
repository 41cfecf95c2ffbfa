"""A sweep that starts at the changed layer gives what full passes over zeroed copies give; the place is right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from experiments.mlp_internal import measure
from lib.core import ablation, neurons, place, sweep
from lib.core.ablation import Condition
from lib.core.data import Windows
from lib.core.heads import HeadsSet
from lib.core.massive import plateau_of
from lib.core.stats import independent
from lib.model import hooks
from lib.planted import planting
from lib.run import unfinished
from lib.run.cli import Options, UserError
from tests import every_type, reference
from tests.cases import close, some, without
from tests.conftest import (
    MASSIVE_DIM,
    SECOND_DIM,
    SPIKE_TOKEN,
    exhaustive_unless,
    language_model,
    planted_model,
    token_ids,
)

DIM = 3


def windows_of(ids):
    return Windows(ids, len(ids), False, "test")


def fixed_place(positions, n_layers):
    nothing = np.zeros((len(positions), n_layers))
    at = np.array(positions)
    return place.Place(DIM, at, "", nothing, nothing, np.zeros_like(at), independent(len(at)))


def changes_of(case):
    return {
        "heads": (Condition("heads", "", heads=tuple(case.heads[1:])), {"heads": case.heads[1:]}),
        "attention": (Condition("attention", "", attention=(2,)), {"attentions": [2]}),
        "mlp": (Condition("mlp", "", mlps=(1,)), {"mlps": [1]}),
        "from the start": (Condition("from the start", "", mlps=(0, 2)), {"mlps": [0, 2]}),
    }


def test_where_the_length_of_a_window_matters_it_is_not_cut(tokenizer):
    """Another rotation for sequences of more than 8 tokens: at position 3 not what windows of 4 tokens have."""
    rope = {"rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    lengths = {"original_max_position_embeddings": 8, "max_position_embeddings": 64}
    lm = replace(every_type.loaded("phi3", rope_parameters=rope | lengths, **lengths), tokenizer=tokenizer)
    assert [lm.arch.prefix(4, length) for length in (6, 8, 9)] == [4, 4, 9]
    windows = windows_of(token_ids(2, 12) % 100)
    at = place.find(lm, windows, 1, DIM, 3)
    np.testing.assert_allclose(sweep.values_at_place(lm, windows, at, [], 1)[sweep.BASELINE], at.values, rtol=1e-4)
    seen = neurons.checkpoints_at_place(lm, windows, at, 2, 1)["block_output"][:, DIM]
    np.testing.assert_allclose(seen, at.values[:, 2], rtol=1e-4)
    lm.arch.n_short = None
    assert not np.allclose(sweep.values_at_place(lm, windows, at, [], 1)[sweep.BASELINE], at.values, rtol=1e-2)


@pytest.fixture(scope="module")
def zeroed(case):
    """{change: what a copy of the model does in which that part's weights are zero}."""
    return {name: without(case, **off) for name, (_condition, off) in changes_of(case).items()}


def heads_one_by_one(case):
    """Each head zero and, of layer 1, at other constants; two heads of different layers; something else beside them."""
    heads = np.ndindex(case.lm.arch.n_layers, case.lm.arch.n_heads)
    some = torch.linspace(-1, 1, case.lm.arch.head_dims[1])
    sets = [HeadsSet(f"off {head}", {head: 0.0}) for head in heads]
    sets += [HeadsSet(f"set {head}", {(1, head): some * (head + 1)}) for head in range(case.lm.arch.n_heads)]
    return [*sets, HeadsSet("two", {(1, 0): 0.0, (2, 1): some}), Condition("mlp", "", mlps=(1,))]


def parts_one_by_one(case):
    """Of layer 1 or from there on; what one has off runs for another."""
    heads = tuple((1, head) for head in range(case.lm.arch.n_heads))
    return [
        Condition("mlp", "", mlps=(1,)),
        Condition("mlps", "", mlps=(1, 2)),
        Condition("attention", "", attention=(1,)),
        Condition("all attention", "", attention=(1, 2)),
        Condition("heads", "", heads=heads[1:]),
        Condition("a head and an MLP", "", heads=heads[:1], mlps=(2,)),
        Condition("all", "", mlps=(1, 2), attention=(1, 2)),
    ]


def test_many_heads_in_a_pass_equal_one_full_pass_each(case):
    together_and_alone(case, [9, 0])


@some
def test_many_heads_at_the_first_position_equal_one_full_pass_each(case):
    together_and_alone(case, [0, 0])


def together_and_alone(case, positions):
    at = fixed_place(positions, case.lm.arch.n_layers)
    changes = heads_one_by_one(case)
    got = sweep.values_at_place(case.lm, windows_of(case.ids), at, changes, 1)
    assert next(iter(got)) == sweep.BASELINE
    assert set(got) == {sweep.BASELINE, *(change.name for change in changes)}
    differ = 0
    for change in changes:
        full = sweep.Passes(case.lm, at)
        with change.hooks(case.lm.arch):
            full.run(case.ids, slice(0, 2))
        close(torch.from_numpy(got[change.name]), torch.from_numpy(full.values), 5e-6)
        differ += len(np.unique(got[change.name][:, -1]))
    assert differ == 2 * len(changes)


@some
def test_heads_share_passes(case):
    """At position 0 a layer's heads take one pass, and its first blocks do not run again."""
    ran = {0: 0, 2: 0}

    def count(layer, _value):
        ran[layer] += 1

    at = fixed_place([0, 0], case.lm.arch.n_layers)
    changes = [change for change in heads_one_by_one(case) if isinstance(change, HeadsSet)]
    with hooks.watch_inputs(case.lm.arch, "down", count, [0, 2]):
        sweep.values_at_place(case.lm, windows_of(case.ids), at, changes, 2)
    assert ran == {0: 2, 2: 4}


@some
@pytest.mark.parametrize("prefix", [None, lambda _arch, _n, length: length])  # the second as with longrope
def test_windows_that_are_the_same_up_to_the_place_run_once(case, prefix, monkeypatch):
    """The last of four is the first one with another place, the third is the first one up to the place."""
    if prefix:
        monkeypatch.setattr(type(case.lm.arch), "prefix", prefix)
    first, other = case.ids[:2]
    ids = torch.stack([first, other, torch.cat([first[:4], other[4:]]), first])
    positions = [3, 3, 3, 2]
    at, rows = fixed_place(positions, case.lm.arch.n_layers), []
    changes = heads_one_by_one(case)[:2]
    with hooks.watch_inputs(case.lm.arch, "block", lambda _layer, value: rows.append(len(value)), [0]):
        together = sweep.values_at_place(case.lm, windows_of(ids), at, changes, 4)
    assert rows[0] == (4 if prefix else 3)
    for i, position in enumerate(positions):
        alone = fixed_place([position], case.lm.arch.n_layers)
        for name, values in sweep.values_at_place(case.lm, windows_of(ids[i : i + 1]), alone, changes, 4).items():
            close(torch.from_numpy(together[name][i]), torch.from_numpy(values[0]), 1e-5)
    assert len(np.unique(together[sweep.BASELINE][:, -1])) == 3


@some
@pytest.mark.parametrize("changes_of", [heads_one_by_one, parts_one_by_one])
def test_whole_windows_of_many_versions_in_a_pass_equal_one_pass_each(case, changes_of):
    """One window in passes that have room for five."""
    at, windows = fixed_place([9], case.lm.arch.n_layers), windows_of(case.ids[:1])
    changes = changes_of(case)
    ran = []
    with hooks.watch_inputs(case.lm.arch, "down", lambda layer, _value: ran.append(layer), [2]):
        together = sweep.measure(case.lm, windows, at, changes, 5)
    assert len(ran) < len(changes) / 2
    alone = sweep.measure(case.lm, windows, at, changes, 1)
    assert list(together) == list(alone) == [sweep.BASELINE, *(change.name for change in changes)]
    for name, mine in together.items():
        for ours, expected in zip(vars(mine).values(), vars(alone[name]).values(), strict=True):
            close(torch.from_numpy(ours), torch.from_numpy(expected), 1e-5)
    assert len({mine.losses[0] for mine in alone.values()}) == 1 + len(changes)


@pytest.mark.parametrize("batch_size", [exhaustive_unless(False, 1), 2])
def test_sweep_equals_zeroed_copies(case, zeroed, batch_size):
    at = fixed_place([0, 9], case.lm.arch.n_layers)
    changes = changes_of(case)
    conditions = [condition for condition, _off in changes.values()]
    measured = sweep.measure(case.lm, windows_of(case.ids), at, conditions, batch_size)
    assert list(measured) == [sweep.BASELINE, *changes]
    truncated = sweep.values_at_place(case.lm, windows_of(case.ids), at, conditions, batch_size)
    close(torch.from_numpy(truncated[sweep.BASELINE]), torch.from_numpy(measured[sweep.BASELINE].values))
    for name, expected in zeroed.items():
        values = torch.stack([h[torch.arange(2), torch.from_numpy(at.positions), DIM] for h in expected.hidden[1:]], 1)
        close(torch.from_numpy(measured[name].values).float(), values)
        close(torch.from_numpy(truncated[name]).float(), values)
        losses = cross_entropy(expected.logits[:, :-1].transpose(1, 2), case.ids[:, 1:], reduction="none").mean(1)
        close(torch.from_numpy(measured[name].losses).float(), losses)
        for layer, maps in enumerate(expected.maps):
            first = maps[:, :, :, 0]  # 0 where a window has slid past the first token
            means = first.sum(2) / (first > 0).sum(2)
            assert measured[name].attention[:, layer] == pytest.approx(means.numpy(), abs=2e-5)


@some
def test_starting_late_changes_no_bit(case):
    at = fixed_place([0, 9], case.lm.arch.n_layers)
    conditions = [condition for condition, _off in changes_of(case).values()]
    measured = sweep.measure(case.lm, windows_of(case.ids), at, conditions, 2)
    for condition in conditions:
        full = sweep.Passes(case.lm, at)
        with condition.hooks(case.lm.arch):
            full.run(case.ids, slice(0, 2))
        mine = measured[condition.name]
        assert np.array_equal(mine.values, full.values)
        assert np.array_equal(mine.losses, full.losses)
        assert np.array_equal(mine.attention, full.attention)


@some
def test_comparing_ablations_from_their_first_layer_changes_no_bit(case):
    conditions = [condition for condition, _off in changes_of(case).values()]
    late, whole, windows = {}, {}, windows_of(case.ids)
    with pytest.MonkeyPatch.context() as patch:
        for into, start in ((late, None), (whole, 0)):
            if start is not None:
                patch.setattr(Condition, "first_layer", start)
            got = ablation.compare(case.lm, windows, conditions, Options(batch_size=2), [DIM])
            into.update({name: (got.conditions[name], got.changes[name]) for name in got.changes})
    assert list(late) == [condition.name for condition in conditions]
    assert late == whole


@some
def test_blocks_before_the_change_do_not_run(case):
    """Counts what the first and last blocks' projections compute."""
    ran = {0: 0, 2: 0}
    at = fixed_place([0, 0], case.lm.arch.n_layers)

    def count(layer, _value):
        ran[layer] += 1

    change = Condition("mlp", "", mlps=(1,))
    with hooks.watch_inputs(case.lm.arch, "down", count, [0, 2]):
        sweep.measure(case.lm, windows_of(case.ids), at, [change], 2)
        assert ran == {0: 1, 2: 2}
        ablation.compare(case.lm, windows_of(case.ids), [change], Options(batch_size=2))
        assert ran == {0: 2, 2: 4}
        measure.Internals(case.lm, 1).measure(slice(0, 2), case.ids)
        assert ran == {0: 3, 2: 5 + len(measure.REPLACEMENTS)}


@some
def test_restored_after_an_error(case):
    kept = {}
    with hooks.keep_block_outputs(case.lm.arch, kept):
        hooks.forward(case.lm, case.ids)
    with pytest.raises(ValueError, match="on purpose"), hooks.resume_at(case.lm.arch, 2, kept):
        raise ValueError("on purpose")
    again = {}
    with hooks.keep_block_outputs(case.lm.arch, again):
        hooks.forward(case.lm, case.ids)
    first = [h[0] if isinstance(h, tuple) else h for h in (kept[2], again[2])]
    assert torch.equal(*first)
    assert not any("forward" in vars(block) for block in case.lm.arch.blocks)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_place_is_where_the_spike_was_planted(family, tokenizer):
    lm = language_model(planted_model(family), tokenizer)
    ids = token_ids(3, 16)
    where = [4, 0, 11]
    ids[torch.arange(3), torch.tensor(where)] = SPIKE_TOKEN
    found = place.find(lm, windows_of(ids), 2)
    hidden = reference.observe(lm.model, ids).hidden
    assert found.dim == MASSIVE_DIM
    assert found.positions.tolist() == where
    assert found.massive
    assert found.sign == -1
    expected = [[h[s, p, MASSIVE_DIM].item() for h in hidden] for s, p in enumerate(where)]
    size = [sum(abs(row[layer]) for row in expected) for layer in range(3)]
    high = [layer for layer in range(3) if size[layer] >= max(size) / 2]
    assert (found.peak, found.plateau) == (size.index(max(size)), (high[0], high[-1]))
    assert np.allclose(found.values, expected, rtol=1e-5, atol=1e-4)
    medians = [[h[s].abs().median().item() for h in hidden] for s in range(3)]
    assert np.allclose(found.medians, medians)
    assert found.described().positions == {4: 1, 0: 1, 11: 1}


def test_a_plateau_is_where_it_is_massive(tokenizer):
    """After the last block its value is largest, and the median so large that it is massive no more."""
    model = planted_model("gpt2")
    reference.parts(reference.blocks(model)[2]).down.bias.data += 40 * (torch.arange(32) > SECOND_DIM)
    ids = token_ids(3, 16)
    ids[:2, 0] = SPIKE_TOKEN
    lm = language_model(model, tokenizer)

    def write(_block, _args, output):
        (output[0] if isinstance(output, tuple) else output)[:, 5, MASSIVE_DIM] += 35_000

    with lm.arch.blocks[2].register_forward_hook(write):
        found = place.find(lm, windows_of(ids), 2)
    assert (abs(found.values[:2, 2]) > abs(found.values[:2, 1])).all()
    assert (found.dim, found.peak, found.plateau) == (MASSIVE_DIM, 1, (1, 1))
    assert found.positions.tolist() == [0, 0, 5]  # it is massive nowhere in the third


@pytest.mark.parametrize(
    ("size", "times", "layers"),
    [
        ([40, 50, 100, 60, 49], [0, 0, 0, 0, 0], [1, 2, 3]),  # nowhere massive: all layers count
        ([40, 50, 100, 60, 49], [8, 8, 8, 8, 8], [1, 2, 3]),
        ([40, 50, 100, 60, 49], [8, 8, 8, 3, 8], [1, 2]),  # in less than half of the windows
        ([40, 50, 100, 60, 49], [8, 8, 8, 4, 8], [1, 2, 3]),
        ([40, 50, 60, 70, 200], [8, 8, 8, 8, 0], [0, 1, 2, 3]),  # where it is largest it is not massive
    ],
)
def test_a_plateau_is_half_as_often_massive_and_half_as_large(size, times, layers):
    assert plateau_of(np.array(size), np.array(times)).tolist() == layers


def test_place_as_asked_for(tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    ids = token_ids(3, 16)
    found = place.find(lm, windows_of(ids), 2, dim=6, position=5)
    assert (found.dim, found.positions.tolist()) == (6, [5, 5, 5])
    for wrong, message in (({"dim": 32}, "0 to 31"), ({"position": 16}, "0 to 15"), ({"position": -1}, "0 to 15")):
        with pytest.raises(UserError, match=message):
            place.find(lm, windows_of(ids), 2, **wrong)


def test_place_without_anything_massive():
    built = planting.build("gpt2", "none", 1)
    found = place.find(built.lm, built.windows, 4)
    assert not found.massive
    assert found.dim in built.truth.outliers


@some
def test_an_interrupted_sweep_goes_on(case, monkeypatch):
    at = fixed_place([0, 9], case.lm.arch.n_layers)
    changes = [condition for condition, _off in changes_of(case).values()] + heads_one_by_one(case)[:5]
    windows = windows_of(case.ids)
    expected = sweep.measure(case.lm, windows, at, changes, 1)
    run, ran = sweep.Passes.run, []

    def interrupted(self, ids, rows, *rest):
        ran.append(rows.start)
        if len(ran) == len(changes) + 3:  # in the second window, after its baseline
            raise KeyboardInterrupt
        run(self, ids, rows, *rest)

    monkeypatch.setattr(sweep.Passes, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.measure(case.lm, windows, at, changes, 1)
    assert len(list(unfinished.folder().glob("*.npz"))) == 1
    ran.extend([None] * len(changes))
    sweep.measure(case.lm, windows, replace(at, dim=0), changes[:1], 2)  # something else
    ran.clear()
    resumed = sweep.measure(case.lm, windows, at, changes, 1)
    assert ran == [1] * (len(changes) + 1)
    for name, of in expected.items():
        for key in sweep.MEASURED:
            assert np.array_equal(getattr(resumed[name], key), getattr(of, key)), (name, key)
    assert not list(unfinished.folder().glob("*"))


@some
def test_a_cache_that_cannot_be_written_stops_no_sweep(case, monkeypatch, tmp_path):
    at = fixed_place([0, 9], case.lm.arch.n_layers)
    (tmp_path / "file").touch()
    monkeypatch.setattr(unfinished, "folder", lambda: tmp_path / "file" / "unfinished")
    assert set(sweep.measure(case.lm, windows_of(case.ids), at, [], 1)) == {sweep.BASELINE}
