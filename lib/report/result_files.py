"""Result files: JSON with provenance, TXT, figures. A file appears complete or not at all."""

import dataclasses
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from lib.report.upgrades import readable
from lib.run import atomic, terminal
from lib.run.cli import DRAWING, Options
from lib.run.errors import UserError, cause

SCHEMA_VERSION = 3
UNREPEATED = ("time", "seconds", "git")

Results = TypeVar("Results")
Conclusion = TypeVar("Conclusion")


@dataclass(frozen=True)
class Result(Generic[Results, Conclusion]):
    """A result as TXT, figures and claims read it: the JSON, with `results` of the experiment's own type.

    conclusion: lib.core.evidence.Conclusion, judged by the rules of today; None of an experiment without a judge.
    """

    experiment: str
    provenance: dict[str, Any]
    config: dict[str, Any]
    results: Results
    conclusion: Conclusion
    files: dict[str, Any]


def require_folder(path: Path) -> None:
    """Raise UserError if there is no such folder."""
    if path.is_file():
        raise UserError(f"{path} is a file; give a folder of results, as {path.parent}")
    if not path.is_dir():
        raise UserError(f"no such folder: {path}")


def check_writable(folder: Path, names: Iterable[str] = ()) -> None:
    """Raise UserError if no files of these names can be written into `folder`, which need not exist yet."""
    try:
        for name in names:
            if stat.S_ISDIR(_kind(folder / name)):
                raise UserError(f"cannot write {folder / name}: it is a folder")
        for place in (folder, *folder.absolute().parents):
            if _kind(place):
                if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                    raise UserError(f"cannot write results to {folder}: {place} is not a writable folder")
                return
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write results to {folder}: {cause(error)}") from error


def _kind(path: Path) -> int:
    """st_mode of what is there, a broken link, too; 0 where there is nothing."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


@contextmanager
def result_file(path: Path) -> Iterator[str]:
    """As `complete_file`, of what is told when the run is interrupted."""
    with atomic.complete_file(path) as temporary:
        yield temporary
    terminal.written.append(path)


def native(name: str) -> str:
    """A file name from a result in the encoding of this machine's file names, which may not be that of the run's."""
    return os.fsdecode(name.encode(errors="surrogateescape"))


def write_text(path: Path, text: str) -> None:
    """What UTF-8 cannot hold, half of a surrogate pair, is written as \\udc80: JSON reads that back."""
    with result_file(path) as temporary:
        Path(temporary).write_text(text.encode(errors="backslashreplace").decode(), encoding="utf-8")


def write_json(path: Path, payload: dict[str, Any]) -> None:
    write_text(path, _dump(payload) + "\n")


def _dump(value: Any, indent: str = "") -> str:
    """JSON text in which what holds no further lists or objects stands on one line."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    flat = not any(
        isinstance(v, dict) or (isinstance(v, list) and v and isinstance(v[0], (dict, list))) for v in inside
    )
    if flat:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    deeper = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {_dump(v, deeper)}" for key, v in value.items()]
        opening, closing = "{}"
    else:
        items = [_dump(v, deeper) for v in value]
        opening, closing = "[]"
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(items) + f"\n{indent}{closing}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {cause(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: not a JSON object")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is not a finite number")
    return float(text)


def load(path: Path, experiment: str) -> dict[str, Any]:
    """The payload of a result JSON. Raises UserError if it is missing, malformed, changed or of another experiment."""
    payload = read_json(path)
    if payload.get("experiment") != experiment:
        raise UserError(f"{path} is not a result of '{experiment}' but of '{payload.get('experiment')}'")
    if not readable(experiment, payload.get("schema_version")):
        raise UserError(f"{path} has schema version {payload.get('schema_version')}, not {SCHEMA_VERSION}")
    provenance = payload.get("provenance")
    if not isinstance(provenance, dict) or provenance.get("sha256", _sha256(payload)) != _sha256(payload):
        raise UserError(f"{path} is not what a run wrote: its content does not have the sha256 in its provenance")
    return payload


def _sha256(payload: dict[str, Any]) -> str:
    """Of a payload but for what differs when the same run is repeated, and the hash itself."""
    kept = {key: value for key, value in payload["provenance"].items() if key not in (*UNREPEATED, "sha256")}
    return hashlib.sha256(json.dumps(payload | {"provenance": kept}, sort_keys=True).encode()).hexdigest()


def lookup(payload: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, for example results.layers.11.top1.mean; those of all items, where a `*` stands for
    the number of one. Raises LookupError if there is none."""
    value: Any = payload
    keys = path.split(".")
    for i, key in enumerate(keys):
        if key == "*":
            return [lookup(item, ".".join(keys[i + 1 :])) for item in value]
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def plain(value: Any) -> Any:
    """JSON types only; floats to 7 significant digits (float32 carries no more), nan and inf as null."""
    return _rounded(msgspec.to_builtins(value, str_keys=True, enc_hook=_as_builtin))


def _as_builtin(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no part of a result")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def config(options: Options) -> dict[str, Any]:
    """Every option that can change a result, and the model's short name for files."""
    kept = {name: value for name, value in dataclasses.asdict(options).items() if name not in DRAWING}
    return kept | {"model_name": options.model_name}


def payload(
    experiment: str, config: dict[str, Any], provenance: dict[str, Any], results: Any, files: dict[str, Any]
) -> dict[str, Any]:
    """What the JSON holds; all but provenance's UNREPEATED is the same for the same run on the same machine."""
    whole = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "experiment": experiment,
            "provenance": provenance,
            "config": config,
            "results": results,
            "files": files,
        }
    )
    whole["provenance"]["sha256"] = _sha256(whole)
    return whole
