"""Verdicts on courses of training, the fit, and single steps of every kind of model; whole courses are in
tests/scripts/test_series.py."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import exp14_training
from experiments.training_course import fit, judge, measure, text
from experiments.training_course.results import DIVERGES, FITTED, NAMES, TOO_FEW, Results
from lib import catalogue
from lib.core.definitions import MOST, SINKS
from lib.report import result_files
from lib.run.errors import UserError
from tests import architectures, every_type
from tests.cases import case_of
from tests.core.test_sweep import windows_of
from tests.partial import partial

# verdicts by hand


def steps_of(*limits, field="massive"):
    """Steps 0, 10, 20 ... whose share has these limits."""
    cell = {"std": None, "n": 30}
    layer = {"ratio": {"mean": 10.0, "ci95": [9.0, 11.0], **cell}}
    steps = [
        {
            "step": 10 * i,
            "massive": {"mean": 0.0, "ci95": [0.0, 0.01], **cell},
            "sink_rate": {"mean": 0.0, "ci95": [0.0, 0.01], **cell},
            field: {"mean": sum(limit) / 2, "ci95": limit, **cell},
            "layers": [layer],
            "followed": {"writers": [], "peak_layer": 0},
        }
        for i, limit in enumerate(limits)
    ]
    return partial(Results, {"steps": steps})


BELOW, ABOVE, HOLDS = [0.0, 0.01], [0.9, 1.0], [0.01, 0.9]
NOW = {
    "at once": ([ABOVE, ABOVE], "from the first step on", 0, None),
    "between": ([BELOW, ABOVE, ABOVE], "between steps 0 and 10", 10, 0),
    "unclear between": ([BELOW, HOLDS, ABOVE], "between steps 0 and 20", 20, 0),
    "unclear before": ([HOLDS, ABOVE], "by step 10", 10, None),
    "unclear after": ([BELOW, ABOVE, HOLDS, ABOVE], "between steps 0 and 10", 10, 0),
    "unclear at last": ([BELOW, ABOVE, HOLDS], "cannot tell", None, 0),
    "unclear from the first on": ([ABOVE, HOLDS, ABOVE], "by step 0", 0, None),
    "at once, unclear at last": ([ABOVE, HOLDS], "cannot tell", None, None),
    "a blip before": ([BELOW, ABOVE, BELOW, ABOVE], "between steps 20 and 30", 30, 20),
    "gone": ([BELOW, ABOVE, BELOW], "gone again", None, 20),
    "gone perhaps": ([ABOVE, BELOW, HOLDS], "cannot tell", None, 10),
    "never": ([BELOW, BELOW], "none found", None, 10),
    "never for sure": ([BELOW, HOLDS], "cannot tell", None, 0),
    "perhaps once": ([HOLDS, BELOW], "cannot tell", None, 10),
}


@pytest.mark.parametrize("case", NOW)
@pytest.mark.parametrize(("field", "which"), [("massive", "massive"), ("sink_rate", "sinks")])
def test_births(case, field, which):
    limits, verdict, at, after = NOW[case]
    found = judge.judge(steps_of(*limits, field=field))
    birth = getattr(found.values, which)
    assert (birth.verdict, birth.at, birth.after) == (verdict, at, after)
    assert f"{verdict}" in found.verdict
    assert {test.threshold for test in found.tests} == {MOST, SINKS}


# the fit


STEPS = np.array([0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 143000])
TRUE = {
    "rises and falls": (3.0, 0.4, 0.5, 0.2, 4.0),
    "rises and stays": (1.0, 0.01, 1.0, 0.5, 2.0),
    "falls": (-2.0, 0.2, 0.3, 0.4, 5.0),
}


def course_of(a, decay, gamma, t0, k):
    x = gamma * STEPS / 1000 + t0
    return np.exp(a * np.exp(-decay * x) * np.log(x) + k)


@pytest.mark.parametrize("name", TRUE)
def test_the_fit_gives_back_its_own_formula(name):
    found = fit.fit(3, STEPS, course_of(*TRUE[name]))
    assert (found.layer, found.outcome) == (3, FITTED)
    assert found.residual < 1e-5
    assert found.explained > 1 - 1e-8
    assert [found.parameters[key].value for key in NAMES] == pytest.approx(TRUE[name], rel=1e-3)
    assert np.allclose(fit.curve(STEPS, found.parameters), course_of(*TRUE[name]), rtol=1e-4)


def test_errors_are_those_of_repeated_noise():
    """Standard errors beside the spread of what is fitted to 40 noisy courses."""
    rng, clean, found = np.random.default_rng(0), np.log(course_of(*TRUE["rises and falls"])), []
    for _ in range(40):
        found.append(fit.fit(0, STEPS, np.exp(clean + 0.02 * rng.standard_normal(len(STEPS)))))
    assert np.mean([one.residual for one in found]) == pytest.approx(0.02 * np.sqrt(9 / 14), rel=0.15)
    for name in NAMES:
        spread = np.std([one.parameters[name].value for one in found], ddof=1)
        told = np.median([one.parameters[name].error for one in found])
        assert 0.6 < told / spread < 1.6, name


def test_too_few_steps_and_what_does_not_converge(monkeypatch):
    assert fit.fit(0, STEPS[:5], course_of(*TRUE["falls"])[:5]).outcome == TOO_FEW
    monkeypatch.setattr(fit, "_searched", lambda *_args: None)
    assert fit.fit(0, STEPS, course_of(*TRUE["falls"])).outcome == DIVERGES


def test_a_flat_course_has_no_errors_that_mean_anything():
    found = fit.fit(0, STEPS, np.full(len(STEPS), 7.0))
    assert found.outcome in (FITTED, DIVERGES)
    assert found.explained is None or found.residual < 1e-6


@pytest.mark.parametrize("name", ["gemma3_text", "gpt_neox", "opt", "olmo2"])
def test_a_step_of_another_architecture(name):
    """Sliding windows, parallel blocks, norms behind: measured as one step, and stored."""
    case = case_of(name, next(iter(architectures.TESTED[name].variants)))
    options = exp14_training.Options(batch_size=2)
    results = measure.run(case.lm, windows_of(case.ids), options)
    [step] = results.steps
    top1 = [hidden.abs().flatten(1).amax(1).mean().item() for hidden in case.real.hidden[1:]]
    assert [layer.top1.mean for layer in step.layers] == pytest.approx(top1, rel=1e-4)
    first = torch.stack([maps[..., 0] for maps in case.real.maps])  # (layers, batch, heads, queries)
    scores = (first.sum(3) / (first > 0).sum(3)).mean(1)  # over queries that see it
    assert np.allclose(step.scores, scores, atol=1e-4)
    assert judge.judge(results).values.fits[0].outcome == TOO_FEW
    assert result_files.plain(results)


@pytest.fixture(scope="module")
def hybrids():
    words = WordLevel({str(token): token for token in range(128)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    names = ("jamba", "mixtral", "falcon_h1", "llama4_text", "gpt_oss", "mamba")
    return {name: dataclasses.replace(every_type.loaded(name), tokenizer=tokenizer) for name in names}


@pytest.mark.parametrize("name", ["jamba", "mixtral", "falcon_h1", "llama4_text", "gpt_oss"])
@pytest.mark.parametrize("n", [1, 2])
def test_hybrids_and_mixtures_are_drawn_and_told(hybrids, name, n):
    """Layers without heads or with experts, learned sinks; one window, of which nothing has an interval."""
    ids = torch.randint(3, 100, (n, 6), generator=torch.Generator().manual_seed(0))
    results = measure.run(hybrids[name], windows_of(ids), exp14_training.Options(batch_size=2))
    stored = catalogue.typed("exp14", result_files.plain(results))
    told = dict.fromkeys(("dtype", "device", "seed", "time", "command"), "")
    data = {"windows": n, "seqlen": 6, "dataset": "test", "bos": 0}
    origin = {"model": {"name": "tiny", "type": ""}, "data": data} | told
    result = result_files.Result("exp14", origin, {"model_name": "tiny"}, stored, judge.judge(stored), {})
    heads = [layer.n_heads for layer in hybrids[name].arch.layers]
    assert [len(row) for row in result.results.steps[0].scores] == heads
    assert "highest head" in text.summarise(result)
    for draw in exp14_training.figures().values():
        draw(result)
    if n == 1:
        assert result.conclusion.verdict == "massive activations: cannot tell; sinks: cannot tell"


def test_a_model_without_attention_is_refused(hybrids):
    with pytest.raises(UserError, match="this model has no attention heads"):
        measure.run(hybrids["mamba"], windows_of(torch.zeros(2, 6, dtype=torch.long)), exp14_training.Options())
