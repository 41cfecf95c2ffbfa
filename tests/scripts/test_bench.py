"""What the benchmark makes of values and times; no test here looks at a clock."""

import itertools
import json
import time
from dataclasses import astuple, replace

import msgspec
import numpy as np
import pytest
import torch

from benchmarks import bench, compare, entries, figures, worker
from benchmarks.compare import AtMost, Faster, FlatMemory, LeastMemory, Within
from benchmarks.entries import ENTRIES, REGIME_ENTRIES, REGIME_TARGETS, TARGETS
from benchmarks.results import Difference, Load, Regime, Results, Row, Spread
from lib import catalogue
from lib.core import data
from lib.experiment import execute
from lib.model import models
from lib.report import result_files
from lib.report.upgrades import upgraded
from lib.run.checkout import ROOT
from lib.run.cli import Options, UserError
from tests.conftest import token_ids

pytestmark = pytest.mark.slow
LAYERS = np.arange(1, 13, dtype=float).reshape(2, 3, 2)


def row(name, times, tool="peer", gives="both", peak_mib=100.0, error=None):
    return Row(name, name.upper(), tool, gives, 3, times, peak_mib, error)


def rows(**changed):
    every = [
        row("bare", [1.0, 2.0, 4.0], gives="nothing", peak_mib=50.0),
        row("ours", [1.1, 2.0, 4.8], tool="ours", peak_mib=90.0),
        row("slow", [3.0, 6.0, 9.0]),
        row("fast", [2.2, 3.0, 4.8]),
        row("less", [0.5, 1.0, 2.0], gives="layers", peak_mib=95.0),
    ]
    return compare.spreads({r.name: replace(r, **changed.get(r.name, {})) for r in every})


def test_equal_values_pass_and_the_largest_difference_is_named():
    values = {
        "a": {"layers": LAYERS, "heads": np.ones((2, 3))},
        "b": {"layers": LAYERS[:, :2] * (1 + 1e-6)},  # a tool that does not give the last layer
        "c": {"layers": LAYERS * (1 - 2e-6), "heads": np.ones((2, 3))},
    }
    differences = compare.require_equal(values)
    assert differences["layers"].between == ("b", "c")
    assert differences["layers"].relative == pytest.approx(3e-6, rel=1e-3)
    assert differences["heads"] == Difference(0.0, ("a", "c"))


def one_value(array):
    array[1, 2, 0] *= 1 + 2 * compare.TOLERANCE


def not_a_number(array):
    array[0, 0, 0] = np.nan


@pytest.mark.parametrize("spoil", [one_value, not_a_number])
def test_one_value_that_differs_is_refused(spoil):
    spoiled = LAYERS.copy()
    spoil(spoiled)
    with pytest.raises(UserError, match=r"'layers' of a and of b differ"):
        compare.require_equal({"a": {"layers": LAYERS}, "b": {"layers": spoiled}})


def test_a_missing_window_is_refused():
    with pytest.raises(UserError, match="differ"):
        compare.require_equal({"a": {"layers": np.ones((2, 3))}, "b": {"layers": np.ones((1, 3))}})


def test_ratios_are_of_the_same_round():
    every = rows()
    assert compare.spread([3.0, 1.0, 2.0]) == Spread(median=2.0, min=1.0, max=3.0)
    assert astuple(compare.ratios(every["ours"], every["bare"])) == pytest.approx((1.1, 1.0, 1.2))
    assert compare.ratios(replace(every["ours"], error="why"), every["bare"]) is None


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (AtMost("ours", "bare", 1.2001), 1.1, "met"),
        (AtMost("ours", "bare", 1.1001), 1.1, "cannot tell"),  # of one round 1.2, of another 1.0
        (AtMost("ours", "bare", 0.9999), 1.1, "not met"),
        (Faster("ours", "peer", 0.99), 1.5, "met"),  # over `fast`; `less` gives less, `slow` is slower
        (Faster("ours", "peer", 1.49), 1.5, "cannot tell"),
        (Faster("ours", "peer", 2.01), 1.5, "not met"),
        (LeastMemory("ours", ("layers", "both")), 95 / 90, "met"),  # `bare` gives neither
        (FlatMemory("fast", "ours", 1.12), 100 / 90, "met"),
        (FlatMemory("fast", "ours", 1.11), 100 / 90, "not met"),
        (Within("fast", 4.9), 3.0, "met"),
        (Within("fast", 4.8), 3.0, "cannot tell"),
        (Within("fast", 2.2), 3.0, "not met"),
    ],
    ids=str,
)
def test_targets(target, value, verdict):
    judged = target.judge(rows())
    assert judged.value == pytest.approx(value)
    assert judged.verdict == verdict


@pytest.mark.parametrize(("n", "beyond"), [(3, 0), (5, 0), (6, 0), (9, 1), (24, 6)])
def test_the_median_lies_between_as_many_rounds_as_the_sign_test_says(n, beyond):
    """95 % at least, one rank further in would be less; below six rounds the range is all that there is."""
    median, low, high = compare.median_with_interval(np.random.default_rng(0).permutation(n) + 1.0)
    assert (median, low, high) == ((n + 1) / 2, 1 + beyond, n - beyond)
    signs = np.array(list(itertools.product([0, 1], repeat=min(n, 9)))).sum(1)
    if 6 <= n <= 9:
        assert 2 * (signs <= beyond).mean() <= 0.05 < 2 * (signs <= beyond + 1).mean()


def test_more_memory_than_one_other_tool_is_not_met():
    judged = LeastMemory("ours", ("layers", "both")).judge(rows(less={"peak_mib": 89.0}))
    assert judged.value == pytest.approx(89 / 90)
    assert judged.verdict == "not met"


@pytest.mark.parametrize(
    "target",
    [
        Faster("ours", "peer", 1.1),
        LeastMemory("ours", ("layers", "both")),
        AtMost("ours", "bare", 2),
        FlatMemory("ours", "slow", 2),
        Within("slow", 2),
    ],
    ids=str,
)
def test_a_target_that_needs_a_failed_entry_is_unknown(target):
    failed = {"error": "ImportError: no such thing", "times": [], "peak_mib": None}
    judged = target.judge(rows(bare=failed, slow=failed))
    assert judged.value is None
    assert judged.verdict.startswith("unknown: ")


def result(every, device="cpu", memory="resident"):
    results = Results(
        rules=bench.RULES,
        load=Load(average=2.5, cpus=2),
        entries=list(every.values()),
        differences={"layers": Difference(3e-6, ("ours", "slow"))},
        targets=[AtMost("ours", "bare", 1.05).judge(every), Faster("ours", "peer", 1.4).judge(every)],
        regimes=[Regime(16, 64, list(every.values()))],
        memory=memory,
    )
    data = {"windows": 2, "seqlen": 64, "dataset": "d", "bos": False}
    of_model = {"model": {"name": "m", "type": "gpt2"}, "dtype": "float32", "device": device, "seed": 0}
    provenance = {"data": data, **of_model, "time": "", "command": ""}
    config = {"rounds": 3, "threads": 2, "model_name": "m"}
    return catalogue.concluded(result_files.payload("benchmark", config, provenance, results, {}))


def test_table_shows_every_entry_and_why_one_failed():
    failed = {"error": "ImportError: no such thing", "times": [], "peak_mib": None, "n_layers": None}
    text = bench.summarise(result(rows(slow=failed)))
    assert "not measured: peer, SLOW: ImportError: no such thing" in text
    assert "not measured: 16 x 64 tokens, peer, SLOW: ImportError: no such thing" in text
    lines = {line.split()[1]: line.split() for line in text.splitlines() if line.startswith(("peer ", "ours "))}
    (passes,) = [line.split() for line in text.splitlines() if line.strip().startswith("16 x 64") and "OURS" in line]
    assert passes[3:] == ["ours", "OURS", "2.000", "1.100", "4.800", "1.10", "1.00", "1.20", "90"]
    assert lines["OURS"][2:] == ["both", "(3)", "2.000", "1.100", "4.800", "1.10", "1.00", "1.20", "90"]
    assert lines["SLOW"][-7:] == ["-"] * 7
    assert any(line.endswith("1.10  [1.00, 1.20]  cannot tell") for line in text.splitlines())
    assert "load average before: 2.5 on 2 CPUs" in text
    assert any("unknown: slow failed" in line for line in text.splitlines())


def test_table_and_figure_say_which_memory_and_what_computed():
    here, there = result(rows()), result(rows(), "NVIDIA H200", "GPU")
    for one, memory, threads, where in ((here, "resident", True, "2 threads"), (there, "GPU", False, "NVIDIA H200")):
        text, figure = bench.summarise(one), figures.benchmark(one)
        assert text.count(f"peak MiB, {memory}") == 2
        assert ("2 threads" in text) == threads
        assert where in figure.get_suptitle()
        assert memory in figure.axes[1].get_xlabel()


@pytest.mark.parametrize(
    ("device", "hardware", "name"),
    [("cpu", "cpu", "m"), ("cuda", "NVIDIA H200", "m_nvidia-h200"), ("mps", "M2", "m_m2")],
)
def test_files_of_an_accelerator_have_its_name(device, hardware, name, monkeypatch):
    monkeypatch.setattr(models, "chosen_device", torch.device)
    monkeypatch.setattr(models, "device_name", lambda _device: hardware)
    config = result_files.config(bench.Options(model="m", device=device))
    assert bench.BENCHMARK.json.format(**config) == f"{name}_bench.json"


def test_an_entry_that_is_not_timed_has_a_peak_alone():
    text = bench.summarise(result(rows(less={"times": []})))
    line = next(line for line in text.splitlines() if "LESS" in line)
    assert line.split()[-7:] == ["-"] * 6 + ["95"]


def test_figure_has_a_bar_for_each_entry_measured():
    failed = {"error": "why", "times": [], "peak_mib": None}
    figure = figures.benchmark(result(rows(slow=failed, less={"times": []})))
    for ax in figure.axes:
        assert len(ax.patches) == 4


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "bench").glob("*.json")), ids=lambda path: path.stem)
def test_stored_results_can_be_drawn_anew(path, tmp_path):
    execute(bench.BENCHMARK, bench.Options(replot=path, savedir=tmp_path))
    assert {made.suffix for made in tmp_path.iterdir()} == {".txt", ".png"}
    memory = json.loads(path.read_text())["results"]["memory"]
    assert f"peak MiB, {memory}" in (tmp_path / f"{path.stem}.txt").read_text()


def test_targets_of_older_results_have_no_interval():
    stored = result(rows())
    older = msgspec.to_builtins(stored.results, str_keys=True)
    for target in older["targets"]:
        del target["interval"]
    read = msgspec.convert(upgraded("benchmark", 3, older), Results, str_keys=True)
    assert [target.interval for target in read.targets] == [None, None]
    assert "x BARE 1.10 - cannot tell" in " ".join(bench.summarise(replace(stored, results=read)).split())


def test_an_entry_that_cannot_start_says_why():
    started = worker.Worker("no such entry", Options(), np.zeros((1, 4), dtype=int), threads=1)
    started.run(np.zeros((1, 4), dtype=int))
    started.end()
    assert started.error == "KeyError: 'no such entry'"
    assert (started.values, started.seconds, started.peak_mib) == (None, [], None)


def test_an_entry_whose_process_is_killed_is_an_error(tiny_llama_folder):
    options = Options(model=str(tiny_llama_folder), device="cpu", offline=True, batch_size=1)
    ids = token_ids(1, 8).numpy()
    started = worker.Worker("bare", options, ids, threads=1)
    assert started.values.keys() == {"output"}
    assert started.peak_mib > 0
    started.run(ids)
    started.process.kill()
    started.process.join()
    started.run(ids)
    started.run(ids)
    started.end()
    assert started.error == "exit code -9"
    assert len(started.seconds) == 1


@pytest.mark.parametrize(("at_least", "passes"), [(0, 1), (0.2, 2), (0.25, 3)])
def test_a_timing_takes_at_least_so_long(at_least, passes, monkeypatch):
    clock, begun = itertools.count(step=0.1), []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(worker, "AT_LEAST", at_least)
    assert worker._seconds(begun.append, "ids", torch.device("cpu")) == pytest.approx(0.1)
    assert begun == ["ids"] * passes


def test_passes_that_the_windows_have_no_tokens_for_are_told(tiny_llama_folder, text_file, monkeypatch):
    names = ("bare", "layers_heads", "attentions")
    monkeypatch.setattr(entries, "ENTRIES", {name: ENTRIES[name] for name in names})
    monkeypatch.setattr(entries, "TARGETS", [AtMost("layers_heads", "bare", 100)])
    options = bench.Options(
        model=str(tiny_llama_folder), device="cpu", offline=True, dataset=str(text_file), seqlen=64, rounds=2, threads=1
    )
    lm = models.load(options)
    results = bench.run(lm, data.load(options, lm), options)
    errors = {str(regime): {row.error for row in regime.entries} for regime in results.regimes}
    too_few = {"the windows have too few tokens"}
    assert errors == {"1 x 16": {None}, "1 x 64": {None}, "16 x 64": too_few, "1 x 1024": too_few}
    assert [len(row.times) for row in results.regimes[0].entries] == [2 * bench.OFTEN] * 3
    of_regimes = [(target.text, target.verdict) for target in results.targets[1:]]
    assert of_regimes[0][0] == "passes of 1 x 16 tokens: layerwise + heads pass: at most 1.15 x bare forward"
    assert of_regimes[1][0] == "passes of 1 x 16 tokens: layerwise + heads pass: at least 1 x as fast as transformers"
    assert all(verdict in ("met", "cannot tell", "not met") for _text, verdict in of_regimes[:4])
    assert all(verdict.startswith("unknown: ") for _text, verdict in of_regimes[4:])


def test_targets_name_entries():
    of_regimes = [target for targets in REGIME_TARGETS.values() for target in targets]
    assert {target.entry for target in of_regimes} <= set(REGIME_ENTRIES)
    for target in TARGETS + of_regimes:
        assert target.entry in ENTRIES
        tool = getattr(target, "tool", None)
        assert tool is None or any(e.tool == tool and e.gives == ENTRIES[target.entry].gives for e in ENTRIES.values())


def test_entries_agree(tiny_llama_folder):
    """Those that need nothing beyond requirements.txt; a tiny model's values pass the gate, and all are in it."""
    options = Options(model=str(tiny_llama_folder), device="cpu", offline=True, batch_size=1)
    ids = token_ids(2, 40)
    own = [name for name, e in ENTRIES.items() if e.tool in (entries.OURS, entries.TRANSFORMERS)]
    values = {name: ENTRIES[name].prepare(options)(ids) for name in own}
    differences = compare.require_equal(values)
    assert differences.keys() == {key for of in values.values() for key in of}  # each key is given by two entries
    assert values["layers"]["layers"].shape == (2, 3, 4)
    assert values["layers_heads"]["heads"].shape == (2, 3, 4)
