"""What made a result: command, code, packages, model, data."""

import importlib.metadata
import shlex
import sys
import time
from typing import TYPE_CHECKING

from lib.core.evidence import Stored
from lib.run import checkout, command, processes
from lib.run.cli import Options

if TYPE_CHECKING:  # they need torch, which --help does not wait for
    from lib.core.data import Windows
    from lib.model.models import LanguageModel

PACKAGES = ("torch", "transformers", "datasets", "numpy", "safetensors", "gguf")


def whole(options: Options, lm: "LanguageModel", windows: "Windows", seconds: float) -> Stored:
    """What made a result: the environment, the model and the data."""
    from lib.model import models

    return {
        **environment(seconds),
        **of_model(options, lm),
        "data": windows.provenance,
        "seed": options.seed,
        "attention": lm.model.config.get_text_config()._attn_implementation,
        "device": models.device_name(lm.device),
        **({"device_map": lm.devices} if len(lm.devices) > 1 else {}),
    }


def of_model(options: Options, lm: "LanguageModel") -> Stored:
    """The part of the provenance that tells models apart; see lib.report.identity."""
    return {"model": {"name": options.model, "type": lm.model.config.model_type, **lm.source}, "dtype": options.dtype}


def environment(seconds: float) -> Stored:
    """The part of the provenance that knows no model: command, code, packages."""
    import torch

    n = processes.size()
    start = ["python"] if n == 1 else ["torchrun", f"--nproc_per_node={n}"]
    carried_out = command.current()
    return {
        "command": shlex.join([*start, *carried_out.program, *carried_out.flags]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "git": checkout.git(),
        "code_sha256": checkout.code_sha256(),
        "threads": torch.get_num_threads(),
        "processes": n,
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
