"""A checkpoint's tokenizer, with the ids that its own files give."""

import json

import transformers
from tokenizers import models
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from lib.cli import UserError


def load(name, trust_remote_code, **where):
    """The tokenizer of a folder or hub id.

    Where there is a tokenizer.json its ids are that file's: the class that a configuration names may bring another
    splitter along, so the file itself is loaded. Code of the checkpoint's own runs only with `trust_remote_code`.

    where: `revision` of a hub id. Raises UserError: code that is not trusted, a vocabulary that is empty or lacks its
    merges; whatever transformers raises for files that it cannot read.
    """
    code = (get_tokenizer_config(name, **where).get("auto_map") or {}).get("AutoTokenizer")
    if code and not trust_remote_code:
        raise UserError(f"it is code of its own ({code}), which runs only with --trust_remote_code")
    file = cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **where)
    if file is not None and not code:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(name, **where)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **where)
        _require_merges(tokenizer)
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):  # without files transformers makes one up
        raise UserError("its vocabulary is empty")
    tokenizer("0")  # a configuration of wrong types fails here
    return tokenizer


def _require_merges(tokenizer):
    """Raise UserError for byte-pair encoding without merges, which would cut every word into letters."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if isinstance(model, models.BPE) and len(tokenizer) > 300 and not json.loads(model.__getstate__())["merges"]:
        raise UserError("its files have a vocabulary but no merges (merges.txt or tokenizer.json is missing)")
