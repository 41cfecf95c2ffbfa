"""What every script does around its own `run`: load, run, write JSON and TXT, draw; or, with --replot, only draw."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lib import plots, report
from lib.cli import UserError


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


def execute(experiment, options, lm=None):
    """Carry out one experiment and print its summary and where the files are; `lm`: the model, if it is loaded."""
    if options.replot:
        payload = report.load(options.replot, experiment.name)
        folder = options.savedir or options.replot.parent
        report.check_writable(folder)
    else:
        folder = options.output_dir
        report.check_writable(folder)
        payload = _measure(experiment, options, lm)
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


def already_there(experiment, options, lm):
    """Whether this experiment's files are there, of the same options, code, model, data, packages and machine."""
    config = report.config(options)
    folder = options.output_dir
    try:
        payload = report.load(folder / experiment.json.format(**config), experiment.name)
        provenance = report.provenance(options, lm, _windows(experiment, options, lm), 0)
        expected = report.payload(experiment.name, config, provenance, None, _files(experiment, config))
        names = [payload["files"]["txt"], *payload["files"]["extra"], *payload["files"]["figures"]]
    except (UserError, LookupError, TypeError):
        return False
    return (
        all((folder / name).is_file() for name in names)
        and all(payload[key] == expected[key] for key in ("config", "files"))
        and _repeats(payload["provenance"]) == _repeats(expected["provenance"])
    )


def _repeats(provenance):
    """The part of a provenance that is the same whenever the same thing is measured."""
    return {key: value for key, value in provenance.items() if key not in report.NOT_REPEATED}


def _windows(experiment, options, lm):
    from lib import data

    return (experiment.windows or data.load)(options, lm)


def _files(experiment, config):
    return {
        "json": experiment.json.format(**config),
        "txt": experiment.txt.format(**config),
        "extra": [name.format(**config) for name in experiment.extra],
        "figures": [name.format(**config) for name in experiment.figures],
    }


def _measure(experiment, options, lm):
    from lib import models

    start = time.monotonic()
    lm = lm or models.load(options)
    windows = _windows(experiment, options, lm)
    results = experiment.run(lm, windows, options)
    seconds = time.monotonic() - start
    config, files = report.config(options), _files(experiment, report.config(options))
    return report.payload(experiment.name, config, report.provenance(options, lm, windows, seconds), results, files)
