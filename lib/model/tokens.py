"""Between texts and token ids: the ids of a text, the tokens that windows begin with, the texts of tokens."""

import json
import re
from functools import lru_cache
from itertools import pairwise
from typing import cast

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lib.run.errors import UserError, cause

PIECE = 1 << 17  # characters that are tokenised at once
SEAM = 1024  # characters on both sides of a cut that both pieces take in
AT_ONCE = 32  # pieces, which the tokenizers library shares among cores
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


@lru_cache(maxsize=1)  # the experiments of a study all ask for the same
def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """(n,) int32 ids of a text as the tokenizer gives them for the whole of it, without special tokens around it.

    Names of control tokens in the text (`<s>`, `<|endoftext|>`) are text like any other; tokens that were added to the
    vocabulary and are no control tokens keep their ids. Raises UserError where this tokenizer cannot do that.
    """
    control = _control_tokens(tokenizer)
    if not _is_backend_alone(tokenizer):
        return np.array(_ids_of_python(tokenizer, text, control), dtype=np.int32)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    ids = _in_pieces(backend, text)
    if not isinstance(backend.model, BPE):  # which gets to a token by its merges only
        unknown = tokenizer.unk_token_id
        found = np.isin(ids, [i for i in control if i != unknown]).any()
        if found or (unknown in control and control[unknown] in text):
            ids = _in_pieces(_without_names(backend, control), text)
    return ids


@lru_cache(maxsize=1)  # of Gemma's 6,414 added tokens it takes 30 ms, and every token's text asks for it
def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Names by id."""
    special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _is_backend_alone(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizers library does all the work, and the class nothing of its own."""
    own, fast = type(tokenizer), PreTrainedTokenizerFast
    return tokenizer.is_fast and own.__call__ is fast.__call__ and own._encode_plus is fast._encode_plus


def _ids_of_python(tokenizer: PreTrainedTokenizerBase, text: str, control: dict[int, str]) -> list[int]:
    named = [name for name in control.values() if name in text]
    ordinary = [str(t) for i, t in tokenizer.added_tokens_decoder.items() if i not in control and str(t) in text]
    try:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=bool(named), verbose=False)["input_ids"]
    except Exception as error:
        raise UserError(f"{type(tokenizer).__name__} cannot tokenise the text: {cause(error)}") from error
    kept = (control.keys() - {tokenizer.unk_token_id}) & set(ids)
    if named and (kept or (ordinary and not tokenizer.is_fast)):
        raise UserError(
            f"the text holds '{named[0]}', which {type(tokenizer).__name__} can only read as a control token"
        )
    return ids


def _without_names(backend: Tokenizer, control: dict[int, str]) -> Tokenizer:
    """The same tokenizer, but its control tokens have no name that a text could hold."""
    whole = json.loads(backend.to_str())
    model = whole["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [[f"\0{i}" if i in control else piece, p] for i, (piece, p) in enumerate(model["vocab"])]
    else:
        kept = model.get("unk_token")
        model["vocab"] = {
            f"\0{i}" if i in control and piece != kept else piece: i for piece, i in model["vocab"].items()
        }
    whole["added_tokens"] = [token for token in whole["added_tokens"] if not token["special"]]
    whole["post_processor"] = None
    return type(backend).from_str(json.dumps(whole))


def _unknown(backend: Tokenizer, text: str) -> str | None:
    """The first word, or whatever a tokenizer splits texts into, that it cannot tokenise; None if it splits none."""
    spans = [span for _word, span in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else []
    for word in dict.fromkeys(text[start:stop] for start, stop in spans):
        try:
            backend.encode(word, add_special_tokens=False)
        except Exception:
            return word
    return None


def _in_pieces(backend: Tokenizer, text: str) -> np.ndarray:
    """What `backend` gives for the whole text, from pieces: one core and 150 bytes a character are what that costs.

    Neighbours overlap by 2 * SEAM characters, which are tokenised on their own, too. Where all three agree on the
    middle half of these tokens, the pieces are put together in its middle: there, nothing beyond the overlap has a
    say. (Of BPE, a sequence of tokens is what the whole text gives if each two neighbours are what their text gives.)
    A cut at which they do not agree is left out.
    """
    cuts = list(range(PIECE, len(text) - SEAM, PIECE))
    done: dict[tuple[int, int], np.ndarray] = {}
    while True:
        edges = [(0, 0), *((cut - SEAM, cut + SEAM) for cut in cuts), (len(text), len(text))]
        pieces = [(start, stop) for (start, _), (_, stop) in pairwise(edges)]
        seams = edges[1:-1]
        todo = [span for span in pieces + seams if span not in done]
        for start in range(0, len(todo), AT_ONCE):
            spans = todo[start : start + AT_ONCE]
            try:
                encodings = backend.encode_batch_fast([text[slice(*span)] for span in spans], add_special_tokens=False)
            except Exception as error:  # what is in no token, where there is none for the unknown
                unknown = _unknown(backend, "".join(text[slice(*span)] for span in spans))
                why = cause(error) if unknown is None else f"it has no token for {unknown!r}"
                raise UserError(f"the tokenizer cannot tokenise the text: {why}") from error
            done |= {
                span: np.array(encoding.ids, dtype=np.int32) for span, encoding in zip(spans, encodings, strict=True)
            }
        agree = [
            _agree(*(done[span] for span in neighbours)) for neighbours in zip(pieces, seams, pieces[1:], strict=False)
        ]
        if all(agree):
            break
        cuts = [cut for cut, fits in zip(cuts, agree, strict=True) if fits]
    parts = []
    for number, span in enumerate(pieces):
        ids, n = done[span], len(done[span])
        before = len(done[seams[number - 1]]) // 2 if number else 0
        after = len(done[seams[number]]) - len(done[seams[number]]) // 2 if number < len(seams) else 0
        parts.append(ids[before : n - after])
    return np.concatenate(parts)


def _agree(left: np.ndarray, seam: np.ndarray, right: np.ndarray) -> bool:
    """Whether a piece ends as its seam does, and the next begins so, but for a quarter of the seam at its ends."""
    first, last = len(seam) // 4, len(seam) - len(seam) // 4
    tail = left[len(left) - (len(seam) - first) :] if len(left) >= len(seam) - first else left[:0]
    return last - first >= 16 and np.array_equal(tail, seam[first:]) and np.array_equal(right[:last], seam[:last])


def known_ids(tokenizer: PreTrainedTokenizerBase, n_embeddings: int) -> np.ndarray:
    """(n,) int64 ids, ascending, that the tokenizer has a token for and the model an embedding."""
    ids = np.unique([*tokenizer.get_vocab().values()])
    return ids[ids < n_embeddings].astype(np.int64)


def before_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids that the tokenizer itself puts before `text`: BOS, [CLS], several, or (GPT-2) none."""
    sample = text.strip()[:200]
    how = {"verbose": False, **({"split_special_tokens": True} if tokenizer.is_fast else {})}
    plain = tokenizer(sample, add_special_tokens=False, **how)["input_ids"]
    whole = tokenizer(sample, **how)["input_ids"]
    starts = range(len(whole) - len(plain) + 1)
    return whole[: next((start for start in starts if whole[start : start + len(plain)] == plain), 0)]


def text_of(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token as it stands within a text: with its leading space, bytes that are no whole character as <0xE4>, control
    tokens by name."""
    piece = cast(str | None, tokenizer.convert_ids_to_tokens(token_id))
    if piece is None:
        return f"<id {token_id}>"
    if token_id in _control_tokens(tokenizer) or (tokenizer.is_fast and tokenizer.backend_tokenizer.decoder is None):
        return piece
    # decoders strip the space of what comes first
    text = tokenizer.convert_tokens_to_string(["a", piece]).removeprefix("a")
    if "\ufffd" not in text:
        return text
    if not set(piece) <= BYTES.keys():
        return piece
    text = bytes(BYTES[character] for character in piece).decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: f"<0x{ord(byte[0]) - 0xDC00:02X}>", text)
