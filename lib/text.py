"""A dataset -> the texts it holds: a local file, a dataset of the Hugging Face hub, or Python's own documentation.

Text is what was written: every character counts, line ends (`\\r\\n` too) and blank lines included; only a byte order
mark is no part of it. A table gives one text a row, empty rows included, for that is how the perplexity of wikitext is
measured everywhere: `"\\n\\n".join(dataset["text"])`. What is null or missing in a row counts as an empty text.
"""

import codecs
import csv
import gzip
import io
import json
import os
import platform
import re
import zlib
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from pydoc_data import topics

from lib import hub
from lib.errors import IS_POINTER, LFS_POINTER, UserError, cause

JOINED_BY = "\n\n"
HEADING = re.compile(r"^ = [^=\n]+ = $", re.MULTILINE)
KNOWN = {"wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1")}
DEFAULTS = {"dataset_config": None, "split": "test", "text_column": "text", "encoding": None}
MARKS = {  # the longer first: UTF-32's begins as UTF-16's
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
NO_TEXT = {
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a zip archive or an office document",
    b"\xd0\xcf\x11\xe0": "an office document",
    b"{\\rtf": "an RTF document",
    b"\x1f\x8b": "compressed by gzip, which its name must say (.gz)",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"GGUF": "a GGUF model",
    b"PAR1": "a parquet file",
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


def read(options) -> Corpus:
    """The Corpus that `options.dataset` names.

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


def _flags(options, dataset, *apply):
    """{flag: what was typed, or its default} of those that apply. Raises UserError if others were typed."""
    for name in DEFAULTS:
        if name not in apply and getattr(options, name) is not None:
            raise UserError(f"--{name} does not apply to {dataset}")
    return {name: DEFAULTS[name] if getattr(options, name) is None else getattr(options, name) for name in apply}


def _path(name):
    """The path of a local file, or None for what can only be a hub id."""
    path = name if os.path.exists(name) else os.path.expanduser(name)
    local = os.path.exists(path) or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return Path(path) if local or _ending(name)[0] in READERS else None


def _ending(name):
    """('.csv', True) of `a.CSV.gz`: the kind of file, and whether it is compressed."""
    name = str(name).lower()
    return Path(name.removesuffix(".gz")).suffix, name.endswith(".gz")


def _of_file(options, path):
    ending, compressed = _ending(path)
    if "://" in options.dataset:
        raise UserError(f"{options.dataset} is an address; download it and name the file")
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name a file in it")
    if not os.path.exists(path):
        raise UserError(f"no such file: {path}")
    if ending not in READERS or not os.path.isfile(path):
        raise UserError(f"cannot tell what {path} holds; known are files in {', '.join(READERS)}, each also with .gz")
    flags, read_rows = READERS[ending]
    given = _flags(options, f"a {ending} file", *flags)
    try:
        data = path.read_bytes()
        data = _decompressed(data) if compressed else data
        _refuse_other_kinds(data, ending)
        if "encoding" in given:
            data = _decoded(data, given.pop("encoding"))
        return Corpus(path.name, read_rows(data, **given) if data.strip() else [])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or cause(error)}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _decompressed(data):
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"is not a whole gzip file: {cause(error)}") from error


def _refuse_other_kinds(data, ending):
    if data.startswith(LFS_POINTER):
        raise UserError(IS_POINTER)
    for signature, kind in NO_TEXT.items():
        if data.startswith(signature) and ending != ".parquet":
            raise UserError(f"is {kind}, not text")


def _decoded(data, encoding):
    """The text of a file: by `encoding`, or by its byte order mark, or strictly UTF-8."""
    codec = encoding
    if codec is None:
        codec = next((codec for mark, codec in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        if not codecs.lookup(codec)._is_text_encoding:
            raise LookupError
        text = data.decode(codec).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = 1 + data[: error.start].decode(codec, "ignore").count("\n")
        at = f"line {line} holds byte 0x{data[error.start]:02x} (at offset {error.start:,})"
        raise UserError(
            f"{at}, which is not {codec} ({error.reason}); name the file's encoding, for example --encoding latin-1"
        ) from error
    except (LookupError, ValueError) as error:
        raise UserError(f"unknown --encoding '{encoding}'") from error
    if "\0" in text:
        line = 1 + text[: text.index("\0")].count("\n")
        raise UserError(
            f"line {line} holds a zero byte: this is a binary file, or text in another encoding, for example "
            "--encoding utf-16-le"
        )
    return text


def _lines(text):
    return text.split("\n")  # str.splitlines would split at what JSON strings may hold


def _text(text):
    return [text]


def _csv(text, text_column, delimiter):
    """The column of a table whose first row names the columns; quotes and line breaks in them as RFC 4180 has them."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header, texts = None, []
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"line {line} begins a broken row: {error} (quotes enclose fields; one in a field is doubled)"
            ) from error
        if row is None:
            return texts
        if not row:  # a blank line
            continue
        if header is None:
            header, column = row, _column_index(row, text_column)
        elif len(row) != len(header):
            raise UserError(f"line {line} has {len(row)} fields, the header {len(header)}")
        else:
            texts.append(row[column])


def _column_index(columns, wanted):
    if wanted not in columns:
        named = [name if len(name) <= 40 else f"{name[:40]}..." for name in columns]
        more = f" and {len(named) - 30} more" if len(named) > 30 else ""
        raise UserError(f"no column '{wanted}'; it has: {', '.join(named[:30])}{more}; choose with --text_column")
    if columns.count(wanted) > 1:
        raise UserError(f"{columns.count(wanted)} columns are called '{wanted}'")
    return columns.index(wanted)


def _json_lines(text, text_column):
    rows = {}
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            rows[f"line {number}"] = _json_value(line, f"line {number} is not JSON")
    return _column(rows, text_column)


def _json_value(text, what):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise UserError(f"{what} ({error.msg} at {where})") from error
    except (ValueError, RecursionError) as error:  # a number too long, lists too deep
        raise UserError(f"{what} ({cause(error)})") from error


def _json(text, text_column):
    """Rows of a list of objects or of strings; of a list of objects under the only key that has one (or under `data`);
    of an object of columns; of JSON lines, which many tools write into .json files too."""
    try:
        whole = _json_value(text, "is not JSON")
    except UserError as error:
        if getattr(error.__cause__, "msg", "") == "Extra data":
            return _json_lines(text, text_column)
        raise
    if isinstance(whole, dict):
        column = whole.get(text_column)
        rows = [key for key, value in whole.items() if _are_rows(value, text_column)]
        if isinstance(column, str):
            return _strings({"it": column}, text_column)
        if isinstance(column, dict):
            return _strings({f"row {key}": value for key, value in column.items()}, text_column)
        if isinstance(column, list):
            whole = [{text_column: value} for value in column]
        elif text_column not in whole and (len(rows) == 1 or "data" in rows):
            whole = whole[rows[0] if len(rows) == 1 else "data"]
        else:
            _column_index([key for key in whole if key != text_column], text_column)
    if not isinstance(whole, list):
        raise UserError(f"holds {_kind(whole)}, not a list of rows")
    return _column({f"row {number}": row for number, row in enumerate(whole, 1)}, text_column)


def _are_rows(value, text_column):
    """Whether a value is a list of objects that have the column."""
    return isinstance(value, list) and any(isinstance(row, dict) and text_column in row for row in value)


def _column(rows, name):
    """The texts of {where: object or string}."""
    if rows and all(isinstance(row, str) for row in rows.values()) and name == DEFAULTS["text_column"]:
        return _strings(rows, name)
    for where, row in rows.items():
        if not isinstance(row, dict):
            raise UserError(f"{where} is {_kind(row)}, not an object with columns")
    _column_index(list(dict.fromkeys(key for row in rows.values() for key in row)), name)
    return _strings({where: row.get(name) for where, row in rows.items()}, name)


def _strings(values, column):
    """The texts of {where: text or None}."""
    for where, value in values.items():
        if not isinstance(value, str | None):
            raise UserError(f"{where} holds {_kind(value)} in column '{column}', not text")
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where} holds half of a surrogate pair, which no text can") from error
    return [value or "" for value in values.values()]


def _kind(value):
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a string",
    }
    return "null" if value is None else kinds.get(type(value), f"a value of type {type(value).__name__}")


def _parquet(data, text_column):
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        _column_index(file.schema_arrow.names, text_column)
        values = file.read(columns=[text_column]).column(0).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"is not a whole parquet file: {cause(error)}") from error
    return _strings({f"row {number}": value for number, value in enumerate(values, 1)}, text_column)


READERS = {  # ending: (flags that apply, what reads it)
    ".txt": (("encoding",), _text),
    ".md": (("encoding",), _text),
    ".text": (("encoding",), _text),
    ".raw": (("encoding",), _text),  # wikitext's own
    ".tokens": (("encoding",), _text),
    ".csv": (("encoding", "text_column"), partial(_csv, delimiter=",")),
    ".tsv": (("encoding", "text_column"), partial(_csv, delimiter="\t")),
    ".json": (("encoding", "text_column"), _json),
    ".jsonl": (("encoding", "text_column"), _json_lines),
    ".ndjson": (("encoding", "text_column"), _json_lines),
    ".parquet": (("text_column",), _parquet),
}


def _of_hub(options, dataset_config, split, text_column):
    hub_id, config = KNOWN.get(options.dataset, (options.dataset, None))
    config = dataset_config or config
    if os.path.exists(hub_id):  # which `datasets` would take instead
        raise UserError(f"'{hub_id}' is a dataset of the hub and a folder here; run this in another folder")
    rows = _load_dataset(options, hub_id, config, split)
    name = f"dataset '{options.dataset}'"
    try:
        _column_index(rows.column_names, text_column)
        texts = _strings({f"row {number}": text for number, text in enumerate(rows[text_column][:], 1)}, text_column)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return Corpus(":".join(part for part in (hub_id, config, split) if part), texts)


def _load_dataset(options, hub_id, config, split):
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
