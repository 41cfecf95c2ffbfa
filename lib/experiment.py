"""What every script does around its own `run`: load, run, write JSON and TXT, draw; or, with --replot, only draw."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from lib import plots, ranks, report
from lib.cli import UserError

CPU_TOKENS = 1024  # of a batch with --batch_size auto; more are no faster there
GPU_WINDOWS = 128  # to begin with, there


@dataclass(frozen=True)
class Experiment:
    """One experiment of a script. File names may hold {model_name} and the options' fields."""

    name: str
    json: str
    txt: str
    run: Callable
    """(lm, windows, options) -> a dataclass, the `results` of the JSON."""
    summary: Callable
    """payload of the JSON -> text that is printed and begins the TXT."""
    figures: dict
    """{file name: payload -> matplotlib figure}."""
    details: Callable | None = None
    """payload -> the rest of the TXT."""
    extra: dict = field(default_factory=dict)
    """{file name: payload -> text} of further text files."""
    windows: Callable | None = None
    """(options, lm) -> data.Windows; None: `data.load`."""


def execute(experiment, options):
    """Carry out one experiment and print its summary and where the files are."""
    if options.replot:
        if ranks.rank() > 0:
            return
        payload = report.load(options.replot, experiment.name)
        folder = options.savedir or options.replot.parent
        report.check_writable(folder)
    else:
        folder = options.output_dir
        report.check_writable(folder)
        payload = _measure(experiment, options)
        if ranks.rank() > 0:
            return
        text = experiment.summary(payload)
        print(text)
        report.write_json(folder / payload["files"]["json"], payload)
        if experiment.details:
            text += "\n" + experiment.details(payload)
        texts = [text, *(make(payload) for make in experiment.extra.values())]
        for name, content in zip([payload["files"]["txt"], *payload["files"]["extra"]], texts, strict=True):
            report.write_text(folder / name, content)
            print(folder / name)
        print(folder / payload["files"]["json"])
    for name, draw in zip(payload["files"]["figures"], experiment.figures.values(), strict=True):
        with report.complete_file(folder / name) as temporary:
            plots.save(draw(payload), temporary)
        print(folder / name)


def _measure(experiment, options):
    from lib import data, massive, models

    start = time.monotonic()
    lm = models.load(options)
    windows = (experiment.windows or data.load)(options, lm)
    with massive.limit_watched(lm) as largest:
        results, options = _run(experiment, lm, windows, options)
    seconds = time.monotonic() - start
    config = report.config(options)
    files = {
        "json": experiment.json.format(**config),
        "txt": experiment.txt.format(**config),
        "extra": [name.format(**config) for name in experiment.extra],
        "figures": [name.format(**config) for name in experiment.figures],
    }
    provenance = report.provenance(options, lm, windows, seconds)
    if warning := massive.limit_warning(lm, largest):
        print(f"warning: {warning}", file=sys.stderr)
        provenance["warning"] = warning
    return report.payload(experiment.name, config, provenance, results, files)


def _run(experiment, lm, windows, options):
    """(results, options with the batch size that was used). Raises UserError if memory is short even so."""
    auto = options.batch_size == "auto"
    if auto:
        n, seqlen = windows.ids.shape
        most = CPU_TOKENS // seqlen if lm.device.type == "cpu" else GPU_WINDOWS
        options = replace(options, batch_size=max(1, min(most, n // ranks.size())))
    while True:
        try:
            with ranks.failing_together():
                return experiment.run(lm, windows, options), options
        except RuntimeError as error:
            from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

            if not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)
        if not auto or options.batch_size == 1:
            raise UserError(f"out of memory with --batch_size {options.batch_size}")
        options = replace(options, batch_size=options.batch_size // 2)
