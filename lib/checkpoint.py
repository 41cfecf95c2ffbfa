"""A model folder's own files: what they are, whether they belong together, and whether all of them are in the model."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lib.errors import UserError, cause

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
LFS = b"version https://git-lfs"
FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
MERGE = (
    "merge it into its base model with peft: "
    "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
)
# what other architectures read; where the one at hand does not, transformers keeps it and goes on without it
MATTERS = re.compile(
    r"softcap|multiplier|^logits?_scal|query_pre_attn|^(use_)?qk_(layer_?)?norm|sliding_window|^layer_types$|"
    r"^(use_)?alibi$|rope_|rotary|^mup|scale_(emb|depth)|clip_qkv|experts|cross_attention|parallel_residual|norm_type|"
    r"pruned_heads|bidirectional|prefix_lm|sink|^(qkv|mlp|attention|use|add)_bias|is_encoder_decoder|quantization_config"
)
NEUTRAL = (None, False, 0, 1, "", "default", "none", [], {})


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, not read yet."""

    shape: tuple
    dtype: str
    file: Path

    def read(self, name):
        if self.file.suffix == ".safetensors":
            with safe_open(self.file, "pt") as file:
                return file.get_tensor(name)
        return torch.load(self.file, map_location="cpu", weights_only=True)[name]


def require_no_pointers(folder):
    """Raise UserError if a file that a model or a tokenizer is read from is a pointer of Git LFS."""
    for pattern in ("*.safetensors", "*.bin", "*.json", "*.model", "*.gguf", "*.txt"):
        for path in folder.glob(pattern):
            require_no_pointer(path)


def require_no_pointer(path):
    with open(path, "rb") as file:
        if file.read(len(LFS)) == LFS:
            raise UserError(f"{path} is a pointer of Git LFS, not the file itself; run: git lfs pull")


def require_model(folder):
    """Raise UserError, with what to give instead, if a folder does not hold a model."""
    config, adapter = folder / "config.json", folder / "adapter_config.json"
    if adapter.is_file():
        raise UserError(_adapter(folder, _json(adapter)))
    if config.is_file():
        return
    inside = sorted(folder.glob("*.[gG][gG][uU][fF]"))
    inside += [path.parent for path in sorted(folder.glob("*/config.json"))]
    instead = f"; give one of: {', '.join(map(str, inside[:3]))}" if inside else ""
    raise UserError(f"'{folder}' holds no model: it has no config.json{instead}")


def _adapter(name, config):
    base = config.get("base_model_name_or_path") or "a model that it does not name"
    return f"'{name}' is or has an adapter of {base}; {MERGE}"


def _json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {cause(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return value


def weight_files(folder):
    """The files that transformers takes the weights from. Raises UserError if there are none, or some are absent."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"'{folder}' has no weights: no {WEIGHTS[0]} and no {WEIGHTS[2]}")
    if found.suffix != ".json":
        return [found]
    shards = _json(found).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{found} names no files")
    files = [folder / name for name in sorted(set(shards.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(f"'{folder}' lacks {_listed(absent)}, which {found.name} names")
    return files


def tensors(files):
    """{name: Tensor} of weight files, without reading the values. Raises UserError if one cannot be read."""
    found = {}
    for path in files:
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                    of = {name: Tensor(tuple(s.get_shape()), s.get_dtype(), path) for name, s in slices.items()}
            else:
                state = torch.load(path, map_location="meta", weights_only=True)
                of = {
                    name: Tensor(tuple(value.shape), str(value.dtype).removeprefix("torch."), path)
                    for name, value in state.items()
                }
        except Exception as error:
            raise UserError(f"cannot read {path}: {cause(error)}") from error
        found |= of
    return found


def require_understood(name, raw, config):
    """Raise UserError for what a configuration file says and `config`, made of it, does not carry out.

    raw: the content of config.json; config: the transformers configuration.
    """
    if raw.get("is_causal") is False or raw.get("use_bidirectional_attention") is True:
        raise UserError(f"'{name}' is configured to see ahead (not causal); only decoders can be measured")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "a method it does not name")
        raise UserError(
            f"the weights of '{name}' are quantised ({method}); measure the model as it was before, or dequantise it"
        )
    for key in ("is_encoder_decoder", "add_cross_attention", "pruned_heads"):
        if raw.get(key):
            raise UserError(f"'{name}' is configured with {key}, which is not supported")
    known = {*type(config)().to_dict(), *config.attribute_map}
    if "rope_parameters" in known:
        _require_rope(name, raw, config)
        known |= {key for key in raw if key.startswith(("rope_", "rotary_", "partial_rotary"))} - {"rope_interleaved"}
    for key, value in raw.items():
        if key not in known and MATTERS.search(key) and (value is True or value not in NEUTRAL):
            raise UserError(
                f"'{name}' is configured with {key} = {str(value)[:60]}, which transformers' {type(config).__name__} "
                "ignores: another model would be measured"
            )


def _require_rope(name, raw, config):
    """Raise UserError if the configuration file scales rotary positions, and the configuration does not."""
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    carried_out = {of.get("rope_type") for of in _dicts(config.rope_parameters or {})} & {*ROPE_INIT_FUNCTIONS}
    for of in _dicts(given) if isinstance(given, dict) else [{"rope_type": given}]:
        kind = of.get("rope_type") or of.get("type") or "default"
        if (kind != "default" or of.get("factor", 1) != 1) and not carried_out - {"default"}:
            raise UserError(f"'{name}' scales its rotary positions in a way that is not supported: {given}")


def _dicts(value):
    """The dicts in a dict (one for each type of layer), or itself."""
    return [of for of in value.values() if isinstance(of, dict)] or [value]


def require_all_used(name, model, files, loading):
    """Raise UserError, naming the tensors, unless every tensor of the files is in the model, or can be derived from it,
    and every parameter of the model came from the files.

    files: {name: Tensor}. loading: what from_pretrained says of its loading.
    """
    wrong = sorted((of[0], tuple(of[1]), tuple(of[2])) for of in loading["mismatched_keys"])
    if wrong:
        tensor, in_file, in_model = wrong[0]
        raise UserError(f"{tensor} of '{name}' is {in_file} in its files, {in_model} by its configuration")
    absent = sorted(loading["missing_keys"])
    if absent:
        raise UserError(f"'{name}' has no weights for {_listed(absent)}")
    quantised = sorted(of for of, tensor in files.items() if tensor.dtype not in FLOATS and not _is_mask(of, tensor))
    if quantised:
        raise UserError(
            f"'{name}' has {quantised[0]} as {files[quantised[0]].dtype}: quantised weights, which are not supported"
        )
    # what transformers passes over without a word
    ignored = re.compile(
        "|".join([*model._keys_to_ignore_on_load_unexpected, r"rotary_emb\.inv_freq", "position_ids$"])
    )
    own = model.state_dict()
    passed_over = {of for of in files if ignored.search(of) and not own.keys() & set(_names(of, model))}
    unused = sorted(of for of in loading["unexpected_keys"] | passed_over if not _is_derived(of, files, model))
    if unused:
        raise UserError(f"'{name}' has weights that its configuration has no place for: {_listed(unused)}")
    _require_tied(name, model, files)


def _is_mask(name, tensor):
    """Whether a tensor is by its name and shape the causal mask, or its fill value, that old checkpoints keep."""
    if not re.search(r"(attn|attention)\.(masked_)?bias$", name):
        return False
    return tensor.shape in ((), (1,)) or (len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1))


def _names(name, model):
    """A tensor's name, as it may stand in a file and in the model: with the class's prefix or without."""
    prefix = f"{model.base_model_prefix}."
    return name, prefix + name, name.removeprefix(prefix)


def _is_derived(name, files, model):
    """Whether a tensor that is no parameter says what the model computes itself: causal masks, rotary frequencies."""
    name = next((of for of in _names(name, model) if of in files), None)
    if name is None:
        return False
    tensor = files[name]
    value = tensor.read(name)
    for of, buffer in model.named_buffers():
        if of in _names(name, model) or (of.endswith("rotary_emb.inv_freq") and name.endswith("rotary_emb.inv_freq")):
            own = buffer.cpu().float()
            if own.shape == value.shape and torch.allclose(
                own, value.float(), rtol=1e-2
            ):  # of a file in half precision
                return True
    return _is_mask(name, tensor) and (
        value.ndim < 4 or torch.equal(value.bool(), torch.ones_like(value).bool().tril())
    )


def _require_tied(name, model, files):
    """Raise UserError if the files have a head that is not the embedding, and the configuration says that it is."""
    head, inner = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not inner.weight:
        paths = [path for path, module in model.named_modules() if module is head and f"{path}.weight" in files]
        if paths:
            raise UserError(
                f"'{name}' has a {paths[0]}.weight that differs from its embedding, but is configured to use the "
                "embedding for both (tie_word_embeddings): one of them is wrong"
            )


def require_finite(name, model, files):
    """Raise UserError if a parameter is infinite or not a number; a dtype is blamed only where the file is in order."""
    for of, value in model.named_parameters():
        if value.device.type == "meta" or value.sum().isfinite() or value.isfinite().all():
            continue
        stored = next((name for name in _names(of, model) if name in files), None)
        if stored and files[stored].read(stored).isfinite().all():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{of} of '{name}' is too large for {kind}: use --dtype bfloat16 or float32")
        raise UserError(f"{of} of '{name}' holds infinite values or NaN in its file: the checkpoint is damaged")


def _listed(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
