"""A checkpoint that nanoGPT's train.py keeps (ckpt.pt) as a folder that transformers loads as GPT-2, or a refusal.

Its model is GPT-2's with exact GELU (its pull request 274; until June 2023 the tanh approximation, which differs by
5e-4 at most, and no checkpoint says which), with linear layers for Conv1D, and with biases or without. Its tokens are
characters where data/<dataset>/meta.pkl says so, else GPT-2's, as in its sample.py.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from lib.model import converted
from lib.model.gguf_tokenizer import ELSEWHERE
from lib.run.cli import NANOGPT, STATES
from lib.run.errors import UserError, cause, listed

META = "meta.pkl"
SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
}
GPT2 = "gpt2"  # the tokenizer of texts that have no META
GPT2_TOKENS = (50_257, 50_304)  # as they are, and as nanoGPT rounds them up
WRAPPED = re.compile(r"(module\.|_orig_mod\.)+")  # what DistributedDataParallel and torch.compile put before names
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # of Conv1D, (in, out)


def checkpoint_at(path: Path) -> Path | None:
    """The checkpoint that a path names: a file, or nanoGPT's out_dir; None if it names none."""
    if os.path.isdir(path):  # which takes any name
        return path / NANOGPT if (path / NANOGPT).is_file() and not (path / "config.json").is_file() else None
    return path if path.suffix.lower() in STATES and os.path.isfile(path) else None


def meta_of(path: Path) -> Path | None:
    """The META of the text that a checkpoint was trained on: beside it, or in nanoGPT's data/<dataset> around it.

    Raises UserError if it is no checkpoint of nanoGPT.
    """
    config = _read(path).get("config")
    dataset = str(config.get("dataset") or "") if isinstance(config, dict) else ""
    folders = [path.parent, *(parent / "data" / dataset for parent in path.resolve().parents if dataset)]
    return next((folder / META for folder in folders if (folder / META).is_file()), None)


def tokenizer_of(n_embeddings: int, name: str) -> str:
    """That of a checkpoint without META, as nanoGPT's sample.py takes it. Raises UserError if it cannot be."""
    if n_embeddings not in GPT2_TOKENS:
        raise UserError(
            f"no tokenizer for '{name}': there is no {META} with its characters beside it or in data/{ELSEWHERE}"
        )
    return GPT2


def convert(
    path: Path,
    meta: Path | None,
    folder: Path,
    require_room: Callable[[str, transformers.PreTrainedConfig, int], None],
) -> None:
    """Write configuration, weights (float32) and, from `meta`, tokenizer into `folder`.

    require_room: given the bytes of the file, raises UserError for a model that is larger than that.

    Raises UserError: a file that is damaged or no checkpoint of nanoGPT, sizes, tensors or characters not understood.
    """
    try:
        checkpoint = _read(path)
        _require_whole(path)
        config = _configuration(checkpoint["model_args"])
        require_room(str(path), config, path.stat().st_size)
        weights = _weights(checkpoint["model"], config)
        tokenizer = None if meta is None else _characters(meta, config.vocab_size)
    except UserError as error:
        raise UserError(f"cannot load '{path}': {error}") from error
    converted.save(folder, config, weights, tokenizer)


def _read(path: Path) -> dict[str, Any]:
    """It has `model` and `model_args`; the values of its weights are not read yet."""
    if not zipfile.is_zipfile(path):
        raise UserError(f"cannot read {path}: it is cut short, or not as torch.save writes it (a zip file)")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        code = isinstance(error, pickle.UnpicklingError)
        why = "it holds more than tensors and plain values, which may be code" if code else cause(error)
        raise UserError(f"cannot read {path}: {why}") from error
    parts = [found.get(name) for name in ("model", "model_args")] if isinstance(found, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or not _is_state(parts[0]):
        raise UserError(
            f"'{path}' is no checkpoint of nanoGPT, which has model and model_args; models of transformers are folders "
            "with config.json and weights"
        )
    return found


def _require_whole(path: Path) -> None:
    """Raise UserError if a part of a checkpoint differs from its checksum, which torch.load does not look at."""
    with zipfile.ZipFile(path) as parts:
        damaged = parts.testzip()
    if damaged:
        raise UserError(f"it is damaged: the checksum of {damaged} is another")


def _is_state(model: Any) -> bool:
    """Whether it is a dict of tensors by names."""
    return all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in model.items())


def _configuration(sizes: dict[str, Any]) -> transformers.GPT2Config:
    wrong = [name for name in SIZES if type(sizes.get(name)) is not int or sizes[name] < 1]
    if wrong:
        raise UserError(f"its model_args have no {listed(wrong)}")
    if sizes["n_embd"] % sizes["n_head"]:
        raise UserError(f"its n_embd {sizes['n_embd']} is no multiple of its n_head {sizes['n_head']}")
    return transformers.GPT2Config(
        **{theirs: sizes[name] for name, theirs in SIZES.items()},
        activation_function="gelu",
        bos_token_id=None,
        eos_token_id=None,
        architectures=["GPT2LMHeadModel"],
    )


def _weights(found: dict[str, Any], config: transformers.GPT2Config) -> dict[str, torch.Tensor]:
    """In float32, by their names in transformers; biases that it does without are zero."""
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    stored = {WRAPPED.sub("", name): value for name, value in found.items()}
    embedding, head = stored.get("transformer.wte.weight"), stored.pop("lm_head.weight", None)
    if embedding is None or head is None or not torch.equal(embedding, head):
        raise UserError("its lm_head.weight is not its transformer.wte.weight, as in nanoGPT")
    unused = [name for name in stored if name not in shapes and not name.endswith(".attn.bias")]  # the causal mask
    if unused:
        raise UserError(f"nanoGPT's model has no place for its {listed(sorted(unused))}")
    has_biases = any(name.endswith(".bias") for name in shapes.keys() & stored.keys())
    weights = {}
    for name, shape in shapes.items():
        value = stored.get(name)
        if value is None and name.endswith(".bias") and not has_biases:
            value = torch.zeros(shape)
        if value is None:
            raise UserError(f"it has no {name}")
        value = value.T if name.endswith(TRANSPOSED) else value
        if tuple(value.shape) != shape:
            raise UserError(f"its {name} is {tuple(stored[name].shape)}, which its model_args do not give")
        weights[name] = value.float().contiguous()
    return weights


class _PlainData(pickle.Unpickler):
    """Numbers, texts and what holds them; nothing that runs code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _characters(meta: Path, n_embeddings: int) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer of a META. Raises UserError unless its tokens are characters, as many as the model has."""
    try:
        with open(meta, "rb") as file:
            known = _PlainData(file).load()["stoi"]
        ids = sorted(known.values())
        wrong = any(len(character) != 1 for character in known) and "tokens that are no characters"
    except pickle.UnpicklingError as error:
        raise UserError(f"cannot read {meta}: {cause(error)}{ELSEWHERE}") from error
    except Exception as error:
        raise UserError(f"{meta} has no stoi, a dict of ids by characters{ELSEWHERE}") from error
    wrong = wrong or (ids != [*range(len(ids))] and "ids that are not 0, 1, 2 and so on")
    wrong = wrong or (len(ids) != n_embeddings and f"{len(ids)} characters, the model {n_embeddings}")
    if wrong:
        raise UserError(f"{meta} has {wrong}{ELSEWHERE}")
    backend = Tokenizer(models.WordLevel(known))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
