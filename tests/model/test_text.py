"""Datasets -> texts: what was written, nothing else, and which mistakes are told."""

import codecs
import csv
import gzip
import json
import os
from pydoc_data import topics

import pyarrow
import pytest
from pyarrow import parquet

import study
from lib.model import text, text_files
from lib.run import cli
from lib.run.cli import Options, UserError

WRITTEN = "First line, naïve — 你好 😀\n\n  third\tline \r\nfourth"
ROWS = [" = Title = \n", "", 'said "so",\nand left\r\n', "", "last"]
ENDINGS = [".csv", ".tsv", ".json", ".jsonl", ".parquet"]


def _gzip(data):
    return gzip.compress(data, mtime=0)  # the time would be in the names of tests


def read(path, **options):
    return text.read(Options(dataset=str(path), **options))


def refusal(path, **options):
    with pytest.raises(UserError) as error:
        read(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def table(rows, ending, encoding="utf-8"):
    """The bytes of a file with columns `number` and `text`."""
    columns = {"number": list(range(len(rows))), "text": rows}
    objects = [{"number": number, "text": row} for number, row in enumerate(rows)]
    if ending == ".parquet":
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.table(columns), sink)
        return sink.getvalue().to_pybytes()
    if ending == ".json":
        return json.dumps(objects).encode(encoding)
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in objects).encode(encoding)
    separator = "," if ending == ".csv" else "\t"
    quoted = ['"' + row.replace('"', '""') + '"' for row in rows]
    lines = [f"number{separator}text", *(f"{number}{separator}{row}" for number, row in enumerate(quoted))]
    return "".join(line + "\r\n" for line in lines).encode(encoding)


# Documents


def test_documents_are_rows_or_the_articles_of_wikitext():
    rows = [" = One = \n", "a = b\n", " = = Part = = \n", "text\n", "", " = Two = \n", "c"]
    corpus = text.Corpus("wikitext", rows)
    assert [corpus.text[at : at + 8] for at in corpus.begins] == [" = One =", " = Two ="]
    file = text.Corpus("wiki.test.raw", [corpus.text])
    assert file.begins == corpus.begins
    plain = text.Corpus("rows", ["first", "", "third"])
    assert [plain.text[at:] for at in plain.begins] == ["first\n\n\n\nthird", "\n\nthird", "third"]
    assert text.Corpus("one article", [" = One = \n", "x"]).begins == [0, 12]


# Plain text


@pytest.mark.parametrize("ending", [".txt", ".md", ".TXT", ".Md", ".txt.gz", ".MD.GZ"])
def test_a_text_file_is_what_was_written(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    data = WRITTEN.encode()
    path.write_bytes(_gzip(data) if ending.lower().endswith(".gz") else data)
    assert read(path) == text.Corpus(path.name, [WRITTEN])


MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("ending", [".txt", ".csv", ".tsv", ".json", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("codec", MARKED)
def test_byte_order_marks_tell_the_encoding(tmp_path, codec, ending):
    kind, path = ending.removesuffix(".gz"), tmp_path / f"a{ending}"
    data = MARKED[codec] + (WRITTEN.encode(codec) if kind == ".txt" else table(ROWS, kind, codec))
    path.write_bytes(_gzip(data) if ending != kind else data)
    assert read(path).documents == ([WRITTEN] if kind == ".txt" else ROWS)
    assert read(path, encoding=codec).documents == read(path).documents


def test_only_one_mark_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 * 2 + b"x\xef\xbb\xbfy")
    assert read(tmp_path / "a.txt").text == "\ufeffx\ufeffy"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "UTF8", "shift_jis", "utf-16-le", "gb18030"])
def test_encoding(tmp_path, encoding):
    written = "plain é\n" if encoding in ("latin-1", "cp1252", "UTF8") else "日本\nplain"
    (tmp_path / "a.txt").write_bytes(written.encode(encoding))
    corpus = read(tmp_path / "a.txt", encoding=encoding)
    assert (corpus.text, corpus.name) == (written, f"a.txt in {encoding}")


@pytest.mark.parametrize("encoding", ["latin-99", "", "rot13", "hex", "zlib"])
def test_unknown_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("abc")
    assert f"unknown --encoding '{encoding}'" in refusal(tmp_path / "a.txt", encoding=encoding)


@pytest.mark.parametrize(
    ("data", "options", "where"),
    [
        (b"good\nbad \xe9t\xe9\n", {}, "line 2 holds byte 0xe9 (at offset 9), which is not utf-8"),
        (b"a\nb\ncut \xe4\xbd", {}, "line 3 holds byte 0xe4 (at offset 8), which is not utf-8"),
        (b"surrogate \xed\xa0\x80", {}, "line 1 holds byte 0xed (at offset 10)"),
        (codecs.BOM_UTF16_LE + "a\nb".encode("utf-16-le") + b"c", {}, "line 2 holds byte 0x63 (at offset 8)"),
        ("é".encode("latin-1"), {"encoding": "ascii"}, "line 1 holds byte 0xe9 (at offset 0), which is not ascii"),
    ],
)
@pytest.mark.parametrize("ending", [".txt", ".csv", ".jsonl"])
def test_bytes_that_the_encoding_does_not_have(tmp_path, data, options, where, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    message = refusal(path, **options)
    assert message.startswith(f"{path}: {where}")
    assert f"--encoding {text_files.OTHERS}" in message


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"%PDF-1.7\n\xe2\xe3\xcf\xd3", "a PDF"),
        (b"PK\x03\x04\x14\x00\x06\x00", "a zip archive or an office document"),
        (_gzip(b"text"), "compressed by gzip, which its name must say"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF model"),
        (b"PAR1\x15\x04", "a parquet file"),
        (b"\x28\xb5\x2f\xfd\x24\x00", "compressed by zstd"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"some\ntext\x00\x01\x02", "line 2 holds a zero byte"),
        ("no mark".encode("utf-16-le"), "--encoding utf-16-le"),
        ("\n“quoted”".encode("cp1252"), "cp1252 (Western Europe)"),
    ],
)
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv.gz"])
def test_files_that_are_not_text(tmp_path, data, what, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(_gzip(data) if ending.endswith(".gz") else data)
    assert what in refusal(path)
    if what in ("a PDF", "cp1252 (Western Europe)"):
        assert what in refusal(path, encoding="latin-1")


# Tables


@pytest.mark.parametrize("ending", [*ENDINGS, *(f"{ending}.gz" for ending in ENDINGS), ".CSV", ".Parquet", ".JSONL.GZ"])
def test_rows_are_joined_as_by_everyone_who_measures_wikitext(tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    data = table(ROWS, ending.lower().removesuffix(".gz"))
    path.write_bytes(_gzip(data) if ending.lower().endswith(".gz") else data)
    corpus = read(path)
    assert corpus.documents == ROWS
    assert corpus.text == "\n\n".join(ROWS)


PATHS = [
    "a b",
    "a[1]",
    "[train]",
    "*",
    "a?",
    "100%25",
    "%s{}",
    "é 你",
    "~",
    "~nobody",
    "a:b",
    "a#b",
    "-a",
    "a::b",
    "'\"",
]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
def test_any_name_is_a_name(tmp_path, monkeypatch, name, ending):
    folder = tmp_path / name
    folder.mkdir()
    path = folder / f"{name}{ending}"
    path.write_bytes(table(ROWS, ending) if ending != ".txt" else b"last")
    monkeypatch.chdir(tmp_path)
    for way in (path, path.relative_to(tmp_path)):
        assert read(way).documents[-1] == "last"
    monkeypatch.chdir(folder)
    assert read(path.name).documents[-1] == "last"


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("at home")
    assert read("~/a.txt").text == "at home"


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".json"])
def test_null_is_an_empty_row(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(table(["a", None, "b"], ending))
    assert read(path).text == "a\n\n\n\nb"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1, 2], "row 1 holds a number in column 'text', not text"),
        ([["a"], ["b"]], "row 1 holds a list"),
        ([{"a": 1}], "row 1 holds an object"),
        ([None, True], "row 2 holds true or false"),
        ([None, 0.5], "row 2 holds a number"),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".json"])
def test_columns_without_text(tmp_path, rows, message, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(table(rows, ending))
    assert message.replace("row", "line" if ending == ".jsonl" else "row") in refusal(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_missing_column(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(table(ROWS, ending))
    message = refusal(path, text_column="body")
    assert message == f"{path}: no column 'body'; it has: number, text; choose with --text_column"
    assert read(path, text_column="text").documents == ROWS


@pytest.mark.parametrize("type_", ["large_string", "string_view", "dictionary"], ids=["large", "view", "dictionary"])
def test_string_types_of_parquet(tmp_path, type_):
    kind = pyarrow.dictionary(pyarrow.int32(), pyarrow.string()) if type_ == "dictionary" else getattr(pyarrow, type_)()
    rows = pyarrow.array([*ROWS, None, "last"], pyarrow.string()).cast(kind)
    parquet.write_table(pyarrow.table({"text": rows, "a.b": rows}), tmp_path / "a.parquet", row_group_size=2)
    for column in ("text", "a.b"):
        assert read(tmp_path / "a.parquet", text_column=column).documents == [*ROWS, "", "last"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', "line 3 is not JSON (Expecting ',' delimiter at column 13)"),
        ("a.jsonl", b'{"text": "a"}\nplain\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2 is a list, not an object"),
        ("a.jsonl", b'{"text": "a"}\n"b"\n', "line 2 is a string, not an object"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', "line 1 holds half of a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.json", b'[{"text": "a"},\n{"text": }]', "is not JSON (Expecting value at line 2, column 10)"),
        ("a.json", b'{"text": "a"}\n{"text": "b"\n', "line 2 is not JSON"),
        ("a.json", b"3", "holds a number, not a list of rows"),
        ("a.json", b'{"data": {"rows": []}, "n": 1}', "no column 'text'; it has: data, n"),
        ("a.json", b'[{"text": "a"}, 1]', "row 2 is a number, not an object"),
        ("a.csv", b"id,text\n1,a\n2,b,c\n", "line 3 has 3 fields, the header 2"),
        ("a.csv", b'id,text\n1,"a\n\nb"\n2\n', "line 5 has 1 fields, the header 2"),
        ("a.csv", b'id,text\n1,a\n2,"b\n3,c\n', "line 3 begins a broken row: unexpected end of data"),
        ("a.csv", b'id,text\n1,"a" b\n', "line 2 begins a broken row"),
        ("a.csv", b"id;text\n1;a\n", "no column 'text': the first row has semicolons, but no commas"),
        ("a.csv", b"text,text\na,b\n", "2 columns are called 'text'"),
        ("a.tsv", b"id\ttext\n1\n", "line 2 has 1 fields, the header 2"),
        ("a.parquet", b"no parquet at all", "is not a whole parquet file"),
        ("a.parquet", table(ROWS, ".parquet")[:-20], "is not a whole parquet file"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("a.txt.gz", b"not compressed", "is not a whole gzip file: Not a gzipped file"),
        ("a.txt.gz", _gzip(b"text" * 1000)[:-9], "is not a whole gzip file"),
        ("a.jsonl.gz", _gzip(bytes(range(250)) * 2)[:100] + bytes(400), "is not a whole gzip file"),
        ("a.parquet.gz", _gzip(b"no parquet"), "is not a whole parquet file"),
    ],
)
def test_broken_files(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    assert refusal(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize("ending", [".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt.gz", ".parquet.gz"])
@pytest.mark.parametrize("data", [b"", b" \n\n", codecs.BOM_UTF8])
def test_empty_files(tmp_path, ending, data):
    if data and "parquet" in ending:
        data = table(["", None], ".parquet")
    path = tmp_path / f"a{ending}"
    path.write_bytes(_gzip(data) if ending.endswith(".gz") else data)
    assert "is empty" in refusal(path)


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"text\r\na\r\n\r\nb\r\n\r\n", ["a", "b"]),
        (b"text\ra\rb", ["a", "b"]),
        (b'"id","text"\n1,""\n2,\n3,"a""b"\n', ["", "", 'a"b']),
        (b"text\n" + b"x" * 300_000, ["x" * 300_000]),
        ("text\na\u2028b\x0bc\n".encode(), ["a\u2028b\x0bc"]),
    ],
)
def test_what_csv_files_hold(tmp_path, data, rows):
    (tmp_path / "a.csv").write_bytes(data)
    assert read(tmp_path / "a.csv").documents == rows


@pytest.mark.parametrize(
    ("name", "header", "what"),
    [
        ("a.csv", "id;text", "semicolons, but no commas"),
        ("a.csv", "\ufeffid;text", "semicolons, but no commas"),
        ("a.csv", "sep=;\nid;text", "semicolons, but no commas"),
        ("a.csv", "id\ttext", "tabs, but no commas"),
        ("a.csv", "id|text", "bars, but no commas"),
        ("a.tsv", "id,text", "commas, but no tabs"),
    ],
)
def test_fields_that_are_separated_otherwise(name, header, what, tmp_path):
    """No column is proposed that is the whole row."""
    (tmp_path / name).write_text(f"{header}\n1;some words\n", encoding="utf-8")
    message = refusal(tmp_path / name)
    assert f"no column 'text': the first row has {what}" in message
    assert "--text_column" not in message


def test_csv_of_other_tools(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [row for row in ROWS if row]
    pandas.DataFrame({"text": rows, "n": 1}).to_csv(tmp_path / "pandas.csv")
    with open(tmp_path / "python.tsv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([["text"], *([row] for row in rows)])
    for name in ("pandas.csv", "python.tsv"):
        assert read(tmp_path / name).documents == rows
    frame = pandas.DataFrame({"text": ROWS, "n": 1})
    for orient in ("records", "columns", "list"):
        content = json.dumps(frame.to_dict("list")) if orient == "list" else frame.to_json(orient=orient)
        (tmp_path / "a.json").write_text(content)
        assert read(tmp_path / "a.json").documents == ROWS


@pytest.mark.parametrize(
    "value",
    [
        [{"text": "a"}, {"text": "b"}],
        ["a", "b"],
        {"data": [{"text": "a"}, {"text": "b"}]},
        {"version": "1.1", "rows": [{"text": "a"}, {"text": "b"}]},
        {"data": [{"text": "a"}, {"text": "b"}], "tags": ["x"]},
        {"text": ["a", "b"], "id": [1, 2]},
        {"text": {"0": "a", "1": "b"}},
    ],
)
def test_what_json_files_hold(tmp_path, value):
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(value, indent=indent))
        assert read(tmp_path / "a.json").documents == ["a", "b"]


def test_json_lines(tmp_path):
    """Also in a .json file; blank lines and line separators that JSON does not know are no matter."""
    lines = '{"text": "a\u2028b"}\r\n\r\n{"text": "c", "n": 1}\n{"n": 2}\n\n'
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text(lines, newline="")
        assert read(tmp_path / name).documents == ["a\u2028b", "c", ""]
    (tmp_path / "a.json").write_text('{"text": "a"}')
    assert read(tmp_path / "a.json").documents == ["a"]
    (tmp_path / "a.jsonl").write_text('"a"\n"b"')
    assert read(tmp_path / "a.jsonl").documents == ["a", "b"]


# What is no file, and flags that do not apply


def test_python_docs():
    corpus = text.read(Options(dataset="python-docs"))
    assert corpus.documents == list(topics.topics.values())
    assert corpus.name.startswith("python-docs (Python 3.")


@pytest.mark.parametrize("name", ["a.log", "a", "a.txt.bz2", "a.gz", ".txt", "a.docx", "a.parquet.zst"])
def test_unknown_endings(tmp_path, name):
    (tmp_path / name).write_text("text")
    assert "known are files in .txt, .md, " in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "sub/b", "~nobody/a.parquet", "A.TSV", "./wikitext"])
def test_missing_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert "no such file" in refusal(name if name.startswith("./") else tmp_path / name)


def test_folders(tmp_path):
    (tmp_path / "a.txt").mkdir()
    for folder in (tmp_path, tmp_path / "a.txt"):
        assert "is a folder; name a file in it" in refusal(folder)
    assert "cannot tell what" in refusal("/dev/null")


def test_a_folder_that_datasets_saved(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"text": ROWS})
    rows.save_to_disk(tmp_path / "rows")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "splits")
    for folder in (tmp_path / "rows", tmp_path / "splits"):
        assert "load_from_disk(folder).to_parquet(file)" in refusal(folder)


@pytest.mark.parametrize("name", ["-", "my text", "a--b"])
def test_what_is_neither_a_file_nor_a_hub_id(name):
    assert refusal(name).startswith(f"no such file: {name}; and no hub id")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.txt").chmod(0)
    assert "cannot read" in refusal(tmp_path / "a.txt")


NOT_OF = {
    ".txt": ("split", "dataset_config", "text_column"),
    ".md.gz": ("split", "dataset_config", "text_column"),
    ".csv": ("split", "dataset_config"),
    ".jsonl": ("split", "dataset_config"),
    ".json": ("split", "dataset_config"),
    ".parquet": ("split", "dataset_config", "encoding"),
}


@pytest.mark.parametrize(("ending", "flag"), [(ending, flag) for ending, flags in NOT_OF.items() for flag in flags])
def test_flags_that_do_not_apply_to_a_file(tmp_path, ending, flag):
    path = tmp_path / f"a{ending}"
    path.write_bytes(table(ROWS, ending) if ending in ENDINGS else _gzip(b"x") if "gz" in ending else b"x")
    read(path)
    for value in ("test", "text", "utf-8"):  # defaults too, if typed
        kind = ending.removesuffix(".gz")
        assert refusal(path, **{flag: value}) == f"--{flag} does not apply to a {kind} file"


@pytest.mark.parametrize("flag", ["split", "dataset_config", "text_column", "encoding"])
def test_flags_that_do_not_apply_to_python_docs(flag):
    assert refusal("python-docs", **{flag: "x"}) == f"--{flag} does not apply to python-docs"


def test_encoding_does_not_apply_to_the_hub():
    for name in ("wikitext", "org/name"):
        assert refusal(name, encoding="utf-8") == "--encoding does not apply to a hub dataset"


def test_flags_as_typed(tmp_path, capsys):
    """Defaults refuse nothing, are told by --help, and what is typed reaches the scripts of a study."""
    path = tmp_path / "a.csv"
    path.write_bytes(table(ROWS, ".csv"))
    typed = ["--dataset", str(path), "--text_column", "text", "--encoding", "utf-8"]
    options = cli.parse(study.Options, "", typed)
    assert text.read(options).documents == ROWS
    assert study.shared_flags(options, {}) == typed
    assert study.shared_flags(cli.parse(study.Options, "", typed[:2]), {}) == typed[:2]
    with pytest.raises(UserError, match="--split does not apply"):
        text.read(cli.parse(study.Options, "", [*typed, "--split", "test"]))
    with pytest.raises(SystemExit):
        cli.parse(cli.Options, "", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for line in ("(default: test)", "(default: text)", "(default: by its byte order mark, or UTF-8)", ".tsv"):
        assert line in shown


# The hub


class Rows:
    """What `datasets` gives for a split."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)

    def __getitem__(self, name):
        return self.columns[name]


@pytest.fixture
def of_hub(monkeypatch):
    asked = []

    def answer(*rows_or_error):
        (given,) = rows_or_error

        def load(*names, **options):
            asked.append((*names, options["split"]))
            if isinstance(given, Exception):
                raise given
            return given

        monkeypatch.setattr("datasets.load_dataset", load)
        monkeypatch.setattr("lib.model.hub.reachable", lambda: True)
        return asked

    return answer


def test_rows_of_a_hub_dataset(of_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = of_hub(Rows(text=[*ROWS, None], body=["b"] * 6))
    corpus = text.read(Options())
    assert corpus.text == "\n\n".join([*ROWS, ""])
    assert corpus.name == "Salesforce/wikitext:wikitext-2-raw-v1:test"
    assert read("org/name", dataset_config="c", split="train", text_column="body").name == "org/name:c:train"
    assert read("name", text_column="body").text == "\n\n".join(["b"] * 6)
    assert asked == [
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
        ("org/name", "c", "train"),
        ("name", None, "test"),
    ]
    assert "dataset 'name': no column 'x'; it has: text, body" in refusal("name", text_column="x")
    of_hub(Rows(text=["a", 3]))
    assert refusal("name") == "dataset 'name': row 2 holds a number in column 'text', not text"


def test_a_folder_does_not_stand_for_a_hub_dataset(of_hub, tmp_path, monkeypatch):
    """`datasets` would take it without a word."""
    of_hub(Rows(text=ROWS))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wikitext").mkdir()
    assert text.read(Options()).documents == ROWS
    (tmp_path / "Salesforce" / "wikitext").mkdir(parents=True)
    assert "run this in another folder" in refusal("wikitext")
    assert "is a folder; name a file in it" in refusal("Salesforce/wikitext")


def test_the_cause_of_a_dataset_error(of_hub):
    from datasets.exceptions import DatasetGenerationError

    error = DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = ValueError("the schema has no column x\nand more")
    of_hub(error)
    assert refusal("org/name") == "cannot load dataset 'org/name': the schema has no column x and more"
    of_hub(ValueError("Unknown split \"test\". Should be one of ['train']."))
    assert "Should be one of ['train']" in refusal("org/name")


@pytest.mark.parametrize(
    ("content", "column", "documents"),
    [
        ({"title": "M", "text": "the book", "tags": ["a", "b"]}, None, ["the book"]),
        ({"title": "M", "body": "the book", "tags": ["a", "b"]}, "body", ["the book"]),
        ({"text": "the text", "data": ["x", "y"]}, None, ["the text"]),
        ({"examples": [{"text": "a"}], "text": "licence"}, None, ["licence"]),
        ({"version": 1, "data": [{"text": "a"}, {"text": None}], "other": [1]}, None, ["a", ""]),
        ({"rows": [{"text": "a"}], "authors": ["b"]}, None, ["a"]),
    ],
)
def test_the_named_column_of_an_object(content, column, documents, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert read(path, text_column=column).documents == documents


@pytest.mark.parametrize(
    "content", [{"title": "M", "authors": ["A", "B"]}, {"text": None, "authors": ["A"]}, {"ids": [1], "body": "x"}]
)
def test_a_list_under_another_name_is_not_the_text(content, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert "no column 'text'" in refusal(tmp_path / "a.json")


@pytest.mark.parametrize(("name", "content"), [("a.json", '["a", "b"]'), ("a.jsonl", '"a"\n"b"\n')])
def test_strings_have_no_columns(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert read(tmp_path / name).documents == ["a", "b"]
    refusal(tmp_path / name, text_column="body")


@pytest.mark.parametrize("ending", ["text", "raw", "tokens", "RAW.gz"])
def test_other_endings_of_text(ending, tmp_path):
    (tmp_path / f"wiki.{ending}").write_bytes(_gzip(b" = T = \n") if ending.endswith("gz") else b" = T = \n")
    assert read(tmp_path / f"wiki.{ending}").documents == [" = T = \n"]


def test_an_address_is_no_file():
    assert "is an address" in refusal("https://example.org/a.txt")
