"""Experiments on models whose layers lack attention heads, an MLP or known neurons: measured, or refused at once."""

import dataclasses
import importlib

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from experiments.census import measure as census
from experiments.head_sweep import figures, text
from lib import catalogue
from lib.core import place, sinks
from lib.core.ablation import all_heads_off, all_mlps_off
from lib.model import hooks
from lib.report.result_files import Result
from lib.run.errors import UserError
from tests import every_type
from tests.core.test_sweep import windows_of

IDS = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models():
    words = WordLevel({str(token): token for token in range(128)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    names = ("jamba", "mixtral", "mamba", "falcon_h1", "llama4_text", "inkling_text", "gpt_oss", "granitemoeshared")
    return {name: dataclasses.replace(every_type.loaded(name), tokenizer=tokenizer) for name in names}


def results(lm, experiment, **flags):
    """Judged, as they are stored and read again."""
    script, *chosen = catalogue.EXPERIMENTS[experiment].command.split()
    module = importlib.import_module(script.removesuffix(".py"))
    options = module.Options(batch_size=2, **flags, **{flag.lstrip("-"): True for flag in chosen})
    run = module.chosen(options)[0].run if chosen else module.EXPERIMENT.run
    stored = catalogue.judged(experiment, run(lm, windows_of(IDS), options))
    judge = catalogue.judge_of(experiment)
    typed = catalogue.typed(experiment, stored)
    told = ("dtype", "device", "seed", "time", "command")
    data = {"windows": 2, "seqlen": 6, "dataset": "test", "bos": 0}
    origin = {"model": {"name": "tiny", "type": ""}, "data": data} | dict.fromkeys(told, "")
    return Result(experiment, origin, {"model_name": "tiny"}, typed, judge(typed) if judge else None, {})


REFUSED = {
    ("mamba", "intervention"): "this model has no attention heads: nothing attends to the first token",
    ("mamba", "exp4"): "this model has no attention heads",
    ("mamba", "exp7"): "this model has no attention heads",
    ("mamba", "exp2c"): "layer 0 has no MLP",
    ("jamba", "attention_logits"): "layer 0 has no attention heads",
    ("jamba", "compare_3d"): "layer 0 has no attention heads",
    ("granitemoeshared", "exp2c"): "layer 0 has no neurons that can be told apart: several of its modules write",
    ("granitemoeshared", "exp4"): "layer 0 has no neurons that can be told apart: several of its modules write",
    ("inkling_text", "exp5"): "layer 0 has no MLP: mlp_sconv may be one",
    ("llama4_text", "exp4"): "layer 0 has no neurons that can be told apart: no projection gives what its MLP writes",
}


@pytest.mark.parametrize(("name", "experiment"), REFUSED)
def test_refused_before_anything_is_measured(models, monkeypatch, name, experiment):
    monkeypatch.setattr(hooks, "forward", None)
    with pytest.raises(UserError, match=REFUSED[name, experiment]):
        results(models[name], experiment, **({} if experiment == "exp7" else {"layer_id": 0}))


def test_labels_say_what_stays_on(models):
    assert all_heads_off(models["jamba"].arch).label == "all heads off (2 of 3 layers have none)"
    assert all_heads_off(models["falcon_h1"].arch).label == "all heads off (mamba.out_proj stays on)"
    assert all_heads_off(models["mixtral"].arch).label == "all heads off"
    assert all_mlps_off(models["llama4_text"].arch).label == "all MLPs off"
    with pytest.raises(UserError, match="layer 0 has no MLP: mlp_sconv may be one"):
        all_mlps_off(models["inkling_text"].arch)


def test_single_heads_of_a_hybrid(models):
    stored = results(models["jamba"], "exp7", n_whole=1, n_random=1)
    assert [(head.layer, head.head) for head in stored.results.heads] == [(1, head) for head in range(4)]
    assert [layer.layer for layer in stored.results.layers] == [1]
    assert "1.3" in text.summarise(stored) + text.details(stored)
    assert "no head" in figures.head_sweep_model(stored).legends[0].get_texts()[0].get_text()


def test_layers_off_in_hybrids(models):
    """What a mixer beside attention writes is no part of what attention writes."""
    assert results(models["jamba"], "exp2b", n_whole=1).results.mixers == [0, 2]
    lm, windows = models["falcon_h1"], windows_of(IDS)
    stored, at, seen = results(lm, "exp2b", n_whole=1).results, place.find(lm, windows, 2), {}
    assert stored.never_off == ["mamba.out_proj"]
    with hooks.watch_outputs(lm.arch, "attention_write", lambda layer, value: seen.update({layer: value.clone()})):
        hooks.forward(lm, IDS)
    for layer, row in enumerate(stored.kinds["attention"]):
        here = seen[layer][torch.arange(2), torch.from_numpy(at.positions), at.dim]
        assert row.write.mean == pytest.approx(lm.arch.scale(layer, "attention_write") * here.mean().item(), rel=1e-3)


def test_a_repeated_token_is_alone_where_attention_alone_mixes(models):
    assert census.not_alone(models["mixtral"], IDS, 2) is None
    assert census.not_alone(models["jamba"], IDS, 2) == "more than attention may mix tokens in layers 0, 2"
    assert census.not_alone(models["gpt_oss"], IDS, 2) == "heads attend to a learned sink, too"
    assert sinks.sees_only_itself(models["jamba"], IDS)
