"""What measuring costs: our passes and those of other tools beside a bare forward of the same model.

    python -m benchmarks.bench --model smollm2-135m --dataset python-docs --savedir results/bench

Each entry of benchmarks/entries.py runs in a process of its own, with the same checkpoint, windows, dtype, device and
threads. First each measures all windows, and nothing is timed if what they measured is not equal. Then, in each of
--rounds rounds, each is timed on one window in turn; a few are, too, on passes of other sizes. `make bench` does this
in an environment that has the other tools.
"""

import dataclasses
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import compare
from benchmarks.results import Load, Regime, Results, Row
from benchmarks.worker import AT_LEAST, Worker
from lib import catalogue
from lib.experiment import Experiment, execute
from lib.report import tables
from lib.run import cli

OFTEN = 4  # their targets are a few percent of short times
PEAKS = {"resident": "resident memory of", "GPU": "memory that PyTorch had on the GPU for"}
RULES = f"""\
equal   what two entries both give differs by at most {compare.TOLERANCE:g} of its size ({compare.LEAST:.0%} of the
        largest, where it is smaller), or no time is reported
timing  the mean of as many passes as take {AT_LEAST:g} seconds, one after the other
ratio   the median over rounds of an entry's time over the bare forward's of the same round
faster  the same, of the other tool's fastest entry that gives as much over ours
target  met or not at both ends of the median's 95 % interval (order statistics over rounds), else: cannot tell
peak    the largest {{peak}} the entry's own process, loading and one pass over all windows
gives   what is measured, in brackets of how many layers"""


@dataclass(frozen=True)
class Options(cli.Options):
    nsamples: int = cli.flag(1, "number of token windows")
    rounds: int = cli.flag(6, f"times that each entry is timed, on one window each time; other sizes x {OFTEN}")
    threads: int = cli.flag(2, "threads of each entry's process")

    @property
    def model_name(self) -> str:
        """On an accelerator with its name: the files of one machine stand beside those of others."""
        from lib.model import models

        device = models.chosen_device(self.device)
        name = super().model_name
        if device.type == "cpu":
            return name
        return f"{name}_{re.sub('[^a-z0-9]+', '-', models.device_name(device).lower()).strip('-')}"


def run(lm, windows, options):
    import torch

    from benchmarks.entries import ENTRIES, REGIME_ENTRIES, REGIME_TARGETS, TARGETS

    load = Load(os.getloadavg()[0], os.cpu_count() or 1)
    torch.set_num_threads(options.threads)
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(cli.Options)}
    shared = cli.Options(**values | {"model": lm.model.name_or_path, "device": str(lm.device)})
    rows, differences = _measured(ENTRIES, shared, windows.ids, options, options.rounds)
    targets = [target.judge(rows) for target in TARGETS]
    regimes = []
    for (n, tokens), judges in REGIME_TARGETS.items():
        if windows.ids.numel() < n * tokens or windows.ids.shape[1] < tokens:
            found = {name: _row(name, error="the windows have too few tokens") for name in REGIME_ENTRIES}
        else:
            ids = windows.ids.flatten()[: n * tokens].view(n, tokens)
            together = dataclasses.replace(shared, batch_size=n)
            found, _equal = _measured(REGIME_ENTRIES, together, ids, options, OFTEN * options.rounds, at_once=n)
        regimes.append(Regime(n, tokens, list(found.values())))
        judged = [target.judge(found) for target in judges]
        targets += [dataclasses.replace(one, text=f"passes of {n} x {tokens} tokens: {one.text}") for one in judged]
    memory = "GPU" if lm.device.type == "cuda" else "resident"
    rules = RULES.format(peak=PEAKS[memory])
    return Results(rules, load, list(rows.values()), differences, targets, regimes, memory)


def _measured(names, shared, ids, options, rounds, at_once=1):
    """({name: Row}, differences) of entries, each in its own process, timed in turn on `at_once` of the windows `ids`.

    Raises UserError if what they measure is not equal.
    """
    from tqdm import tqdm

    from benchmarks.entries import ENTRIES

    workers = {}
    with ExitStack() as stack:
        for name in tqdm(names, unit="entry", desc="values", disable=None):
            workers[name] = Worker(name, shared, ids.numpy(), options.threads)
            stack.callback(workers[name].end)
            if not ENTRIES[name].timed:
                workers[name].end()
        values = {name: worker.values for name, worker in workers.items() if worker.values is not None}
        differences = compare.require_equal(values)
        timed = [name for name in names if ENTRIES[name].timed]
        for turn in tqdm(range(rounds), unit="round", desc="times", disable=None):
            first = turn % len(timed)
            start = turn * at_once % len(ids)
            for name in timed[first:] + timed[:first]:
                workers[name].run(ids[start : start + at_once].numpy())
    rows = {
        name: _row(
            name,
            n_layers=values[name]["layers"].shape[1] if "layers" in values.get(name, {}) else None,
            times=worker.seconds,
            peak_mib=worker.peak_mib,
            error=worker.error,
        )
        for name, worker in workers.items()
    }
    return compare.spreads(rows), differences


def _row(name, n_layers=None, times=(), peak_mib=None, error=None):
    from benchmarks.entries import ENTRIES

    entry = ENTRIES[name]
    return Row(name, entry.label, entry.tool, entry.gives, n_layers, list(times), peak_mib, error)


def summarise(result):
    r, config = result.results, result.config
    on_cpu = result.provenance["device"] == "cpu"
    rows = [[row.tool, row.label, _gives(row), *_numbers(row)] for row in r.entries]
    in_regimes = [[regime, row.tool, row.label, *_numbers(row)] for regime in r.regimes for row in regime.entries]
    failed = [("", row) for row in r.entries]
    failed += [(f"{regime} tokens, ", row) for regime in r.regimes for row in regime.entries]
    equal = [
        f"{key}: {difference.relative:.1e}, between {' and '.join(difference.between)}"
        for key, difference in r.differences.items()
    ]
    heads = ["seconds", "min", "max", "x bare", "min", "max", f"peak MiB, {r.memory}"]
    rounds = max((len(row.times) for regime in r.regimes for row in regime.entries), default=0)
    regimes = [
        f"The same of passes of other sizes, seconds a pass, {rounds} rounds",
        tables.table(["windows x tokens", "tool", "entry", *heads], in_regimes),
    ]
    targets = [[t.text, *_of(t), t.verdict] for t in r.targets]
    return "\n".join(
        [
            tables.header(result, "The cost of measuring"),
            f"seconds a window: median, min, max of {config['rounds']} rounds"
            + (f"; {config['threads']} threads" if on_cpu else ""),
            f"load average before: {r.load.average:.1f} on {r.load.cpus} CPUs; well over 1, others were at work and",
            "neither times nor ratios can be relied on",
            r.rules,
            "",
            tables.table(["tool", "entry", "gives", *heads], rows),
            *(regimes if in_regimes else []),
            *(f"not measured: {where}{row.tool}, {row.label}: {row.error}" for where, row in failed if row.error),
            f"Largest differences of equal values: {'; '.join(equal)}",
            "",
            tables.table(["target", "value", "interval", "verdict"], targets),
        ]
    )


def _gives(row):
    return row.gives if row.n_layers is None else f"{row.gives} ({row.n_layers})"


def _numbers(row):
    peak = "-" if row.peak_mib is None else f"{row.peak_mib:,.0f}"
    return [*_cells(row.seconds, tables.number), *_cells(row.ratio, "{:.2f}".format), peak]


def _cells(spread, shown):
    return ["-"] * 3 if spread is None else [shown(value) for value in (spread.median, spread.min, spread.max)]


def _of(target):
    value = "-" if target.value is None else f"{target.value:.2f}"
    return [value, "-" if target.interval is None else "[{:.2f}, {:.2f}]".format(*target.interval)]


def figures():
    from benchmarks import figures

    return {"{model_name}_bench.png": figures.benchmark}


BENCHMARK = Experiment(
    name=catalogue.BENCHMARK,
    json="{model_name}_bench.json",
    txt="{model_name}_bench.txt",
    run=run,
    summary=summarise,
    figures=figures,
)


def main():
    execute(BENCHMARK, cli.parse(Options, __doc__))


if __name__ == "__main__":
    cli.main(main)
