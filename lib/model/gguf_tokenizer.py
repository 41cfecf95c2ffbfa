"""The tokenizer that a GGUF file describes: its own vocabulary, merges and pre-tokenizer, or a refusal by name.

A file names its pre-tokenizer and leaves the rule to whoever reads it; the rules here are llama.cpp's.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lib.run.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
ELSEWHERE = "; name a tokenizer with --tokenizer"
SPACE = "\u2581"  # SentencePiece's

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*")
CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = [f"{ENDINGS}|{WORDS}|\\p{{N}}{{1,3}}|{REST}"]
QWEN2 = [f"{ENDINGS}|{WORDS}|\\p{{N}}|{REST}"]
DIGITS_THEN_GPT2 = [r"\p{N}", GPT2]
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"  # noqa: RUF001
# tokenizer.ggml.pre: the patterns that split a text, one after the other
SPLITS = {
    "gpt-2": [GPT2],
    "phi-2": [GPT2],
    "olmo": [GPT2],
    "mpt": [GPT2],
    "smollm": DIGITS_THEN_GPT2,
    "starcoder": DIGITS_THEN_GPT2,
    "refact": DIGITS_THEN_GPT2,
    "command-r": DIGITS_THEN_GPT2,
    "codeshell": DIGITS_THEN_GPT2,
    "exaone": DIGITS_THEN_GPT2,
    "minerva-7b": DIGITS_THEN_GPT2,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "falcon3": LLAMA3,
    "falcon-h1": LLAMA3,
    "pixtral": LLAMA3,
    "midm-2.0": LLAMA3,
    "lfm2": LLAMA3,
    "smaug-bpe": LLAMA3,
    "dbrx": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "stablelm2": QWEN2,
    "tekken": [f"{CASED[0]}|{CASED[1]}|\\p{{N}}|{CASED_REST}"],
    "gpt-4o": [f"{CASED[0]}{ENDINGS}?|{CASED[1]}{ENDINGS}?|\\p{{N}}{{1,3}}|{CASED_REST}"],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
    "bloom": [BLOOM],
    "poro-chat": [BLOOM],
    "gpt3-finnish": [BLOOM],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
}
# these take a word that is in the vocabulary whole, without merging, and put BOS first unless told otherwise
WHOLE_WORDS = ("llama-bpe", "llama3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")


def build(metadata: Mapping[str, Any]) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer of a file's metadata. Raises UserError if its kind, or its pre-tokenizer, is not known."""
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = fields.get("model")
    if kind not in builders:
        raise UserError(f"its tokenizer is of the kind '{kind}'; supported: {', '.join(builders)}{ELSEWHERE}")
    absent = [key for key in ("tokens", {"gpt2": "merges", "llama": "scores"}[kind]) if key not in fields]
    if absent:
        raise UserError(f"its metadata has no tokenizer.ggml.{absent[0]}{ELSEWHERE}")
    tokens, types = fields["tokens"], fields.get("token_type") or [NORMAL] * len(fields["tokens"])
    if len(types) != len(tokens):
        raise UserError(f"its vocabulary has {len(tokens)} tokens, but {len(types)} types of tokens{ELSEWHERE}")
    repeated = [token for token, n in Counter(tokens).items() if n > 1]
    if repeated:
        raise UserError(f"its vocabulary has '{repeated[0]}' more than once{ELSEWHERE}")
    backend = builders[kind](fields, {token: i for i, token in enumerate(tokens)}, types)
    added = [token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    special = {token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL}
    backend.add_tokens([AddedToken(token, normalized=False, special=token in special) for token in added])
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
    named = {
        f"{name}_token": tokens[fields[key]]
        for name, key in names.items()
        if fields.get(key, len(tokens)) < len(tokens)
    }
    first = kind == "llama" or fields.get("pre") in WHOLE_WORDS
    if fields.get("add_bos_token", first) and "bos_token" in named:
        bos = named["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, fields["bos_token_id"])]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def _byte_level(fields: Mapping[str, Any], vocabulary: dict[str, int], _types: Sequence[int]) -> Tokenizer:
    pre = fields.get("pre")
    if pre is None:
        raise UserError(f"it does not name its pre-tokenizer (tokenizer.ggml.pre){ELSEWHERE}")
    if pre not in SPLITS:
        raise UserError(f"its pre-tokenizer '{pre}' is not known; known: {', '.join(SPLITS)}{ELSEWHERE}")
    merges = [tuple(merge.split(" ", 1)) for merge in fields["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]]
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_alone])
    backend.decoder = decoders.ByteLevel()
    return backend


def require_order(scores: Iterable[float]) -> None:
    """Raise UserError if two pieces have the same score: which of two neighbours is joined first is then a matter of
    their places in the text, which a list of merges cannot say."""
    if max(Counter(scores).values(), default=0) > 1:
        raise UserError(f"its vocabulary has pieces of the same score, which is not supported{ELSEWHERE}")


def _sentencepiece(fields: Mapping[str, Any], vocabulary: dict[str, int], types: Sequence[int]) -> Tokenizer:
    """Byte-pair encoding by scores: of all neighbours that a token joins, those of the highest score are joined."""
    scores = fields["scores"]
    require_order(scores[i] for i, kind in enumerate(types) if kind == NORMAL)
    pairs = []
    for token, kind in zip(fields["tokens"], types, strict=True):
        if kind in (NORMAL, USER_DEFINED, UNUSED):
            splits = ((token[:i], token[i:]) for i in range(1, len(token)))
            pairs += [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
    pairs.sort(key=lambda pair: (-scores[vocabulary["".join(pair)]], vocabulary[pair[0]], vocabulary[pair[1]]))
    unknown = fields["tokens"][fields["unknown_token_id"]] if fields.get("unknown_token_id") is not None else None
    bytes_too = BYTE in types
    backend = Tokenizer(models.BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_too))
    prefix = fields.get("add_space_prefix", True)
    backend.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    )
    without_prefix = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *without_prefix]
    )
    return backend
