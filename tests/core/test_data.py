"""Text -> windows: which tokens, which windows, and which mistakes are told."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lib.core import data
from lib.model import tokens
from lib.run.cli import Options, UserError
from tests.conftest import END, POSITIONS, TEXT, VOCABULARY, language_model, make_tokenizer, tiny_model

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
    """Rows are joined by blank lines, empty ones too; the windows say so."""
    path = write(tmp_path, kind, {"number": [1, 2, 3], "body": ROWS})
    every = cut(gpt2, "\n\n".join(ROWS), SEQLEN)
    windows = load(gpt2, path, text_column="body", nsamples=len(every))
    assert windows.ids.tolist() == every
    assert windows.text == path.name
    assert (windows.provenance["documents"], windows.provenance["joined_by"]) == (3, "\n\n")


def test_a_text_file_is_one_document(gpt2, text_file):
    windows = load(gpt2, text_file)
    provenance = windows.provenance
    assert provenance["documents"] == 1
    assert "joined_by" not in provenance
    assert provenance["documents_drawn"] == 1
    assert windows.draws(0).effective == len(windows.ids)  # nothing but windows to draw from


def test_windows_know_their_document(gpt2, tmp_path):
    """Counted by tokenising each document on its own: the one that holds the window's middle."""
    rows = [TEXT[:900], "short", TEXT[900:1500], TEXT[1500:3000]]
    path = write(tmp_path, ".jsonl", {"body": rows})
    n = len(cut(gpt2, "\n\n".join(rows), SEQLEN))
    windows = load(gpt2, path, text_column="body", nsamples=n)
    ends = np.cumsum([len(gpt2.tokenizer.encode(row + "\n\n", add_special_tokens=False)) for row in rows])
    middles = SEQLEN * np.arange(n) + SEQLEN // 2
    near = np.abs(ends[:, None] - middles).min(0) <= 2
    expected = np.searchsorted(ends, middles, side="right")
    assert len(set(expected)) > 2
    assert near.mean() < 0.3
    assert (windows.document_of - windows.document_of.min() == expected - expected.min())[~near].all()
    sizes = np.unique(windows.document_of, return_counts=True)[1]
    assert windows.provenance["documents_drawn"] == len(sizes)
    assert windows.provenance["documents_effective"] == pytest.approx(n**2 / (sizes**2).sum(), abs=0.06)
    assert windows.draws(3).groups.tolist() == windows.document_of.tolist()


def test_counts_are_of_the_whole_text(gpt2, text_file):
    windows = load(gpt2, text_file, nsamples=1)
    ids = gpt2.tokenizer.encode(text_file.read_text(), add_special_tokens=False)
    assert windows.counts.tolist() == np.bincount(ids, minlength=len(windows.counts)).tolist()


def test_line_ends_are_text(gpt2, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT[:2000].replace("\n", "\r\n").encode())
    every = cut(gpt2, TEXT[:2000].replace("\n", "\r\n"), SEQLEN)
    assert load(gpt2, path, nsamples=len(every)).ids.tolist() == every


def test_control_tokens_in_a_text_are_text(gpt2, tmp_path):
    """Windows and sentences have the end-of-text token where it was put, not where a text names it."""
    path = tmp_path / "a.txt"
    path.write_text(f"some {END} words " * 100)
    windows = load(gpt2, path)
    assert gpt2.tokenizer.bos_token_id not in windows.ids
    assert f" {END} " in gpt2.tokenizer.decode(windows.ids[0])
    sentence = data.from_text(f"{END} once", Options(), gpt2).ids[0].tolist()
    assert gpt2.tokenizer.bos_token_id not in sentence
    assert gpt2.tokenizer.decode(sentence) == f"{END} once"


def test_windows_of_a_large_text_are_those_of_the_whole(gpt2, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    every = cut(gpt2, TEXT, SEQLEN)
    monkeypatch.setattr(tokens, "PIECE", 1000)
    monkeypatch.setattr(tokens, "SEAM", 100)
    tokens.ids_of.cache_clear()
    windows = load(gpt2, path, nsamples=20, seed=3)
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(3))[:20].sort().values
    assert windows.available == len(every)
    assert windows.ids.tolist() == [every[i] for i in chosen]


def with_template(template, *added):
    """A tokenizer that puts tokens around a text, none of which is called BOS."""
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    named = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (*added, END)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    return language_model(tiny_model("gpt2"), tokenizer), [i for _name, i in named[:-1]]


@pytest.mark.parametrize(
    ("template", "added"), [("[CLS] $A <|end|>", ["[CLS]"]), ("[gMASK] <sop> $A", ["[gMASK]", "<sop>"])]
)
def test_windows_begin_as_the_tokenizer_begins(text_file, template, added):
    lm, first = with_template(template, *added)
    every = cut(lm, text_file.read_text(), SEQLEN - len(first))
    for bos in (None, True):
        windows = load(lm, text_file, nsamples=len(every), bos=bos)
        assert windows.ids.tolist() == [first + window for window in every]
        assert windows.bos == len(first)
        assert (windows.provenance["bos"], windows.provenance["bos_ids"]) == (True, first)
    assert load(lm, text_file, bos=False).provenance["bos"] is False
    assert data.from_text("a text", Options(), lm).ids[0, : len(first)].tolist() == first
    if len(first) == 2:
        with pytest.raises(UserError, match="windows of 2 tokens have no room for text after the 2"):
            load(lm, text_file, seqlen=2)


def test_what_the_tokenizer_puts_behind_a_text_is_no_part_of_windows(text_file):
    lm, _first = with_template("$A <|end|>")
    windows = load(lm, text_file)
    assert windows.bos == 0
    assert lm.tokenizer.eos_token_id not in windows.ids


def words(text, **special):
    """A tokenizer of whole words that has the words of `text` only, behind a BOS."""
    vocabulary = {"<unk>": 0, "<s>": 1, **{word: i for i, word in enumerate(sorted(set(text.split())), 2)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", **special)


def test_a_tokenizer_without_latin_letters(tmp_path):
    """What it puts first is seen in a text that it knows."""
    chinese = "今天 天气 很 好 我们 去 公园"
    lm = language_model(tiny_model("gpt2"), words(chinese))
    (tmp_path / "a.txt").write_text(f"{chinese} " * 50, encoding="utf-8")
    windows = load(lm, tmp_path / "a.txt")
    assert windows.bos == 1
    assert (windows.ids[:, 0] == 1).all()
    assert (windows.ids[:, 1:] > 1).all()


def test_a_text_that_the_tokenizer_does_not_know(tmp_path, text_file):
    lm = language_model(tiny_model("gpt2"), words("a b c d e f g"))
    with pytest.raises(UserError, match=r"9\d% of the tokens of dataset .* are unknown to the tokenizer \(<unk>\)"):
        load(lm, text_file)
    with pytest.raises(UserError, match="100% of the tokens of --text are unknown"):
        data.from_text("x y", Options(), lm)
    (tmp_path / "a.txt").write_text("a b c x d e f y " * 50)
    assert load(lm, tmp_path / "a.txt").provenance["windows"] == 5


def test_tokens_that_the_model_does_not_have(gpt2, text_file):
    """Unused entries beyond the embeddings are no matter, unless a text has them."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"unused{i}" for i in range(100)])
    lm = language_model(tiny_model("gpt2"), tokenizer)
    assert torch.equal(load(lm, text_file).ids, load(gpt2, text_file).ids)
    last = len(tokenizer) - 1
    with pytest.raises(UserError, match=f"'unused99' id {last}, but the model has only {VOCABULARY} embeddings"):
        data.from_text("unused99", Options(), lm)


def test_sentences_that_are_no_text(gpt2):
    for sentence in ("caf\udce9", "\ud83d"):
        with pytest.raises(UserError, match="--text is not valid text"):
            data.from_text(sentence, Options(), gpt2)


@pytest.mark.parametrize(("name", "content"), [("a.txt", ""), ("a.txt", " \n\n"), ("a.jsonl", '{"text": ""}\n')])
def test_empty_dataset(gpt2, tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match="is empty"):
        load(gpt2, path)


@pytest.mark.parametrize("name", ["wikitext", "example-org/example-dataset"])
def test_hub_dataset_offline(gpt2, name):
    with pytest.raises(UserError, match="--dataset python-docs"):
        load(gpt2, name)


def test_python_docs(gpt2):
    windows = load(gpt2, "python-docs", nsamples=3)
    assert windows.available > 5000
    assert windows.ids.max() < VOCABULARY
    assert windows.provenance["dataset"].startswith("python-docs")
