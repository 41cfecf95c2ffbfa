"""What every script does around its own `run`: load, run, write JSON and TXT, draw; or, with --replot, only draw."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

from lib import plots, report
from lib.cli import UserError, first_line


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
        payload = report.load(options.replot, experiment.name)
        folder = options.savedir or options.replot.parent
        report.check_writable(folder)
        with _of_file(options.replot):
            _check_figures(experiment, payload, folder)
            _draw(experiment, payload, folder)
    else:
        folder = options.output_dir
        report.check_writable(folder)
        payload = _measure(experiment, options)
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
        _draw(experiment, payload, folder)


@contextmanager
def _of_file(path):
    """Whatever fails in the block is the fault of what `path` holds."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not a whole result ({type(error).__name__}: {first_line(error)})") from error


def _check_figures(experiment, payload, folder):
    """Raise ValueError unless the figures are named as by a run, and lie in `folder`."""
    names = payload["files"]["figures"]
    inside = all((folder / name).resolve().is_relative_to(folder.resolve()) for name in names)
    if not inside or names != _files(experiment, payload["config"])["figures"]:
        raise ValueError(f"no run names its figures {', '.join(names)}")


def _draw(experiment, payload, folder):
    for name, draw in zip(payload["files"]["figures"], experiment.figures.values(), strict=True):
        with report.complete_file(folder / name) as temporary:
            plots.save(draw(payload), temporary)
        print(folder / name)


def _measure(experiment, options):
    from lib import data, models

    start = time.monotonic()
    lm = models.load(options)
    windows = (experiment.windows or data.load)(options, lm)
    results = experiment.run(lm, windows, options)
    seconds = time.monotonic() - start
    config = report.config(options)
    provenance = report.provenance(options, lm, windows, seconds)
    return report.payload(experiment.name, config, provenance, results, _files(experiment, config))


def _files(experiment, config):
    return {
        "json": experiment.json.format(**config),
        "txt": experiment.txt.format(**config),
        "extra": [name.format(**config) for name in experiment.extra],
        "figures": [name.format(**config) for name in experiment.figures],
    }
