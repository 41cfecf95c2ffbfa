"""The scripts' own run() on SmolLM2-135M, against a naive eager implementation and against independent figures."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import analyze_heads_simple
import exp1_feasibility_test
import exp2a_mlp_feasibility_test
import exp2c_mlp_internal_analysis
import exp4_neuron_sets
import main_llm
from experiments.head_scores import measure
from experiments.layerwise import measure as layerwise_measure
from experiments.mlp_internal import judge as mlp_internal_judge
from experiments.mlp_internal import measure as mlp_internal_measure
from experiments.neuron_sets import measure as neuron_sets_measure
from lib.core import data
from lib.run import checkout
from tests import reference

pytestmark = [pytest.mark.real, pytest.mark.slow]
DIM = 507
SAMPLE = {"model": "smollm2-135m", "dataset": "python-docs", "nsamples": 2, "seqlen": 96, "batch_size": 1}


@pytest.fixture(scope="module")
def layerwise(smollm2):
    options = main_llm.Options(**SAMPLE | {"nsamples": 8, "seqlen": 128})
    return layerwise_measure.run(smollm2, data.load(options, smollm2), options)


def test_dim_507_at_the_first_token(layerwise):
    """Independent figures: about 770 at layer 2, gone at layer 10, massive and about 23,600 from layer 11 to 27."""
    assert 500 < layerwise.layers[2].ratio.mean < 1000
    assert layerwise.layers[10].top1.mean < 200
    assert 22_000 < layerwise.layers[11].top1.mean < 25_000
    everywhere = [m for m in layerwise.massive if (m.position, m.dim) == (0, DIM) and m.sequences == 8]
    assert [m.layer for m in everywhere] == list(range(11, 28))
    assert all(m.value > 20_000 for m in everywhere)


def test_two_neurons_of_mlp_11(smollm2):
    """Independent figures: neurons 1229 and 1487 give 99.6 % of what MLP 11 writes."""
    options = exp2c_mlp_internal_analysis.Options(**SAMPLE, layer_id=11)
    result = mlp_internal_measure.run(smollm2, data.load(options, smollm2), options)
    assert result.followed.dim == DIM
    assert result.followed.positions == {0: 2}
    assert [row.neuron for row in result.contributions[:2]] == [1229, 1487]
    assert sum(row.share for row in result.contributions[:2]) == pytest.approx(0.996, abs=0.004)
    assert result.contribution_check.relative_error < 1e-4
    largest = max(abs(row.activation) for row in result.contributions)  # one neuron, the same in every window
    share = largest / abs(result.contribution_check.output)
    assert result.largest_activation.mean == pytest.approx(share, rel=1e-5)
    assert mlp_internal_judge.judge(result).verdict == "2 of 1536 neurons"


@pytest.mark.exhaustive
def test_two_neurons_alone_carry_it(smollm2):
    options = exp4_neuron_sets.Options(**SAMPLE, n_random=1)
    result = neuron_sets_measure.run(smollm2, data.load(options, smollm2), options)
    assert (result.layer, result.end_layer) == (11, 27)
    assert [row.neuron for row in result.minimal_set] == [1229, 1487]
    assert result.keep_only_share.mean > 0.95
    assert abs(result.remove_share.mean) < 0.1
    assert all(p.relative_error < 1e-5 for n in result.reads.neurons for p in n.projections.values())


@pytest.fixture(scope="module")
def naive(smollm2):
    """(windows, naive results of the baseline and both ablations)."""
    options = main_llm.Options(**SAMPLE | {"seqlen": 32})
    windows = replace(data.load(options, smollm2), counts=None)  # all first tokens of the text would take a minute
    heads = [(layer, head) for layer in range(30) for head in range(9)]
    conditions = {"all_heads_off": {"heads": heads}, "all_mlps_off": {"mlps": range(30)}}
    return windows, reference.compare(smollm2.model, windows.ids, conditions)


@pytest.mark.parametrize(
    ("script", "name"), [(exp1_feasibility_test, "all_heads_off"), (exp2a_mlp_feasibility_test, "all_mlps_off")]
)
def test_ablation_agrees_with_a_naive_one(script, name, smollm2, naive):
    windows, expected = naive
    result = script.run(smollm2, windows, script.Options(**SAMPLE))
    for condition in ("baseline", name):
        found, truth = result.conditions[condition], expected[condition]
        rows = np.array(truth.rows).mean(0)
        for layer, row in zip(found.layers, rows, strict=True):
            assert [x.mean for x in (layer.top1, layer.top2, layer.top3, layer.median)] == pytest.approx(row, rel=1e-3)
            for dim, values in truth.dims.items():
                ours = layer.dims[dim].mean
                naive_value = np.mean([of[layer.layer] for of in values])
                assert ours == pytest.approx(naive_value, rel=1e-3, abs=1e-3 * row[0])
        assert np.log(found.perplexity.value) == pytest.approx(np.mean(truth.loss), rel=1e-3)
    largest, naively = result.places[0], expected[name].places
    at = max(naively, key=lambda at: naively[at].size)
    assert (largest.position == "first", largest.dim) == at
    assert largest.retained.mean == pytest.approx(naively[at].retained, abs=1e-3)


def test_head_scores_agree_with_eager_maps(smollm2, naive):
    windows, _expected = naive
    options = analyze_heads_simple.Options(**SAMPLE)
    result = measure.run(smollm2, windows, options)
    maps = [reference.observe(smollm2.model, ids[None]).attentions for ids in windows.ids]
    for layer in range(30):
        for head in range(9):
            scores = [of[layer][0, head, :, 0].mean().item() for of in maps]
            assert result.scores[layer][head].mean == pytest.approx(np.mean(scores), abs=1e-4)


@pytest.mark.exhaustive
def test_peak_memory_does_not_grow_with_nsamples(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Summer is warm. Winter is cold. " * 400)  # few first tokens
    code = (
        "import resource, runpy\n"
        "runpy.run_path('exp1_feasibility_test.py', run_name='__main__')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    flags = ["--model", "smollm2-135m", "--dataset", text, "--seqlen", "32", "--batch_size", "1", "--savedir", tmp_path]
    peaks = []
    for nsamples in (2, 18):
        done = subprocess.run(
            [sys.executable, "-c", code, *flags, "--nsamples", str(nsamples)],
            cwd=checkout.ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.split()[-1]))
    kept = 16 * 32 * 30 * 576 * 4 / 2**10  # KiB, were 16 windows of 32 tokens to keep their block outputs
    assert peaks[1] - peaks[0] < kept / 2
    assert json.loads((tmp_path / "comparison" / "exp1_results.json").read_text())["config"]["nsamples"] == 18
