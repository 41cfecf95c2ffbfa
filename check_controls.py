"""Do the scripts find what was planted? Truth against diagnosis on small models whose mechanism is known.

    python check_controls.py --seeds 20 --savedir results/controls

Builds every kind of lib/planted/ in both architectures, with seeds --first_seed, --first_seed + 1, ..., passes each
model through the scripts' own `run`, and diagnoses it from their results alone, by the rules in RULE. Exit code 1 if a
diagnosis differs from the truth. What was planted and no script sees yet is listed as open.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lib import catalogue
from lib.core.provenance import environment
from lib.planted import figures as planted_figures
from lib.report import figures, result_files, tables
from lib.run import cli

if TYPE_CHECKING:
    from lib.core.data import Windows
    from lib.model.models import LanguageModel
    from lib.planted.truth import Planted, Truth

GENERATORS = {  # (verdict of Experiment 1, all heads off; verdict of Experiment 2A, all MLPs off)
    ("persists", "collapses"): "mlp",
    ("collapses", "persists"): "head",
    ("collapses", "collapses"): "both",
    ("none found", "none found"): "none",
}
FIELDS = (
    "generator",
    "layer",
    "neurons",
    "dims",
    "trigger",
    "positions",
    "share",
    "sinks",
    "readers",
    "birth",
    "erasers",
    "eraser_neurons",
    "necessary",
    "sufficient",
    "retained",
    "repair",
    "first_step_neurons",
    "neuron_set",
    "need",
    "cause",
    "single_heads",
    "erasing_heads",
    "costly_heads",
    "pruning",
)
WHOLE = 4  # windows of which experiments 2B and 4 measure losses, which no field is of
SHOWN = (
    "generator",
    "layer",
    "trigger",
    "share",
    "birth",
    "erasers",
    "necessary",
    "retained",
    "repair",
    "need",
    "cause",
)
NUMBERS = {"share": 0.0, "retained": 0.05, "repair": 0.05}  # how far a diagnosis may be from the truth
RULE = """\
generator  "mlp" if the massive activations persist without heads (exp1) and collapse without MLPs (exp2a), "head" if
           the reverse, "both" if they collapse without either, "none" if neither finds any, otherwise unclear
layer      the first in massive[] of main_llm --exp2
dims       all in massive[], with their signs
positions  all in massive[]
neurons    of an MLP: exp2c's smallest set (90 %) at that layer, for the largest dim, at the position, if all are at one
trigger    "position 0" if every window is massive there, and of later places "token TOKEN" if they hold one token and
           are as many as the windows have of it; ", always TOKEN" if all windows begin with the same token, which then
           is as good an explanation; all places together, if one token explains them; otherwise unclear
share      of the windows that have the spike (exp2b)
sinks      heads with over 0.3 of their attention on the first token (analyze_heads_simple, without the first query)
readers    of them, those that are not over 0.3 once massive values are set to zero in every layer's output: a high
           score alone proves no reading
birth      exp3's verdict: the component that writes most of the value at the followed place
erasers    exp3's, and eraser_neurons: exp2c's smallest set in an MLP among them
necessary, sufficient  exp2b's: MLPs and attention blocks without which the value is gone, or that make it on their own;
           redundant generators are sufficient and not necessary, a first step is necessary and not sufficient
retained, repair  exp2b's, of each MLP or attention block that exp3 names as a generator: what is left of the value
           without it, and the share of its write that is made good then
first_step_neurons  exp2c's smallest set in a necessary MLP before the birth's
neuron_set of an MLP: exp4's minimal set (95 %) at that layer, if keep-only and remove-only runs confirm it
need       exp5's verdict
cause      exp6's verdict, and the tokens if it names any
single_heads, erasing_heads, costly_heads  exp7's heads whose removal lowers the value on its plateau, raises it in the
           last layer, costs loss
pruning    head pruning's verdict on the single heads, or if there is none, on the head of layer 0 that attends most to
           the first token; ", beyond the null" if no other head of the layer changes the value as much"""


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

    from lib.planted import blank, kinds, planting

    every = [(architecture, kind) for architecture in blank.ARCHITECTURES for kind in kinds.KINDS]
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
    truth, diagnosis = built.truth, diagnose(built.lm, built.windows, FIELDS)
    visible = visible_of(truth)
    return {
        "truth": dataclasses.asdict(truth),
        "visible": visible,
        "diagnosis": diagnosis,
        "misses": [name for name in FIELDS if not _agree(name, diagnosis[name], visible[name])],
    }


def _agree(name: str, found: Any, true: Any) -> bool:
    """Equal; of NUMBERS as near as said there. "cannot tell" agrees with nothing but itself."""
    if name not in NUMBERS:
        return found == true
    of_found, of_true = (dict(x) if isinstance(x, list) else {None: x} for x in (found, true))
    return of_found.keys() == of_true.keys() and all(
        value is not None and abs(value - of_true[key]) <= NUMBERS[name] for key, value in of_found.items()
    )


def visible_of(truth: Truth) -> dict[str, Any]:
    """{field: value} of FIELDS that a right diagnosis of a planted.Truth gives."""
    first, second, eraser, later, informed = (
        part or {} for part in (truth.first_step, truth.second_generator, truth.eraser, truth.later, truth.informed)
    )
    nothing, by_head = truth.generator == "none", truth.generator == "head"
    part = f"{'attention' if by_head else 'mlp'} {truth.layer}"
    heads = [f"head {truth.layer}.{truth.head}"] if by_head else []
    needed, enough = [part], [part]
    if "neurons" in first:
        # kept alone, the second step lacks the first, unless that is MLP 0, which experiment 2B keeps in any case
        needed, enough = [f"mlp {first['layer']}", part], [part] if first["layer"] == 0 else []
    if "head" in first:  # of its kind each is enough
        heads = [f"head {first['layer']}.{first['head']}"]
        needed = enough = [part, f"attention {first['layer']}"]
    if second:
        other = f"mlp {second['layer']}"
        alone = {part: truth.retained.get(other, 1.0), other: truth.retained[part]}  # each without the other
        needed, enough = [], [name for name, share in alone.items() if share == 1]
    erasers = []
    if eraser:
        erasers = [f"head {eraser['layer']}.{eraser['head']}" if "head" in eraser else f"mlp {eraser['layer']}"]
    return {
        "generator": truth.generator,
        "layer": truth.layer,
        "neurons": list(truth.most),
        "dims": _signed([*truth.values.items(), *later.get("values", {}).items(), *informed.get("values", {}).items()]),
        "trigger": truth.trigger,
        "positions": list(truth.positions),
        "share": truth.share,
        "sinks": [list(head) for head in truth.sinks],
        "readers": [list(head) for head in truth.readers],
        "birth": "none found" if nothing else part if not by_head else heads[0],
        "erasers": erasers,
        "eraser_neurons": list(eraser.get("neurons", ())),
        "necessary": [] if nothing else sorted(needed),
        "sufficient": [] if nothing else sorted(enough),
        "retained": [list(pair) for pair in sorted(truth.retained.items())],
        "repair": [list(pair) for pair in sorted(truth.repair.items())],
        "first_step_neurons": list(first.get("neurons", ())),
        "neuron_set": list(truth.neurons),
        "need": _need(truth),
        "cause": _cause(truth),
        "single_heads": heads,
        "erasing_heads": [name for name in erasers if name.startswith("head")],
        "costly_heads": [f"head {layer}.{head}" for layer, head in truth.costly],
        "pruning": "none found" if nothing else "collapses, beyond the null" if heads else "persists",
    }


def _need(truth: Truth) -> str:
    if truth.generator == "none":
        return "none found"
    # experiment 5 turns off the MLP that writes the value: it cannot where a head does, and it tells nothing where
    # another MLP makes it good
    return "cannot tell" if truth.generator == "head" or truth.second_generator else truth.need


def _cause(truth: Truth) -> str:
    if truth.generator == "none":
        return "none found"
    tokens = " ".join(sorted(truth.tokens))
    if truth.generator in ("head", "both"):  # a planted head looks away from the trigger: it needs nothing else to see
        return f"no other context, certain tokens {tokens}" if tokens else "position and no other context"
    return f"token {tokens}" if tokens else "position"


def diagnose(lm: LanguageModel, windows: Windows, fields: Iterable[str]) -> dict[str, Any]:
    """{field: value} of some of FIELDS by RULE, from what the scripts report; the truth is not known here."""
    diagnosis = Diagnosis(lm, windows)
    return {name: getattr(diagnosis, name) for name in fields}


class Diagnosis:
    """FIELDS of one model, by RULE. A script is run when a field asks for it, and once."""

    def __init__(self, lm: LanguageModel, windows: Windows) -> None:
        self.lm, self.windows = lm, windows
        self._results = {}

    def results(self, script: ModuleType, **flags: Any) -> dict[str, Any]:
        """The judged results of a script's module with these options."""
        key = script, *sorted(flags.items())
        if key not in self._results:
            options = script.Options(batch_size=len(self.windows.ids), **flags)
            self._results[key] = catalogue.judged(script.EXPERIMENT.name, script.run(self.lm, self.windows, options))
        return self._results[key]

    def conclusion(self, script: ModuleType, **flags: Any) -> tuple[str, dict[str, Any]]:
        """(verdict, values) of a script's module."""
        conclusion = self.results(script, **flags)["conclusion"]
        return conclusion["verdict"], conclusion["values"]

    def neurons_of(self, layer: int, **flags: Any) -> list[int]:
        """The smallest set of experiment 2C."""
        import exp2c_mlp_internal_analysis

        return sorted(self.conclusion(exp2c_mlp_internal_analysis, layer_id=layer, **flags)[1]["neurons"])

    @cached_property
    def massive(self) -> list[dict[str, Any]]:
        import main_llm
        from experiments.layerwise import measure as layerwise_measure

        options = main_llm.Options(batch_size=len(self.windows.ids))
        return layerwise_measure.run(self.lm, self.windows, options).massive

    @property
    def born(self) -> list[dict[str, Any]]:
        return [entry for entry in self.massive if entry["layer"] == self.layer]

    @cached_property
    def generator(self) -> str:
        import exp1_feasibility_test as exp1
        import exp2a_mlp_feasibility_test as exp2a

        verdicts = tuple(self.conclusion(script)[0] for script in (exp1, exp2a))
        return GENERATORS.get(verdicts, f"unclear: {verdicts[0]} without heads, {verdicts[1]} without MLPs")

    @property
    def layer(self) -> int | None:
        return self.massive[0]["layer"] if self.massive else None

    @property
    def dims(self) -> list[str]:
        return _signed((entry["dim"], entry["value"]) for entry in self.massive)

    @property
    def positions(self) -> list[int]:
        return sorted({entry["position"] for entry in self.massive})

    @property
    def neurons(self) -> list[int]:
        if self.generator not in ("mlp", "both"):
            return []
        position = self.positions[0] if len(self.positions) == 1 else None
        return self.neurons_of(self.layer, dim=self.born[0]["dim"], position=position)

    @property
    def neuron_set(self) -> list[int]:
        import exp4_neuron_sets

        if self.generator not in ("mlp", "both"):
            return []
        verdict, values = self.conclusion(exp4_neuron_sets, layer_id=self.layer, n_whole=WHOLE)
        return sorted(values["neurons"]) if verdict.endswith("neurons") else []

    @property
    def trigger(self) -> str:
        return _trigger(self.lm, self.windows, self.born)

    @cached_property
    def _looking(self) -> tuple[list[list[int]], list[list[int]]]:
        return _sinks(self.lm, self.windows)

    @property
    def sinks(self) -> list[list[int]]:
        return self._looking[0]

    @property
    def readers(self) -> list[list[int]]:
        return self._looking[1]

    @property
    def _ledger(self) -> tuple[str, dict[str, Any]]:
        import exp3_lifecycle_ledger

        return self.conclusion(exp3_lifecycle_ledger)

    @property
    def birth(self) -> str:
        return self._ledger[0]

    @property
    def erasers(self) -> list[str]:
        return [part["name"] for part in self._ledger[1]["erasers"]]

    @property
    def eraser_neurons(self) -> list[int]:
        mlps = [part["layer"] for part in self._ledger[1]["erasers"] if part["component"] == "mlp"]
        return [n for layer in mlps for n in self.neurons_of(layer)]

    @property
    def _sweep(self) -> dict[str, Any]:
        import exp2b_mlp_layer_sweep

        return self.results(exp2b_mlp_layer_sweep, n_whole=WHOLE)

    @property
    def share(self) -> float:
        return self._sweep["windows"]["spiking"]["mean"]

    @property
    def necessary(self) -> list[str]:
        return sorted(f"{kind} {at}" for kind, at in self._sweep["conclusion"]["values"]["necessary"])

    @property
    def sufficient(self) -> list[str]:
        return sorted(f"{kind} {at}" for kind, at in self._sweep["conclusion"]["values"]["sufficient"])

    @property
    def _generators(self) -> list[tuple[str, dict[str, Any]]]:
        """[(name, row of experiment 2B)] of the MLPs and attention blocks that write it."""
        kinds = [("mlp" if part["component"] == "mlp" else "attention", part) for part in self._ledger[1]["generators"]]
        rows = {f"{kind} {part['layer']}": self._sweep["kinds"][kind][part["layer"]] for kind, part in kinds}
        return sorted(rows.items())

    @property
    def retained(self) -> list[list[Any]]:
        return [[name, row["alone"]["retained"]["mean"]] for name, row in self._generators]

    @property
    def repair(self) -> list[list[Any]]:
        return [[name, row["repair"] and row["repair"]["ratio"]["mean"]] for name, row in self._generators]

    @property
    def first_step_neurons(self) -> list[int]:
        necessary = self._sweep["conclusion"]["values"]["necessary"]
        steps = [at for kind, at in necessary if kind == "mlp" and at < self._ledger[1]["birth"]["layer"]]
        return [n for at in steps for n in self.neurons_of(at)]

    @property
    def need(self) -> str:
        import exp5_interventions

        return self.conclusion(exp5_interventions, factors=(), epsilons=(0.3,))[0]

    @property
    def cause(self) -> str:
        import exp6_trigger_census

        verdict, values = self.conclusion(exp6_trigger_census)
        return " ".join([verdict, *(sorted(values["tokens"]) if "token" in verdict else ())])

    @property
    def _heads(self) -> dict[str, Any]:
        import exp7_head_sweep

        return self.results(exp7_head_sweep, n_whole=len(self.windows.ids), n_random=0)

    def _moving(self, *wanted: tuple[str, str]) -> list[tuple[int, int]]:
        """[(layer, head)] of the heads that do (what, to which value of experiment 7)."""
        moves = self._heads["conclusion"]["values"]["moves"]["zero"]
        return sorted({(layer, head) for layer, head, does, key in moves if (does, key) in wanted})

    @property
    def single_heads(self) -> list[str]:
        return _named(self._moving(("lowers", "birth"), ("lowers", "end")))

    @property
    def erasing_heads(self) -> list[str]:
        return _named(self._moving(("raises", "last")))

    @property
    def costly_heads(self) -> list[str]:
        return _named(self._heads["conclusion"]["values"]["costs"])

    @property
    def pruning(self) -> str:
        """Of the single heads, or of a head of layer 0; the other set is a head of another layer."""
        import test_head_pruning_on_massive

        order = sorted(self._heads["heads"], key=lambda row: -row["score"])
        order = [(row["layer"], row["head"]) for row in order]
        top = self._moving(("lowers", "birth"), ("lowers", "end")) or [next(head for head in order if head[0] == 0)]
        bottom = next(head for head in order if head[0] not in {layer for layer, _head in top})
        sets = {name: tuple(f"{i}.{h}" for i, h in heads) for name, heads in (("top", top), ("bottom", [bottom]))}
        verdict, _values = self.conclusion(test_head_pruning_on_massive, n_random=0, **sets)
        null = self.results(test_head_pruning_on_massive, n_random=0, **sets)["null"]["top"]
        beyond = verdict not in ("persists", "none found") and null["at_least_as_large"] == 0
        return verdict + (", beyond the null" if beyond else "")


def _named(heads: Iterable[Sequence[int]]) -> list[str]:
    return [f"head {layer}.{head}" for layer, head in heads]


def _signed(values: Iterable[tuple[int, float]]) -> list[str]:
    """["+4", "-53"] of (dim, value) pairs, each once."""
    return [f"{'+' if positive else '-'}{dim}" for dim, positive in sorted({(dim, value > 0) for dim, value in values})]


def _trigger(lm: LanguageModel, windows: Windows, born: list[dict[str, Any]]) -> str:
    """What the places of the largest dim have in common in the layer where it is born."""
    from lib.model.tokens import text_of

    if not born:
        return "none"
    places = [entry for entry in born if entry["dim"] == born[0]["dim"]]
    texts = [text_of(lm.tokenizer, token) for token in windows.ids.flatten().tolist()]

    def token(of):
        tokens = {entry["token"] for entry in of}
        if len(tokens) == 1 and texts.count(of[0]["token"]) == sum(entry["sequences"] for entry in of):
            return f"token {tokens.pop()}"
        return f"unclear: {len(of)} positions, {len(tokens)} tokens"

    at_first = [entry for entry in places if entry["position"] == 0 and entry["sequences"] == len(windows.ids)]
    if not at_first:
        return token(places)
    first = {text_of(lm.tokenizer, token) for token in windows.ids[:, 0].tolist()}
    later = [entry for entry in places if entry["position"]]
    return (
        "position 0"
        + (f", always {first.pop()}" if len(first) == 1 else "")
        + (f" and {token(later)}" if later else "")
    )


def _sinks(lm: LanguageModel, windows: Windows) -> tuple[list[list[int]], list[list[int]]]:
    """([layer, head] of the sinks on the first token, of those that are gone when massive values are zero)."""
    import analyze_heads_simple
    from experiments.head_scores import measure
    from lib.core.massive import is_massive
    from lib.model import hooks

    def zero(_layer, hidden):
        median = hidden.abs().flatten(1).median(1).values[:, None, None]
        return hidden.masked_fill(is_massive(hidden, median), 0)

    def sinks():
        results = measure.run(lm, windows, analyze_heads_simple.Options(batch_size=len(windows.ids)))
        scores = enumerate(results.scores_without_first_query)
        return [[i, h] for i, row in scores for h, cell in enumerate(row) if cell["mean"] > results.sink_epsilon]

    before = sinks()
    with hooks.watch_outputs(lm.arch, "block", zero):
        after = sinks()
    return before, [head for head in before if head not in after]


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    rows = []
    for model in r["models"]:
        truth, misses = model["truth"], model["misses"]
        found = "; ".join(f"{name}: {_text(model['diagnosis'][name])}" for name in misses)
        described = [_text(model["visible"][name]) for name in SHOWN]
        diagnosis = f"MISS {found}" if misses else "right"
        model = [truth["architecture"], truth["kind"], truth["seed"]]
        rows.append([*model, *described, diagnosis])
    heads = ["model", "kind", "seed", *SHOWN, "diagnosis"]
    return "\n".join(
        [
            "Planted truth against diagnosis",
            "===============================",
            f"command  {payload['provenance']['command']} ({payload['provenance']['seconds']} s)",
            "",
            "Rules of the diagnosis, the same for every model",
            r["rule"],
            "",
            f"Truth of each model ({len(SHOWN)} of {len(FIELDS)} fields; all are in the JSON), and whether the "
            "diagnosis agrees in every field",
            tables.table(heads, rows),
            f"Conclusion: {r['conclusion']['verdict']}",
            f"Rule: {r['conclusion']['rule']}",
            "",
        ]
    )


def _text(value: Any) -> str:
    """`-`, `3`, `+4 -53`, `4.2 4.3`, `mlp 1 0.60, mlp 3 0.60`."""
    if isinstance(value, list):
        if value and isinstance(value[0], list) and isinstance(value[0][0], str):
            return ", ".join(f"{name} {'-' if number is None else f'{number:.2f}'}" for name, number in value)
        return " ".join(".".join(map(str, x)) if isinstance(x, list) else str(x) for x in value) or "-"
    return "-" if value is None else str(value)


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
