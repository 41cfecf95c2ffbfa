"""The census and its windows are the model's own outputs for sequences built here; planted triggers are told apart."""

import copy
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import scipy
import torch

import exp6_trigger_census
from experiments.census import figures, measure, text
from experiments.census.judge import CAUSES, MANIPULATIONS, judge
from experiments.census.results import Census, Results, Share, Shares, TokenValue
from lib import catalogue
from lib.core.data import Windows
from lib.core.definitions import NEARLY_ALL
from lib.model import edits, hooks
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.planted import blank, kinds, planting
from lib.report import result_files, tables
from lib.run import checkout
from lib.run.cli import UserError
from tests import reference
from tests.cases import close, observe, some
from tests.conftest import MASSIVE_DIM, SPIKE_TOKEN, language_model, planted_model, tiny_model, token_ids
from tests.planted.test_planted import block_outputs

LAYER, DIM = 1, 3
WEIGHTS = {  # the position embeddings' module and the row of position 0
    "gpt2": ("transformer.wpe", 0),
    "gpt_neo": ("transformer.wpe", 0),
    "opt": ("model.decoder.embed_positions", 2),
}


def probe_of(lm, layer=LAYER, dim=DIM, sign=1, median=0.1):
    return measure.Probe(lm, layer, dim, sign, median)


def real(case, ids, model=None):
    """(n, seq) values of DIM after LAYER, by the model itself."""
    return observe(case.tested, case.lm.model if model is None else model, ids).hidden[LAYER + 1][:, :, DIM]


def test_one_token_is_the_first_of_a_longer_window(case):
    for layer in range(case.lm.arch.n_layers):
        got = probe_of(case.lm, layer).values(case.ids[:, :1], 1, "")
        close(torch.from_numpy(got).float(), case.real.hidden[layer + 1][:, :1, DIM])


@some
def test_every_token_of_the_tokenizer_is_counted(case, monkeypatch):
    monkeypatch.setattr(measure, "TOKENS_AT_ONCE", 7)
    vocabulary = {str(i): i for i in [*range(50), 60, 200]}  # with a gap, and with one that has no embedding
    lm = dataclasses.replace(case.lm, tokenizer=SimpleNamespace(get_vocab=vocabulary.copy))
    values = measure.every_token(probe_of(lm))
    assert len(values) == 64
    assert np.flatnonzero(~np.isnan(values)).tolist() == [*range(50), 60]
    expected = real(case, torch.tensor([[0] * 2, [49] * 2, [60] * 2]))[:, 0]
    close(torch.from_numpy(values[[0, 49, 60]]).float(), expected)


def test_blocks_after_the_layer_do_not_run(case):
    ran = []
    with hooks.watch_inputs(case.lm.arch, "down", lambda layer, _value: ran.append(layer)):
        probe_of(case.lm).values(case.ids, 2, "")
    assert ran == [0, 1]


class Recorder(measure.Probe):
    """A probe that keeps what it was asked."""

    def values(self, ids, batch_size, label):
        got = super().values(ids, batch_size, label)
        object.__setattr__(self, "seen", {**getattr(self, "seen", {}), label: (ids, got)})
        return got


def test_swapped_embeddings_are_swapped_weights(case, monkeypatch):
    monkeypatch.setattr(measure, "TRIED", 8)
    probe = Recorder(case.lm, LAYER, DIM, 1, 0.1)
    rows, shares = measure.elsewhere(probe, case.ids, 0, np.array([3, 60]), True, 3, 0)
    assert [row.position for row in rows] == [1, 2, 4, 8]
    if case.family not in WEIGHTS:
        assert rows[0].there is rows[0].at_0 is None
        assert shares.there is shares.at_0 is shares.follows is None
        return
    path, first = WEIGHTS[case.family]
    for row in rows:
        p = row.position
        model = copy.deepcopy(case.lm.model)
        weight, there = model.get_submodule(path).weight.data, first + p
        weight[[first, there]] = weight[[there, first]]
        behind_text, got = probe.seen[f"embedding of 0 at {p}"]
        close(torch.from_numpy(got).float(), real(case, behind_text, model))
        alone = real(case, probe.seen[f"embedding of {p} at 0"][0][:, :1].repeat(1, 2), model)[:, 0]
        assert row.there.value.mean == pytest.approx(got[:, p].mean(), rel=1e-9)
        assert row.at_0.value.mean == pytest.approx(alone.mean().item(), abs=1e-4)
    with pytest.raises(ValueError, match="on purpose"), edits.position_embeddings_swapped(case.lm.arch, 0, 1):
        raise ValueError("on purpose")
    assert torch.equal(case.lm.model(case.ids).logits, case.real.logits)


@some
def test_repeated_token(case, monkeypatch):
    """Without position embeddings, each position of a window of one token sees what the first sees."""
    monkeypatch.setattr(measure, "TRIED", 8)
    probe = Recorder(case.lm, LAYER, DIM, 1, 0.1)
    rows, _shares = measure.elsewhere(probe, case.ids, 0, np.array([3, 60]), True, 2, 0)
    assert [(row.position, row.tokens) for row in rows] == [(1, 2), (2, 2), (4, 2), (8, 2)]
    for row in rows:
        p = row.position
        ids, got = probe.seen[f"repeated to {p}"]
        assert ids[:, 0].sort().values.tolist() == [3, 60]
        assert (ids == ids[:, :1]).all()
        close(torch.from_numpy(got).float(), real(case, ids))
        assert row.repeated.value.mean == pytest.approx(got[:, p].mean(), rel=1e-9)
        assert (abs(got[:, p] - got[:, 0]).max() < 1e-4) == (case.family not in WEIGHTS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("n_bos", [0, 1])
def test_tokens_behind_text(family, n_bos, tokenizer):
    """Each pair is the token behind a piece of a window; what spikes is counted again from the model itself."""
    lm, ids = language_model(planted_model(family), tokenizer), token_ids(3, 12)
    ids[:, :n_bos] = 0
    tokens = np.array([SPIKE_TOKEN, 8, 11])
    probe = Recorder(lm, LAYER, MASSIVE_DIM, -1, 0.1)
    rows, shares = measure.elsewhere(probe, ids, n_bos, tokens, False, 2, 0)
    pieces, hits, n = set(), 0, 0
    for row in rows:
        p = row.position
        behind_text, got = probe.seen[f"moved to {p}"]
        text = {
            window[at : at + p] for window in map(tuple, ids[:, n_bos:].tolist()) for at in range(12 - n_bos - p + 1)
        }
        assert {tuple(window[:-1]) for window in behind_text.tolist()} <= text
        pieces |= {tuple(window[:-1]) for window in behind_text.tolist()}
        assert torch.equal(behind_text[:, -1], probe.seen[f"repeated to {p}"][0][:, 0])
        assert (probe.seen[f"repeated to {p}"][0] == behind_text[:, -1:]).all()
        counts = [(behind_text[:, -1] == token).sum().item() for token in tokens]
        assert max(counts) - min(counts) <= 1 + measure.TRIED // 12  # each token at each position
        expected = reference.observe(lm.model, behind_text).hidden[LAYER][:, -1, MASSIVE_DIM]
        close(torch.from_numpy(got[:, p]).float(), expected)
        assert row.moved.spikes == pytest.approx((expected < -100).double().mean().item())
        hits, n = hits + (expected < -100).sum().item(), n + len(expected)
    assert [row.position for row in rows] == [1, 2, 4, 8]
    assert len(pieces) > 30
    assert n == measure.TRIED
    assert shares.moved.mean == pytest.approx(hits / n)
    assert shares.moved.ci95 == pytest.approx(scipy.stats.binomtest(hits, n).proportion_ci(method="exact"))


def test_every_token_at_every_position(tokenizer):
    """If there are few, each is tried at each position; of the token alone a share is then exact."""
    lm, ids = language_model(planted_model("llama"), tokenizer), token_ids(3, 18)
    for n in range(1, 11):
        probe = Recorder(lm, LAYER, MASSIVE_DIM, -1, 0.1)
        rows, shares = measure.elsewhere(probe, ids, 0, np.arange(SPIKE_TOKEN, SPIKE_TOKEN + n), True, 64, 0)
        assert len(rows) == 5
        for row in rows:
            tried = probe.seen[f"repeated to {row.position}"][0][:, 0].tolist()
            assert set(tried) == set(range(SPIKE_TOKEN, SPIKE_TOKEN + n))
        assert shares.repeated == Share.exact(shares.repeated.mean)
        assert shares.moved.ci95[0] < shares.moved.ci95[1]


def test_which_tokens_are_tried():
    probe, values = probe_of(None, sign=-1), np.array([np.nan, -500.0, 300.0, -99.0, -101.0])
    tokens, tried = measure.to_try(probe, values, np.array([2, 2, 3]), 0)
    assert tokens.tolist() == [1, 4]
    assert (tried.of, tried.possible, tried.enumerated) == ("tokens that spike as the first one", 2, True)
    tokens, tried = measure.to_try(probe, abs(values), np.array([2, 2, 3]), 0)
    assert tokens.tolist() == [2, 3]
    assert tried.of == "tokens at the place"
    many = np.full(1000, -500.0)
    tokens, tried = measure.to_try(probe, many, np.array([2]), 0)
    assert len(set(tokens.tolist())) == measure.TRIED == tried.tokens < tried.possible
    assert not tried.enumerated
    assert tokens.tolist() != measure.to_try(probe, many, np.array([2]), 1)[0].tolist()


@pytest.mark.parametrize("enumerated", [False, True])
def test_behind_bos(enumerated, tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    bos = tokenizer.bos_token_id
    values, tokens = measure.every_token(probe_of(lm, dim=MASSIVE_DIM, sign=-1)), np.array([bos, SPIKE_TOKEN, 20, 30])
    got, share = measure.behind_bos(probe_of(lm, dim=MASSIVE_DIM, sign=-1), values, tokens, enumerated, 2)
    expected = reference.observe(lm.model, torch.tensor([[bos, t] for t in tokens.tolist() if t != bos])).hidden[LAYER]
    assert (got.id, got.tokens) == (bos, 3)
    assert got.behind.value.mean == pytest.approx(expected[:, 1, MASSIVE_DIM].mean().item(), rel=1e-4)
    assert got.value == pytest.approx(expected[0, 0, MASSIVE_DIM].item(), abs=1e-3)
    assert share.mean == pytest.approx(1 / 3)
    assert (share == Share.exact(share.mean)) == enumerated
    assert measure.behind_bos(probe_of(lm), values, np.array([bos]), True, 2)[1] is None


def test_distribution():
    lm = SimpleNamespace(tokenizer=blank.tokenizer())
    values = np.array([-2345.67, np.nan, 99.5, -12345.6, -101.0, 3000.0, -0.000123456])
    got = measure.distribution(probe_of(lm, sign=-1, median=0.1), values)
    assert (got.tokens, got.left_out, got.n_spiking, got.n_failing, got.below_1000) == (6, 1, 3, 3, 3)
    assert [(t.id, t.token) for t in got.failing] == [(6, "t6"), (2, "t2"), (5, "t5")]
    assert [(t.id, t.value) for t in got.spiking] == [(3, -12345.6), (0, -2345.67), (4, -101.0)]
    assert got.values == [-2345.7, None, 99.5, -12346, -101.0, 3000.0, -0.00012346]
    assert got.quantiles[0] == -12345.6
    assert got.quantiles[0.5] == pytest.approx((-101 - 0.000123456) / 2)
    assert got.mean == pytest.approx((-2345.67 + 99.5 - 12345.6 - 101 + 3000 - 0.000123456) / 6)


ALL, NONE, FEW, SOME, OPEN = (
    Share(mean, (low, high), 8)
    for mean, low, high in ((1, 0.95, 1), (0, 0, 0.05), (0.13, 0.09, 0.17), (0.5, 0.4, 0.6), (1, 0.8, 1))
)
MEASURED = ("moved", "repeated", "behind_bos", "there", "at_0")
EVERYWHERE, POSITION, ALONE, BOTH = (
    dict(zip(MEASURED, outcome, strict=True))
    for outcome in ((ALL,) * 5, (NONE, NONE, NONE, ALL, NONE), (NONE, ALL, NONE, NONE, ALL), (NONE,) * 5)
)
UNSWAPPED = {"there": None, "at_0": None}


def measured(n_spiking, shares, spiking=8, **others):
    """Results, as far as a judge looks."""
    named = [TokenValue(7, "x", 1.0)] * min(n_spiking, 200)
    return Results(
        place=None,
        layer=LAYER,
        spike=None,
        ordinary=None,
        spiking=spiking,
        census=Census(1000, 0, 0.0, 0.0, {}, n_spiking, 1000 - n_spiking, 0, [], named, []),
        tried=None,
        elsewhere=[],
        bos=None,
        shares=Shares(**({"own": ALL, "first": ALL} | shares | others)),
    )


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (measured(901, EVERYWHERE), "everywhere"),
        (measured(1, EVERYWHERE), "token"),
        (measured(500, EVERYWHERE, first=NONE), "token"),
        (measured(901, POSITION), "position"),
        (measured(901, ALONE), "no other context"),
        (measured(1, POSITION), "position and token"),
        (measured(899, ALONE), "no other context, certain tokens"),
        (measured(1000, BOTH), "position and no other context"),
        (measured(1, BOTH), "position and no other context, certain tokens"),
        (measured(1000, ALONE | UNSWAPPED), "no other context"),
        (measured(1000, BOTH | UNSWAPPED), "position"),  # the simpler of two that nothing measured tells apart
        (measured(1000, ALONE | UNSWAPPED | {"behind_bos": None}), "no other context"),
        (measured(1000, ALONE, moved=SOME), "none of these"),
        (measured(1000, ALONE, behind_bos=ALL), "none of these"),
        (measured(1000, ALONE, behind_bos=FEW), "no other context"),  # BOS is a context, of a sort
        (measured(1000, ALONE, behind_bos=SOME), "cannot tell"),
        (measured(1000, POSITION, behind_bos=SOME), "none of these"),
        (measured(1000, POSITION, first=NONE), "none of these"),  # spikes of the windows are elsewhere
        (measured(1, EVERYWHERE, own=NONE), "none of these"),
        (measured(0, EVERYWHERE, own=NONE), "none of these"),
        (measured(1000, ALONE, repeated=OPEN), "cannot tell"),
        (measured(900, POSITION), "cannot tell"),  # exactly at the threshold
        (measured(1000, POSITION, first=SOME), "cannot tell"),
        (measured(1000, POSITION, own=None, first=None, spiking=0), "none found"),
    ],
)
def test_verdict(results, expected):
    got = judge(results)
    assert got.verdict == expected
    values, n_spiking = got.values, results.census.n_spiking
    assert (values.why is not None) == (expected == "cannot tell")
    assert values.tokens == (["x"] * n_spiking if n_spiking <= 20 else None)
    assert values.first_token_share == n_spiking / 1000
    if expected in CAUSES:
        assert values.causes[expected].fits
        assert all(prediction.answer for prediction in values.causes[expected].predictions.values())


def test_what_is_certain_beforehand_has_no_interval():
    """A token behind itself where positions act in attention only: the same as the first one."""
    certain = judge(measured(1000, ALONE | UNSWAPPED)).values.repeated
    assert certain == Share.exact(1.0)
    assert judge(measured(0, BOTH | UNSWAPPED)).values.repeated == Share.exact(0.0)
    assert judge(measured(1000, ALONE)).values.repeated == ALL  # learned positions: measured
    assert judge(measured(1000, BOTH | UNSWAPPED)).values.repeated == NONE  # nor is it certain where it is not so


@pytest.mark.parametrize(
    ("verdict", "behind_bos", "said"),
    [
        ("no other context", FEW, f" (behind BOS, {FEW.mean:.1%} still spike)"),
        ("no other context", NONE, ""),
        ("no other context", None, ""),
        ("position", NONE, ""),
    ],
)
def test_the_exception_behind_bos_is_named(verdict, behind_bos, said):
    conclusion = judge(measured(1000, POSITION if verdict == "position" else ALONE, behind_bos=behind_bos))
    assert f"Conclusion: {verdict}{said}\nRule: " in tables.conclusion_text(conclusion, conclusion.values.note)
    assert "One threshold is of one case alone" in conclusion.rule


def old_verdict(results):
    """What the census and the moved token alone were taken to say."""
    first, moved = results["census"]["n_spiking"] / results["census"]["tokens"], results["shares"]["moved"]["mean"]
    if moved <= 0.1:
        return "position" if first >= 0.9 else "position and token"
    return "everywhere" if first >= 0.9 else "token"


# What the planted models do, by kind: (GPT-2, whose trigger is an embedding of position 0), (Llama, where it is BOS).
# A head that writes does not look at a trigger from anywhere that it could look away from it.
TRUTH = dict.fromkeys(kinds.KINDS, ("position", "token")) | {
    **dict.fromkeys(("head", "needs_head"), ("position and no other context", "no other context, certain tokens")),
    **dict.fromkeys(("content", "half"), ("token", "token")),
    **dict.fromkeys(("none", "sinks"), ("none found", "none found")),
}
TOLD = ("mlp", "head", "needs_head", "content", "half", "none", "sinks", "several", "noisy", "mlp_eraser", "redundant")


def diagnose(built):
    return catalogue.judged("exp6", measure.run(built.lm, built.windows, exp6_trigger_census.Options(batch_size=8)))


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_planted_triggers_are_told_apart(architecture, kind, few_draws):
    built = planting.build(architecture, kind, 0)
    result = diagnose(built)
    values = result["conclusion"]["values"]
    expected = TRUTH[kind][blank.ARCHITECTURES.index(architecture)]
    assert result["conclusion"]["verdict"] == expected
    if expected == "none found":
        return
    assert result["layer"] == built.truth.layer
    assert result["place"]["dim"] in built.truth.values
    follows = values["follows"] and values["follows"]["mean"]
    if kind == "several" and architecture == "gpt2":  # its second token spikes wherever it stands
        assert NEARLY_ALL < follows < 1
    else:
        assert follows == (None if architecture == "llama" else float(expected == "position"))
    if architecture == "llama" or expected == "token":
        assert sorted(values["tokens"]) == sorted(built.truth.tokens)
    if kind == "head":
        assert old_verdict(result).startswith("position")
        assert old_verdict(result) != expected


CLASSES = 9  # the first of BOS alone
CODES, MEANS, CONSTANT, SPIKE = 0, 2 * CLASSES, 4 * CLASSES, 4 * CLASSES + 2


def contrast(first):
    """One dim minus the next, which LayerNorm's centring leaves alone."""
    direction = torch.zeros(blank.HIDDEN)
    direction[[first, first + 1]] = torch.tensor([1.0, -1.0])
    return direction


def spikes_without_context(architecture):
    """Any token spikes where attention returns its own value only: attention writes the share of each class of tokens,
    and a neuron fires if one has more than 90 %. Positions have no part; that a text has one class only is rare."""
    model = blank.zeros(architecture, 2)
    lm = LanguageModel(model, Architecture(model), blank.tokenizer(), {"planted": architecture})
    embedding = model.get_input_embeddings().weight
    for token in range(blank.VOCABULARY):
        code = 0 if token == blank.BOS else 1 + token % (CLASSES - 1)
        embedding[token] = contrast(CODES + 2 * code) + contrast(CONSTANT)
    block = lm.arch.blocks[0]
    scale = (4 / blank.HIDDEN) ** 0.5  # of the norm, for every token
    for code in range(CLASSES):  # head 0, which looks everywhere alike
        reads = contrast(CODES + 2 * code) * scale / 2
        if architecture == "gpt2":
            block.attn.c_attn.weight[:, 2 * blank.HIDDEN + code] = reads
        else:
            block.self_attn.v_proj.weight[code] = reads
        lm.arch.weight(0, "head_projection")[:, code] = contrast(MEANS + 2 * code)
        lm.arch.weight(1, "up")[code] = 20 * (contrast(MEANS + 2 * code) - 0.9 * contrast(CONSTANT))
        if architecture == "llama":
            lm.arch.weight(1, "gate")[code] = lm.arch.weight(1, "up")[code]
            lm.arch.weight(1, "up")[code] = contrast(CONSTANT)
    lm.arch.weight(1, "down")[SPIKE, :CLASSES] = 100
    return lm


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_what_has_no_context_is_no_position(architecture, few_draws):
    """As in SmolLM2: nearly any first token spikes, hardly any behind text, each behind itself."""
    lm, rng = spikes_without_context(architecture), np.random.default_rng(0)
    windows = Windows(torch.from_numpy(rng.integers(1, blank.VOCABULARY, (40, 32))), 40, False, "random tokens")
    result = diagnose(SimpleNamespace(lm=lm, windows=windows))
    values = result["conclusion"]["values"]
    assert values["first_token_share"] == values["repeated"]["mean"] == 1
    assert 0 < values["moved"]["mean"] < 0.1
    assert old_verdict(result) == "position"
    assert result["conclusion"]["verdict"] == "no other context"
    assert values["causes"]["position"]["fits"] is False
    told = values["causes"]["no other context"]["predictions"]
    assert ("at_0" in told) == (architecture == "gpt2")


@pytest.mark.parametrize("kind", ["mlp", "head", "content"])
@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_shares_are_those_of_plain_forward_passes(architecture, kind, few_draws):
    built = planting.build(architecture, kind, 7)
    result = diagnose(built)
    model, ids, layer, dim = built.lm.model, built.windows.ids, result["layer"], result["place"]["dim"]
    least = 0.5 * abs(built.truth.values[dim])

    def spikes(windows):
        return (block_outputs(model, windows)[layer][:, :, dim].abs() > least).tolist()

    alone = [row[0] for row in spikes(torch.arange(blank.VOCABULARY)[:, None])]
    assert result["census"]["n_spiking"] == sum(alone)
    tokens = [token for token in range(blank.VOCABULARY) if alone[token]]
    shares = result["shares"]
    assert shares["repeated"]["mean"] == np.mean([spikes(torch.full((1, 9), token))[0][8] for token in tokens])
    behind = (
        [row[1] for row in spikes(torch.tensor([[blank.BOS, token] for token in tokens if token]))]
        if sum(tokens)
        else []
    )
    assert shares["behind_bos"] is None if not behind else shares["behind_bos"]["mean"] == np.mean(behind)
    at = [row.index(max(row)) for row in block_outputs(model, ids)[layer][:, :, dim].abs().tolist()]
    assert shares["first"]["mean"] == np.mean([place == 0 for place in at])
    assert shares["own"]["mean"] == np.mean([alone[window[place]] for window, place in zip(ids, at, strict=True)])


def judged(lm, windows, **options):
    return catalogue.judged(
        "exp6", measure.run(lm, windows, exp6_trigger_census.Options(**{"batch_size": 1} | options))
    )


def test_layer_and_place_as_asked_for(tokenizer):
    lm = language_model(tiny_model("gpt2"), tokenizer)
    windows = Windows(token_ids(2, 9), 2, False, "test")
    result = judged(lm, windows, layer_id=2, dim=5, position=4)
    assert (result["layer"], result["place"]["dim"], result["place"]["positions"]) == (2, 5, {"4": 2})
    assert result["conclusion"]["verdict"] == "none found"
    assert result["census"]["left_out"] == 320 - len(tokenizer)
    hidden = reference.observe(lm.model, windows.ids).hidden[2]
    assert result["ordinary"]["value"]["mean"] == pytest.approx(hidden[:, 4, 5].mean().item(), rel=1e-4)
    assert result["spike"]["median"] == pytest.approx(np.mean([h.abs().median() for h in hidden]), rel=1e-5)
    with pytest.raises(UserError, match="layers 0 to 2"):
        judged(lm, windows, layer_id=3)


def test_windows_without_the_spike_take_no_part(tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    ids = token_ids(10, 12)
    ids[:8, 4] = SPIKE_TOKEN
    result = judged(lm, Windows(ids, 10, False, "test"))
    assert result["spiking"] == 8
    assert result["ordinary"]["spikes"]["mean"] == 0.8
    assert (result["shares"]["own"]["mean"], result["shares"]["own"]["n"]) == (1, 8)
    assert result["shares"]["first"]["mean"] == 0
    assert result["conclusion"]["verdict"] == "token"
    assert [t["id"] for t in result["census"]["spiking"]] == [SPIKE_TOKEN]
    few = judged(lm, Windows(ids[6:], 4, False, "test"))  # two windows that spike are hardly evidence
    assert few["conclusion"]["verdict"] == "cannot tell"
    assert "own token" in few["conclusion"]["values"]["why"]


def text_and_figures(result):
    provenance = {"model": {"name": "", "type": ""}, "data": Windows(token_ids(1, 5), 1, False, "test").provenance}
    rest = dict.fromkeys(("dtype", "device", "seed", "time", "command"), "")
    payload = result_files.payload("exp6", {"model_name": "tiny"}, provenance | rest, result, {})
    stored = catalogue.concluded(json.loads(json.dumps(payload)))
    for draw in exp6_trigger_census.EXPERIMENT.figures().values():
        draw(stored)
    return text.summarise(stored)


def test_without_a_bos_token(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.bos_token = None
    lm = language_model(tiny_model("llama"), plain)
    result = judged(lm, Windows(token_ids(1, 5), 1, False, "test"))
    assert result["bos"] is None
    assert result["shares"]["there"] is result["shares"]["behind_bos"] is None
    text = text_and_figures(result)
    assert "no BOS token" in text
    assert "nothing to swap" in text


def test_the_legend_says_how_many_are_drawn():
    path = checkout.ROOT / "results" / "smollm2-135m" / "exp6_trigger_census" / "exp6_results.json"
    stored = catalogue.concluded(json.loads(path.read_text()))
    census = stored.results.census
    for listed, said in ((7, "7 tokens that do not spike"), (3, "the 3 smallest of 7 tokens that do not spike")):
        cut = dataclasses.replace(census, failing=census.failing[:listed])
        result = dataclasses.replace(stored, results=dataclasses.replace(stored.results, census=cut))
        [ax] = figures.vocabulary_census(result).axes
        assert said in ax.get_legend_handles_labels()[1]


def test_text_of_every_manipulation(few_draws):
    """Each cause's predictions stand beside what was measured; those that do not fit are marked."""
    text = text_and_figures(diagnose(planting.build("gpt2", "mlp", 0)))
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert " ".join(rows["behind text"]).endswith("] all x all x none none none none none none")
    assert rows["fits"] == ["fits", "no", "no", "yes", "no", "no", "no", "no", "no"]
    for label, _leaves, tells in MANIPULATIONS.values():
        assert f"{label}: {tells}\n" in text
    assert "Conclusion: position\n" in text


@pytest.mark.real
def test_seven_tokens_of_smollm2_that_fail(smollm2):
    """Independent figures: 23,538 +- 1,639 over all 49,152 first tokens, of which seven stay below 1,000."""
    failing = [21653, 2790, 4424, 27480, 21982, 14379, 46165]
    others = [i for i in range(5, 49152, 250) if i not in failing]
    values = probe_of(smollm2, 11, 507).values(torch.tensor([*failing, *others])[:, None], 256, "")[:, 0]
    assert (np.abs(values[:7]) < 1000).all()
    assert (values[7:] > 1000).all()
    assert values[7:].mean() == pytest.approx(23_538, abs=3 * 1_639 / len(others) ** 0.5)
