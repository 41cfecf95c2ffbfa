"""Text -> full token windows, without padding."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lib.core.evidence import Stored
from lib.core.stats import Draws, independent
from lib.model import text, tokens
from lib.model.models import LanguageModel
from lib.run import processes
from lib.run.cli import Options
from lib.run.errors import UserError

LOOK = 256  # tokens at which a first look finds out whether model and text belong together
MOST_UNKNOWN = 0.5  # share of unknown tokens from which on there is nothing to measure


@dataclass(frozen=True)
class Windows:
    """Token windows of one text.

    ids: (n, seqlen) token ids, in text order.
    available: number of windows the text gives.
    bos: with how many tokens each window begins that are not of the text: BOS, or what the tokenizer has in its place.
    text: what the windows were cut from; documents: of how many it was joined.
    chance: loss of the first window's `LOOK` tokens, in nats a token, for who knows only how frequent each token is in
    the rest of the text (counts plus one); None for a text of one's own choice.
    document_of: (n,) which document each window's middle is in; None where each window is one.
    counts: (vocabulary,) how often each token is in the whole text; None for a text of one's own choice.
    """

    ids: torch.Tensor
    available: int
    bos: int
    text: str
    documents: int = 1
    chance: float | None = None
    document_of: np.ndarray | None = None
    counts: np.ndarray | None = None

    def draws(self, seed: int) -> Draws:
        """By documents, or by windows, where all are of one document."""
        if self.document_of is None or len(np.unique(self.document_of)) == 1:
            return independent(len(self.ids), seed)
        return Draws(self.document_of, seed)

    def spread(self, n: int) -> slice:
        """The rows of `n` of the windows, evenly spread; of all, if there are fewer."""
        step = max(1, len(self.ids) // n)
        return slice(0, step * n, step)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.ids.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()

    @property
    def provenance(self) -> Stored:
        n, seqlen = self.ids.shape
        return {
            "dataset": self.text,
            "documents": self.documents,
            **({"joined_by": text.JOINED_BY} if self.documents > 1 else {}),
            **self._drawn(),
            "windows": n,
            "windows_available": self.available,
            "seqlen": seqlen,
            "bos": bool(self.bos),
            **({"bos_ids": self.ids[0, : self.bos].tolist()} if self.bos else {}),
            "token_ids_sha256": self.sha256,
        }

    def _drawn(self) -> Stored:
        if self.document_of is None:
            return {}
        documents = len(np.unique(self.document_of))
        return {"documents_drawn": documents, "documents_effective": round(self.draws(0).effective, 1)}

    def batches(self, batch_size: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """(slice of the windows, their ids) of each batch of this process."""
        return processes.batches(self.ids, batch_size)


def load(options: Options, lm: LanguageModel) -> Windows:
    """Windows of `options.dataset` in `lm`'s tokens.

    The documents of the dataset, joined by blank lines (lib.model.text), are tokenised once without special tokens and
    cut into consecutive windows that do not overlap; `nsamples` of them are drawn without replacement with
    `options.seed`. A window has `seqlen` tokens: with BOS the first is BOS, or what the tokenizer itself puts
    before a text, and the text gives the others.

    Raises UserError: what lib.model.text.read and lib.model.tokens.ids_of raise; too few windows, or fewer batches than
    processes; seqlen beyond the position table; tokens that the model does not have or that are mostly unknown.
    """
    seqlen = window_length(options.seqlen, lm)
    corpus = text.read(options)
    first, ids = _ids(corpus.text, options, lm, f"dataset '{options.dataset}'")
    width = seqlen - len(first)
    if width < 1:
        raise UserError(f"windows of {seqlen} tokens have no room for text after the {len(first)} they begin with")
    available = len(ids) // width
    if available < options.nsamples:
        raise UserError(
            f"--nsamples {options.nsamples}, but '{options.dataset}' gives only {available} windows of {seqlen} tokens"
        )
    batches = -(-options.nsamples // (1 if options.batch_size == "auto" else options.batch_size))
    if batches < processes.size():
        raise UserError(
            f"{processes.size()} processes share the batches of windows, but there are only {batches} of them"
        )
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(options.seed))[: options.nsamples]
    windows = ids[: available * width].reshape(available, width)[chosen.sort().values.numpy()]
    counts = np.bincount(ids, minlength=lm.n_embeddings)
    middles = chosen.sort().values.numpy() * width + width // 2
    return Windows(
        ids=_behind(first, windows),
        available=available,
        bos=len(first),
        text=corpus.name,
        documents=len(corpus.documents),
        chance=_chance(counts, windows[0, : LOOK - len(first)]),
        document_of=_documents(corpus, ids, lm.tokenizer)[middles],
        counts=counts,
    )


def _chance(counts: np.ndarray, window: np.ndarray) -> float:
    counts = counts.copy()
    np.subtract.at(counts, window, 1)
    return float(-np.log((counts[window] + 1) / (counts.sum() + len(counts))).mean())


def _documents(corpus: text.Corpus, ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(tokens,) number of the document that each token is in, counted by characters: where the tokenizer changes the
    text, as by stripping accents, borders may be off by a few tokens."""
    known, index = np.unique(ids, return_inverse=True)
    lengths = np.array([len(tokens.text_of(tokenizer, token)) for token in known.tolist()])[index]
    ends = np.cumsum(lengths) * (len(corpus.text) / max(lengths.sum(), 1))
    return np.asarray(np.searchsorted(corpus.begins, ends - lengths / 2, side="right"))


def from_text(sentence: str, options: Options, lm: LanguageModel) -> Windows:
    """One window that holds all of `sentence`. Raises UserError if it is empty, too long, or not in `lm`'s tokens."""
    try:
        sentence.encode()
    except UnicodeEncodeError as error:  # the shell gave bytes that are not of its encoding
        raise UserError(f"--text is not valid text: {sentence!a}") from error
    first, ids = _ids(sentence, options, lm, "--text")
    if len(first) + len(ids) < 2:
        raise UserError("--text is a single token; it takes at least 2")
    window_length(len(first) + len(ids), lm)
    return Windows(_behind(first, ids[None]), 1, len(first), f"--text {sentence!r}")


def _ids(written: str, options: Options, lm: LanguageModel, what: str) -> tuple[list[int], np.ndarray]:
    """(ids each window begins with, (n,) ids of the text)."""
    ids = tokens.ids_of(lm.tokenizer, written)
    if not len(ids):
        raise UserError(f"{what} is empty")
    first = _first(written, options.bos, lm.tokenizer)
    largest = max(int(ids.max()), *first, 0)
    if largest >= lm.n_embeddings:
        raise UserError(
            f"the tokenizer gives {tokens.text_of(lm.tokenizer, largest)!r} id {largest}, but the model has only "
            f"{lm.n_embeddings} embeddings: they do not belong together"
        )
    unknown = np.mean(ids == lm.tokenizer.unk_token_id)
    if unknown > MOST_UNKNOWN:
        raise UserError(
            f"{unknown:.0%} of the tokens of {what} are unknown to the tokenizer ({lm.tokenizer.unk_token}): it was "
            "made for other texts"
        )
    return first, ids


def _first(written: str, bos: bool | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that each window begins with; bos: True, False, or None for what the tokenizer does (GPT-2 and SmolLM2: none;
    Llama and Gemma: BOS; others [CLS], or several)."""
    if bos is False:
        return []
    first = tokens.before_text(tokenizer, written)
    if bos and not first:
        if tokenizer.bos_token_id is None:
            raise UserError("this tokenizer has no BOS token; leave out --bos")
        first = [tokenizer.bos_token_id]
    return first


def _behind(first: list[int], windows: np.ndarray) -> torch.Tensor:
    """Windows (n, width) with the ids of `first` before each, in int64."""
    return torch.from_numpy(np.hstack([np.tile(np.array(first, dtype=np.int64), (len(windows), 1)), windows]))


def window_length(requested: int | None, lm: LanguageModel) -> int:
    """`requested`, or 1,024 or the position table's length, whichever is shorter.

    Raises UserError if `requested` is beyond the position table.
    """
    longest = lm.arch.n_positions
    if requested is None:
        return min(1024, longest or 1024)
    if requested < 2:
        raise UserError("a window must have at least 2 tokens")
    if longest is not None and requested > longest:
        raise UserError(f"{requested} tokens are more than this model's {longest} positions")
    return requested
