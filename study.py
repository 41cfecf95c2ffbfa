"""Every experiment on one model, in order, then the verdicts on the claims.

    python study.py --model gpt2
    python study.py --model smollm2-135m --dataset python-docs

Writes what the scripts write on their own, below --savedir (default: results/<model>), a folder for each script. What
is there already, of the same options, code, model, data, packages and machine, is left alone, unless --force is given.
The layers that some scripts need come from the results: {born} is that of the ledger's birth, or, where there is none,
the first of the followed place's plateau (exp3); {read} that of the head that attends most to the first token.
"""

import importlib
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import verify_claims
from lib import cli, identity, report
from lib.claims import birth_layer
from lib.experiment import IncompleteError, already_there, execute

SEED_STUDY = (
    "main_llm --exp2",
    "analyze_heads_simple",
    "exp3_lifecycle_ledger",
    "main_llm --exp1 --layer_id {born}",
    "test_head_pruning_on_massive",
    "exp1_feasibility_test",
    "exp2a_mlp_feasibility_test",
    "exp2c_mlp_internal_analysis --layer_id {born}",
    "compare_3d_before_after_pruning --layer_id {born}",
    "compare_3d_before_after_pruning --layer_id {read}",
)
CAUSAL_SUITE = (
    "exp2b_mlp_layer_sweep",
    "exp4_neuron_sets --layer_id {born}",
    "exp5_interventions --layer_id {born}",
    "exp6_trigger_census",
    "exp7_head_sweep",
)


@dataclass(frozen=True)
class Options(cli.Options):
    nsamples: int | None = cli.flag(None, "number of token windows (default: each script's own)")
    savedir: Path | None = cli.flag(None, "folder for the results (default: results/<model>)", type=cli.path)
    force: bool = cli.flag(False, "measure again what is there already", action="store_true")
    short: bool = cli.flag(False, "only the seed study's scripts and the ledger", action="store_true")


def main():
    cli.require_one_process()
    options = cli.parse(Options, __doc__)
    if options.replot:
        raise cli.UserError("a study has no figures of its own; --replot belongs to its scripts")
    folder = options.savedir or Path("results") / options.model_name
    report.check_writable(folder)

    from lib import models

    lm = models.load(options)
    steps = SEED_STUDY if options.short else SEED_STUDY + CAUSAL_SUITE
    this = report.model_provenance(options, lm)  # one line now, not one error a step
    for name in {step.split()[0] for step in steps}:
        for path in sorted((folder / name).rglob("*.json")):
            identity.require_same(path, this)
    layers, done, failed = {}, set(), []
    for step in steps:
        try:
            name, *own = step.format_map(layers).split()
        except KeyError as layer:
            failed.append(f"{step} (no {layer.args[0]} layer: an earlier step failed)")
            continue
        script = importlib.import_module(name)
        idle = cli.parse(script.Options, script.__doc__, [*own, "--model", options.model]).idle()
        command = [f"{name}.py", *own, *shared_flags(options, idle), "--savedir", str(folder / name)]
        if tuple(command) in done:
            continue
        done.add(tuple(command))
        print(f"\n$ python {shlex.join(command)}", flush=True)
        try:
            payload = carry_out(script, command, lm, options.force)
        except cli.UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append(step)
            payload = error.payload if isinstance(error, IncompleteError) else {"experiment": None}
        if payload["experiment"] == "exp3":
            layers["born"] = birth_layer(payload["results"])
        elif payload["experiment"] == "head_analysis":
            layers["read"] = payload["results"]["ranking"][0]["layer"]
    sys.argv = ["verify_claims.py", str(folder)]
    found = verify_claims.find(folder).get(options.model_name, {})
    verify_claims.verify(folder, options.model_name, of_model(found, this))
    if failed:
        raise cli.UserError(f"without a whole result: {', '.join(failed)}")


def of_model(files, this):
    """What of verify_claims.find's files of one name is of one model."""
    return {
        experiment: [payload for payload in payloads if identity.of(payload["provenance"]) == identity.of(this)]
        for experiment, payloads in files.items()
    }


def shared_flags(options, idle):
    """What was typed of the flags that every script has, but for those that are idle in one."""
    flags = []
    for f in fields(cli.Options):
        value = getattr(options, f.name)
        if f.name not in options.typed or f.name in ("savedir", *idle):
            continue
        flags += [f"--{'no-' * (value is False)}{f.name}", *([] if isinstance(value, bool) else [str(value)])]
    return flags


def carry_out(script, command, lm, force):
    """The payload of one command, measured now unless it is there already."""
    sys.argv = command  # what the provenance names
    options = cli.parse(script.Options, script.__doc__)
    experiment = script.EXPERIMENT if hasattr(script, "EXPERIMENT") else script.chosen(options)[0]
    path = options.output_dir / experiment.json.format(**report.config(options))
    if not force and already_there(experiment, options, lm):
        print(f"{path} is there already")
    else:
        execute(experiment, options, lm)
    return report.load(path, experiment.name)


if __name__ == "__main__":
    cli.main(main)
