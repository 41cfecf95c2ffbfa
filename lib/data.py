"""Text -> full token windows, without padding."""

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

import torch

from lib import hub, ranks
from lib.errors import UserError

FILE_LOADERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Windows:
    """Token windows of one text.

    ids: (n, seqlen) token ids, in text order.
    available: number of windows the text gives.
    bos: whether each window begins with the BOS token.
    text: what the windows were cut from.
    """

    ids: torch.Tensor
    available: int
    bos: bool
    text: str

    @property
    def sha256(self):
        return hashlib.sha256(self.ids.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()

    @property
    def provenance(self):
        n, seqlen = self.ids.shape
        return {
            "dataset": self.text,
            "windows": n,
            "windows_available": self.available,
            "seqlen": seqlen,
            "bos": self.bos,
            "token_ids_sha256": self.sha256,
        }

    def batches(self, batch_size):
        """(slice of the windows, their ids) of each batch of this process."""
        return ranks.batches(self.ids, batch_size)


def load(options, lm):
    """Windows of `options.dataset` in `lm`'s tokens.

    The text is tokenised once without special tokens and cut into consecutive windows that do not overlap;
    `nsamples` of them are drawn without replacement with `options.seed`. A window has `seqlen` tokens: with BOS the
    first is BOS and the text gives the others.

    Raises UserError: unknown, unreachable or empty dataset; too few windows, or fewer batches than processes; seqlen
    beyond the position table.
    """
    seqlen = window_length(options.seqlen, lm)
    bos = _bos(options, lm.tokenizer)
    text, name = _text(options)
    tokens = lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    width = seqlen - bos
    available = len(tokens) // width
    if available < options.nsamples:
        raise UserError(
            f"--nsamples {options.nsamples}, but '{options.dataset}' gives only {available} windows of {seqlen} tokens"
        )
    batches = -(-options.nsamples // (1 if options.batch_size == "auto" else options.batch_size))
    if batches < ranks.size():
        raise UserError(f"{ranks.size()} processes share the batches of windows, but there are only {batches} of them")
    windows = torch.tensor(tokens[: available * width]).view(available, width)
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(options.seed))[: options.nsamples]
    ids = windows[chosen.sort().values]
    if bos:
        ids = torch.cat([torch.full((len(ids), 1), lm.tokenizer.bos_token_id), ids], dim=1)
    return Windows(ids, available, bos, name)


def from_text(text, options, lm):
    """One window that holds all of `text`. Raises UserError if it is empty or too long."""
    bos = _bos(options, lm.tokenizer)
    tokens = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise UserError("--text is empty")
    tokens = [lm.tokenizer.bos_token_id] * bos + tokens
    window_length(len(tokens), lm)
    return Windows(torch.tensor([tokens]), 1, bos, f"--text {text!r}")


def window_length(requested, lm):
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


def _bos(options, tokenizer):
    if options.bos and tokenizer.bos_token_id is None:
        raise UserError("this tokenizer has no BOS token; leave out --bos")
    return uses_bos(tokenizer) if options.bos is None else options.bos


def uses_bos(tokenizer):
    """Whether the tokenizer itself puts BOS first (GPT-2 and SmolLM2: no; Gemma: yes)."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _text(options):
    """(text, name) of the dataset."""
    name, path = options.dataset, Path(options.dataset)
    if name == "python-docs":
        return "\n\n".join(topics.topics.values()), f"python-docs (Python {platform.python_version()})"
    if path.suffix in FILE_LOADERS:
        if not path.is_file():
            raise UserError(f"no such file: {path}")
        if path.suffix == ".txt":
            text = path.read_text(encoding="utf-8", errors="replace")
        else:
            text = _column(options, FILE_LOADERS[path.suffix], data_files=str(path), split="train")
        label = path.name
    else:
        known = {"wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1")}
        hub_id, config = known.get(name, (name, None))
        config = options.dataset_config or config
        text = _column(options, hub_id, config, split=options.split)
        label = ":".join(part for part in (hub_id, config, options.split) if part)
    if not text.strip():
        raise UserError(f"dataset '{name}' is empty")
    return text, label


def _column(options, *args, **kwargs):
    """All rows of the text column, joined by blank lines."""
    import datasets

    from_hub = "data_files" not in kwargs
    if options.offline:
        hub.go_offline()
    elif from_hub:
        hub.reachable()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        rows = datasets.load_dataset(*args, **kwargs)
    except Exception as error:
        raise UserError(hub.why_not(options.dataset, error, "dataset")) from error
    if options.text_column not in rows.column_names:
        raise UserError(
            f"dataset '{options.dataset}' has no column '{options.text_column}'; it has: {', '.join(rows.column_names)}"
        )
    texts = [text for text in rows[options.text_column] if text]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"column '{options.text_column}' of dataset '{options.dataset}' holds no text")
    return "\n\n".join(texts)
