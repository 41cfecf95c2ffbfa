"""Do the scripts find what was planted? Truth against diagnosis on small models whose mechanism is known.

    python check_controls.py --seeds 20 --savedir results/controls

Builds every kind of lib/planted/ in every architecture that has it, with seeds --first_seed, --first_seed + 1, ...,
passes each model through the scripts' own `run`, and diagnoses it from their results alone, by the rules in RULE. Exit
code 1 if a diagnosis differs from the truth. Writes a table (TXT), the share of right diagnoses by kind and field
(PNG), and every truth, noise and decoys included, beside its diagnosis (JSON).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import catalogue
from lib.core.provenance import environment
from lib.planted import figures as planted_figures
from lib.planted.fields import FIELDS, NUMBERS, RULE, agree
from lib.planted.text import summarise
from lib.planted.visible import visible_of
from lib.report import figures, result_files
from lib.run import cli

if TYPE_CHECKING:
    from lib.core.data import Windows
    from lib.model.models import LanguageModel
    from lib.planted.truth import Planted


@dataclass(frozen=True)
class Controls:
    """models: per model its whole `truth`, what of it the scripts should see (`visible`), their `diagnosis`, and the
    fields that differ (`misses`)."""

    rule: str
    fields: tuple[str, ...]
    models: list[dict[str, Any]]
    conclusion: dict[str, Any]


def run(seeds: Sequence[int]) -> Controls:
    from tqdm import tqdm

    from lib.planted import planting

    every = [(architecture, kind) for architecture, kinds in planting.KINDS.items() for kind in kinds]
    models = []
    with tqdm(total=len(every) * len(seeds), unit="model", desc="controls", disable=None) as progress:
        for architecture, kind in every:
            for seed in seeds:
                models.append(_check(planting.build(architecture, kind, seed)))
                progress.update()
    missed = sum(bool(model["misses"]) for model in models)
    near = ", ".join(f"{name} within {tolerance}" for name, tolerance in NUMBERS.items() if tolerance)
    conclusion = {
        "verdict": f"{len(models) - missed} of {len(models)} diagnosed right",
        "rule": f"right: every field of the diagnosis equals the truth ({near}); 'cannot tell' is wrong, but in need: "
        "experiment 5 turns off MLPs, so it cannot tell where a head writes the value or another MLP makes it good",
        "values": {"models": len(models), "missed": missed},
    }
    return Controls(RULE, FIELDS, models, conclusion)


def _check(built: Planted) -> dict[str, Any]:
    visible = visible_of(built.truth)
    names = [name for name in FIELDS if name in visible]
    diagnosis = diagnose(built.lm, built.windows, names, built.checkpoints)
    return {
        "truth": dataclasses.asdict(built.truth),
        "visible": visible,
        "diagnosis": diagnosis,
        "misses": [name for name in names if not agree(name, diagnosis[name], visible[name])],
    }


def diagnose(
    lm: LanguageModel, windows: Windows, fields: Iterable[str], checkpoints: Mapping[int, LanguageModel] | None = None
) -> dict[str, Any]:
    """{field: value} of some of FIELDS by RULE; checkpoints: of the model's training, by step, in order."""
    from lib.planted.diagnosis import Diagnosis

    diagnosis = Diagnosis(lm, windows, partial(report, lm, windows, checkpoints or {0: lm}))
    return {name: getattr(diagnosis, name) for name in fields}


def report(
    lm: LanguageModel, windows: Windows, checkpoints: Mapping[int, LanguageModel], name: str, **options: Any
) -> dict[str, Any]:
    """The judged results of one experiment, by its script's own `run`; of the checkpoints, if it is of a training."""
    file, *flags = catalogue.EXPERIMENTS[name].command.split()
    script = importlib.import_module(file.removesuffix(".py"))
    chosen = dataclasses.replace(cli.parse(script.Options, None, flags), batch_size=len(windows.ids), **options)
    experiment = script.EXPERIMENT if hasattr(script, "EXPERIMENT") else script.chosen(chosen)[0]
    if experiment.series is None:
        return catalogue.judged(name, experiment.run(lm, windows, chosen))

    from lib.model.series import Checkpoint

    steps = [
        (Checkpoint(step, f"step{step}", chosen, step), of.source, experiment.run(of, windows, chosen))
        for step, of in checkpoints.items()
    ]
    return catalogue.judged(name, experiment.series.join(steps))


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument(
        "--savedir",
        type=cli.path,
        default=Path("results/controls"),
        help="folder for the results (default: %(default)s)",
    )
    args = parser.parse_args()
    cli.require_one_process()
    if args.seeds < 1 or args.first_seed < 0:
        raise cli.UserError("--seeds must be at least 1 and --first_seed at least 0")
    result_files.check_writable(args.savedir)

    import torch

    torch.set_num_threads(1)  # tiny tensors: threads that wait for each other cost the most
    start = time.monotonic()
    results = run(range(args.first_seed, args.first_seed + args.seeds))
    files = {"json": "controls.json", "txt": "controls.txt", "figures": ["controls.png"]}
    provenance = environment(time.monotonic() - start)
    payload = result_files.payload("controls", vars(args), provenance, results, files)
    text = summarise(payload)
    result_files.write_json(args.savedir / files["json"], payload)
    result_files.write_text(args.savedir / files["txt"], text)
    figures.write(args.savedir / "controls.png", planted_figures.controls, payload)
    print(text)
    for name in (files["txt"], files["json"], "controls.png"):
        print(args.savedir / name)
    if payload["results"]["conclusion"]["values"]["missed"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.main(main)
