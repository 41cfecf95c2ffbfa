"""A model folder's own files: what they are, whether they belong together, and whether all of them are in the model."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from lib.model.configuration import dicts
from lib.run.errors import IS_POINTER, LFS_POINTER, UserError, cause, listed

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.h5", "*.msgpack")
GGUF = "*.[gG][gG][uU][fF]"
BELOW = ("*", "snapshots/*", "*/snapshots/*")  # of a folder with models: one each, of the hub's cache one or many
FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
MERGE = (
    "merge it into its base model with peft: "
    "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
)
HALF = 1e-2  # what half precision may change


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, not read yet."""

    shape: tuple[int, ...]
    dtype: str
    file: Path

    def read(self, name: str) -> torch.Tensor:
        if self.file.suffix == ".safetensors":
            with safe_open(self.file, "pt") as file:
                return file.get_tensor(name)
        return torch.load(self.file, map_location="cpu", weights_only=True)[name]


def require_no_pointers(folder: Path) -> None:
    """Raise UserError if a file that a model or a tokenizer is read from is a pointer of Git LFS."""
    for pattern in ("*.safetensors", "*.bin", "*.json", "*.model", "*.gguf", "*.txt"):
        for path in folder.glob(pattern):
            require_no_pointer(path)


def require_no_pointer(path: Path) -> None:
    if not path.is_file():  # a folder, or a link to nothing: whoever needs it will say so
        return
    try:
        with open(path, "rb") as file:
            beginning = file.read(len(LFS_POINTER))
    except OSError as error:
        raise UserError(f"cannot read {path}: {cause(error)}") from error
    if beginning == LFS_POINTER:
        raise UserError(f"{path} {IS_POINTER}")


def require_model(folder: Path) -> None:
    """Raise UserError, with what to give instead, if a folder does not hold a model."""
    config, adapter = folder / "config.json", folder / "adapter_config.json"
    if adapter.is_file() or any(folder.glob("adapter_model.*")):
        raise UserError(_adapter(folder, json_object(adapter) if adapter.is_file() else {}))
    if config.is_file():
        require_no_pointer(config)
        json_object(config)
        return
    inside = sorted(folder.glob(GGUF)) + sorted(folder.glob("ckpt*.pt"))  # nanoGPT's
    inside += [path.parent for below in BELOW for path in sorted(folder.glob(f"{below}/config.json"))]
    instead = f"; give one of: {', '.join(map(str, inside[:3]))}" if inside else ""
    raise UserError(f"'{folder}' holds no model: it has no config.json{instead}")


def _adapter(name: Path, config: dict[str, Any]) -> str:
    base = config.get("base_model_name_or_path") or "a model that it does not name"
    return f"'{name}' is or has an adapter of {base}; {MERGE}"


def json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {cause(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers takes the weights from. Raises UserError if there are none, or some are absent."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        others = [path.name for ending in OTHER_WEIGHTS for path in sorted(folder.glob(ending))]
        instead = f"; it has {listed(others)}, which cannot be read as such" if others else ""
        if ggufs := sorted(map(str, folder.glob(GGUF))):
            instead = f"; give one of: {listed(ggufs)}"
        raise UserError(f"'{folder}' has no weights: no {WEIGHTS[0]} and no {WEIGHTS[2]}{instead}")
    index = found if found.suffix == ".json" else found.with_name(f"{found.name}.index.json")
    files = _shards(index) if index.is_file() else []
    if found.suffix != ".json":
        if any(file.is_file() for file in files if file != found):
            raise UserError(f"'{folder}' has its weights twice: in {found.name}, and in the files of {index.name}")
        return [found]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(f"'{folder}' lacks {listed(absent)}, which {found.name} names")
    return files


def _shards(index: Path) -> list[Path]:
    """The files that an index names."""
    named = json_object(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise UserError(f"{index} names no files")
    return [index.parent / name for name in sorted(set(named.values()))]


def tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """What weight files hold, by name, without reading the values. Raises UserError if one cannot be read."""
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                    tensors = {name: Tensor(tuple(s.get_shape()), s.get_dtype(), path) for name, s in slices.items()}
            else:
                state = torch.load(path, map_location="meta", weights_only=True)
                if not all(isinstance(value, torch.Tensor) for value in state.values()):
                    raise UserError("it holds more than weights by name")
                tensors = {
                    name: Tensor(tuple(value.shape), str(value.dtype).removeprefix("torch."), path)
                    for name, value in state.items()
                }
        except Exception as error:
            raise UserError(f"cannot read {path}: {cause(error)}") from error
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise UserError(f"{twice[0]} is in two files: {found[twice[0]].file.name} and {path.name}")
        found |= tensors
    return found


def require_all_used(
    name: str, model: PreTrainedModel, files: dict[str, Tensor], loading: dict[str, Any], is_whole: bool
) -> list[str]:
    """The tensors of the files that are no part of the decoder. Raises UserError, naming the tensors, unless every
    other one is in the model, or can be derived from it, and every parameter of the model came from the files.

    loading: what from_pretrained says of its loading. is_whole: whether the configuration is that of the decoder alone.
    """
    wrong = sorted((tensor[0], tuple(tensor[1]), tuple(tensor[2])) for tensor in loading["mismatched_keys"])
    if wrong:
        tensor, in_file, in_model = wrong[0]
        raise UserError(f"{tensor} of '{name}' is {in_file} in its files, {in_model} by its configuration")
    absent = sorted(loading["missing_keys"])
    if absent:
        instead = f"; it has {listed(sorted(loading['unexpected_keys']))}" if loading["unexpected_keys"] else ""
        raise UserError(f"'{name}' has no weights for {listed(absent)}{instead}")
    quantised = sorted(key for key, tensor in files.items() if tensor.dtype not in FLOATS and not _is_mask(key, tensor))
    if quantised:
        raise UserError(
            f"'{name}' has {quantised[0]} as {files[quantised[0]].dtype}: quantised weights, which are not supported"
        )
    # what transformers passes over without a word
    ignored = re.compile(
        "|".join([*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", "position_ids$"])
    )
    own = model.state_dict()
    passed_over = {key for key in files if ignored.search(key) and not own.keys() & set(_names(key, model))}
    every = sorted(key for key in loading["unexpected_keys"] | passed_over if not _is_derived(key, files, model))
    beside = [key for key in every if _is_beside(key, model, set() if is_whole else files.keys() - {*every})]
    unused = [key for key in every if key not in beside]
    if unused:
        raise UserError(f"'{name}' has weights that its configuration has no place for: {listed(unused)}")
    _require_tied(name, model, files)
    return beside


def _is_beside(key: str, model: PreTrainedModel, used: set[str]) -> bool:
    """Whether a tensor is of another part than the decoder, as one that sees images or tells tokens further ahead.

    The model's class says that it has none of it, or it stands beside all that are `used`.
    """
    patterns = model._keys_to_ignore_on_load_unexpected or ()
    modules = {path for path, _module in model.named_modules()}
    inside = modules & {known_as.rpartition(".")[0] for known_as in _names(key, model)}
    first = {other.partition(".")[0] for other in used}
    return (any(re.search(pattern, key) for pattern in patterns) and not inside) or (
        bool(first) and key.partition(".")[0] not in first
    )


def _is_mask(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is by its name and shape the causal mask, or its fill value, that old checkpoints keep."""
    if not re.search(r"(attn|attention)\.(masked_)?bias$", name):
        return False
    return tensor.shape in ((), (1,)) or (len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1))


def _names(name: str, model: PreTrainedModel) -> tuple[str, str, str]:
    """A tensor's name, as it may stand in a file and in the model: with the class's prefix or without."""
    prefix = f"{model.base_model_prefix}."
    return name, prefix + name, name.removeprefix(prefix)


def _is_derived(name: str, files: dict[str, Tensor], model: PreTrainedModel) -> bool:
    """Whether a tensor that is no parameter says what the model computes itself: causal masks, rotary frequencies."""
    stored_as = next((known_as for known_as in _names(name, model) if known_as in files), None)
    if stored_as is None:
        return False
    name, tensor = stored_as, files[stored_as]
    value = tensor.read(name)
    for own_name, buffer in model.named_buffers():
        if own_name in _names(name, model) or (
            own_name.endswith("rotary_emb.inv_freq") and name.endswith("rotary_emb.inv_freq")
        ):
            own = buffer.cpu().float()
            stored = [own, _plain(own, model)] if own_name.endswith("inv_freq") else [own]
            if any(s.shape == value.shape and torch.allclose(s, value.float(), rtol=HALF) for s in stored):
                return True
    causal = torch.ones_like(value, dtype=torch.bool).tril() if value.ndim == 4 else value.bool()
    return _is_mask(name, tensor) and torch.equal(value.bool(), causal)


def _plain(frequencies: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """Rotary frequencies before scaling, which older versions stored, as many as `frequencies`."""
    theta = dicts(getattr(model.config, "rope_parameters", None) or {})[0].get("rope_theta", 10_000.0)
    return theta ** (-torch.arange(frequencies.shape[-1]) / frequencies.shape[-1])


def _require_tied(name: str, model: PreTrainedModel, files: dict[str, Tensor]) -> None:
    """Raise UserError if the files have a head that is not the embedding, and the configuration says that it is."""
    head, inner = model.get_output_embeddings(), model.get_input_embeddings()
    if getattr(model.config, "tie_word_embeddings", False) and head is not None and head.weight is not inner.weight:
        paths = [path for path, module in model.named_modules() if module is head and f"{path}.weight" in files]
        if paths:
            raise UserError(
                f"'{name}' has a {paths[0]}.weight that differs from its embedding, but is configured to use the "
                "embedding for both (tie_word_embeddings): one of them is wrong"
            )


def require_finite(name: str, model: PreTrainedModel, files: dict[str, Tensor]) -> None:
    """Raise UserError if a parameter is infinite or not a number; a dtype is blamed only where the file is in order."""
    for own_name, value in model.named_parameters():
        if value.device.type == "meta" or value.sum().isfinite() or value.isfinite().all():
            continue
        stored = next((name for name in _names(own_name, model) if name in files), None)
        if stored and files[stored].read(stored).isfinite().all():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{own_name} of '{name}' is too large for {kind}: use --dtype bfloat16 or float32")
        raise UserError(f"{own_name} of '{name}' holds infinite values or NaN in its file: the checkpoint is damaged")
