"""The results of every experiment on two planted models, and on a mixture of experts of those that differ there, as
they were: tests/golden/<architecture>.json.

    python -m tests.golden

writes them anew; do that where a number was meant to change. Other processors and other versions of torch round
otherwise: these results are of MACHINE.
"""

import copy
import dataclasses
import importlib
import json
import re
import tempfile
from pathlib import Path

import torch

from lib import catalogue
from lib.model import verify
from lib.model.arch import Architecture
from lib.planted import planting
from lib.report import result_files
from tests import mixtures

FOLDER = Path(__file__).with_suffix("")
MODELS = {"gpt2": "mlp_eraser", "llama": "head_eraser"}  # what is planted in them
MIXTURE = "mixture"
MEASURED = {  # {architecture: experiments}
    **{of: [name for name, entry in catalogue.EXPERIMENTS.items() if not entry.needs] for of in MODELS},
    MIXTURE: ["exp2a", *(name for name, entry in catalogue.EXPERIMENTS.items() if entry.needs == "experts")],
}
PAIRS = [(architecture, name) for architecture, names in MEASURED.items() for name in names]
FLAGS = {"batch_size": 3, "n_whole": 2, "n_random": 1}
NOISE = 1e-9  # what cancels to less is 0
CPU_INFO = Path("/proc/cpuinfo")
CPU = re.search(r"model name\s*: (.*)", CPU_INFO.read_text()) if CPU_INFO.is_file() else None
MACHINE = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {CPU and CPU[1]}"


def build(architecture):
    """The planted model of a key of MEASURED."""
    return mixtures.planted() if architecture == MIXTURE else planting.build(architecture, MODELS[architecture], seed=0)


def measured(architecture):
    """{experiment: results} of the planted model of an architecture."""
    built = build(architecture)
    built.lm.model.double()
    with tempfile.TemporaryDirectory() as folder:
        text = write_text(built, Path(folder))
        names = MEASURED[architecture]
        return {name: results(catalogue.EXPERIMENTS[name].command, built, text) for name in names}


def write_text(built, folder):
    """The path of a new file there, of the tokens of a planted model's windows."""
    text = folder / "text.txt"
    text.write_text(" ".join(built.lm.tokenizer.convert_ids_to_tokens(built.windows.ids.flatten().tolist())))
    return text


def moved(built, device, dtype=torch.float32):
    """A planted model with a copy of its weights on `device`."""
    model = copy.deepcopy(built.lm.model).to(device, dtype)
    lm = dataclasses.replace(built.lm, model=model, arch=Architecture(model))
    verify.verify(lm)
    return dataclasses.replace(built, lm=lm)


def results(command, built, text, **flags):
    """The judged results of one script of the catalogue. flags: instead of those it has here."""
    script, *chosen = command.split()
    module = importlib.import_module(script.removesuffix(".py"))
    known = {field.name for field in dataclasses.fields(module.Options)}
    own = FLAGS | {"layer_id": built.truth.layer, "seqlen": 32, "nsamples": 8, "text": text.read_text()[:60]} | flags
    options = module.Options(dataset=str(text), **{key: value for key, value in own.items() if key in known})
    options = dataclasses.replace(options, **dict.fromkeys((flag.lstrip("-") for flag in chosen), True))
    experiment = module.chosen(options)[0] if chosen else module.EXPERIMENT
    windows = experiment.windows(options, built.lm) if experiment.windows else built.windows
    return _rounded(catalogue.judged(experiment.name, experiment.run(built.lm, windows, options)))


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return 0.0 if isinstance(value, float) and abs(value) < NOISE else value


def main():
    FOLDER.mkdir(exist_ok=True)
    for architecture in MEASURED:
        of = {"machine": MACHINE} | measured(architecture)
        rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in of.items()]
        result_files.write_text(FOLDER / f"{architecture}.json", "{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
