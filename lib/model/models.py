"""Load a model: hub id, local folder, .gguf file, nanoGPT's ckpt.pt, or a packaged model."""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
import transformers

from lib.model import (
    checkpoint,
    configuration,
    converted,
    families,
    gguf_file,
    gguf_formats,
    gguf_tokenizer,
    hub,
    nanogpt,
    packaged,
    tokenizer,
    verify,
)
from lib.model.arch import Architecture
from lib.run import processes, storage
from lib.run.cli import Options
from lib.run.errors import UserError, cause, listed
from lib.run.packages import MODELS

PLAIN = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
WATCHED = ("eager", "sdpa")  # ways to compute attention; a configuration may name others, as FlashAttention

os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # asks the hub for other files than there are
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
transformers.logging.set_verbosity(transformers.logging.CRITICAL)  # what matters is told in one line
transformers.logging.disable_progress_bar()

# PyTorch's default, but where the environment has TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, as NVIDIA's containers do: CUDA
# would round the factors of float32 products to TF32's 10 bits. This sets it for all kinds of matrix products at once,
# where torch.backends.cuda.matmul.allow_tf32 is of CUDA's alone; of convolutions cuDNN has its own switch.
torch.set_float32_matmul_precision("highest")
torch.backends.cudnn.allow_tf32 = False


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model with its parts by role, its tokenizer, and where the weights came from."""

    model: transformers.PreTrainedModel
    arch: Architecture
    tokenizer: transformers.PreTrainedTokenizerBase
    source: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where token ids go. Parts that are elsewhere or on disk have hooks by accelerate that move what they get."""
        device = self.model.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def n_embeddings(self) -> int:
        """How many tokens the model knows, which may be more than the tokenizer gives."""
        return cast(torch.nn.Embedding, self.model.get_input_embeddings()).weight.shape[0]

    @property
    def devices(self) -> list[str]:
        """Names of all devices that hold a part, in order."""
        parts = getattr(self.model, "hf_device_map", {"": self.device}).values()
        return list(dict.fromkeys(f"cuda:{part}" if isinstance(part, int) else str(part) for part in parts))


def load(options: Options) -> LanguageModel:
    """Load what `options.model` names, in evaluation mode on `options.device`.

    What is loaded is what the checkpoint's files say, or nothing: all of their weights and no others, their
    configuration, their tokens. Code of a checkpoint's own runs only with `options.trust_remote_code`.

    Raises UserError: unknown model, hub unreachable, unsupported architecture, unusable or contradictory files, device.
    """
    path, source = _resolve(options.model, options.tokenizer is None)
    if options.offline:
        hub.go_offline()
    elif path is None:
        hub.reachable()
    device = chosen_device(options.device)
    device_map = _device_map(options.device, device)
    where: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    where |= {"revision": options.revision} if path is None else {}
    name = options.model if path is None else str(path)
    try:
        raw, _ = transformers.PretrainedConfig.get_config_dict(name, **where)
        own_code = _own_code(options, raw)
        if path is None:
            _require_no_adapter(options)
        config = transformers.AutoConfig.from_pretrained(name, **where)
        for key, value in PLAIN.items():
            setattr(config, key, value)
        if not getattr(config, "quantization_config", True):  # an empty one, which transformers takes for quantised
            del config.quantization_config
        if config._attn_implementation not in WATCHED:
            config._attn_implementation = None  # what transformers takes of itself
        families.require_right(config)
        configuration.require_understood(options.model, raw, config, options.trust_remote_code)
        if path is not None:
            n_bytes = sum(file.stat().st_size for file in checkpoint.weight_files(path))
            _require_room(options.model, config, n_bytes, options.trust_remote_code)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=getattr(torch, options.dtype),
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which are told with both shapes below
            **where,
        )
        model: transformers.PreTrainedModel
        loading: dict[str, Any]
        model, loading = loaded
    except UserError:
        raise
    except Exception as error:
        raise UserError(_why_not_loaded(options, path, error)) from error
    folder = path or _snapshot(options)
    weights = checkpoint.weight_files(folder)
    files = checkpoint.tensors(weights)
    beside = checkpoint.require_all_used(options.model, model, files, loading, config.get_text_config() is config)
    if beside and processes.rank() == 0:
        print(f"note: '{options.model}' has weights beside its decoder, left out: {listed(beside)}", file=sys.stderr)
    checkpoint.require_finite(options.model, model, files)
    if source is None:
        source = {"hub_id": options.model, "revision": folder.name}  # snapshots/<commit>
    elif "folder" in source:
        source["weights_sha256"] = {file.name: storage.sha256(file) for file in weights}
        source["config_sha256"] = storage.sha256(folder / "config.json")
    source |= own_code
    if "nanogpt" in source and not options.tokenizer and not (folder / "tokenizer.json").is_file():
        options = replace(options, tokenizer=nanogpt.tokenizer_of(config.vocab_size, options.model))
        if processes.rank() == 0:
            print(
                f"note: '{options.model}' has no meta.pkl: with GPT-2's tokenizer, or name one with --tokenizer",
                file=sys.stderr,
            )
    own = _tokenizer(options, name, where)
    if device_map is None:
        model.to(device)  # type: ignore[arg-type]  # as transformers wraps it, it seems to lack its `self`
    try:
        lm = LanguageModel(model.eval(), Architecture(model), own, source)
        verify.verify(lm)
    except UserError:
        raise
    except Exception as error:  # a configuration of wrong numbers may build a model that cannot run
        raise UserError(f"'{options.model}' cannot run: {cause(error)}") from error
    return lm


def _own_code(options: Options, raw: dict[str, Any]) -> dict[str, str]:
    """What became of the code that a checkpoint brings: {} where there is none, otherwise for the provenance.

    Raises UserError if it brings other classes than transformers has, and the user does not trust it. Classes of the
    same name are what transformers took over: its own run, and that is told.

    raw: the content of its config.json.
    """
    code = raw.get("auto_map") or {}
    code = code if isinstance(code, dict) else {"AutoModelForCausalLM": str(code)}
    classes = {
        name: str(path) for name, path in code.items() if name in ("AutoConfig", "AutoModelForCausalLM", "AutoModel")
    }
    if not classes or options.trust_remote_code:
        return {"own_code": "run"} if classes else {}
    kind = raw.get("model_type", "")
    own: list[type] = []
    if kind in transformers.CONFIG_MAPPING:
        own = [transformers.CONFIG_MAPPING[kind]]
        mappings = (transformers.MODEL_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING)
        own += [cast(type, mapping[own[0]]) for mapping in mappings if own[0] in mapping]
    ours = {known.__name__.lower() for known in own}
    other = [path for path in classes.values() if path.rpartition(".")[2].lower() not in ours]
    if other:
        raise UserError(
            f"'{options.model}' brings code of its own ({other[0]}), which runs only with --trust_remote_code"
        )
    print(
        f"warning: '{options.model}' brings code of its own, which does not run without --trust_remote_code: it is "
        f"measured as transformers' own {own[-1].__name__}",
        file=sys.stderr,
    )
    return {"own_code": "not run"}


def _require_no_adapter(options: Options) -> None:
    where: dict[str, Any] = {"revision": options.revision} if options.revision else {}
    if transformers.utils.find_adapter_config_file(options.model, **where) is not None:
        raise UserError(f"'{options.model}' is or has an adapter; {checkpoint.MERGE}")


def _snapshot(options: Options) -> Path:
    """The folder of the hub's cache that a model was just loaded from."""
    where: dict[str, Any] = {"revision": options.revision} if options.revision else {}
    return Path(huggingface_hub.hf_hub_download(options.model, "config.json", local_files_only=True, **where)).parent


def _tokenizer(options: Options, name: str, where: dict[str, Any]) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of the model's files, or the one of --tokenizer, with the ids that its tokenizer.json gives."""
    given = options.tokenizer or options.model
    if options.tokenizer:
        name, where = os.path.expanduser(given), {"trust_remote_code": options.trust_remote_code}
        if os.path.isdir(name):
            checkpoint.require_no_pointers(Path(name))
        else:
            hub.require_id(given, "tokenizer")
            if not options.offline:
                hub.reachable()
    try:
        return tokenizer.load(name, **where)
    except Exception as error:
        if options.tokenizer and not isinstance(error, UserError) and not Path(name).is_dir():
            raise UserError(hub.why_not(given, error, "tokenizer")) from error
        instead = "" if options.tokenizer else "; name one with --tokenizer"
        raise UserError(f"no tokenizer for '{given}' ({cause(error)}){instead}") from error


def _resolve(name: str, needs_tokenizer: bool) -> tuple[Path, dict[str, Any]] | tuple[None, None]:
    """(folder to load from, provenance), or (None, None) for a hub id.

    needs_tokenizer: whether that of a .gguf file is wanted.
    """
    if name in MODELS:
        if os.path.isdir(name):
            raise UserError(f"'{name}' is a packaged model and a folder here; write ./{name} for the folder")
        folder = _from_gguf(name, MODELS[name].sha256, lambda: [packaged.gguf(name)])
        return folder, {"package": MODELS[name].package, "gguf_sha256": MODELS[name].sha256}
    path = Path(os.path.expanduser(name))
    if path.suffix.lower() == ".gguf" and "://" not in name and not os.path.isdir(path):
        if not os.path.isfile(path):
            raise UserError(f"no such file: {path}")
        checkpoint.require_no_pointer(path)
        files = gguf_file.parts(path)
        sha256 = " ".join(storage.sha256(file) for file in files)
        whole = hashlib.sha256(sha256.encode()).hexdigest()
        folder = _from_gguf(files[0].stem, whole, lambda: files, needs_tokenizer)
        return folder, {"gguf": path.name, "gguf_sha256": sha256}
    if own := nanogpt.checkpoint_at(path):
        checkpoint.require_no_pointer(own)
        return _from_nanogpt(own, needs_tokenizer)
    if os.path.isdir(path):
        checkpoint.require_model(path)
        checkpoint.require_no_pointers(path)
        return path, {"folder": path.resolve().name}
    hub.require_id(name)
    return None, None


def _from_gguf(stem: str, sha256: str, parts: Callable[[], list[Path]], needs_tokenizer: bool = True) -> Path:
    """The folder that holds a GGUF file's model as transformers loads it.

    sha256: of the file. parts: finds its files, where they are wanted.
    """

    def write(folder: Path) -> None:
        files = parts()
        print(f"dequantising {files[0].name} once, for later runs ...", flush=True)
        gguf_file.convert(files, folder, needs_tokenizer, _require_room)

    code = gguf_file, gguf_formats, gguf_tokenizer
    return converted.folder(stem, sha256, "" if needs_tokenizer else "-without-tokenizer", code, write)


def _from_nanogpt(path: Path, needs_tokenizer: bool) -> tuple[Path, dict[str, Any]]:
    """The same of a checkpoint of nanoGPT, and its provenance."""
    meta, sha256 = nanogpt.meta_of(path) if needs_tokenizer else None, storage.sha256(path)

    def write(folder: Path) -> None:
        print(f"converting {path.name} once, for later runs ...", flush=True)
        nanogpt.convert(path, meta, folder, _require_room)

    variant = f"-{storage.sha256(meta)[:16]}" if meta else "-without-tokenizer"
    return converted.folder(path.stem, sha256, variant, [nanogpt], write), {
        "nanogpt": path.name,
        "weights_sha256": {path.name: sha256},
    }


def _require_room(
    name: str, config: transformers.PreTrainedConfig, n_bytes: int, trust_remote_code: bool = False
) -> None:
    """Raise UserError if a model of this configuration has more weights than files of `n_bytes` have bits."""
    text = config.get_text_config()
    n = text.num_hidden_layers * text.hidden_size  # fewer than there are, without building a layer
    if n <= 8 * n_bytes:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        n = sum(weight.numel() for weight in model.parameters())
    if n > 8 * n_bytes:
        raise UserError(f"'{name}' is configured for {n:,} weights or more, but its files have {n_bytes:,} bytes")


def _why_not_loaded(options: Options, path: Path | None, error: Exception) -> str:
    if path is not None:
        return f"cannot load '{options.model}': {cause(error)}"
    return hub.why_not(options.model, error, revision=options.revision)


def chosen_device(name: str) -> torch.device:
    """Where --device says; "auto": CUDA, MPS, or the CPU. Raises UserError if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and processes.size() > 1:
        name = f"cuda:{processes.local_rank() % max(1, torch.cuda.device_count())}"
    try:
        probe = torch.ones(1, device=name)
        probe.item()  # which there may be no kernels for, or no values, as on "meta"
        return probe.device
    except Exception as error:
        raise UserError(f"device '{name}' cannot be used: {cause(error)}") from error


def device_name(device: torch.device) -> str:
    """Of the hardware, where PyTorch tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.mps.get_name() if device.type == "mps" else str(device)


def _device_map(name: str, device: torch.device) -> str | None:
    """How accelerate spreads the model. None: all of it is on `device`; "sequential": the first GPU is filled, then the
    next, then main memory, so that a model that fits on the first is there alone."""
    return "sequential" if name == "auto" and device.type == "cuda" and processes.size() == 1 else None
