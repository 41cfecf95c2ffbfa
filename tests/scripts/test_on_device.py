"""Every script and every way to a model on a device that is not the host, and the benchmark's entries.

It is a pretended one (tests/pretend.py), or a real one: `make test-cuda`, or with pytest's --device.
"""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from benchmarks import compare, entries
from benchmarks.worker import Worker
from lib import catalogue
from lib.core import massive, on_device, sinks
from lib.model import attention, hooks, models, next_token, verify
from lib.model.arch import Architecture
from lib.run.cli import Options
from tests import golden
from tests.compared import differences, near, with_intervals
from tests.conftest import by_turns, exhaustive_unless, token_ids

pytestmark = pytest.mark.slow
OWN = [name for name, entry in entries.ENTRIES.items() if entry.tool in (entries.OURS, entries.TRANSFORMERS)]

ONCE_EACH = [  # on planted models in turn; on the others they are exhaustive
    exhaustive_unless(of == golden.MIXTURE or (i + j) % len(golden.MODELS) == 0, of, experiment)
    for i, (of, experiments) in enumerate(golden.MEASURED.items())
    for j, experiment in enumerate(experiments)
]


@pytest.mark.parametrize(("planted", "experiment"), ONCE_EACH, indirect=["planted"])
def test_results_are_those_of_the_cpu(experiment, planted, text, elsewhere, pytestconfig):
    """And on the pretended device a pass makes few transfers, however many layers; one of them is transformers' own."""
    command = catalogue.EXPERIMENTS[experiment].command
    pretended = pytestconfig.getoption("--device") == "pretend"
    has_float64 = pytestconfig.getoption("--device").partition(":")[0] in on_device.FLOAT64
    exactly = has_float64 and planted.truth.architecture == "gpt2"  # norms of a Llama and routers are in float32
    for dtype in [torch.float32, torch.float64] if exactly else [torch.float32]:
        with sdpa_kernel(SDPBackend.MATH):  # as on the pretended device: the CPU's own kernel rounds otherwise
            here = golden.results(command, golden.moved(planted, "cpu", dtype), text, batch_size=6, n_whole=6)
        same = near
        if pretended:
            from tests import transfers  # torch cannot take it back: not where a real device is asked for

            of = transfers.counted(command, planted, text, batch_size=6, n_whole=6)
            there = of.results
            assert 0 < of.in_all.total() <= 3 * of.passes
        else:
            with elsewhere() as device:
                there = golden.results(command, golden.moved(planted, device, dtype), text, batch_size=6, n_whole=6)
        if not pretended and dtype == torch.float32:
            # real ones add up in another order, of which what is left of a spike has the error
            peak = max(map(abs, planted.truth.values.values()))
            same = partial(near, relative=1e-3, absolute=max(1e-4, peak * 2**-20))
            if experiment == "exp13":  # a last digit decides to which whole number a half is rounded: a step apart
                there["conditions"], here["conditions"] = list(there["conditions"]), list(here["conditions"])
        assert list(differences(with_intervals(there), with_intervals(here), same)) == [], dtype


def layers_and_heads(model, ids):
    """{name: array} of what layerwise and head analysis measure."""
    arch = Architecture(model)
    lm = models.LanguageModel(model, arch, None, {})
    verify.verify(lm)
    found, heads = massive.LayerStatistics(arch, None), sinks.HeadScores(arch)
    with attention.watch_parts(lm, heads.update):
        found.run(ids, lambda: hooks.forward(lm, ids))
    heads.end_batch()
    return {"layers": found.rows.array, "scores": heads.scores, "later": heads.later, "window": heads.window}


def test_every_architecture_is_measured_as_on_the_cpu(case, elsewhere):
    here = layers_and_heads(case.lm.model, case.ids)
    with elsewhere() as device:
        there = layers_and_heads(copy.deepcopy(case.lm.model).to(device), case.ids)
    for name, expected in here.items():
        assert_close(there[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, exhaustive_unless(False, torch.bfloat16)], ids=str)
def test_a_kernel_and_a_column_more_give_the_same_probabilities(case, precision, pytestconfig, monkeypatch):
    device = pytestconfig.getoption("--device")
    model = copy.deepcopy(case.lm.model).to("cpu" if device == "pretend" else device, precision)
    by_kernel = layers_and_heads(model, case.ids)
    monkeypatch.setattr(attention, "_kernel", lambda *_args: None)
    by_column = layers_and_heads(model, case.ids)
    for name in ("scores", "later", "window"):
        assert_close(by_kernel[name], by_column[name], rtol=0, atol=1e-5 if precision == torch.float32 else 0.02)


@pytest.mark.parametrize("model", ["tiny_gpt2_folder", "tiny_llama_folder", "tiny_gguf"])
def test_a_model_is_loaded_there(model, request, elsewhere, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, ids = str(request.getfixturevalue(model)), token_ids(2, 20)
    here = next_token.losses(models.load(Options(model=path, device="cpu")), ids)
    with elsewhere() as device:
        lm = models.load(Options(model=path, device=str(device)))
        there = next_token.losses(lm, ids).cpu()
    assert [torch.device(name).type for name in lm.devices] == [device.type]
    assert_close(there, here, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("model", "name"), by_turns(["tiny_gpt2_folder", "tiny_llama_folder"], OWN))
def test_benchmark_entries_give_what_they_give_on_the_cpu(name, model, request, elsewhere, monkeypatch):
    monkeypatch.setattr(entries, "MANY", 20)
    path, ids = str(request.getfixturevalue(model)), token_ids(2, 40)
    prepare, options = entries.ENTRIES[name].prepare, Options(model=path, device="cpu", batch_size=2)
    here = prepare(options)(ids)
    with elsewhere() as device:
        there = prepare(replace(options, device=str(device)))(ids)
    assert there.keys() == here.keys() == compare.require_equal({"here": here, "there": there}).keys()


def test_the_process_of_an_entry_is_timed_there(tiny_llama_folder, pytestconfig):
    asked = pytestconfig.getoption("--device")
    device = "cpu" if asked == "pretend" else asked  # another process does not have the pretended one
    ids = token_ids(1, 8).numpy()
    worker = Worker("layers_heads", Options(model=str(tiny_llama_folder), device=device, batch_size=1), ids, threads=1)
    worker.run(ids)
    worker.end()
    assert worker.error is None
    given = {"layers", "positions", "dims", "massive", "heads", "later", "window"}
    assert worker.values.keys() == given
    assert worker.peak_mib > 0
    assert worker.seconds[0] > 0
