"""Texts -> ids, all at once or in pieces; control tokens in a text; what tokenizers put before it; texts of tokens."""

import json
import random
import string

import numpy as np
import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lib.model import tokens
from lib.model.tokenizer import load
from lib.planted import blank
from lib.run.cli import UserError
from tests.conftest import END, TEXT, make_tokenizer

SPACES = "    "  # an ordinary added token, as GPT-NeoX and Phi have them


def fast(backend, **special):
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def byte_level():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(SPACES, normalized=False)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def llama():
    """BPE without a pre-tokenizer, as converted from SentencePiece: a whole text is one word."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    control = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=600, special_tokens=control + bytes_))
    whole = json.loads(trained.to_str())
    whole["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    whole["added_tokens"] = whole["added_tokens"][:3]
    backend = Tokenizer.from_str(json.dumps(whole | {"pre_tokenizer": None}))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(spaces)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram():
    """As T5's: control tokens are pieces of the best score, and the normalizer makes their names of others."""
    letters = [(letter, -8.0) for letter in string.printable if not letter.isspace()]
    words = [(f"▁{word}", -6.0 - 0.01 * i) for i, word in enumerate(sorted(set(TEXT.split()))[:300])]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), *letters, *words]
    backend = Tokenizer(models.Unigram(vocab, unk_id=2))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return fast(backend, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def word_piece():
    control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=control, show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    template = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=template)
    return fast(backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


KINDS = {"byte level": byte_level, "llama": llama, "unigram": unigram, "word piece": word_piece}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def random_text(parts, length=6000):
    rng = random.Random(0)
    return "".join(rng.choice(parts) for _ in range(length))


TEXTS = {
    "prose": TEXT,
    "one line": " ".join(TEXT.split()),
    "no space": "".join(TEXT.split()),
    "chinese": random_text("我们在这里测试没有空格的中文文本看看"),
    "emoji": random_text(["😀", "👩‍👩‍👧", "🇩🇪", "e\u0301", "é", " ", "a"]),
    "digits": random_text(string.digits),
    "line ends": random_text(["\r\n", "\n\n", " ", "  ", SPACES, "\t", "the", "end."]),
    "one letter": "a" * 5000,
    "spaces": " " * 5000 + "x",
    "added": random_text(["the", "<|im_start|>", SPACES, "</s>", "[SEP]", " end", "<s>", END]),
}


class Recorded:
    """A backend that keeps how long the longest text was that it got."""

    def __init__(self, backend):
        self.backend, self.longest, self.calls = backend, 0, 0

    def encode_batch_fast(self, texts, **options):
        self.longest = max(self.longest, *map(len, texts))
        self.calls += len(texts)
        return self.backend.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("name", TEXTS)
def test_pieces_give_the_ids_of_the_whole(tokenizer, name, monkeypatch):
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    whole = backend.encode(TEXTS[name], add_special_tokens=False).ids
    for piece, seam in ((500, 100), (1000, 301), (len(TEXTS[name]) - 1, 40)):
        monkeypatch.setattr(tokens, "PIECE", piece)
        monkeypatch.setattr(tokens, "SEAM", seam)
        recorded = Recorded(backend)
        assert tokens._in_pieces(recorded, TEXTS[name]).tolist() == whole
        assert recorded.calls >= 1
        if (name, piece) == ("prose", 500):
            assert recorded.longest < len(TEXT) / 2


def test_a_cut_where_the_parts_differ_is_left_out(monkeypatch):
    """A word of over 100 letters is one unknown token of WordPiece, however long."""
    backend = word_piece().backend_tokenizer
    monkeypatch.setattr(tokens, "PIECE", 600)
    monkeypatch.setattr(tokens, "SEAM", 100)
    text = f"{TEXT[:3000]} {'x' * 4000} {TEXT[3000:9000]}"
    recorded = Recorded(backend)
    assert tokens._in_pieces(recorded, text).tolist() == backend.encode(text, add_special_tokens=False).ids
    assert 4000 < recorded.longest < 8000


def test_a_tokenizer_that_truncates_and_pads(monkeypatch):
    tokenizer = byte_level()
    expected = tokens.ids_of(tokenizer, TEXT).tolist()
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=50_000)
    tokens.ids_of.cache_clear()
    assert tokens.ids_of(tokenizer, TEXT).tolist() == expected
    assert len(expected) > 1000


# Control tokens


@pytest.mark.parametrize("name", ["prose", "chinese", "line ends"])
def test_ids_are_those_of_the_tokenizer(tokenizer, name):
    ids = tokens.ids_of(tokenizer, TEXTS[name])
    assert ids.tolist() == tokenizer(TEXTS[name], add_special_tokens=False)["input_ids"]


def test_control_tokens_in_a_text_are_text(tokenizer):
    """Their names come out as what they look like, in any place of a text; the text around them is as without them."""
    control = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    names = [name for i, name in control.items() if i != tokenizer.unk_token_id]
    assert names
    alone = {name: tokens.ids_of(tokenizer, f"the {name} end").tolist() for name in names}
    for name, ids in alone.items():
        assert not control.keys() & set(ids)
        assert "".join(tokens.text_of(tokenizer, i) for i in ids).replace(" ", "").lower() == f"the{name}end".lower()
        assert tokenizer.convert_tokens_to_ids(name) in tokenizer(name)["input_ids"]  # as it would be without care
    for text in (*names, "".join(names), f"{TEXT} {' '.join(names)} {TEXT}"):
        assert not (control.keys() - {tokenizer.unk_token_id}) & set(tokens.ids_of(tokenizer, text).tolist())


def test_names_that_only_the_normalizer_makes():
    """Full-width signs, which NFKC turns into those of a control token."""
    tokenizer, wide = unigram(), "the \uff1c/s\uff1e end"
    ids = tokens.ids_of(tokenizer, wide).tolist()
    assert ids == tokens.ids_of(tokenizer, "the </s> end").tolist()
    assert "".join(tokens.text_of(tokenizer, i) for i in ids) == " the </s> end"
    assert tokenizer.eos_token_id not in ids


@pytest.mark.parametrize("make", [llama, unigram, word_piece])
def test_the_name_of_the_unknown_token(make):
    tokenizer = make()
    name, unknown = tokenizer.unk_token, tokenizer.unk_token_id
    assert unknown not in tokens.ids_of(tokenizer, f"the {name} end").tolist()
    if make is not llama:  # which falls back to bytes
        assert tokens.ids_of(tokenizer, f"the {name} \u4f60 end").tolist().count(unknown) == 1


def test_added_tokens_that_are_no_control_tokens_keep_their_ids():
    tokenizer = byte_level()
    added = tokenizer.convert_tokens_to_ids(SPACES)
    text = f"def f():\n{SPACES}return{SPACES}<|im_start|>"
    ids = tokens.ids_of(tokenizer, text).tolist()
    assert ids.count(added) == 2
    assert tokenizer.decode(ids) == text


def test_whole_word_models():
    """To a model of whole words the name of a control token is an unknown word; here that is the BOS token itself."""
    tokenizer = blank.tokenizer()
    assert tokens.ids_of(tokenizer, "t1 t2 t9").tolist() == [1, 2, 9]
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert tokens.ids_of(fast(words, bos_token="<s>", unk_token="<unk>"), "a <s> a <unk>").tolist() == [2, 0, 2, 0]


def test_a_vocabulary_without_a_token_for_the_unknown(tmp_path):
    """It is loaded, whichever words it has, and takes what is made of these."""
    words = Tokenizer(models.WordLevel({"ac": 0, "b": 1}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast(words).save_pretrained(tmp_path)
    loaded = load(str(tmp_path), trust_remote_code=False)
    assert tokens.ids_of(loaded, "b ac b").tolist() == [1, 0, 1]
    with pytest.raises(UserError, match="cannot tokenise the text: it has no token for 'dc'"):
        tokens.ids_of(loaded, "b ac dc")
    words.pre_tokenizer = None
    with pytest.raises(UserError, match="cannot tokenise the text: WordLevel error"):
        tokens.ids_of(fast(words), "b ac")


def test_a_text_token_that_is_also_the_padding():
    """Some fine-tuned models pad with `!`."""
    tokenizer = make_tokenizer()
    expected = tokens.ids_of(tokenizer, "Oh! no!!").tolist()
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "!"
    assert tokens.ids_of(tokenizer, "Oh! no!!").tolist() == expected


def test_tokenizers_written_in_python():
    tokenizer = transformers.ByT5Tokenizer()
    for text in ("plain é", "with </s> and <pad>"):
        assert tokens.ids_of(tokenizer, text).tolist() == [byte + 3 for byte in text.encode()]
    tokenizer.add_tokens(["##"])
    assert tokens.ids_of(tokenizer, "a##").tolist() == [ord("a") + 3, tokenizer.convert_tokens_to_ids("##")]
    with pytest.raises(UserError, match=r"'</s>', which ByT5Tokenizer can only read as a control token"):
        tokens.ids_of(tokenizer, "a##</s>")


# What stands before a text


@pytest.mark.parametrize(
    ("make", "expected"),
    [(byte_level, []), (llama, ["<s>"]), (unigram, []), (word_piece, ["[CLS]"]), (transformers.ByT5Tokenizer, [])],
)
def test_before_text(make, expected):
    tokenizer = make()
    for text in ("a", "  words of a text", "<s>", "[CLS]", END, "你好", "x" * 5000):
        assert tokenizer.convert_ids_to_tokens(tokens.before_text(tokenizer, text)) == expected


def test_several_tokens_before_a_text():
    """As ChatGLM has them."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    ids = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    named = list(zip(["[gMASK]", "<sop>"], ids, strict=True))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"[gMASK] <sop> $A {END}", special_tokens=[*named, (END, 0)]
    )
    assert tokens.before_text(tokenizer, "a text") == ids


# Texts of tokens


def test_byte_level_tokens_are_as_they_decode():
    tokenizer = byte_level()
    for i in range(len(tokenizer)):
        decoded = tokenizer.decode([i])
        if "\ufffd" not in decoded:
            assert tokens.text_of(tokenizer, i) == decoded
    assert [tokens.text_of(tokenizer, i) for i in tokenizer("你é", add_special_tokens=False)["input_ids"]] == [
        f"<0x{byte:02X}>" for byte in "你é".encode()
    ]
    assert tokens.text_of(tokenizer, 0) == END


def test_whole_characters_beside_a_part_of_one():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["ĠĊäl"])  # in the alphabet of bytes: space, line end, 0xE4, l
    assert tokens.text_of(tokenizer, len(tokenizer) - 1) == " \n<0xE4>l"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (llama, {"▁the": " the", "the": "the", "▁": " ", "<0xE4>": "<0xE4>", "<0x0A>": "\n", "</s>": "</s>"}),
        (unigram, {"▁": " ", "a": "a", "</s>": "</s>", "<unk>": "<unk>"}),
        (word_piece, {"the": " the", "##s": "s", "[CLS]": "[CLS]", "[PAD]": "[PAD]"}),
        (blank.tokenizer, {"t1": "t1", blank.BOS_TEXT: blank.BOS_TEXT}),
        (transformers.ByT5Tokenizer, {"a": "a", " ": " ", "</s>": "</s>"}),
    ],
)
def test_texts_of_tokens(make, expected):
    tokenizer = make()
    assert {token: tokens.text_of(tokenizer, tokenizer.convert_tokens_to_ids(token)) for token in expected} == expected


def test_texts_of_tokens_put_together_are_the_text():
    text = "The language  reference:\n\tx = [1, 2]\n"
    for make in (byte_level, llama):
        tokenizer = make()
        ids = tokens.ids_of(tokenizer, text)
        assert "".join(tokens.text_of(tokenizer, int(i)) for i in ids).removeprefix(" ") == text


def test_ids_without_a_token():
    assert tokens.text_of(make_tokenizer(), 310) == "<id 310>"
    assert isinstance(tokens.ids_of(make_tokenizer(), "a"), np.ndarray)
