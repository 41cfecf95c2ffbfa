"""What every script does around its own `run`: load, run, write JSON and TXT, draw; or, with --replot, only draw."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from lib import plots, report


@dataclass(frozen=True)
class Experiment:
    """One experiment of a script.

    run: (lm, windows, options) -> a dataclass of results.
    summary: JSON payload -> the text of the TXT.
    figures: JSON payload -> {file name: matplotlib figure}.
    windows: (options, lm) -> data.Windows; default: `data.load`.
    Names may hold {model_name} and any other field of the options.
    """

    name: str
    json: str
    txt: str
    run: Callable
    summary: Callable
    figures: Callable
    windows: Callable | None = None


def execute(experiment, options):
    """Carry out one experiment and print its summary and where the files are."""
    if options.replot:
        payload = report.load(options.replot, experiment.name)
        folder = options.savedir or options.replot.parent
        report.check_writable(folder)
        _draw(experiment, payload, folder)
        return
    folder = options.output_dir
    report.check_writable(folder)

    from lib import data, models

    start = time.monotonic()
    lm = models.load(options)
    windows = (experiment.windows or data.load)(options, lm)
    results = experiment.run(lm, windows, options)
    names = {key: getattr(options, key) for key in options.__dataclass_fields__} | {"model_name": options.model_name}
    files = {"json": experiment.json.format(**names), "txt": experiment.txt.format(**names)}
    payload = report.payload(experiment.name, options, lm, windows, results, time.monotonic() - start, files)
    text = experiment.summary(payload)
    report.write_json(folder / files["json"], payload)
    report.write_text(folder / files["txt"], text)
    print(text)
    print(folder / files["json"])
    print(folder / files["txt"])
    _draw(experiment, payload, folder)


def _draw(experiment, payload, folder):
    for name, figure in experiment.figures(payload).items():
        path = folder / name
        with report.complete_file(path) as temporary:
            figure.savefig(temporary, dpi=plots.DPI)
        print(path)
