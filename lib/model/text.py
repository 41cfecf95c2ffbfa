"""A dataset -> the texts it holds: a local file, a dataset of the Hugging Face hub, or Python's own documentation.

Text is what was written: every character counts, line ends (`\\r\\n` too) and blank lines included; only a byte order
mark is no part of it. A table gives one text a row, empty rows included, for that is how the perplexity of wikitext is
measured everywhere: `"\\n\\n".join(dataset["text"])`. What is null or missing in a row counts as an empty text.
"""

import os
import platform
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from pydoc_data import topics
from typing import TYPE_CHECKING, Any

from lib.model import hub, text_files
from lib.run.cli import Options
from lib.run.errors import UserError, cause

if TYPE_CHECKING:
    from datasets import Dataset

JOINED_BY = "\n\n"
SAVED_BY = ("state.json", "dataset_dict.json")  # by save_to_disk of `datasets`
SAVED = "first write one: datasets.load_from_disk(folder).to_parquet(file), of a DatasetDict one of its splits"
HEADING = re.compile(r"^ = [^=\n]+ = $", re.MULTILINE)
KNOWN = {"wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1")}
DEFAULTS: dict[str, str | None] = {
    "dataset_config": None,
    "split": "test",
    "text_column": text_files.TEXT_COLUMN,
    "encoding": None,
}


@dataclass(frozen=True)
class Corpus:
    """The documents of a dataset, in its order, and what it is called."""

    name: str
    documents: list[str]

    @cached_property
    def text(self) -> str:
        return JOINED_BY.join(self.documents)

    @cached_property
    def begins(self) -> list[int]:
        """Characters of the text at which documents begin: articles, if it has the headings of wikitext (whose rows are
        paragraphs), or what the dataset has as rows."""
        headings = [heading.start() for heading in HEADING.finditer(self.text)]
        if len(headings) > 1:
            return headings
        lengths = [len(document) + len(JOINED_BY) for document in self.documents]
        return [0, *accumulate(lengths[:-1])]


def read(options: Options) -> Corpus:
    """What `options.dataset` names.

    Raises UserError: unknown, unreachable, unreadable or empty dataset, column that is missing or holds no text, bytes
    that the encoding does not have, flags that do not apply to this dataset.
    """
    name, path = options.dataset, _path(options.dataset)
    if name == "python-docs":
        _flags(options, name)
        corpus = Corpus(f"python-docs (Python {platform.python_version()})", list(topics.topics.values()))
    elif name in KNOWN or path is None:
        corpus = _of_hub(options, **_flags(options, "a hub dataset", "dataset_config", "split", "text_column"))
    else:
        corpus = _of_file(options, path)
    if not any(document.strip() for document in corpus.documents):
        raise UserError(f"dataset '{name}' is empty")
    return corpus


def _flags(options: Options, dataset: str, *apply: str) -> dict[str, Any]:
    """{flag: what was typed, or its default} of those that apply. Raises UserError if others were typed."""
    for name in DEFAULTS:
        if name not in apply and getattr(options, name) is not None:
            raise UserError(f"--{name} does not apply to {dataset}")
    return {name: DEFAULTS[name] if getattr(options, name) is None else getattr(options, name) for name in apply}


def _path(name: str) -> Path | None:
    """The path of a local file; None for what can only be a hub id."""
    path = name if os.path.exists(name) else os.path.expanduser(name)
    local = os.path.exists(path) or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return Path(path) if local or _ending(name)[0] in text_files.READERS else None


def _ending(name: str | Path) -> tuple[str, bool]:
    """('.csv', True) of `a.CSV.gz`: the kind of file, and whether it is compressed."""
    name = str(name).lower()
    return Path(name.removesuffix(".gz")).suffix, name.endswith(".gz")


def _of_file(options: Options, path: Path) -> Corpus:
    ending, compressed = _ending(path)
    if "://" in options.dataset:
        raise UserError(f"{options.dataset} is an address; download it and name the file")
    if os.path.isdir(path):
        how = f"; {SAVED}" if any((path / name).is_file() for name in SAVED_BY) else ""
        raise UserError(f"{path} is a folder; name a file in it{how}")
    if not os.path.exists(path):
        raise UserError(f"no such file: {path}")
    if ending not in text_files.READERS or not os.path.isfile(path):
        known = ", ".join(text_files.READERS)
        raise UserError(f"cannot tell what {path} holds; known are files in {known}, each also with .gz")
    given = _flags(options, f"a {ending} file", *text_files.READERS[ending].flags)
    name = f"{path.name} in {options.encoding}" if options.encoding else path.name
    try:
        return Corpus(name, text_files.texts(path.read_bytes(), ending, compressed, given))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or cause(error)}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _of_hub(options: Options, dataset_config: str | None, split: str, text_column: str) -> Corpus:
    hub_id, config = KNOWN.get(options.dataset, (options.dataset, None))
    config = dataset_config or config
    if os.path.exists(hub_id):  # which `datasets` would take instead
        raise UserError(f"'{hub_id}' is a dataset of the hub and a folder here; run this in another folder")
    hub.require_id(hub_id, "dataset")
    rows = _load_dataset(options, hub_id, config, split)
    name = f"dataset '{options.dataset}'"
    try:
        text_files.column_index(rows.column_names, text_column)
        values = {f"row {number}": text for number, text in enumerate(rows[text_column][:], 1)}
        texts = text_files.strings(values, text_column)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return Corpus(":".join(part for part in (hub_id, config, split) if part), texts)


def _load_dataset(options: Options, hub_id: str, config: str | None, split: str) -> "Dataset":
    import datasets

    if options.offline:
        hub.go_offline()
    else:
        hub.reachable()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        return datasets.load_dataset(hub_id, config, split=split)
    except Exception as error:
        raise UserError(hub.why_not(options.dataset, error, "dataset")) from error
