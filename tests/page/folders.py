"""Folders of results without a model: SmolLM2's, which are tracked, and the golden ones of planted models."""

import dataclasses
import importlib
import json
import shutil

from lib import catalogue
from lib.report import result_files
from lib.run.checkout import ROOT
from tests import golden

SMOLLM2 = ROOT / "results" / "smollm2-135m"
DATA = {"dataset": "random tokens", "windows": 8, "seqlen": 32, "bos": False, "documents_drawn": None}


def smollm2(folder, *experiments):
    """A copy of SmolLM2's results, or of those of some experiments."""
    if not experiments:
        return shutil.copytree(SMOLLM2, folder)
    for path in SMOLLM2.rglob("*.json"):
        if json.loads(path.read_text())["experiment"] in experiments:
            shutil.copytree(path.parent, folder / path.parent.relative_to(SMOLLM2), dirs_exist_ok=True)
    return folder


def planted(folder, architecture, name="planted"):
    """The golden results of a planted model, each as its script would have stored it; without figures."""
    stored = json.loads((golden.FOLDER / f"{architecture}.json").read_text())
    stored.pop("machine")
    for experiment_name, results in stored.items():
        script = importlib.import_module(catalogue.EXPERIMENTS[experiment_name].command.split()[0].removesuffix(".py"))
        config = dataclasses.asdict(script.Options(model=name)) | {"model_name": name}
        model = {"name": name, "type": architecture, "weights_sha256": {"model.safetensors": "0" * 64}}
        provenance = {
            "command": "python",
            "time": "2026-01-01T00:00:00Z",
            "seconds": 0,
            "git": None,
            "model": model,
            "dtype": "float32",
            "device": "cpu",
            "seed": 0,
            "data": DATA,
        }
        files = {"json": f"{experiment_name}.json", "txt": f"{experiment_name}.txt", "figures": []}
        payload = result_files.payload(experiment_name, config, provenance, results, files)
        result_files.write_json(folder / files["json"], payload)
    return folder


def change(path, alter):
    """Alter a stored result, which then has no hash."""
    payload = json.loads(path.read_text())
    payload["provenance"].pop("sha256", None)
    alter(payload)
    path.write_text(json.dumps(payload))
