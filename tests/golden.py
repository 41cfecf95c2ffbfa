"""The results of every experiment on two planted models, as they were: tests/golden/<architecture>.json.

    python -m tests.golden

writes them anew; do that where a number was meant to change. The models run in float64 and results keep seven digits,
so that machines whose float32 sums differ agree.
"""

import dataclasses
import importlib
import json
import tempfile
from pathlib import Path

from lib import judges, planted, report

FOLDER = Path(__file__).with_suffix("")
MODELS = {"gpt2": "mlp_eraser", "llama": "head_eraser"}
FLAGS = {"batch_size": 3, "n_whole": 2, "n_random": 1}
NOISE = 1e-9  # what cancels to less is 0
SCRIPTS = (
    "main_llm --exp1",
    "main_llm --exp2",
    "main_llm --exp3",
    "main_llm --exp4",
    "analyze_heads_simple",
    "test_head_pruning_on_massive",
    "exp1_feasibility_test",
    "exp2a_mlp_feasibility_test",
    "exp2b_mlp_layer_sweep",
    "exp2c_mlp_internal_analysis",
    "exp3_lifecycle_ledger",
    "exp4_neuron_sets",
    "exp5_interventions",
    "exp6_trigger_census",
    "exp7_head_sweep",
    "compare_3d_before_after_pruning",
)


def measured(architecture):
    """{script: results} of the planted model of an architecture."""
    built = planted.build(architecture, MODELS[architecture], seed=0)
    built.lm.model.double()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(" ".join(built.lm.tokenizer.convert_ids_to_tokens(built.windows.ids.flatten().tolist())))
        return {script: _results(script, built, text) for script in SCRIPTS}


def _results(script, built, text):
    name, *chosen = script.split()
    module = importlib.import_module(name)
    known = {field.name for field in dataclasses.fields(module.Options)}
    own = FLAGS | {"layer_id": built.truth.layer, "seqlen": 32, "nsamples": 8, "text": text.read_text()[:60]}
    options = module.Options(dataset=str(text), **{key: value for key, value in own.items() if key in known})
    options = dataclasses.replace(options, **dict.fromkeys((flag.lstrip("-") for flag in chosen), True))
    experiment = module.chosen(options)[0] if chosen else module.EXPERIMENT
    windows = experiment.windows(options, built.lm) if experiment.windows else built.windows
    return _rounded(judges.judged(experiment.name, experiment.run(built.lm, windows, options)))


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return 0.0 if isinstance(value, float) and abs(value) < NOISE else value


def main():
    FOLDER.mkdir(exist_ok=True)
    for architecture in MODELS:
        rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in measured(architecture).items()]
        report.write_text(FOLDER / f"{architecture}.json", "{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
