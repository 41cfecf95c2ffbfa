"""One experiment on the checkpoints of one training, one after another, of which one is in memory at a time.

What a checkpoint gave is kept in the user's cache for as long as an interrupted sweep: whoever measures the same again,
with further checkpoints or after an error, measures only what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lib import catalogue
from lib.core import provenance
from lib.core.evidence import Stored
from lib.report import identity, result_files
from lib.run import processes
from lib.run.cli import DRAWING, Options
from lib.run.errors import UserError

if TYPE_CHECKING:  # they need torch
    from lib.model.models import LanguageModel
    from lib.model.series import Checkpoint
    from lib.run.unfinished import Unfinished

OF_ONE = ("revision", "nanogpt", "weights_sha256")  # of a model's source: what tells its checkpoints apart
NO_MATTER = ("model", "tokenizer", "revisions", "savedir", "replot", "offline", *DRAWING)  # to what one gives
One = tuple[Any, Options, Stored]  # results, options as they were used, provenance


@dataclass(frozen=True)
class Series:
    """find: the checkpoints that the options name, by their steps. join: one Results of (checkpoint, what was loaded
    for it, its Results) of each."""

    find: Callable[[Any], list[Checkpoint]]
    join: Callable[[list[tuple[Checkpoint, Stored, Any]]], Any]


@dataclass(frozen=True)
class Measured:
    """Of one checkpoint, in JSON types. shape: what all checkpoints of one training have in common."""

    results: Any
    batch_size: int
    origin: Stored
    shape: Stored


def measure(name: str, series: Series, options: Options, path: Path, one: Callable[[LanguageModel, bool], One]) -> One:
    """Of all checkpoints; `one(lm, is_last)` measures one. path: of the JSON that is to be written.

    The last comes first: what is wrong with the model or the data is told at once. Raises UserError, which names the
    checkpoint, for one that cannot be loaded or measured or is not of this training.
    """
    import numpy as np

    from lib.run.unfinished import Unfinished

    checkpoints = series.find(options)
    settings = _settings(options)
    last, done = checkpoints[-1], dict[str, Measured]()
    for checkpoint in (last, *checkpoints[:-1]):
        kept = Unfinished(name, checkpoint.identity, settings)
        try:
            here = _kept(kept) or _measured(checkpoint, one, checkpoint is last)
            _require_alike(here, last.name, done.get(last.name, here))
        except UserError as error:
            raise UserError(f"{checkpoint.name}: {error}{_told(len(done))}") from error
        identity.require_same(path, _of_all(options, here.origin))
        kept.save({"measured": np.frombuffer(msgspec.json.encode(here), dtype=np.uint8)})
        done[checkpoint.name] = here
    results = series.join(
        [(one, _source(done[one.name]), catalogue.typed(name, done[one.name].results)) for one in checkpoints]
    )
    seconds = sum(measured.origin["seconds"] for measured in done.values())
    origin = _of_all(options, done[last.name].origin) | provenance.environment(seconds)
    warnings = [f"{one.name}: {told}" for one in checkpoints if (told := done[one.name].origin.get("warning"))]
    origin |= {"warning": "; ".join(warnings)} if warnings else {}
    return results, replace(options, batch_size=done[last.name].batch_size), origin


def _measured(checkpoint: Checkpoint, one: Callable[[LanguageModel, bool], One], is_last: bool) -> Measured:
    from accelerate.utils.memory import clear_device_cache

    from lib.model import models

    clear_device_cache(garbage_collection=True)  # of the one before, which accelerate's hooks may hold in a circle
    lm = models.load(checkpoint.options)
    arch = lm.arch
    shape = {
        "layers": arch.n_layers,
        "dims": arch.hidden_size,
        "heads": [layer.n_heads for layer in arch.layers],
        "embeddings": lm.n_embeddings,
    }
    if processes.rank() == 0:
        print(f"{checkpoint.name} ...", flush=True)
    results, options, origin = one(lm, is_last)
    told = {"results": results, "batch_size": options.batch_size, "origin": origin, "shape": shape}
    return msgspec.convert(result_files.plain(told), Measured)


def _kept(kept: Unfinished) -> Measured | None:
    """What an earlier run has kept, if all processes have it."""
    there = kept.load().get("measured")
    if not all(processes.gather([there is not None])):
        return None
    assert there is not None
    return msgspec.json.decode(there.tobytes(), type=Measured)


def _settings(options: Options) -> str:
    """Whatever decides what is measured, but for the checkpoint."""
    from lib.model import models, text

    config = {key: value for key, value in asdict(options).items() if key not in NO_MATTER}
    written = hashlib.sha256(json.dumps(text.read(options).documents).encode()).hexdigest()
    told = (*result_files.UNREPEATED, "command")
    made = {key: value for key, value in provenance.environment(0).items() if key not in told}
    return repr((config, written, made, models.device_name(models.chosen_device(options.device))))


def _require_alike(here: Measured, name: str, last: Measured) -> None:
    for what, count in last.shape.items():
        if here.shape[what] != count:
            raise UserError(f"it has {here.shape[what]} {what}, but {name} has {count}: they are not of one training")
    if here.origin["data"]["token_ids_sha256"] != last.origin["data"]["token_ids_sha256"]:
        raise UserError(f"its tokenizer gives other tokens than that of {name}")


def _source(measured: Measured) -> Stored:
    return {key: value for key, value in measured.origin["model"].items() if key in OF_ONE}


def _of_all(options: Options, origin: Stored) -> Stored:
    """The provenance of a checkpoint without what is of it alone."""
    model = {key: value for key, value in origin["model"].items() if key not in OF_ONE} | {"name": options.model}
    if "hub_id" not in model:
        model["folder"] = Path(options.model).expanduser().resolve().name
    return {key: value for key, value in origin.items() if key != "warning"} | {"model": model}


def _told(n: int) -> str:
    return f"; what {n} checkpoint{'s' * (n > 1)} gave is kept for the next run" if n else ""
