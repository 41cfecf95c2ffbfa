"""Result files: JSON with provenance, TXT, figures. A file appears complete or not at all."""

import dataclasses
import importlib.metadata
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from lib.cli import UserError

SCHEMA_VERSION = 1
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "datasets", "numpy", "safetensors", "gguf")


def check_writable(folder):
    """Raise UserError if nothing can be written into `folder`, which need not exist yet."""
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                raise UserError(f"cannot write results to {folder}: {place} is not a writable folder")
            return


@contextmanager
def complete_file(path):
    """Yield a temporary path beside `path`; it takes the name of `path` only if the block succeeds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-", suffix=path.suffix)
        os.close(handle)
        try:
            os.chmod(temporary, 0o666 & ~_umask())
            yield temporary
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path, text):
    with complete_file(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def write_json(path, payload):
    write_text(path, json.dumps(_plain(payload), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def load(path, experiment):
    """The payload of a result JSON. Raises UserError if it is missing, malformed or of another experiment."""
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(payload, dict) or payload.get("experiment") != experiment:
        raise UserError(f"{path} is not a result of '{experiment}'")
    if payload.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {payload.get('schema_version')}, not {SCHEMA_VERSION}")
    return payload


def _plain(value):
    """JSON types only; floats to 7 significant digits (float32 carries no more), nan and inf as null."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def payload(experiment, options, lm, windows, results, seconds, files):
    """What the JSON holds; everything but provenance's `time`, `seconds` and `git` repeats on the same machine."""
    return _plain(
        {
            "schema_version": SCHEMA_VERSION,
            "experiment": experiment,
            "provenance": provenance(options, lm, windows) | {"seconds": round(seconds, 1)},
            "config": dataclasses.asdict(options) | {"model_name": options.model_name},
            "results": results,
            "files": files,
        }
    )


def provenance(options, lm, windows):
    import torch

    return {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": _git(),
        "model": {"name": options.model, "type": lm.model.config.model_type, **lm.source},
        "data": windows.provenance,
        "seed": options.seed,
        "dtype": options.dtype,
        "attention": lm.model.config._attn_implementation,
        "device": torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else str(lm.device),
        "threads": torch.get_num_threads(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _git():
    """Commit of this repository and whether the code (all but results/) is unchanged; None outside a checkout."""

    def git(*args):
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain", "--", ".", ":!results")}
    except (OSError, subprocess.CalledProcessError):
        return None


def header(payload, title):
    """The first lines of a TXT: what ran on what."""
    p = payload["provenance"]
    data = p["data"]
    source = ", ".join(f"{key} {value}" for key, value in p["model"].items() if key not in ("name", "type"))
    return "\n".join(
        [
            title,
            "=" * len(title),
            f"model    {p['model']['name']} ({p['model']['type']}; {source})",
            f"data     {data['windows']} x {data['seqlen']} tokens of {data['dataset']}, BOS {'on' if data['bos'] else 'off'}",
            f"run      {p['dtype']}, {p['device']}, seed {p['seed']}, {p['time']}",
            f"command  {p['command']}",
            "",
        ]
    )


def table(headers, rows):
    """Plain-text table; columns of numbers are aligned to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    left = [
        all(not row[i][:1].lstrip("+-").isdigit() and row[i] not in ("", "-") for row in rows)
        for i in range(len(headers))
    ]

    def line(cells):
        return "  ".join(
            c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(cells, widths, left, strict=True)
        ).rstrip()

    return "\n".join([line(headers), line(["-" * w for w in widths]), *map(line, rows)]) + "\n"


def number(value, signed=False):
    """Four significant digits, thousands grouped: 0.6021, 23,512, +1.25."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 1000 else max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:{'+' if signed else ''},.{min(digits, 4)}f}"


def mean(average, signed=False):
    return number(average["mean"], signed)


def interval(average, signed=False):
    """`mean [low, high]` of an average, or the mean alone where one sequence gives no interval."""
    if average.get("ci95") is None:
        return mean(average, signed)
    return f"{mean(average, signed)} [{', '.join(number(x, signed) for x in average['ci95'])}]"


def percent(before, after):
    """Relative change in per cent; `-` where the value before is zero. Print it beside both values only."""
    return "-" if not before else f"{100 * (after - before) / abs(before):+.1f} %"
