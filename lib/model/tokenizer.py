"""A checkpoint's tokenizer, with the ids that its own files give."""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import sentencepiece
import transformers
from tokenizers import models, normalizers
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from lib.model import checkpoint
from lib.model.gguf_tokenizer import SPACE, require_order
from lib.run.errors import UserError

FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "special_tokens_map.json", "added_tokens.json")
PROBES = ("x  5", " a ", "It's 12,345.60 (or so)", "one\ntwo\n\n\tthree", "Ünïcode ﬁ ½ – “…”", "日本語 🙂")  # noqa: RUF001


def load(name: str, trust_remote_code: bool, **where: Any) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id.

    Where there is a tokenizer.json its ids are that file's: the class that a configuration names may bring another
    splitter along, so the file itself is loaded, and of the class only the name of a BOS token that no file names, as
    in GPT-2's. Code of the checkpoint's own runs only with `trust_remote_code`.

    where: `revision` of a hub id. Raises UserError: code that is not trusted, a vocabulary that is empty or lacks its
    merges, a file that is damaged; whatever else transformers raises for files that it cannot read.
    """
    try:
        return _load(name, trust_remote_code, **where)
    except UserError:
        raise
    except Exception:
        for file in FILES:
            if path := cached_file(
                name, file, _raise_exceptions_for_missing_entries=False, local_files_only=True, **where
            ):
                checkpoint.json_object(Path(path))
        raise


def _load(name: str, trust_remote_code: bool, **where: Any) -> transformers.PreTrainedTokenizerBase:
    settings = get_tokenizer_config(name, **where)
    code = settings.get("auto_map")
    code = code.get("AutoTokenizer") if isinstance(code, dict) else code  # a list, in old ones
    if code and not trust_remote_code:
        raise UserError(f"it is code of its own ({code}), which runs only with --trust_remote_code")
    whole, pieces = (
        cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)
        for file in ("tokenizer.json", "tokenizer.model")
    )
    if whole is not None and not code:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(name, fix_mistral_regex=False, **where)
        if tokenizer.bos_token is None and "bos_token" not in settings:
            tokenizer.bos_token = _bos_of_class(name, tokenizer.get_vocab(), **where)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **where)
        _require_merges(tokenizer)
        if pieces is not None and not code:
            _follow(tokenizer, pieces)
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):  # without files transformers makes one up
        raise UserError("its vocabulary is empty")
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if model is not None and getattr(model, "dropout", None):  # which training is for: other ids at every call
        model.dropout = None
    tokenizer("")  # a configuration of wrong types fails here
    return tokenizer


def _bos_of_class(name: str, vocabulary: Container[str], **where: Any) -> str | None:
    """The BOS token of the class that transformers takes for a model's type, if it is in the vocabulary."""
    try:
        bos = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where).bos_token
    except Exception:  # a tokenizer.json needs no class, and not every class takes it
        return None
    return bos if bos in vocabulary else None


def _follow(tokenizer: transformers.PreTrainedTokenizerBase, path: str) -> None:
    """Treat spaces as a SentencePiece file does, not as a class thinks that such files do (at the beginning of a text).

    Raises UserError if its ids are other ones even so: classes leave out the normalisation that a file asks for.
    """
    own = sentencepiece.SentencePieceProcessor(model_file=path)
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.model, models.BPE):
        pieces = (i for i in range(len(own)) if not (own.IsControl(i) or own.IsUnknown(i) or own.IsByte(i)))
        require_order(own.GetScore(i) for i in pieces if not own.IsUnused(i))
        prefix = [normalizers.Prepend(SPACE)] * own.encode("a", out_type=str)[0].startswith(SPACE)
        backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
        backend.pre_tokenizer = None
    for text in PROBES:
        if tokenizer(text, add_special_tokens=False)["input_ids"] != own.encode(text):
            name = type(tokenizer).__name__
            raise UserError(f"{name} does not give {text!r} the ids of tokenizer.model; a tokenizer.json is needed")


def _require_merges(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Raise UserError for byte-pair encoding without merges, which would cut every word into letters."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if isinstance(model, models.BPE) and len(tokenizer) > 300 and not json.loads(model.__getstate__())["merges"]:
        raise UserError("its files have a vocabulary but no merges (merges.txt or tokenizer.json is missing)")
