"""What measuring costs: our passes and those of other tools beside a bare forward of the same model.

    python -m benchmarks.bench --model smollm2-135m --dataset python-docs --savedir results/bench

Each entry of benchmarks/entries.py runs in a process of its own, with the same checkpoint, windows, dtype and threads.
First each measures all windows, and nothing is timed if what they measured is not equal. Then, in each of --rounds
rounds, each is timed on one window in turn. `make bench` does this in an environment that has the other tools.
"""

import dataclasses
import os
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import compare
from benchmarks.worker import Worker
from lib.experiment import Experiment, execute
from lib.report import tables
from lib.run import cli

RULES = f"""\
equal   what two entries both give differs by at most {compare.TOLERANCE:g} of its size, or no time is reported
ratio   the median over rounds of an entry's time over the bare forward's of the same round
faster  the same, of the other tool's fastest entry that gives as much over ours
peak    the largest resident memory of the entry's own process, loading and one pass over all windows
gives   what is measured, in brackets of how many layers"""


@dataclass(frozen=True)
class Options(cli.Options):
    nsamples: int = cli.flag(1, "number of token windows")
    rounds: int = cli.flag(5, "times that each entry is timed, on one window each time")
    threads: int = cli.flag(2, "threads of each entry's process")


@dataclass(frozen=True)
class Benchmark:
    """entries: the rows of benchmarks.compare, with `seconds` and `ratio` as {"median", "min", "max"}.

    differences: {key: {"relative", "between"}}, the largest between two entries that measure the same.
    targets: [{"text", "value", "verdict"}], each met, not met or unknown.
    load: {"average", "cpus"}, what else kept the machine busy in the minute before.
    """

    rules: str
    load: dict
    entries: list
    differences: dict
    targets: list


def run(lm, windows, options):
    import torch
    from tqdm import tqdm

    from benchmarks.entries import ENTRIES, TARGETS

    load = {"average": os.getloadavg()[0], "cpus": os.cpu_count()}
    torch.set_num_threads(options.threads)
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(cli.Options)}
    shared = cli.Options(**values | {"model": lm.model.name_or_path})
    workers = {}
    with ExitStack() as stack:
        for name in tqdm(ENTRIES, unit="entry", desc="values", disable=None):
            workers[name] = Worker(name, shared, windows.ids.numpy(), options.threads)
            stack.callback(workers[name].end)
            if not ENTRIES[name].timed:
                workers[name].end()
        names = [name for name in ENTRIES if ENTRIES[name].timed]
        values = {name: worker.values for name, worker in workers.items() if not worker.error}
        differences = compare.require_equal(values)
        for turn in tqdm(range(options.rounds), unit="round", desc="times", disable=None):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                workers[name].run(turn % options.nsamples)
    rows = {
        name: {
            "name": name,
            "label": ENTRIES[name].label,
            "tool": ENTRIES[name].tool,
            "gives": ENTRIES[name].gives,
            "n_layers": values[name]["layers"].shape[1] if "layers" in values.get(name, ()) else None,
            "times": worker.seconds,
            "peak_mib": worker.peak_mib,
            "error": worker.error,
        }
        for name, worker in workers.items()
    }
    for row in rows.values():
        row["seconds"] = None if row["error"] or not row["times"] else compare.spread(row["times"])
        row["ratio"] = compare.ratios(row, rows["bare"])
    return Benchmark(RULES, load, list(rows.values()), differences, [target.judge(rows) for target in TARGETS])


def summarise(result):
    r, config = result.results, result.config
    load = r["load"]
    rows, failed = [], []
    for row in r["entries"]:
        if row["error"]:
            failed.append(f"not measured: {row['tool']}, {row['label']}: {row['error']}")
        gives = row["gives"] if row["n_layers"] is None else f"{row['gives']} ({row['n_layers']})"
        rows.append([row["tool"], row["label"], gives, *_cells(row["seconds"], 3), *_cells(row["ratio"], 2)])
        rows[-1].append("-" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}")
    equal = [
        f"{key}: {difference['relative']:.1e}, between {' and '.join(difference['between'])}"
        for key, difference in r["differences"].items()
    ]
    targets = [[t["text"], "-" if t["value"] is None else f"{t['value']:.2f}", t["verdict"]] for t in r["targets"]]
    heads = ["tool", "entry", "gives", "seconds", "min", "max", "x bare", "min", "max", "peak MiB"]
    return "\n".join(
        [
            tables.header(result, "The cost of measuring"),
            f"seconds a window: median, min, max of {config['rounds']} rounds; {config['threads']} threads",
            f"load average before: {load['average']:.1f} on {load['cpus']} CPUs; well over 1, others were at work and",
            "neither times nor ratios can be relied on",
            r["rules"],
            "",
            tables.table(heads, rows),
            *failed,
            f"Largest differences of equal values: {'; '.join(equal)}",
            "",
            tables.table(["target", "value", "verdict"], targets),
        ]
    )


def _cells(cell, digits):
    return ["-"] * 3 if cell is None else [f"{cell[key]:.{digits}f}" for key in ("median", "min", "max")]


def figures():
    from benchmarks import figures

    return {"{model_name}_bench.png": figures.benchmark}


BENCHMARK = Experiment(
    name="benchmark",
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
