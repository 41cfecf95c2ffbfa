"""What every script does around its own `run`: load, run, judge, write JSON and TXT, draw; or, with --replot, judge and
draw a stored result anew."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from lib import identity, judges, plots, ranks, report
from lib.cli import require_only_replot
from lib.errors import UserError, cause

CPU_TOKENS = 1024  # of a batch with --batch_size auto; more are no faster there
GPU_WINDOWS = 128  # to begin with, there


class IncompleteError(UserError):
    """A file of a result could not be made, and all others are there. payload: the result."""

    def __init__(self, message, payload):
        super().__init__(message)
        self.payload = payload


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
    """Carry out one experiment, write its files, then print its summary and where they are; `lm`: the model, if it is
    loaded. Raises IncompleteError if a file cannot be made; all others are there by then."""
    if options.replot:
        if ranks.rank() > 0:
            return
        payload = report.load(options.replot, experiment.name)
        require_only_replot(options)
        made = _Made(options.savedir or _folder_of(options.replot, payload["files"]["json"]))
        report.check_writable(made.folder)
        with _of_file(options.replot):
            _check_names(experiment, payload, made.folder)
            identity.require_same(made.folder / payload["files"]["json"], payload["provenance"])
            payload["results"] = judges.judged(experiment.name, payload["results"])
        made.add(payload["files"]["txt"], _write_summary, experiment, payload)
        _draw(experiment, payload, made, f"from {options.replot}")
    else:
        made = _Made(options.output_dir)
        report.check_writable(made.folder, _flat(_files(experiment, report.config(options))))
        payload = _measure(experiment, options, lm)
        if ranks.rank() > 0:
            return
        files = payload["files"]
        made.add(files["json"], report.write_json, payload)
        made.add(files["txt"], _write_summary, experiment, payload)
        for name, make in zip(files["extra"], experiment.extra.values(), strict=True):
            made.add(name, lambda path, make=make: report.write_text(path, make(payload)))
        _draw(experiment, payload, made, f"(redraw it with --replot {made.folder / files['json']})")
        print(experiment.summary(payload))
    for path in made.paths:
        print(path)
    if made.failed:
        raise IncompleteError("; ".join(made.failed), payload)


def _folder_of(path, name):
    """The folder of a result whose JSON, at `path`, is called `name` in it, as in comparison/exp1_results.json."""
    parts = Path(report.native(name)).parts
    return path.parents[len(parts) - 1] if path.parts[-len(parts) :] == parts else path.parent


class _Made:
    """Files that are made one after another in a folder, each whatever becomes of the others."""

    def __init__(self, folder):
        self.folder, self.paths, self.failed = folder, [], []

    def add(self, name, write, *content, about=""):
        """Make one by `write(path, *content)`."""
        path = self.folder / report.native(name)
        try:
            write(path, *content)
        except UserError as error:
            self.failed.append(str(error))
        except Exception as error:
            self.failed.append(f"cannot make {path} {about}: {type(error).__name__}: {cause(error)}")
        else:
            self.paths.append(path)


@contextmanager
def _of_file(path):
    """Whatever fails in the block is the fault of what `path` holds."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not a whole result ({type(error).__name__}: {cause(error)})") from error


def _check_names(experiment, payload, folder):
    """Raise ValueError unless TXT and figures are named as by a run, and lie in `folder`."""
    names = [payload["files"]["txt"], *payload["files"]["figures"]]
    inside = all((folder / report.native(name)).resolve().is_relative_to(folder.resolve()) for name in names)
    files = _files(experiment, payload["config"])
    if not inside or names != [files["txt"], *files["figures"]]:
        raise ValueError(f"no run names its files {', '.join(names)}")


def _draw(experiment, payload, made, about):
    for name, draw in zip(payload["files"]["figures"], experiment.figures.values(), strict=True):
        made.add(name, plots.write, draw, payload, about=about)


def _write_summary(path, experiment, payload):
    details = "\n" + experiment.details(payload) if experiment.details else ""
    report.write_text(path, experiment.summary(payload) + details)


def already_there(experiment, options, lm):
    """Whether this experiment's files are there, of the same options, code, model, data, packages and machine."""
    config = report.config(options)
    folder = options.output_dir
    try:
        payload = report.load(folder / experiment.json.format(**config), experiment.name)
        provenance = report.provenance(options, lm, _windows(experiment, options, lm), 0)
        expected = report.payload(experiment.name, config, provenance, None, _files(experiment, config))
        names = _flat(payload["files"])
        if options.batch_size == "auto":
            expected["config"]["batch_size"] = payload["config"]["batch_size"]
    except (UserError, LookupError, TypeError):
        return False
    return (
        all((folder / name).is_file() for name in names)
        and all(payload[key] == expected[key] for key in ("config", "files"))
        and _repeats(payload["provenance"]) == _repeats(expected["provenance"])
    )


def _repeats(provenance):
    """The part of a provenance that is the same whenever the same thing is measured."""
    told_apart = (*report.UNREPEATED, "command", "warning", "sha256")
    return {key: value for key, value in provenance.items() if key not in told_apart}


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


def _flat(files):
    """All names of `_files`."""
    return [files["json"], files["txt"], *files["extra"], *files["figures"]]


def _measure(experiment, options, lm):
    from lib import massive, models

    start = time.monotonic()
    lm = lm or models.load(options)
    path = options.output_dir / experiment.json.format(**report.config(options))
    identity.require_same(path, report.model_provenance(options, lm))
    windows = _windows(experiment, options, lm)
    warnings = _warned(_misfit(lm, windows))
    with massive.limit_watched(lm) as largest:
        results, options = _run(experiment, lm, windows, options)
    seconds = time.monotonic() - start
    config = report.config(options)
    provenance = report.provenance(options, lm, windows, seconds)
    warnings += _warned(massive.limit_warning(lm, largest))
    if warnings:
        provenance["warning"] = "; ".join(warnings)
    results = judges.judged(experiment.name, results)
    return report.payload(experiment.name, config, provenance, results, _files(experiment, config))


def _misfit(lm, windows):
    """One line if the model predicts the first window no better than the frequencies of tokens; else None."""
    if windows.chance is None:
        return None

    from lib import data, hooks

    try:
        loss = hooks.token_losses(lm, windows.ids[:1, : data.LOOK]).mean().item()
    except RuntimeError as error:
        if not _memory_is_short(error):
            raise
        return None  # what is measured may fit all the same, and says so if not
    if not windows.chance <= loss < math.inf:  # what is not finite ends the run where it arises
        return None
    return (
        f"the loss of the first window, {loss:.2f} nats a token, is no better than chance ({windows.chance:.2f}, by "
        "how frequent each token is): weights, tokenizer or text may not belong together"
    )


def _warned(message):
    """[message], told at once, or []."""
    if message is None:
        return []
    print(f"warning: {message}", file=sys.stderr, flush=True)
    return [message]


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
            if not _memory_is_short(error):
                raise
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)
        if not auto or options.batch_size == 1:
            raise UserError(f"out of memory with --batch_size {options.batch_size}")
        options = replace(options, batch_size=options.batch_size // 2)


def _memory_is_short(error):
    from accelerate.utils.memory import should_reduce_batch_size

    return should_reduce_batch_size(error)
