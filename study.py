"""Every experiment on one model, in order, then the verdicts on the claims.

    python study.py --model gpt2
    python study.py --model smollm2-135m --dataset python-docs

Writes what the scripts write on their own, below --savedir (default: results/<model>), a folder for each script, the
verdicts, and a page of all of it, index.html. What is there already, of the same options, code, model, data, packages
and machine, is left alone, unless --force is given; files that are missing, as figures in another --format, are drawn
from it.
An experiment that needs what the model has not, as experts, is left out.
The layers that some scripts need come from the results: {born} is that of the ledger's birth, or, where there is none,
the first of the followed place's plateau (exp3); {read} that of the head that attends most to the first token.
"""

from __future__ import annotations

import importlib
import io
import re
import shlex
import sys
import textwrap
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import page
import verify_claims
from lib import catalogue
from lib.core import provenance
from lib.core.evidence import note_of
from lib.experiment import IncompleteError, all_written, already_there, execute
from lib.page.words import ENGLISH
from lib.report import identity, result_files
from lib.run import cli
from lib.run.command import carried_out
from lib.run.errors import LackingError

if TYPE_CHECKING:
    from lib.model.models import LanguageModel

COLUMNS = 100  # of what is printed here
STEPS = [  # (command, whether the seed study has it)
    (f"{entry.command} {flags}".strip(), entry.seed)
    for entry in catalogue.EXPERIMENTS.values()
    for flags in entry.study
]


@dataclass(frozen=True)
class Options(cli.Options):
    nsamples: int | None = cli.flag(  # type: ignore[assignment]  # a script of its own has always a number
        None, "number of token windows of every script (default: its own, or fewer, as lib/catalogue.py has it)"
    )
    savedir: Path | None = cli.flag(None, "folder for the results (default: results/<model>)", type=cli.path)
    force: bool = cli.flag(False, "measure again what is there already", action="store_true")
    short: bool = cli.flag(False, "only the seed study's scripts and the ledger", action="store_true")


def main() -> None:
    cli.require_one_process()
    options = cli.parse(Options, __doc__)
    if options.replot:
        raise cli.UserError("a study has no figures of its own; --replot belongs to its scripts")
    folder = options.savedir or Path("results") / options.model_name
    page.check_writable(folder)

    from lib.core import remembered
    from lib.model import models

    lm = models.load(options)
    steps = [step for step, seed in STEPS if (seed or not options.short) and not left_out(step, lm)]
    this = provenance.of_model(options, lm)  # one line now, not one error a step
    for name in {step.split()[0].removesuffix(".py") for step in steps}:
        for path in sorted((folder / name).rglob("*.json")):
            identity.require_same(path, this)
    print(f"{len(steps)} runs on {options.model_name}, into {folder}: what each finds, then a page of all")
    print("If it is interrupted, the same command goes on from there", flush=True)
    with remembered.of(lm):
        failed = carry_out_all(steps, options, lm, folder)
    found = verify_claims.find(folder).get(options.model_name, {})
    with carried_out("verify_claims.py", [str(folder)]), redirect_stdout(io.StringIO()):
        verify_claims.verify(folder, options.model_name, of_model(found, this))
    try:
        conclude(folder, options.model_name, this)
    except cli.UserError as error:
        failed.append(f"page.py ({error})")
    if failed:
        raise cli.UserError(f"without a whole result: {', '.join(failed)}")


def left_out(step: str, lm: LanguageModel) -> bool:
    """Whether it needs of a model what this one has not; then a line says so."""
    needs = next((entry.needs for entry in catalogue.EXPERIMENTS.values() if step.startswith(entry.command)), None)
    if needs is None:
        return False
    try:
        getattr(lm.arch, f"require_{needs}")()
    except LackingError as why:
        print(f"{step} is left out: {why}")
        return True
    return False


def of_model(files: verify_claims.Files, this: dict[str, Any]) -> verify_claims.Files:
    """What of verify_claims.find's files of one name is of one model."""
    return {experiment: [file for file in found if _is_of(file.result, this)] for experiment, found in files.items()}


def _is_of(result: result_files.Result[Any, Any], this: dict[str, Any]) -> bool:
    """A course of training is of a model that it may lead to, in the same dtype."""
    own = result.provenance
    if catalogue.EXPERIMENTS[result.experiment].course:
        return identity.may_lead_to(own, this) and own["dtype"] == this["dtype"]
    return identity.of(own) == identity.of(this)


def carry_out_all(steps: list[str], options: Options, lm: LanguageModel, folder: Path) -> list[str]:
    """Each step's command in order; what has no whole result in the end."""
    from lib.claims.measured import birth_layer

    layers: dict[str, int] = {}
    done: set[tuple[str, ...]] = set()
    failed: list[str] = []
    for number, step in enumerate(steps, 1):
        try:
            file, *own = untyped(step.format_map(layers), options).split()
        except KeyError as layer:
            if failed:
                failed.append(f"{step} (no {layer.args[0]} layer: an earlier step failed)")
            else:
                print(f"{step} is left out: no {layer.args[0]} layer")
            continue
        name = file.removesuffix(".py")
        script = importlib.import_module(name)
        idle = cli.parse(script.Options, script.__doc__, [*own, "--model", options.model]).idle()
        command = [file, *own, *shared_flags(options, idle), "--savedir", str(folder / name)]
        if tuple(command) in done:
            continue
        done.add(tuple(command))
        print(f"\n[{number}/{len(steps)}] python {shlex.join(command)}", flush=True)
        try:
            payload = carry_out(script, command, lm, options.force)
        except LackingError as why:
            print(f"{shlex.join([file, *own])} is left out: {why}")
            continue
        except cli.UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append(shlex.join([file, *own]))
            payload = error.payload if isinstance(error, IncompleteError) else {"experiment": None}
        if payload["experiment"] == "exp3":
            layers["born"] = birth_layer(catalogue.concluded(payload))
        elif payload["experiment"] == "head_analysis":
            layers["read"] = payload["results"]["ranking"][0]["layer"]
    return failed


def untyped(step: str, options: Options) -> str:
    """A step's command without the flags that were typed for every script."""
    for name in options.typed:
        step = re.sub(rf" --{name} \S+", "", step)
    return step


def shared_flags(options: Options, idle: dict[str, str]) -> list[str]:
    """What was typed of the flags that every script has, but for those that are idle in one."""
    flags = []
    for f in fields(cli.Options):
        value = getattr(options, f.name)
        if f.name not in options.typed or f.name in ("savedir", *idle):
            continue
        words = [] if isinstance(value, bool) else map(str, value) if isinstance(value, tuple) else [str(value)]
        flags += [f"--{'no-' * (value is False)}{f.name}", *words]
    return flags


def carry_out(script: ModuleType, command: list[str], lm: LanguageModel, force: bool) -> dict[str, Any]:
    """The payload of one command, measured now unless it is there already."""
    file, *flags = command
    options = cli.parse(script.Options, script.__doc__, flags)
    experiment = script.EXPERIMENT if hasattr(script, "EXPERIMENT") else script.chosen(options)[0]
    path = options.output_dir / experiment.json.format(**result_files.config(options))
    with carried_out(file, flags):
        start = time.monotonic()
        there = not force and already_there(experiment, options, lm)
        if there and all_written(experiment, options):
            print(f"{path} is there already")
        else:
            with redirect_stdout(io.StringIO()):
                execute(experiment, replace(options, replot=path) if there else options, lm)
            print(f"{path}, {time.monotonic() - start:.0f} s", flush=True)
    payload = result_files.load(path, experiment.name)
    conclusion = catalogue.concluded(payload).conclusion
    if conclusion is not None:
        said = f"Conclusion: {conclusion.verdict}{ENGLISH.noted(note_of(conclusion))}"
        print(textwrap.fill(said, COLUMNS), flush=True)
    return payload


def conclude(folder: Path, model_name: str, this: dict[str, Any]) -> None:
    """Print what matters most of one model's results, and where the page is of all."""
    shown = page.find(folder).get((model_name, identity.of(this)), [])
    if not shown:
        return
    print()
    for sentence in page.sentences(shown):
        print(textwrap.fill(sentence, COLUMNS))
    print(f"\nOpen this: {page.write(folder)}")


if __name__ == "__main__":
    cli.main(main)
