"""The checkpoints of one training, in the order of their steps: revisions of a hub model, or what is in a folder:
subfolders, or nanoGPT's files."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import CacheNotFound

from lib.model import hub, nanogpt
from lib.run import processes
from lib.run.cli import FILES, Options
from lib.run.errors import UserError, listed
from lib.run.packages import MODELS

ALL = "all"
NAMED = re.compile(r"(?:step|checkpoint|ckpt|iter|iteration)s?[-_=]?(\d+)(k?)(?![a-z\d])|^(\d+)(k?)$", re.IGNORECASE)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
IN_FOLDER = "subfolders with a config.json, or nanoGPT's .pt files"
NAMES = "names are as step1000, checkpoint-500, global_step1000, step1000-tokens4B or 1000"


@dataclass(frozen=True)
class Checkpoint:
    """name: of the revision or the folder. options: what loads it. identity: of what is behind the name; the same
    identity, the same weights and the same tokenizer."""

    step: int
    name: str
    options: Options
    identity: object


def step_of(name: str) -> int | None:
    """The step that a name tells, as 1000 of `step1000-tokens4B`, `checkpoint-1000` and `step1k`; None if none."""
    found = NAMED.search(name)
    if found is None:
        return None
    digits, thousands = found[1] or found[3], found[2] or found[4]
    return int(digits) * (1000 if thousands else 1)


def find(options: Options, names: Sequence[str]) -> list[Checkpoint]:
    """Those of `options.model` with these names, in any order, or all whose name tells a step; by their steps.

    Raises UserError: no names for a hub model, names without a step or of the same step, nothing there.
    """
    folder = Path(os.path.expanduser(options.model))
    chosen = [] if [*names] == [ALL] else [*names]
    if folder.is_dir():
        found = _in_folder(folder, chosen, options)
    elif options.model in MODELS or folder.suffix.lower() in FILES:
        raise UserError(f"'{options.model}' is one model, without checkpoints")
    else:
        hub.require_id(options.model)
        if not names:
            raise UserError(f"name checkpoints of '{options.model}': --revisions step0 step1000 ..., or {ALL}")
        found = _on_hub(chosen, options)
    if not found:
        what = f"{IN_FOLDER} (adapters have none)" if folder.is_dir() else "branches or tags"
        raise UserError(f"'{options.model}' has no checkpoints, which are {what}; {NAMES}")
    series = sorted(found, key=lambda checkpoint: checkpoint.step)
    for one, other in pairwise(series):
        if one.step == other.step:
            raise UserError(f"{one.name} and {other.name} are of the same step")
    return series


def _steps(names: Sequence[str]) -> dict[str, int]:
    """{name: step}. Raises UserError if a name tells none."""
    steps = {name: step_of(name) for name in names}
    without = [name for name, step in steps.items() if step is None]
    if without:
        raise UserError(f"no step in the name {listed(without)}; {NAMES}")
    return {name: step for name, step in steps.items() if step is not None}


def _in_folder(folder: Path, chosen: Sequence[str], options: Options) -> list[Checkpoint]:
    """What holds a model there. One without a tokenizer takes that of the folder itself, if this has one."""
    states = {path.name for path in folder.iterdir() if nanogpt.checkpoint_at(path)}
    there = {path.parent.name for path in folder.glob("*/config.json")}
    missing = [name for name in chosen if name not in there | states]
    if missing:
        raise UserError(f"'{folder}' has no checkpoint {listed(missing)}, which are {IN_FOLDER}")
    there |= {name for name in states if step_of(name) is not None}
    steps = _steps(chosen or [name for name in there if step_of(name) is not None])
    if not chosen:
        _note_left_out(folder, there)
    checkpoints = []
    for name, step in steps.items():
        tokenizer = options.tokenizer
        if tokenizer is None and not _has_tokenizer(folder / name) and _has_tokenizer(folder):
            tokenizer = str(folder)
        changed = replace(options, model=str(folder / name), tokenizer=tokenizer)
        checkpoints.append(Checkpoint(step, name, changed, (_files(folder / name), _behind(tokenizer))))
    return checkpoints


def _note_left_out(folder: Path, there: set[str]) -> None:
    """Tell of subfolders that hold a model or have the name of a checkpoint, but not both."""
    every = {path.name for path in folder.iterdir() if path.is_dir()} | there
    named = {name for name in every if step_of(name) is not None}
    for names, why in (
        (sorted(named - there), "no config.json there"),
        (sorted(there - named), "no step in the name"),
    ):
        if names and named & there and processes.rank() == 0:
            print(f"note: without {listed(names)} of '{folder}': {why}", file=sys.stderr)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZERS)


def _files(place: Path) -> list[tuple[str, int, int]]:
    """(path, bytes, time of change) of a file or of a folder's files; none of what is neither."""
    paths = [place] if place.is_file() else sorted(path for path in place.glob("*") if path.is_file())
    return [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _behind(tokenizer: str | None) -> object:
    """What tells the tokenizer of a name from another."""
    return tokenizer, _files(Path(os.path.expanduser(tokenizer))) if tokenizer else None


def _on_hub(chosen: Sequence[str], options: Options) -> list[Checkpoint]:
    """Branches and tags. A name that is neither may be a commit, which loading will tell."""
    there, tokenizer = _revisions(options), _behind(options.tokenizer)
    steps = _steps(chosen or [name for name in there if step_of(name) is not None])
    return [
        Checkpoint(step, name, replace(options, revision=name), (options.model, there.get(name, name), tokenizer))
        for name, step in steps.items()
    ]


def _revisions(options: Options) -> dict[str, str]:
    """{branch or tag: commit}, of the hub or, where it cannot be reached, of its local cache."""
    if options.offline:
        hub.go_offline()
    if not options.offline and hub.reachable():
        try:
            refs = huggingface_hub.list_repo_refs(options.model)
        except Exception as error:
            raise UserError(hub.why_not(options.model, error)) from error
        return {ref.name: ref.target_commit for ref in (*refs.branches, *refs.tags)}
    try:
        cached = huggingface_hub.scan_cache_dir().repos
    except CacheNotFound:
        return {}
    ours = [repo.refs for repo in cached if repo.repo_type == "model" and repo.repo_id == options.model]
    return {name: revision.commit_hash for refs in ours for name, revision in refs.items()}
