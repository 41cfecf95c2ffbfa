"""Where attention goes: planted sinks are found where they are, and are a no-op or a broadcast as they were made."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import exp9_sinks
from experiments.sinks import figures, judge, text
from experiments.sinks.results import Head, Input, Results
from lib import catalogue
from lib.core import keys
from lib.core.evidence import CANNOT_TELL, Average
from lib.model import hooks
from lib.planted import planting
from lib.report.result_files import Result, plain
from lib.run.errors import UserError
from tests import every_type, golden, reference
from tests.conftest import SPIKE_TOKEN, language_model, planted_model, token_ids
from tests.core.test_sweep import windows_of
from tests.partial import partial


def measured(lm, windows, **flags):
    """As it is stored and read again."""
    options = exp9_sinks.Options(batch_size=3, **flags)
    return catalogue.typed("exp9", catalogue.judged("exp9", exp9_sinks.run(lm, windows, options)))


def shown(results, windows):
    told = dict.fromkeys(("dtype", "device", "seed", "time", "command"), "")
    data = {"windows": len(windows.ids), "seqlen": windows.ids.shape[1], "dataset": "test", "bos": 0}
    origin = {"model": {"name": "tiny", "type": ""}, "data": data} | told
    return Result("exp9", origin, {"model_name": "tiny"}, results, judge.judge(results), {})


def of_kind(architecture, kind, n_readers=2):
    """The first planted model of a kind with so many heads that look at the spike."""
    built = (planting.build(architecture, kind, seed) for seed in range(20))
    return next(model for model in built if kind == "content" or len(model.truth.readers) == n_readers)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_planted_sinks_are_found(architecture):
    built = of_kind(architecture, "decoy")
    results = measured(built.lm, built.windows)
    values = judge.judge(results).values
    assert values.where == judge.FIRST
    assert sorted((sink.layer, sink.head) for sink in values.sinks) == [*built.truth.sinks]
    first = results.inputs["natural"].keys[0]
    assert (first.position, first.times, first.massive, first.heads) == (0, 8, 8, len(built.truth.sinks))
    assert first.layers == len({layer for layer, _head in built.truth.sinks})


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_model_without_sinks_has_none(architecture):
    built = of_kind(architecture, "content")
    stored = shown(measured(built.lm, built.windows), built.windows)
    values = stored.conclusion.values
    assert (values.where, values.kind, values.sinks) == (judge.NONE, None, [])
    assert "with the highest probability" not in text.summarise(stored)
    drawn = figures.tokens(stored)
    drawn.draw_without_rendering()
    label = drawn.axes[-1].yaxis.label.get_window_extent()
    assert drawn.bbox.y0 < label.y0 < label.y1 < drawn.bbox.y1
    titles = [ax.get_title() for ax in figures.positions(stored).axes]
    assert titles[3:6] == [f"{name}, by layer" for name in stored.results.inputs]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_sinks_elsewhere_are_listed_with_their_token(architecture, monkeypatch):
    def content(b):
        layer = b.layers(1, before=b.n_layers - 1)[0]
        neurons = b.neurons_write(layer, b.flag - b.one, b.values)
        readers = b.readers(layer + 1, b.n_layers - 1, n=3)
        return {"generator": "mlp", "layer": layer, "neurons": neurons, "values": b.values, "readers": readers}

    monkeypatch.setitem(planting.KINDS[architecture], "content", content)
    monkeypatch.setattr(keys, "SINK_QUERIES", 4)
    built = of_kind(architecture, "content")
    (token,) = built.truth.tokens
    ids = built.windows.ids
    spiking = built.lm.tokenizer.convert_tokens_to_ids(token)
    ids[ids[:, 0] == spiking, 0] = spiking - 1
    results = measured(built.lm, built.windows)
    later = [key for key in results.inputs["natural"].keys if key.position]
    assert [key.token for key in later] == [token]
    assert later[0].times == later[0].massive > len(ids) / 2
    assert later[0].heads == pytest.approx(3, abs=0.5)
    assert {i for i, share in enumerate(later[0].shares) if share} == {layer for layer, _ in built.truth.readers}
    assert judge.judge(results).values.where == judge.ELSEWHERE


@pytest.mark.parametrize(("factor", "kind"), [(1e-3, judge.NO_OP), (1.0, judge.BROADCAST)], ids=["drained", "not"])
def test_the_first_value_tells_a_no_op_from_a_broadcast(factor, kind):
    """The dims of the spike are all that a Llama's norm leaves of the first token; values read them by a factor."""
    built = of_kind("llama", "decoy")
    for layer, _head in built.truth.sinks:
        weight = built.lm.arch.blocks[layer].get_parameter("self_attn.v_proj.weight")
        for dim in built.truth.values:
            weight[:, dim] *= factor
    results = measured(built.lm, built.windows)
    verdict = judge.judge(results)
    readers = {*built.truth.readers}
    assert {sink.kind for sink in verdict.values.sinks if (sink.layer, sink.head) in readers} == {kind}
    told = {(i, h): head.kind for i, row in enumerate(results.heads) for h, head in enumerate(row) if head.kind}
    assert told == {(sink.layer, sink.head): sink.kind for sink in verdict.values.sinks} | {
        name: kind for name, kind in told.items() if kind == CANNOT_TELL
    }


def cell(low, high):
    return Average((low + high) / 2, (low, high), None, 8, (low, high))


@pytest.mark.parametrize(
    ("value_ratio", "output_share", "kind"),
    [
        ((0.1, 0.2), (0.8, 0.9), judge.NO_OP),
        ((0.2, 0.3), (0.8, 0.9), CANNOT_TELL),
        ((0.3, 0.4), (0.8, 0.9), judge.BROADCAST),
        ((0.3, 0.4), (0.4, 0.6), CANNOT_TELL),
        ((0.3, 0.4), (0.2, 0.4), judge.BETWEEN),
    ],
)
def test_an_interval_that_holds_a_threshold_is_never_a_verdict(value_ratio, output_share, kind):
    def judged(probability, rate=(0.3, 0.4), elsewhere=(0.0, 0.01), seqlen=64):
        head = Head(cell(*probability), cell(*value_ratio), cell(*output_share))
        measured = partial(Input, {"sink_rate": [cell(*rate)], "elsewhere": cell(*elsewhere)})
        results = {"epsilon": 0.3, "seqlen": seqlen, "inputs": {"natural": measured}, "heads": [[head]]}
        return judge.judge(partial(Results, results))

    sure = judged((0.4, 0.5))
    assert [sink.kind for sink in sure.values.sinks] == [kind]
    assert sure.verdict == f"{judge.FIRST}; {kind}"
    unclear = judged((0.2, 0.5)).values
    assert (unclear.sinks, unclear.unclear, unclear.kind) == ([], 1, None)
    assert judged((0.1, 0.2)).verdict == judge.FIRST
    assert judged((0.4, 0.5), rate=(0.04, 0.1)).verdict == CANNOT_TELL
    assert judged((0.4, 0.5), elsewhere=(0.04, 0.1)).verdict == CANNOT_TELL
    assert judged((0.4, 0.5), elsewhere=(0.06, 0.1)).verdict == f"{judge.BOTH}; {kind}"
    assert judged((0.4, 0.5), rate=(0.0, 0.01)).verdict == judge.NONE
    assert judged((0.4, 0.5), seqlen=10).verdict == f"{judge.FIRST}; {kind}"
    assert judged((0.4, 0.5), seqlen=9).verdict == CANNOT_TELL  # of even attention the first key has 0.314
    assert judged((0.4, 0.5), rate=(0.0, 0.01), seqlen=9).verdict == judge.NONE


def test_most_of_the_sinks_decide():
    def most(no_op, broadcast, between, untold):
        return judge._most(dict(zip((*judge.KINDS, CANNOT_TELL), (no_op, broadcast, between, untold), strict=True)))

    assert most(3, 1, 1, 0) == judge.NO_OP
    assert most(3, 1, 0, 2) == CANNOT_TELL
    assert most(2, 4, 0, 1) == judge.BROADCAST
    assert most(2, 2, 2, 0) == judge.MIXED


def test_rates_are_those_of_eager_maps(tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    ids = token_ids(4, 30)
    results = measured(lm, windows_of(ids), input=("natural",), epsilons=(0.3,))
    seen = [reference.observe(lm.model, window[None]) for window in ids]
    expected = np.mean([reference.sink_rate(lm.model.config, of.attentions) for of in seen])
    assert results.inputs["natural"].sink_rate[0].mean == pytest.approx(expected)
    maps = torch.stack([torch.stack(of.attentions)[:, 0] for of in seen])  # (windows, layers, heads, seq, seq)
    means = maps.sum(3) / torch.arange(30, 0, -1)
    for key, average in enumerate(results.inputs["natural"].sink_rate):
        assert average.mean == pytest.approx((means[..., key] > 0.3).double().mean().item())


def test_heads_whose_values_are_zero_are_no_kind(tokenizer):
    """As of a model from which they were pruned; the others keep theirs."""
    lm, windows = language_model(planted_model("llama"), tokenizer), windows_of(token_ids(6, 16))
    whole = measured(lm, windows, input=("natural",))
    lm.model.model.layers[1].self_attn.v_proj.weight.zero_()
    results = measured(lm, windows, input=("natural",))
    ratios = [[head.value_ratio for head in layer] for layer in results.heads]
    assert ratios[1] == [None] * len(ratios[1])
    assert [ratio.mean for ratio in ratios[0]] == [head.value_ratio.mean for head in whole.heads[0]]
    assert all(ratio.family95 is not None for ratio in ratios[0] + ratios[2])
    assert "layer" in text.summarise(shown(results, windows))
    figures.values(shown(results, windows))


def test_random_and_repeated_tokens_stand_for_the_text(tokenizer, monkeypatch):
    lm = language_model(planted_model("llama"), tokenizer)
    ids = token_ids(3, 20)
    ids[:, 0] = SPIKE_TOKEN
    windows = dataclasses.replace(windows_of(ids), bos=1)
    passes = []
    forward = hooks.forward
    monkeypatch.setattr(hooks, "forward", lambda lm, ids: passes.append(ids) or forward(lm, ids))
    results = measured(lm, windows)
    natural, random, repeated = passes
    assert [*results.inputs] == ["natural", "random", "repeated"]
    assert torch.equal(natural, ids)
    assert all((of[:, 0] == SPIKE_TOKEN).all() for of in passes)
    assert len(random[:, 1:].unique()) > 30
    assert (repeated[:, 1:] == repeated[:, 1:2]).all()
    assert len(repeated[:, 1].unique()) > 1
    assert max(random.max(), repeated.max()) < len(tokenizer)


def test_alike_tokens_are_alike(tokenizer):
    """Without positions in the residual stream, a repeated token is the first one over again."""
    lm = language_model(planted_model("llama"), tokenizer)
    results = measured(lm, windows_of(token_ids(3, 20)), input=("repeated",))
    repeated = results.inputs["repeated"]
    assert repeated.alike.mean == 19
    assert (repeated.later.mean, repeated.secondary.mean, results.secondary) == (0, 0, [])  # no head looks at any


def test_older_results_tell_secondary_sinks_by_the_cosine_alone(tokenizer):
    windows = windows_of(token_ids(3, 20))
    results = measured(language_model(planted_model("llama"), tokenizer), windows, input=("repeated",))
    assert "; like the first 19.00 [19.00, 19.00], listed 0" in text.summarise(shown(results, windows))
    stored = plain(results)
    for name in ("alike", "later", "majority"):
        del stored["inputs"]["repeated"][name]
    older = catalogue.typed("exp9", stored)
    assert "; told by the cosine alone (an older result)" in text.summarise(shown(older, windows))


def test_further_lengths(tmp_path):
    built = planting.build("llama", "decoy", 0)
    dataset = str(golden.write_text(built, tmp_path))
    flags = {"input": ("natural",), "dataset": dataset, "nsamples": 3}
    results = measured(built.lm, built.windows, lengths=(48, 32), **flags)
    assert [*results.lengths] == [48]
    assert len(results.lengths[48]["natural"].sink_rate) == 48
    assert "By length of the windows" in text.summarise(shown(results, built.windows))
    with pytest.raises(UserError, match="positions"):
        measured(built.lm, built.windows, lengths=(4096,), **flags)
    with pytest.raises(UserError, match="--epsilons must be between 0 and 1"):
        measured(built.lm, built.windows, epsilons=(3.0,))


@pytest.fixture(scope="module")
def words():
    known = WordLevel({str(token): token for token in range(128)}, unk_token="0")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(known))


@pytest.mark.parametrize(("model_type", "left_out"), [("jamba", [0, 2]), ("mixtral", []), ("gpt_oss", [])])
def test_layers_without_attention_are_left_out(model_type, left_out, words):
    lm = dataclasses.replace(every_type.loaded(model_type), tokenizer=words)
    windows = windows_of(torch.randint(3, 100, (3, 24), generator=torch.Generator().manual_seed(0)))
    results = measured(lm, windows)
    assert [layer for layer, heads in enumerate(results.heads) if not heads] == left_out
    assert [layer for layer, of in enumerate(results.inputs["natural"].by_layer) if not of] == left_out
    stored = shown(results, windows)
    summary = text.summarise(stored)
    assert ("Layers without attention, left out: 0, 2" in summary) == bool(left_out)
    assert ("Learned sinks: " in summary) == (model_type == "gpt_oss") == bool(results.learned_scores)
    for draw in (figures.positions, figures.tokens, figures.values, figures.secondary):
        assert draw(stored).axes


def test_a_model_without_attention_is_refused(words, monkeypatch):
    lm = dataclasses.replace(every_type.loaded("mamba"), tokenizer=words)
    monkeypatch.setattr(hooks, "forward", None)
    with pytest.raises(UserError, match="this model has no attention heads"):
        measured(lm, windows_of(token_ids(2, 20) % 100))
