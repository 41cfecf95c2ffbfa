"""The census and its windows are the model's own outputs for sequences built here; planted triggers are told apart."""

import copy
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import exp6_trigger_census
from lib import census, hooks, planted, report, stats
from lib.cli import UserError
from lib.data import Windows
from tests import reference
from tests.conftest import MASSIVE_DIM, SPIKE_TOKEN, language_model, planted_model, tiny_model, token_ids
from tests.test_architectures import case, close, observe  # noqa: F401 (a fixture)
from tests.test_planted import block_outputs

LAYER, DIM = 1, 3
WEIGHTS = {  # the position embeddings' module and the row of position 0
    "gpt2": ("transformer.wpe", 0),
    "gpt_neo": ("transformer.wpe", 0),
    "opt": ("model.decoder.embed_positions", 2),
}


def probe_of(lm, layer=LAYER, dim=DIM, sign=1, median=0.1):
    return census.Probe(lm, layer, dim, sign, median)


def real(case, ids, model=None):  # noqa: F811
    """(n, seq) values of DIM after LAYER, by the model itself."""
    return observe(case.tested, case.lm.model if model is None else model, ids).hidden[LAYER + 1][:, :, DIM]


def test_one_token_is_the_first_of_a_longer_window(case):  # noqa: F811
    for layer in range(case.lm.arch.n_layers):
        got = probe_of(case.lm, layer).values(case.ids[:, :1], 1, "")
        close(torch.from_numpy(got).float(), case.real.hidden[layer + 1][:, :1, DIM])


def test_every_token_of_the_tokenizer_is_counted(case, monkeypatch):  # noqa: F811
    monkeypatch.setattr(census, "TOKENS_AT_ONCE", 7)
    vocabulary = {str(i): i for i in [*range(50), 60, 200]}  # with a gap, and with one that has no embedding
    lm = dataclasses.replace(case.lm, tokenizer=SimpleNamespace(get_vocab=vocabulary.copy))
    values = census.every_token(probe_of(lm))
    assert len(values) == 64
    assert np.flatnonzero(~np.isnan(values)).tolist() == [*range(50), 60]
    expected = real(case, torch.tensor([[0] * 2, [49] * 2, [60] * 2]))[:, 0]
    close(torch.from_numpy(values[[0, 49, 60]]).float(), expected)


def test_blocks_after_the_layer_do_not_run(case):  # noqa: F811
    ran = []
    with hooks.watch_inputs(case.lm.arch, "down", lambda layer, _value: ran.append(layer)):
        probe_of(case.lm).values(case.ids, 2, "")
    assert ran == [0, 1]


def test_swapped_embeddings_are_swapped_weights(case):  # noqa: F811
    rows = census.swapped(probe_of(case.lm), case.ids, 2, 0)
    if case.family not in WEIGHTS:
        assert rows is None
        return
    path, first = WEIGHTS[case.family]
    assert [row["position"] for row in rows] == [1, 5, 8]
    for row in rows:
        model = copy.deepcopy(case.lm.model)
        weight, there = model.get_submodule(path).weight.data, first + row["position"]
        weight[[first, there]] = weight[[there, first]]
        expected = real(case, case.ids, model).mean(0)
        assert row["there"]["value"]["mean"] == pytest.approx(expected[row["position"]].item(), abs=1e-4)
        assert row["at_0"]["value"]["mean"] == pytest.approx(expected[0].item(), abs=1e-4)
    with pytest.raises(ValueError, match="on purpose"), hooks.position_embeddings_swapped(case.lm.arch, 0, 1):
        raise ValueError("on purpose")
    assert torch.equal(case.lm.model(case.ids).logits, case.real.logits)


def test_repeated_token(case):  # noqa: F811
    """Without position embeddings, each position of a window of one token sees what the first sees."""
    got = census.repeated(probe_of(case.lm), case.ids, np.array([2, 4]), 2, 0)
    tokens = sorted({case.ids[0, 2].item(), case.ids[1, 4].item()})
    expected = real(case, torch.tensor([[token] * 16 for token in tokens])).mean(0)
    means = torch.tensor([row["value"]["mean"] for row in got["positions"]])
    assert [row["position"] for row in got["positions"]] == [0, 1, 2, 4, 8]
    close(means, expected[[0, 1, 2, 4, 8]])
    assert (means.max() - means.min() < 1e-4) == (case.family not in WEIGHTS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_moved_token(family, tokenizer):
    lm = language_model(planted_model(family), tokenizer)
    ids = token_ids(3, 12)
    where = [0, 4, 1]
    ids[torch.arange(3), torch.tensor(where)] = SPIKE_TOKEN
    ids[2, 8] = SPIKE_TOKEN  # the same token stands there: nothing moves
    rows = census.moved(probe_of(lm, dim=MASSIVE_DIM, sign=-1), ids, np.array(where), 2, 0)
    assert [(row["position"], row["new"]["value"]["n"]) for row in rows] == [(1, 2), (2, 3), (4, 2), (8, 2)]
    for row in rows:
        new, old = [], []
        for window, at in zip(ids.tolist(), where, strict=True):
            to = row["position"]
            if window[at] != window[to]:
                window[at], window[to] = window[to], window[at]
                hidden = reference.observe(lm.model, torch.tensor([window])).hidden[LAYER][0]
                new.append(hidden[to, MASSIVE_DIM].item())
                old.append(hidden[at, MASSIVE_DIM].item())
        assert row["new"]["value"]["mean"] == pytest.approx(np.mean(new), rel=1e-5)
        assert row["old"]["value"]["mean"] == pytest.approx(np.mean(old), abs=1e-3)
        assert row["new"]["spikes"] == 1
    assert all(row["old"]["spikes"] == 0 for row in rows)


def test_where_the_moved_token_was(tokenizer):
    lm = language_model(tiny_model("gpt2"), tokenizer)
    ids = token_ids(1, 12)
    for row in census.moved(probe_of(lm), ids, np.array([3]), 1, 0):
        order = list(range(12))
        order[3], order[row["position"]] = row["position"], 3
        hidden = reference.observe(lm.model, ids[:, order]).hidden[LAYER][0]
        assert row["old"]["value"]["mean"] == pytest.approx(hidden[3, DIM].item(), rel=1e-4)


def test_a_spike_at_both_positions_does_not_follow(tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    ids = token_ids(2, 12)
    ids[:, 1] = SPIKE_TOKEN
    ids[0, 0] = SPIKE_TOKEN
    rows = census.swapped(probe_of(lm, dim=MASSIVE_DIM, sign=-1), ids, 2, 0)
    assert [(row["position"], row["there"]["spikes"], row["follows"]) for row in rows] == [
        (1, 1, 0.5),
        (5, 0, 0),
        (6, 0, 0),
    ]


@pytest.mark.parametrize("has_bos", [False, True])
def test_bos_before_the_text(has_bos, tokenizer):
    lm = language_model(tiny_model("gpt2"), tokenizer)
    ids = token_ids(3, 12)
    text = ids.tolist()
    if has_bos:
        ids[:, 0] = tokenizer.bos_token_id
        text = ids[:, 1:].tolist()
    got = census.behind_bos(probe_of(lm), ids, has_bos, 2, 0)
    without = reference.observe(lm.model, torch.tensor(text)).hidden[LAYER][:, :, DIM].mean(0)
    behind = torch.tensor([[tokenizer.bos_token_id, *window[:-1]] for window in text])
    both = reference.observe(lm.model, behind).hidden[LAYER][:, :, DIM].mean(0)
    assert got["off_first"]["value"]["mean"] == pytest.approx(without[0].item(), rel=1e-4)
    assert got["on_bos"]["value"]["mean"] == pytest.approx(both[0].item(), rel=1e-4)
    assert got["on_former_first"]["value"]["mean"] == pytest.approx(both[1].item(), rel=1e-4)


def test_distribution():
    lm = SimpleNamespace(tokenizer=planted.tokenizer())
    values = np.array([-2345.67, np.nan, 99.5, -12345.6, -101.0, 3000.0, -0.000123456])
    got = census.distribution(probe_of(lm, sign=-1, median=0.1), values)
    assert (got["tokens"], got["left_out"], got["n_spiking"], got["n_failing"], got["below_1000"]) == (6, 1, 3, 3, 3)
    assert [(t["id"], t["token"]) for t in got["failing"]] == [(6, "t6"), (2, "t2"), (5, "t5")]
    assert [(t["id"], t["value"]) for t in got["spiking"]] == [(3, -12345.6), (0, -2345.67), (4, -101.0)]
    assert got["values"] == [-2345.7, None, 99.5, -12346, -101.0, 3000.0, -0.00012346]
    assert got["quantiles"][0] == -12345.6
    assert got["quantiles"][0.5] == pytest.approx((-101 - 0.000123456) / 2)
    assert got["mean"] == pytest.approx((-2345.67 + 99.5 - 12345.6 - 101 + 3000 - 0.000123456) / 6)


@pytest.mark.parametrize(
    ("found", "spiking", "shares", "own", "expected"),
    [
        (True, 90, [0.1, 0.1], 0, "position"),
        (True, 89, [0.1, 0.1], 1, "neither alone"),
        (True, 10, [0.9, 0.9], 0, "token"),
        (True, 10, [1.0, 0.7], 0, "neither alone"),
        (True, 1, [0, 0], 0.9, "position and token"),
        (True, 1, [0, 0], 0.8, "neither alone"),
        (True, 95, [1.0, 1.0], 1, "everywhere"),
        (True, 95, [], 1, "neither alone"),
        (False, 95, [0, 0], 1, "none found"),
    ],
)
def test_conclusion(found, spiking, shares, own, expected):
    of_vocabulary = {"n_spiking": spiking, "tokens": 100, "spiking": [{"token": "x"}]}
    moved = [{"new": {"spikes": share, "value": {"n": 4}}} for share in shares]
    repeated = {"later_share": {"mean": 0.5}}
    got = census.conclude(found, own, of_vocabulary, moved, repeated, [{"follows": 1.0}, {"follows": 0.5}])
    assert got["verdict"] == expected
    assert got["values"]["follows_embedding"] == (0.75 if expected == "position" else None)
    assert got["values"]["tokens"] == (["x"] if spiking <= 20 else None)


def test_moved_share_counts_windows_at_each_position():
    of_vocabulary = {"n_spiking": 0, "tokens": 100, "spiking": []}
    moved = [{"new": {"spikes": share, "value": {"n": n}}} for share, n in ((1.0, 1), (0.0, 3))]
    got = census.conclude(True, 0, of_vocabulary, moved, {"later_share": {"mean": 0}}, None)
    assert got["values"]["moved_share"] == 0.25


# What the planted models do, by kind: (GPT-2, whose trigger is an embedding of position 0), (Llama, where it is BOS).
# A head that writes does not look at a trigger from anywhere but the first position, which sees nothing else.
TRUTH = dict.fromkeys(planted.KINDS, (("position", 1.0), ("token", None))) | {
    "head": (("position", 0.0), ("position and token", None)),
    "content": (("token", None), ("token", None)),
    "none": (("none found", None), ("none found", None)),
}
SEEDS = {"mlp": range(20), "content": range(20)}


def diagnose(architecture, kind, seed):
    built = planted.build(architecture, kind, seed)
    return built, exp6_trigger_census.run(built.lm, built.windows, exp6_trigger_census.Options(batch_size=8))


@pytest.mark.parametrize("kind", planted.KINDS)
@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_planted_triggers_are_told_apart(architecture, kind, monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 10)
    for seed in SEEDS.get(kind, range(2)):
        built, result = diagnose(architecture, kind, seed)
        values = result.conclusion["values"]
        expected = TRUTH[kind][planted.ARCHITECTURES.index(architecture)]
        assert (result.conclusion["verdict"], values["follows_embedding"]) == expected
        if expected[0] == "position":
            assert values["repeated_share"] == 0
        if kind != "none":
            assert result.layer == built.truth.layer
            assert result.place["dim"] in built.truth.values
        if expected[0] in ("token", "position and token"):
            trigger = built.truth.trigger.removeprefix("token ").removeprefix("position 0, always ")
            assert values["tokens"] == [trigger]


@pytest.mark.parametrize("kind", ["mlp", "head", "content"])
@pytest.mark.parametrize("architecture", planted.ARCHITECTURES)
def test_shares_are_those_of_plain_forward_passes(architecture, kind):
    built, result = diagnose(architecture, kind, 7)
    model, ids, layer, dim = built.lm.model, built.windows.ids, result.layer, result.place["dim"]
    least = 0.5 * abs(built.truth.values[dim])

    def spikes(windows):
        return (block_outputs(model, windows)[layer][:, :, dim].abs() > least).tolist()

    alone = spikes(torch.arange(planted.VOCABULARY)[:, None])
    assert result.census["n_spiking"] == sum(row[0] for row in alone)
    at = [row.index(max(row)) for row in block_outputs(model, ids)[layer][:, :, dim].abs().tolist()]
    hits = []
    for to in (1, 2, 4, 8, 16):
        for window, place in zip(ids.tolist(), at, strict=True):
            if window[to] != window[place]:
                window[to], window[place] = window[place], window[to]
                hits.append(spikes(torch.tensor([window]))[0][to])
    assert result.conclusion["values"]["moved_share"] == pytest.approx(sum(hits) / len(hits))


def test_layer_and_place_as_asked_for(tokenizer):
    lm = language_model(tiny_model("gpt2"), tokenizer)
    windows = Windows(token_ids(2, 9), 2, False, "test")
    options = exp6_trigger_census.Options(layer_id=2, dim=5, position=4)
    result = exp6_trigger_census.run(lm, windows, options)
    assert (result.layer, result.place["dim"], result.place["positions"]) == (2, 5, {4: 2})
    assert result.conclusion["verdict"] == "none found"
    assert result.census["left_out"] == 320 - len(tokenizer)
    hidden = reference.observe(lm.model, windows.ids).hidden[2]
    assert result.ordinary["value"]["mean"] == pytest.approx(hidden[:, 4, 5].mean().item(), rel=1e-4)
    assert result.spike["median"] == pytest.approx(np.mean([h.abs().median() for h in hidden]), rel=1e-5)
    with pytest.raises(UserError, match="layers 0 to 2"):
        exp6_trigger_census.run(lm, windows, exp6_trigger_census.Options(layer_id=3))


def test_windows_without_the_spike_take_no_part(tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    ids = token_ids(3, 12)
    ids[[0, 2], 4] = SPIKE_TOKEN
    result = exp6_trigger_census.run(lm, Windows(ids, 3, False, "test"), exp6_trigger_census.Options())
    assert result.windows == 2
    assert result.ordinary["spikes"] == pytest.approx(2 / 3)
    assert result.conclusion["verdict"] == "token"
    assert [t["id"] for t in result.census["spiking"]] == [SPIKE_TOKEN]


def test_without_a_bos_token(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.bos_token = None
    lm = language_model(tiny_model("llama"), plain)
    result = exp6_trigger_census.run(lm, Windows(token_ids(1, 5), 1, False, "test"), exp6_trigger_census.Options())
    assert result.bos is None
    assert result.swapped is None
    provenance = {"model": {"name": "", "type": ""}, "data": Windows(token_ids(1, 5), 1, False, "test").provenance}
    rest = dict.fromkeys(("dtype", "device", "seed", "time", "command"), "")
    payload = report.payload("exp6", {"model_name": "tiny"}, provenance | rest, result, {})
    text = exp6_trigger_census.summarise(json.loads(json.dumps(payload)))
    assert "no BOS token" in text
    assert "nothing to swap" in text
    for draw in exp6_trigger_census.EXPERIMENT.figures.values():
        assert draw(json.loads(json.dumps(payload)))


@pytest.mark.real
def test_seven_tokens_of_smollm2_that_fail(smollm2):
    """Independent figures: 23,538 +- 1,639 over all 49,152 first tokens, of which seven stay below 1,000."""
    failing = [21653, 2790, 4424, 27480, 21982, 14379, 46165]
    others = [i for i in range(5, 49152, 250) if i not in failing]
    values = probe_of(smollm2, 11, 507).values(torch.tensor([*failing, *others])[:, None], 256, "")[:, 0]
    assert (np.abs(values[:7]) < 1000).all()
    assert (values[7:] > 1000).all()
    assert values[7:].mean() == pytest.approx(23_538, abs=3 * 1_639 / len(others) ** 0.5)
