"""Several processes give what one gives, to the bit, and end together. Threads stand in for processes where many cases
are tried; one real torchrun proves that they may."""

import copy
import importlib
import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import torch

import main_llm
from lib import experiment
from lib.core import data
from lib.report import result_files
from lib.run import checkout, cli, processes
from tests import mixtures
from tests.conftest import SPIKE_TOKEN, TEXT, language_model, planted_model, save, tiny_model, token_ids
from tests.scripts.test_scripts import NEEDS_EXPERTS, SCRIPTS, SMALL, files, run

pytestmark = pytest.mark.slow


@pytest.fixture
def in_threads(monkeypatch):
    """(n, function(rank)) -> what each of n threads, which take themselves for processes, returned."""

    def start(n, function):
        me, meeting, table = threading.local(), threading.Barrier(n), [None] * n

        def exchange(mine):
            table[me.rank] = pickle.dumps(mine)
            meeting.wait()
            everyone = [pickle.loads(of) for of in table]
            meeting.wait()
            return everyone

        def as_rank(rank):
            me.rank = rank
            try:
                return function(rank)
            except BaseException:
                meeting.abort()
                raise

        with monkeypatch.context() as patch, ThreadPoolExecutor(n) as pool:
            patch.setattr(processes, "rank", lambda: me.rank)
            patch.setattr(processes, "size", lambda: n)
            patch.setattr(processes, "_exchange", exchange)
            return list(pool.map(as_rank, range(n)))

    return start


def spiked_windows():
    ids = token_ids(5, 16)
    ids[:, 5] = SPIKE_TOKEN
    ids[4, 2] = SPIKE_TOKEN
    return data.Windows(ids, 5, False, "tokens")


ONE_SENTENCE = ("main_llm.py --exp1", "main_llm.py --exp4", "compare_3d_before_after_pruning.py")


def exact(results):
    """JSON with every digit, unlike the one in files."""
    return msgspec.json.encode(results, enc_hook=lambda value: value.tolist())


def experiment_of(script):
    """The Experiment of a key of SCRIPTS, and the options for it."""
    name, *flags = script.split()
    module = importlib.import_module(name.removesuffix(".py"))
    few = ["--n_random", "1"] if "--n_random" in SCRIPTS[script][0] else []
    options = cli.parse(module.Options, "", [*flags, *SCRIPTS[script][0], *few, "--batch_size", "2"])
    return (module.EXPERIMENTS[flags[0].strip("-")] if flags else module.EXPERIMENT), options


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in ONE_SENTENCE])
def test_same_results_to_the_bit(script, in_threads, tokenizer):
    """Five windows in batches of two, for two processes: shares are unequal, and some parts leave one without."""
    of_script, options = experiment_of(script)
    model = mixtures.planted().lm.model if script in NEEDS_EXPERTS else planted_model("gpt2")
    lm, windows = language_model(model, tokenizer), spiked_windows()
    models = [language_model(copy.deepcopy(lm.model), tokenizer) for _ in range(2)]
    one = exact(of_script.run(lm, windows, options))
    for of in in_threads(2, lambda rank: exact(of_script.run(models[rank], windows, options))):
        assert of == one


def test_shares_are_whole_batches_in_order(in_threads):
    ids = torch.arange(23)
    for n in (1, 2, 3, 5, 9):
        for batch_size in (1, 4, 5):
            shares = in_threads(n, lambda _rank, size=batch_size: [*processes.batches(ids, size)])
            assert torch.equal(torch.cat([batch for of in shares for _rows, batch in of]), ids)
            assert all(torch.equal(ids[rows], batch) for of in shares for rows, batch in of)
            got = [batch for of in shares for _rows, batch in of]
            assert list(map(len, got)) == list(map(len, ids.split(batch_size)))
            counts = [len(of) for of in shares]
            assert max(counts) - min(counts) <= 1


def test_sums_are_in_the_order_of_the_windows(in_threads):
    """Terms whose floating-point sum depends on the order."""
    terms = [1e16, 1.0, -1e16, 1.0, 1e-3, 3e15, -7.0]

    def total(terms):
        of = processes.Sum()
        for term in terms:
            of += term
        return of

    one = total(terms).total
    assert one != sum(sorted(terms))
    shares = in_threads(
        3, lambda _rank: processes.merged([total([terms[i] for i in range(len(terms))[processes.own(7, 1)]])])
    )
    assert [of.total for (of,) in shares] == [one] * 3


def test_the_first_process_alone_writes(tmp_path, monkeypatch):
    result = checkout.ROOT / "results" / "smollm2-135m" / "main_llm" / "smollm2-135m_layerwise.json"
    monkeypatch.setattr(experiment, "_measure", lambda *_args: result_files.read_json(result))
    for rank in (1, 0):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        for name, replot in (("measured", None), ("redrawn", result)):
            out = tmp_path / f"{name} {rank}"
            experiment.execute(main_llm.LAYERWISE, main_llm.Options(savedir=out, replot=replot))
            assert out.exists() == (rank == 0)


def test_torchrun(tokenizer, tmp_path):
    """Two gloo processes: the files of one process, and an error of one process alone ends both."""
    planted = save(tmp_path / "planted", planted_model("gpt2"), tokenizer)
    broken_model = tiny_model("gpt2")
    broken_model.transformer.wte.weight.data[tokenizer("~")["input_ids"], 3] = 3e38
    broken_model.transformer.h[0].mlp.c_proj.bias.data[3] = 2e38  # too much for float32 where they meet
    broken = save(tmp_path / "broken", broken_model, tokenizer)
    text = tmp_path / "text.txt"
    text.write_text(TEXT[:1200].replace("~", "").replace(".", tokenizer.decode([SPIKE_TOKEN])) + "~" * 200)
    windows = len(tokenizer(text.read_text())["input_ids"]) // 32

    def jobs(out):
        sample = ["--dataset", str(text), "--seqlen", "32", "--batch_size", "1", *SMALL]
        for i, (script, model, n) in enumerate(
            [
                ("main_llm.py --exp1 --exp2", planted, "5"),
                ("exp1_feasibility_test.py", planted, "3"),
                ("main_llm.py --exp2", broken, str(windows)),
                ("main_llm.py --exp2", planted, "1"),
            ]
        ):
            yield [script, "--model", str(model), "--nsamples", n, *sample, "--savedir", str(out / str(i))]

    one, two = tmp_path / "one", tmp_path / "two"
    for job in [*jobs(one)][:2]:
        assert run(*job) == 0
    (tmp_path / "jobs.json").write_text(json.dumps([*jobs(two)]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "tests.in_ranks"]
    done = subprocess.run([*launch, tmp_path / "jobs.json"], cwd=checkout.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = [json.loads((tmp_path / f"jobs.{rank}").read_text()) for rank in (0, 1)]
    assert ends == [{"codes": [0, 0, 2, 2], "connected": False}] * 2  # left to the end, a process aborts now and then
    first, second = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "non-finite values at layer " in first
    assert "2 processes" in second
    assert done.stdout.count("Largest activations of every layer") == 1
    assert files(one) == files(two)
    for name in files(one):
        if name.endswith(".json"):
            payloads = [json.loads((folder / name).read_text()) for folder in (one, two)]
            assert [payload["provenance"].pop("processes") for payload in payloads] == [1, 2]
            for payload in payloads:
                for key in ("command", "seconds", "threads", "time", "git", "sha256"):
                    del payload["provenance"][key]
                del payload["config"]["savedir"]
            assert payloads[0] == payloads[1]
            assert name.endswith("3d.json") or payloads[0]["results"]["massive"]
        elif name.endswith(".png"):
            assert (one / name).read_bytes() == (two / name).read_bytes()
