"""What every script does around its own `run`: load, run, judge, write JSON and TXT, draw; or, with --replot, judge and
draw a stored result anew."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import catalogue
from lib.core import provenance
from lib.report import identity, result_files
from lib.run import atomic, processes
from lib.run.cli import FORMATS, Options, require_only_replot
from lib.run.errors import UserError, cause
from lib.series import One, Series
from lib.series import measure as measure_series

if TYPE_CHECKING:  # torch takes seconds to import, matplotlib a second, and --help needs none of them
    from matplotlib.figure import Figure

    from lib.core.data import Windows
    from lib.model.models import LanguageModel

CPU_TOKENS, GPU_TOKENS = 1024, 8192  # of a batch with --batch_size auto; more are hardly faster there


Drawings = dict[str, Callable[[Any], "Figure"]]  # by file name, from the Result


class IncompleteError(UserError):
    """A file of a result could not be made, and all others are there. payload: the result."""

    def __init__(self, message: str, payload: dict[str, Any]) -> None:
        super().__init__(message)
        self.payload = payload


@dataclass(frozen=True)
class Experiment:
    """One experiment of a script. File names may hold {model_name} and the options' fields."""

    name: str
    json: str
    txt: str
    run: Callable[[LanguageModel, Windows, Any], Any]
    """Gives the experiment's Results. Its options are of the script's own class."""
    summary: Callable[[Any], str]
    """What is printed and begins the TXT, of the lib.report.result_files.Result."""
    figures: Callable[[], Drawings]
    """Called when they are drawn: matplotlib takes a second to import."""
    details: Callable[[Any], str] | None = None
    """The rest of the TXT."""
    extra: dict[str, Callable[[Any], str]] = field(default_factory=dict)
    """Further text files by name, from the Result."""
    windows: Callable[[Any, LanguageModel], Windows] | None = None
    """What is measured; None: the windows of `data.load`."""
    series: Series | None = None
    """What is measured in the place of one model; `run` gives the Results of one of it."""


def execute(experiment: Experiment, options: Options, lm: LanguageModel | None = None) -> None:
    """Carry out one experiment, write its files, then print its summary and where they are; `lm`: the model, if it is
    loaded. Raises IncompleteError if a file cannot be made; all others are there by then."""
    if options.replot:
        if processes.rank() > 0:
            return
        payload = result_files.load(options.replot, experiment.name)
        require_only_replot(options)
        made = _Made(options.savedir or folder_of(options.replot, payload["files"]["json"]))
        result_files.check_writable(made.folder)
        with of_file(options.replot):
            payload["files"] |= _drawn_today(experiment, payload["config"], options, made.folder)
            identity.require_same(made.folder / payload["files"]["json"], payload["provenance"])
            result = catalogue.concluded(payload)
        made.add(payload["files"]["txt"], _write_summary, experiment, result)
        _draw(experiment, result, payload, options, made, f"from {options.replot}")
    else:
        made = _Made(options.output_dir)
        result_files.check_writable(made.folder, _flat(_files(experiment, result_files.config(options), options)))
        payload = _measure(experiment, options, lm)
        if processes.rank() > 0:
            return
        files = payload["files"]
        with atomic.alone(made.folder):  # several runs may end at once, and each has files that belong together
            identity.require_same(made.folder / files["json"], payload["provenance"])
            _remove_earlier(experiment, payload["config"], options, made.folder)
            made.add(files["json"], result_files.write_json, payload)
            result = catalogue.concluded(payload)
            made.add(files["txt"], _write_summary, experiment, result)
            for name, make in zip(files["extra"], experiment.extra.values(), strict=True):
                made.add(name, lambda path, make=make: result_files.write_text(path, make(result)))
            _draw(
                experiment, result, payload, options, made, f"(redraw it with --replot {made.folder / files['json']})"
            )
        print(experiment.summary(result))
    for path in made.paths:
        print(path)
    if made.failed:
        raise IncompleteError("; ".join(made.failed), payload)


def _remove_earlier(experiment: Experiment, config: dict[str, Any], options: Options, folder: Path) -> None:
    """What was written of an earlier result, figures in any format: none of it may stand beside a new JSON, even if
    the run ends before it writes its own."""
    files = _files(experiment, config, replace(options, format=FORMATS))
    for name in _flat(files)[1:]:
        path = folder / result_files.native(name)
        if path.is_file() and not path.is_symlink():
            path.unlink()


def folder_of(path: Path, name: str) -> Path:
    """The folder of a result whose JSON, at `path`, is called `name` in it, as in comparison/exp1_results.json."""
    parts = Path(result_files.native(name)).parts
    return path.parents[len(parts) - 1] if path.parts[-len(parts) :] == parts else path.parent


class _Made:
    """Files that are made one after another in a folder, each whatever becomes of the others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []
        self.failed: list[str] = []

    def add(self, name: str, write: Callable[..., None], *content: Any, about: str = "") -> None:
        """Make one by `write(path, *content)`."""
        path = self.folder / result_files.native(name)
        try:
            write(path, *content)
        except UserError as error:
            self.failed.append(str(error))
        except Exception as error:
            self.failed.append(f"cannot make {path} {about}: {type(error).__name__}: {cause(error)}")
        else:
            self.paths.append(path)


@contextmanager
def of_file(path: Path) -> Iterator[None]:
    """Whatever fails in the block is the fault of what `path` holds."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not a whole result ({type(error).__name__}: {cause(error)})") from error


def _drawn_today(experiment: Experiment, config: dict[str, Any], options: Options, folder: Path) -> dict[str, Any]:
    """TXT and figures of a stored result, as a run names them today. Raises ValueError unless all lie in `folder`."""
    files = {kind: names for kind, names in _files(experiment, config, options).items() if kind in ("txt", "figures")}
    for name in (files["txt"], *files["figures"]):
        if not (folder / result_files.native(name)).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"no run writes to {name}")
    return files


def _draw(
    experiment: Experiment, result: Any, payload: dict[str, Any], options: Options, made: _Made, about: str
) -> None:
    from lib.report import figures

    drawings = (draw for draw in experiment.figures().values() for _format in options.formats)
    for name, draw in zip(payload["files"]["figures"], drawings, strict=True):
        made.add(name, figures.write, draw, result, options.dpi, options.width, about=about)


def _write_summary(path: Path, experiment: Experiment, result: Any) -> None:
    details = "\n" + experiment.details(result) if experiment.details else ""
    result_files.write_text(path, experiment.summary(result) + details)


def already_there(experiment: Experiment, options: Options, lm: LanguageModel) -> bool:
    """Whether this experiment's JSON is there, of the same options, code, model, data, packages and machine, and what
    --replot does not write anew."""
    config = result_files.config(options)
    folder = options.output_dir
    try:
        payload = result_files.load(folder / experiment.json.format(**config), experiment.name)
        origin = provenance.whole(options, lm, _windows(experiment, options, lm), 0)
        files = _files(experiment, config, options)
        expected = result_files.payload(experiment.name, config, origin, None, files)
        if options.batch_size == "auto":
            expected["config"]["batch_size"] = payload["config"]["batch_size"]
    except (UserError, LookupError, TypeError):
        return False
    return (
        all((folder / name).is_file() for name in files["extra"])
        and payload["config"] == expected["config"]
        and _repeats(payload["provenance"]) == _repeats(expected["provenance"])
    )


def all_written(experiment: Experiment, options: Options) -> bool:
    """Whether all files of a run with these options are there."""
    names = _flat(_files(experiment, result_files.config(options), options))
    return all((options.output_dir / name).is_file() for name in names)


def _repeats(origin: dict[str, Any]) -> dict[str, Any]:
    """The part of a provenance that is the same whenever the same thing is measured."""
    told_apart = (*result_files.UNREPEATED, "command", "warning", "sha256")
    return {key: value for key, value in origin.items() if key not in told_apart}


def _windows(experiment: Experiment, options: Options, lm: LanguageModel) -> Windows:
    from lib.core import data

    return (experiment.windows or data.load)(options, lm)


def _files(experiment: Experiment, config: dict[str, Any], options: Options) -> dict[str, Any]:
    figures = [name.format(**config).removesuffix("png") for name in experiment.figures()]
    return {
        "json": experiment.json.format(**config),
        "txt": experiment.txt.format(**config),
        "extra": [name.format(**config) for name in experiment.extra],
        "figures": [f"{name}{suffix}" for name in figures for suffix in options.formats],
    }


def _flat(files: dict[str, Any]) -> list[str]:
    """All names of `_files`, that of the JSON first."""
    return [files["json"], files["txt"], *files["extra"], *files["figures"]]


def _measure(experiment: Experiment, options: Options, lm: LanguageModel | None) -> dict[str, Any]:
    from lib.model import models

    start = time.monotonic()
    path = options.output_dir / experiment.json.format(**result_files.config(options))
    if lm is None and experiment.series is not None:
        one = partial(_measure_one, experiment, options)
        results, options, origin = measure_series(experiment.name, experiment.series, options, path, one)
    else:
        lm = lm or models.load(options)
        identity.require_same(path, provenance.of_model(options, lm))
        results, options, origin = _measure_one(experiment, options, lm, start=start)
    config = result_files.config(options)
    files = _files(experiment, config, options)
    try:
        results = catalogue.judged(experiment.name, results)
    except Exception:  # what was measured is not lost
        if processes.rank() == 0:
            result_files.write_json(path, result_files.payload(experiment.name, config, origin, results, files))
        raise
    return result_files.payload(experiment.name, config, origin, results, files)


def _measure_one(
    experiment: Experiment, options: Options, lm: LanguageModel, fits: bool = True, start: float | None = None
) -> One:
    """fits: whether the text is to be what the model was trained for. start: when the time began; None: now."""
    from lib.core import massive

    start = time.monotonic() if start is None else start
    windows = _windows(experiment, options, lm)
    warnings = _warned(_misfit(lm, windows) if fits else None)
    with massive.limit_watched(lm) as largest:
        results, options = _run(experiment, lm, windows, options)
    origin = provenance.whole(options, lm, windows, time.monotonic() - start)
    warnings += _warned(massive.limit_warning(lm, largest))
    if warnings:
        origin["warning"] = "; ".join(warnings)
    return results, options, origin


def _misfit(lm: LanguageModel, windows: Windows) -> str | None:
    """One line if the model predicts the first window no better than the frequencies of tokens; else None."""
    if windows.chance is None:
        return None

    from lib.core import data
    from lib.model import next_token

    try:
        loss = next_token.losses(lm, windows.ids[:1, : data.LOOK]).mean().item()
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


def _warned(message: str | None) -> list[str]:
    """The message, told at once, if there is one."""
    if message is None:
        return []
    print(f"warning: {message}", file=sys.stderr, flush=True)
    return [message]


def _run(experiment: Experiment, lm: LanguageModel, windows: Windows, options: Options) -> tuple[Any, Options]:
    """(results, options with the batch size that was used). Raises UserError if memory is short even so."""
    auto = options.batch_size == "auto"
    if auto:
        n, seqlen = windows.ids.shape
        most = (CPU_TOKENS if lm.device.type == "cpu" else GPU_TOKENS) // seqlen
        if processes.size() > 1:
            most = min(most, n // processes.size())
        options = replace(options, batch_size=max(1, most))  # may be more than n: versions of the model share a pass
    while True:
        try:
            with processes.failing_together():
                return experiment.run(lm, windows, options), options
        except RuntimeError as error:
            if not _memory_is_short(error):
                raise
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)
        if not auto or options.batch_size == 1:
            raise UserError(f"out of memory with --batch_size {options.batch_size}")
        options = replace(options, batch_size=options.batch_size // 2)


def _memory_is_short(error: RuntimeError) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    return should_reduce_batch_size(error)
