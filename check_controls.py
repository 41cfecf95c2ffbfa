"""Do the scripts find what was planted? Truth against diagnosis on small models whose mechanism is known.

    python check_controls.py --seeds 20 --savedir results/controls

Builds every kind of lib/planted.py in both architectures, with seeds --first_seed, --first_seed + 1, ..., passes each
model through the scripts' own `run`, and diagnoses it from their results alone, by the rules in RULE. Exit code 1 if a
diagnosis differs from the truth. What was planted and no script sees yet is listed as open.
"""

import argparse
import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lib import cli, plots, report

GENERATORS = {  # (verdict of Experiment 1, all heads off; verdict of Experiment 2A, all MLPs off)
    ("persists", "collapses"): "mlp",
    ("collapses", "persists"): "head",
    ("none found", "none found"): "none",
}
FIELDS = (
    "generator",
    "layer",
    "neurons",
    "dims",
    "trigger",
    "positions",
    "readers",
    "birth",
    "erasers",
    "eraser_neurons",
    "necessary",
    "sufficient",
    "first_step_neurons",
    "neuron_set",
    "single_heads",
    "cause",
)
RULE = """\
generator  "mlp" if the massive activations persist without heads (exp1) and collapse without MLPs (exp2a), "head" if
           the reverse, "none" if neither finds any, otherwise unclear
layer      the first in massive[] of main_llm --exp2
dims       all in massive[], with their signs
positions  all in massive[]
neurons    of an "mlp": exp2c's smallest set at that layer, for the largest dim, at the position if there is only one
trigger    "position 0" if every window is massive there and nowhere else; ", always TOKEN" if all windows begin with
           the same token, which then is as good an explanation; "token TOKEN" if the massive places hold one token and
           are as many as the windows have of it; otherwise unclear
readers    heads with over 0.3 of their attention on the first token (analyze_heads_simple, without the first query)
           and not over 0.3 once massive values are set to zero in every layer's output: a high score alone proves no
           reading
birth      exp3's verdict: the component that writes most of the value at the followed place
erasers    exp3's, and eraser_neurons: exp2c's smallest set in an MLP among them
necessary, sufficient  exp2b's: MLPs and attention blocks without which the value is gone, or that make it on their own;
           redundant generators are sufficient and not necessary, a first step is necessary and not sufficient
first_step_neurons  exp2c's smallest set in a necessary MLP before the birth's
neuron_set of an "mlp": exp4's minimal set at that layer, if keep-only and remove-only runs confirm it
single_heads  exp7's heads whose removal lowers the value
cause      exp6's verdict, and the tokens if it names a token"""


@dataclass(frozen=True)
class Controls:
    """models: per model its whole `truth`, what of it the scripts should see (`visible`), their `diagnosis`, and the
    fields that differ (`misses`)."""

    rule: str
    fields: tuple
    models: list
    conclusion: dict


def run(seeds):
    from tqdm import tqdm

    from lib import planted

    every = [(architecture, kind) for architecture in planted.ARCHITECTURES for kind in planted.KINDS]
    models = []
    with tqdm(total=len(every) * len(seeds), unit="model", desc="controls", disable=None) as progress:
        for architecture, kind in every:
            for seed in seeds:
                models.append(_check(planted.build(architecture, kind, seed)))
                progress.update()
    missed = sum(bool(model["misses"]) for model in models)
    conclusion = {
        "verdict": f"{len(models) - missed} of {len(models)} diagnosed right",
        "rule": "right: every field of the diagnosis equals the truth",
        "values": {"models": len(models), "missed": missed},
    }
    return Controls(RULE, FIELDS, models, conclusion)


def _check(built):
    truth, diagnosis = built.truth, diagnose(built.lm, built.windows)
    visible = visible_of(truth)
    return {
        "truth": dataclasses.asdict(truth),
        "visible": visible,
        "diagnosis": diagnosis,
        "misses": [name for name in FIELDS if diagnosis[name] != visible[name]],
    }


def visible_of(truth):
    """{field: value} of FIELDS that a right diagnosis of a planted.Truth gives."""
    first, second, eraser = (part or {} for part in (truth.first_step, truth.second_generator, truth.eraser))
    nothing, by_head = truth.generator == "none", truth.generator == "head"
    part = f"{'attention' if by_head else 'mlp'} {truth.layer}"
    heads = [f"head {truth.layer}.{truth.head}"] if by_head else []
    needed, enough = [part], [part]
    if first:
        needed, enough = [f"mlp {first['layer']}", part], []
    if second:
        needed, enough = [], [part, f"mlp {second['layer']}"]
    erasers = []
    if eraser:
        erasers = [f"head {eraser['layer']}.{eraser['head']}" if "head" in eraser else f"mlp {eraser['layer']}"]
    cause = "none found" if nothing else "position"
    if "token" in truth.trigger or "always" in truth.trigger:
        cause = f"token {truth.trigger.split()[-1]}"
        if by_head:  # a planted head looks away from the trigger, so it writes only where there is nothing else to see
            cause = "position and token"
    return {
        "generator": truth.generator,
        "layer": truth.layer,
        "neurons": list(truth.neurons),
        "dims": _signed(truth.values.items()),
        "trigger": truth.trigger,
        "positions": list(truth.positions),
        "readers": [list(head) for head in truth.readers],
        "birth": "none found" if nothing else (heads or [part])[0],
        "erasers": erasers,
        "eraser_neurons": list(eraser.get("neurons", ())),
        "necessary": [] if nothing else needed,
        "sufficient": [] if nothing else enough,
        "first_step_neurons": list(first.get("neurons", ())),
        "neuron_set": list(truth.neurons),
        "single_heads": heads,
        "cause": cause,
    }


def diagnose(lm, windows):
    """{field: value} of FIELDS by RULE, from what the scripts report; the truth is not known here."""
    import exp1_feasibility_test as exp1
    import exp2a_mlp_feasibility_test as exp2a
    import exp2c_mlp_internal_analysis as exp2c
    import main_llm

    every = {"batch_size": len(windows.ids)}
    massive = main_llm.run_layerwise(lm, windows, main_llm.Options(**every)).massive
    verdicts = [script.run(lm, windows, script.Options(**every)).conclusion["verdict"] for script in (exp1, exp2a)]
    generator = GENERATORS.get(tuple(verdicts), f"unclear: {verdicts[0]} without heads, {verdicts[1]} without MLPs")
    if not massive:
        nothing = {"neurons": [], "dims": [], "trigger": "none", "positions": [], "readers": []}
        return {"generator": generator, "layer": None, **nothing, **_causal(lm, windows, None)}
    layer = massive[0]["layer"]
    born = [entry for entry in massive if entry["layer"] == layer]
    positions = sorted({entry["position"] for entry in massive})
    neurons = []
    if generator == "mlp":
        place = {"dim": born[0]["dim"], "position": positions[0] if len(positions) == 1 else None}
        inside = exp2c.run(lm, windows, exp2c.Options(layer_id=layer, **place, **every))
        neurons = sorted(inside.conclusion["values"]["neurons"])
    return {
        "generator": generator,
        "layer": layer,
        "neurons": neurons,
        "dims": _signed((entry["dim"], entry["value"]) for entry in massive),
        "trigger": _trigger(lm, windows, born),
        "positions": positions,
        "readers": _readers(lm, windows),
        **_causal(lm, windows, layer if generator == "mlp" else None),
    }


def _causal(lm, windows, layer):
    """The fields that experiments 2B to 7 see; layer: of the MLP that generates, if one does."""
    import exp2b_mlp_layer_sweep as exp2b
    import exp2c_mlp_internal_analysis as exp2c
    import exp3_lifecycle_ledger as exp3
    import exp4_neuron_sets as exp4
    import exp6_trigger_census as exp6
    import exp7_head_sweep as exp7

    def conclusion_of(script, **flags):
        return script.run(lm, windows, script.Options(batch_size=len(windows.ids), **flags)).conclusion

    def neurons_of(mlps):
        return sorted(n for mlp in mlps for n in conclusion_of(exp2c, layer_id=mlp)["values"]["neurons"])

    ledger, layers = conclusion_of(exp3), conclusion_of(exp2b)["values"]
    census, heads = conclusion_of(exp6), conclusion_of(exp7)["values"]["lowers"]["zero"]
    if ledger["verdict"] == "none found":
        layers, heads = {"necessary": [], "sufficient": []}, []
    steps = [at for kind, at in layers["necessary"] if kind == "mlp" and at < ledger["values"]["birth"]["layer"]]
    erasers = ledger["values"]["erasers"]
    neurons = conclusion_of(exp4, layer_id=layer) if layer is not None else {"verdict": "none found"}
    confirmed = neurons["verdict"].endswith("neurons")
    tokens = census["values"]["tokens"] if census["verdict"] == "token" else []
    return {
        "birth": ledger["verdict"],
        "erasers": [part["name"] for part in erasers],
        "eraser_neurons": neurons_of(part["layer"] for part in erasers if part["component"] == "mlp"),
        "necessary": [f"{kind} {at}" for kind, at in layers["necessary"]],
        "sufficient": [f"{kind} {at}" for kind, at in layers["sufficient"]],
        "first_step_neurons": neurons_of(steps),
        "neuron_set": sorted(neurons["values"]["neurons"]) if confirmed else [],
        "single_heads": [f"head {at}.{head}" for at, head in heads],
        "cause": " ".join([census["verdict"], *tokens]),
    }


def _signed(values):
    """["+4", "-53"] of (dim, value) pairs, each once."""
    return [f"{'+' if positive else '-'}{dim}" for dim, positive in sorted({(dim, value > 0) for dim, value in values})]


def _trigger(lm, windows, born):
    """What the places of the largest dim have in common in the layer where it is born."""
    from lib.tokens import text_of

    places = [entry for entry in born if entry["dim"] == born[0]["dim"]]
    tokens = {entry["token"] for entry in places}
    if [(entry["position"], entry["sequences"]) for entry in places] == [(0, len(windows.ids))]:
        first = {text_of(lm.tokenizer, token) for token in windows.ids[:, 0].tolist()}
        return "position 0" if len(first) > 1 else f"position 0, always {first.pop()}"
    texts = [text_of(lm.tokenizer, token) for token in windows.ids.flatten().tolist()]
    if len(tokens) == 1 and texts.count(places[0]["token"]) == sum(entry["sequences"] for entry in places):
        return f"token {tokens.pop()}"
    return f"unclear: {len(places)} positions, {len(tokens)} tokens"


def _readers(lm, windows):
    """[layer, head] of the sinks on the first token that are gone when massive values are zero."""
    import analyze_heads_simple as heads
    from lib import hooks
    from lib.massive import is_massive

    def zero(_layer, hidden):
        median = hidden.abs().flatten(1).median(1).values[:, None, None]
        return hidden.masked_fill(is_massive(hidden, median), 0)

    def sinks():
        results = heads.run(lm, windows, heads.Options(batch_size=len(windows.ids)))
        scores = enumerate(results.scores_without_first_query)
        return [[i, h] for i, row in scores for h, cell in enumerate(row) if cell["mean"] > results.sink_epsilon]

    before = sinks()
    with hooks.watch_outputs(lm.arch, "block", zero):
        after = sinks()
    return [head for head in before if head not in after]


def summarise(payload):
    r = payload["results"]
    rows = []
    for model in r["models"]:
        truth, misses = model["truth"], model["misses"]
        found = "; ".join(f"{name}: {_text(model['diagnosis'][name])}" for name in misses)
        described = [_text(model["visible"][name]) for name in FIELDS]
        described[FIELDS.index("positions")] = str(len(truth["positions"]))
        diagnosis = f"MISS {found}" if misses else "right"
        model = [truth["architecture"], truth["kind"], truth["seed"]]
        rows.append([*model, *described, diagnosis])
    heads = ["model", "kind", "seed", *FIELDS, "diagnosis"]
    return "\n".join(
        [
            "Planted truth against diagnosis",
            "===============================",
            f"command  {payload['provenance']['command']} ({payload['provenance']['seconds']} s)",
            "",
            "Rules of the diagnosis, the same for every model",
            r["rule"],
            "",
            "Truth of each model (positions: how many), and whether the diagnosis agrees in every field",
            report.table(heads, rows),
            f"Conclusion: {r['conclusion']['verdict']}",
            f"Rule: {r['conclusion']['rule']}",
            "",
        ]
    )


def _text(value):
    """`-`, `3`, `+4 -53`, `4.2 4.3`."""
    if isinstance(value, list):
        return " ".join(".".join(map(str, x)) if isinstance(x, list) else str(x) for x in value) or "-"
    return "-" if value is None else str(value)


def main():
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
    report.check_writable(args.savedir)

    import torch

    torch.set_num_threads(1)  # tiny tensors: threads that wait for each other cost the most
    start = time.monotonic()
    results = run(range(args.first_seed, args.first_seed + args.seeds))
    files = {"json": "controls.json", "txt": "controls.txt", "figures": ["controls.png"]}
    provenance = report.environment(time.monotonic() - start)
    payload = report.payload("controls", vars(args), provenance, results, files)
    text = summarise(payload)
    report.write_json(args.savedir / files["json"], payload)
    report.write_text(args.savedir / files["txt"], text)
    plots.write(args.savedir / "controls.png", plots.controls, payload)
    print(text)
    for name in (files["txt"], files["json"], "controls.png"):
        print(args.savedir / name)
    if payload["results"]["conclusion"]["values"]["missed"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.main(main)
