"""The bytes of a file -> the texts it holds, by the kind of file that its name tells."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lib.run.errors import IS_POINTER, LFS_POINTER, UserError, cause

TEXT_COLUMN = "text"
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
# encodings of files that are not UTF-8
OTHERS = "cp1252 (Western Europe), gb18030 (Chinese), cp932 (Japanese), cp1251 or koi8-r (Russian)"
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


def texts(data: bytes, ending: str, compressed: bool, given: Mapping[str, Any]) -> list[str]:
    """The texts in the bytes of a file.

    given: the flags of READERS[ending] with their values. Raises UserError: bytes that are damaged, of another kind of
    file or not of the encoding, a column that is missing or holds no text.
    """
    data = _decompressed(data) if compressed else data
    _refuse_other_kinds(data, ending)
    reader = READERS[ending]
    if "encoding" not in reader.flags:
        return reader.read(data, **given) if data.strip() else []
    text = _decoded(data, given["encoding"])
    columns = {flag: value for flag, value in given.items() if flag != "encoding"}
    return reader.read(text, **columns) if text.strip() else []


def _decompressed(data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"is not a whole gzip file: {cause(error)}") from error


def _refuse_other_kinds(data: bytes, ending: str) -> None:
    if data.startswith(LFS_POINTER):
        raise UserError(IS_POINTER)
    for signature, kind in NO_TEXT.items():
        if data.startswith(signature) and ending != ".parquet":
            raise UserError(f"is {kind}, not text")


def _decoded(data: bytes, encoding: str | None) -> str:
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
        place = f"line {line} holds byte 0x{data[error.start]:02x} (at offset {error.start:,})"
        raise UserError(
            f"{place}, which is not {codec} ({error.reason}); name the file's encoding, for example --encoding {OTHERS}"
        ) from error
    except (LookupError, ValueError) as error:
        raise UserError(f"unknown --encoding '{encoding}'") from error
    stray = re.search("[\x80-\x9f]", text) if codecs.lookup(codec).name.startswith("iso8859") else None
    if stray:  # latin-1 takes every byte, and text has none of its control characters
        line = 1 + text[: stray.start()].count("\n")
        raise UserError(
            f"line {line} holds byte 0x{ord(stray[0]):02x}, which is no letter of {encoding}: the file is of another "
            f"encoding, for example {OTHERS}"
        )
    if "\0" in text:
        line = 1 + text[: text.index("\0")].count("\n")
        raise UserError(
            f"line {line} holds a zero byte: this is a binary file, or text in another encoding, for example "
            "--encoding utf-16-le"
        )
    return text


def _lines(text: str) -> list[str]:
    return text.split("\n")  # str.splitlines would split at what JSON strings may hold


def _text(text: str) -> list[str]:
    return [text]


def _csv(text: str, text_column: str, delimiter: str) -> list[str]:
    """The column of a table whose first row names the columns; quotes and line breaks in them as RFC 4180 has them."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    texts: list[str] = []
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
            _require_parted(row, text_column, delimiter)
            header, column = row, column_index(row, text_column)
        elif len(row) != len(header):
            raise UserError(f"line {line} has {len(row)} fields, the header {len(header)}")
        else:
            texts.append(row[column])


def _require_parted(header: Sequence[str], wanted: str, delimiter: str) -> None:
    """Raise UserError if a first row lacks the column `wanted` and is one field that another separator would part."""
    other = next((mark for mark in SEPARATORS if len(header) == 1 and mark in header[0]), None)
    if other is not None and wanted not in header:
        raise UserError(
            f"no column '{wanted}': the first row has {SEPARATORS[other]}, but no {SEPARATORS[delimiter]}; commas part "
            "the fields of a .csv file, tabs those of a .tsv file"
        )


def column_index(columns: Sequence[str], wanted: str) -> int:
    if wanted not in columns:
        named = [name if len(name) <= 40 else f"{name[:40]}..." for name in columns]
        more = f" and {len(named) - 30} more" if len(named) > 30 else ""
        raise UserError(f"no column '{wanted}'; it has: {', '.join(named[:30])}{more}; choose with --text_column")
    if columns.count(wanted) > 1:
        raise UserError(f"{columns.count(wanted)} columns are called '{wanted}'")
    return columns.index(wanted)


def _json_lines(text: str, text_column: str) -> list[str]:
    rows = {}
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            rows[f"line {number}"] = _json_value(line, f"line {number} is not JSON")
    return _column(rows, text_column)


def _json_value(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise UserError(f"{what} ({error.msg} at {where})") from error
    except (ValueError, RecursionError) as error:  # a number too long, lists too deep
        raise UserError(f"{what} ({cause(error)})") from error


def _json(text: str, text_column: str) -> list[str]:
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
            return strings({"it": column}, text_column)
        if isinstance(column, dict):
            return strings({f"row {key}": value for key, value in column.items()}, text_column)
        if isinstance(column, list):
            whole = [{text_column: value} for value in column]
        elif text_column not in whole and (len(rows) == 1 or "data" in rows):
            whole = whole[rows[0] if len(rows) == 1 else "data"]
        else:
            column_index([key for key in whole if key != text_column], text_column)
    if not isinstance(whole, list):
        raise UserError(f"holds {_kind(whole)}, not a list of rows")
    return _column({f"row {number}": row for number, row in enumerate(whole, 1)}, text_column)


def _are_rows(value: object, text_column: str) -> bool:
    """Whether a value is a list of objects that have the column."""
    return isinstance(value, list) and any(isinstance(row, dict) and text_column in row for row in value)


def _column(rows: Mapping[str, Any], name: str) -> list[str]:
    """The texts of {where: object or string}."""
    if rows and all(isinstance(row, str) for row in rows.values()) and name == TEXT_COLUMN:
        return strings(rows, name)
    for where, row in rows.items():
        if not isinstance(row, dict):
            raise UserError(f"{where} is {_kind(row)}, not an object with columns")
    column_index(list(dict.fromkeys(key for row in rows.values() for key in row)), name)
    return strings({where: row.get(name) for where, row in rows.items()}, name)


def strings(values: Mapping[str, object], column: str) -> list[str]:
    """The texts of {where: text or None}."""
    texts = []
    for where, value in values.items():
        if not isinstance(value, str | None):
            raise UserError(f"{where} holds {_kind(value)} in column '{column}', not text")
        text = value or ""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where} holds half of a surrogate pair, which no text can") from error
        texts.append(text)
    return texts


def _kind(value: object) -> str:
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a string",
    }
    return "null" if value is None else kinds.get(type(value), f"a value of type {type(value).__name__}")


def _parquet(data: bytes, text_column: str) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        column_index(file.schema_arrow.names, text_column)
        values = file.read(columns=[text_column]).column(0).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"is not a whole parquet file: {cause(error)}") from error
    return strings({f"row {number}": value for number, value in enumerate(values, 1)}, text_column)


@dataclass(frozen=True)
class Reader:
    """One kind of file. flags: those that apply. read: its content, decoded where `encoding` applies -> its texts."""

    flags: tuple[str, ...]
    read: Callable[..., list[str]]


PLAIN = Reader(("encoding",), _text)
JSON_LINES = Reader(("encoding", "text_column"), _json_lines)
READERS = {
    ".txt": PLAIN,
    ".md": PLAIN,
    ".text": PLAIN,
    ".raw": PLAIN,  # wikitext's own
    ".tokens": PLAIN,
    ".csv": Reader(("encoding", "text_column"), partial(_csv, delimiter=",")),
    ".tsv": Reader(("encoding", "text_column"), partial(_csv, delimiter="\t")),
    ".json": Reader(("encoding", "text_column"), _json),
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".parquet": Reader(("text_column",), _parquet),
}
