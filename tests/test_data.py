"""Text -> windows: which tokens, which windows, and which mistakes are told."""

import json

import pytest
import torch

from lib import data
from lib.cli import Options, UserError
from tests.conftest import POSITIONS, TEXT, VOCABULARY, language_model, make_tokenizer, tiny_model

SEQLEN = 16


@pytest.fixture(scope="module")
def gpt2(tokenizer):
    return language_model(tiny_model("gpt2"), tokenizer)


@pytest.fixture(scope="module")
def with_bos():
    return language_model(tiny_model("gpt2"), make_tokenizer(adds_bos=True))


def load(lm, path, **options):
    return data.load(Options(dataset=str(path), **{"nsamples": 5, "seqlen": SEQLEN, **options}), lm)


def cut(lm, text, width):
    """Every window of a text."""
    tokens = lm.tokenizer.encode(text, add_special_tokens=False)
    return [tokens[start : start + width] for start in range(0, len(tokens) - width + 1, width)]


@pytest.mark.parametrize(("bos", "width"), [(False, SEQLEN), (True, SEQLEN - 1)])
def test_windows_are_consecutive_and_in_text_order(gpt2, text_file, bos, width):
    every = cut(gpt2, text_file.read_text(), width)
    windows = load(gpt2, text_file, nsamples=len(every), bos=bos)
    assert windows.available == len(every)
    assert windows.bos == bos
    first = [gpt2.tokenizer.bos_token_id] if bos else []
    assert windows.ids.tolist() == [first + window for window in every]
    assert windows.ids.shape == (len(every), SEQLEN)


def test_windows_are_drawn_without_replacement_by_seed(gpt2, text_file):
    every = cut(gpt2, text_file.read_text(), SEQLEN)
    assert len({tuple(window) for window in every}) == len(every)
    drawn = {seed: load(gpt2, text_file, nsamples=40, seed=seed) for seed in range(4)}
    for seed, windows in drawn.items():
        order = [every.index(window) for window in windows.ids.tolist()]
        assert order == sorted(set(order))
        assert len(order) == 40
        assert windows.available == len(every) > 80
        assert torch.equal(load(gpt2, text_file, nsamples=40, seed=seed).ids, windows.ids)
    assert len({windows.sha256 for windows in drawn.values()}) == len(drawn)


def test_every_window_can_be_drawn(gpt2, text_file):
    """The first and the last too."""
    every = {tuple(window) for window in cut(gpt2, text_file.read_text(), SEQLEN)}
    draws = (load(gpt2, text_file, nsamples=len(every) // 2, seed=seed) for seed in range(20))
    assert {tuple(window) for windows in draws for window in windows.ids.tolist()} == every


@pytest.mark.parametrize(("forced", "expected"), [(None, (False, True)), (True, (True, True)), (False, (False, False))])
def test_bos_is_on_where_the_tokenizer_adds_it(gpt2, with_bos, text_file, forced, expected):
    for lm, bos in zip((gpt2, with_bos), expected, strict=True):
        every = cut(lm, text_file.read_text(), SEQLEN - bos)
        windows = load(lm, text_file, bos=forced, nsamples=len(every))
        assert windows.bos == bos
        assert (windows.ids[:, 0] == lm.tokenizer.bos_token_id).all() == bos
        assert (windows.ids[:, 1:] != lm.tokenizer.bos_token_id).all()


@pytest.mark.parametrize("of_a_file", [True, False])
def test_bos_that_the_tokenizer_lacks(text_file, of_a_file):
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    lm = language_model(tiny_model("gpt2"), tokenizer)
    with pytest.raises(UserError, match="no BOS token"):
        load(lm, text_file, bos=True) if of_a_file else data.from_text("some text", Options(bos=True), lm)


def test_from_text(gpt2, with_bos):
    tokens = gpt2.tokenizer.encode("Massive activations", add_special_tokens=False)
    for lm, first in ((gpt2, []), (with_bos, [0])):
        windows = data.from_text("Massive activations", Options(), lm)
        assert windows.ids.tolist() == [first + tokens]
        assert windows.bos == bool(first)
    for text, message in (("", "--text is empty"), (TEXT[:2000], f"more than this model's {POSITIONS} positions")):
        with pytest.raises(UserError, match=message):
            data.from_text(text, Options(), gpt2)


def test_too_many_windows(gpt2, text_file):
    available = len(cut(gpt2, text_file.read_text(), SEQLEN))
    with pytest.raises(UserError, match=rf"--nsamples {available + 1}.* only {available} windows of {SEQLEN} tokens"):
        load(gpt2, text_file, nsamples=available + 1)
    assert len(load(gpt2, text_file, nsamples=available).ids) == available


def test_seqlen(gpt2, text_file):
    assert load(gpt2, text_file, seqlen=POSITIONS).ids.shape == (5, POSITIONS)
    assert load(gpt2, text_file, seqlen=None).ids.shape == (5, POSITIONS)
    with pytest.raises(UserError, match=f"{POSITIONS + 1} tokens are more than this model's {POSITIONS} positions"):
        load(gpt2, text_file, seqlen=POSITIONS + 1)
    with pytest.raises(UserError, match="at least 2 tokens"):
        load(gpt2, text_file, seqlen=1)


@pytest.mark.parametrize(("longest", "expected"), [(64, 64), (1024, 1024), (8192, 1024)])
def test_default_seqlen(longest, expected):
    lm = language_model(tiny_model("llama", max_position_embeddings=longest))
    assert data.window_length(None, lm) == expected


ROWS = ["First row. " * 30, "", "Second row. " * 30]


def write(folder, kind, columns):
    path = folder / f"rows{kind}"
    if kind == ".jsonl":
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        import pandas

        pandas.DataFrame(columns).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_files_of_rows(gpt2, tmp_path, kind):
    """Rows are joined by blank lines; empty ones are left out."""
    path = write(tmp_path, kind, {"number": [1, 2, 3], "body": ROWS})
    every = cut(gpt2, f"{ROWS[0]}\n\n{ROWS[2]}", SEQLEN)
    windows = load(gpt2, path, text_column="body", nsamples=len(every))
    assert windows.ids.tolist() == every
    assert windows.text == path.name


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_wrong_text_column(gpt2, tmp_path, kind):
    path = write(tmp_path, kind, {"number": [1, 2, 3], "body": ROWS})
    with pytest.raises(UserError, match="no column 'text'; it has: number, body"):
        load(gpt2, path)


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_text_column_without_text(gpt2, tmp_path, kind):
    path = write(tmp_path, kind, {"number": [1, 2, 3], "body": ROWS})
    with pytest.raises(UserError, match="number"):
        load(gpt2, path, text_column="number")


@pytest.mark.parametrize(("name", "content"), [("a.txt", ""), ("a.txt", " \n\n"), ("a.jsonl", '{"text": ""}\n')])
def test_empty_dataset(gpt2, tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match="is empty"):
        load(gpt2, path)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.jsonl", "{not json"), ("a.parquet", "no parquet")])
def test_broken_file(gpt2, tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match="cannot load dataset") as error:
        load(gpt2, path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.txt", "missing.jsonl", "missing.parquet"])
def test_missing_file(gpt2, tmp_path, name):
    with pytest.raises(UserError, match="no such file"):
        load(gpt2, tmp_path / name)


@pytest.mark.parametrize("name", ["wikitext", "example-org/example-dataset"])
def test_hub_dataset_offline(gpt2, name):
    with pytest.raises(UserError, match="--dataset python-docs"):
        load(gpt2, name)


def test_python_docs(gpt2):
    windows = load(gpt2, "python-docs", nsamples=3)
    assert windows.available > 5000
    assert windows.ids.max() < VOCABULARY
    assert windows.provenance["dataset"].startswith("python-docs")
