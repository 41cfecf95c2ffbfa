"""What a planted model has, by what the scripts report of it and fields.RULE; the truth is not known here."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, reduce
from operator import getitem
from typing import Any

from torch import Tensor

from lib.core.data import Windows
from lib.core.definitions import SINKS
from lib.core.evidence import Stored
from lib.core.massive import is_massive
from lib.core.results import OF_MLP
from lib.model import hooks, queries
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.planted.truth import expert_name
from lib.planted.visible import in_order, lifetime, listed_key, named, signed

# by the verdicts of experiment 1, all heads off, and of experiment 2A, all MLPs off
GENERATORS: dict[tuple[str, ...], str] = {
    **dict.fromkeys((("persists", "collapses"), ("grows", "collapses")), "mlp"),
    **dict.fromkeys((("collapses", "persists"), ("collapses", "grows")), "head"),
    ("collapses", "collapses"): "both",
    ("none found", "none found"): "none",
}
WHOLE = 4  # windows of which experiments 2B and 4 measure losses, which no field is of


def verdict_of(name: str) -> property:
    """A field that is the verdict of an experiment."""
    return property(lambda diagnosis: diagnosis.conclusion(name)[0])


def value_of(name: str, *path: str, **options: Any) -> property:
    """A field that is one of the values of an experiment's verdict."""
    return property(lambda diagnosis: reduce(getitem, path, diagnosis.conclusion(name, **options)[1]))


class Diagnosis:
    """The fields of one model, each when it is asked for.

    run: (name in lib.catalogue, **options) -> the experiment's judged results on this model and these windows.
    """

    def __init__(self, lm: LanguageModel, windows: Windows, run: Callable[..., Stored]) -> None:
        self.lm, self.windows, self.run = lm, windows, run
        self._known: dict[tuple[Any, ...], Stored] = {}

    def results(self, name: str, **options: Any) -> Stored:
        """What `run` gives, run once."""
        key = name, *sorted(options.items())
        if key not in self._known:
            self._known[key] = self.run(name, **options)
        return self._known[key]

    def conclusion(self, name: str, **options: Any) -> tuple[str, Stored]:
        """(verdict, values) of an experiment."""
        conclusion = self.results(name, **options)["conclusion"]
        return conclusion["verdict"], conclusion["values"]

    def neurons_of(self, layer: int, **options: Any) -> list[int]:
        """The smallest set of experiment 2C."""
        return in_order(self.conclusion("exp2c", layer_id=layer, **options)[1]["neurons"])

    @cached_property
    def massive(self) -> list[Stored]:
        return self.results("layerwise")["massive"]

    @property
    def born(self) -> list[Stored]:
        return [entry for entry in self.massive if entry["layer"] == self.layer]

    @cached_property
    def generator(self) -> str:
        verdicts = tuple(self.conclusion(name)[0] for name in ("exp1", "exp2a"))
        return GENERATORS.get(verdicts, f"unclear: {verdicts[0]} without heads, {verdicts[1]} without MLPs")

    @property
    def layer(self) -> int | None:
        return self.massive[0]["layer"] if self.massive else None

    @property
    def dims(self) -> list[str]:
        return signed((entry["dim"], entry["value"]) for entry in self.massive)

    @property
    def positions(self) -> list[int]:
        return sorted({entry["position"] for entry in self.massive})

    @property
    def neurons(self) -> list[int]:
        if self.generator not in ("mlp", "both") or self.layer is None:
            return []
        position = self.positions[0] if len(self.positions) == 1 else None
        return self.neurons_of(self.layer, dim=self.born[0]["dim"], position=position)

    @property
    def neuron_set(self) -> list[int]:
        if self.generator not in ("mlp", "both"):
            return []
        verdict, values = self.conclusion("exp4", layer_id=self.layer, n_whole=WHOLE)
        return in_order(values["neurons"]) if verdict.endswith("neurons") else []

    @property
    def trigger(self) -> str:
        return _trigger(self.lm, self.windows, self.born)

    @cached_property
    def sinks(self) -> list[list[int]]:
        return self._looking()

    @property
    def readers(self) -> list[list[int]]:
        with hooks.watch_outputs(self.lm.arch, "block", _massive_zeroed):
            after = self._looking()
        return [head for head in self.sinks if head not in after]

    def _looking(self) -> list[list[int]]:
        """[layer, head] of all that look at the first token in the model as it is now."""
        found = self.run("head_analysis")
        scores = enumerate(found["scores_without_first_query"])
        return [[i, h] for i, row in scores for h, cell in enumerate(row) if cell["mean"] > found["sink_epsilon"]]

    @property
    def _ledger(self) -> tuple[str, Stored]:
        return self.conclusion("exp3")

    @property
    def birth(self) -> str:
        return self._ledger[0]

    @property
    def erasers(self) -> list[str]:
        return [part["name"] for part in self._ledger[1]["erasers"]]

    @property
    def eraser_neurons(self) -> list[int]:
        mlps = [part["layer"] for part in self._ledger[1]["erasers"] if part["kind"] == "mlp"]
        return [n for layer in mlps for n in self.neurons_of(layer)]

    @property
    def _sweep(self) -> Stored:
        return self.results("exp2b", n_whole=WHOLE)

    @property
    def share(self) -> float:
        return self._sweep["windows"]["spiking"]["mean"]

    @property
    def necessary(self) -> list[str]:
        return sorted(f"{kind} {layer}" for kind, layer in self._sweep["conclusion"]["values"]["necessary"])

    @property
    def sufficient(self) -> list[str]:
        return sorted(f"{kind} {layer}" for kind, layer in self._sweep["conclusion"]["values"]["sufficient"])

    @property
    def _generators(self) -> list[tuple[str, Stored]]:
        """[(name, row of experiment 2B)] of the MLPs and attention blocks that write it."""
        kinds = [("mlp" if part["kind"] in OF_MLP else "attention", part) for part in self._ledger[1]["generators"]]
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
        birth = self._ledger[1]["birth"]
        steps = [layer for kind, layer in necessary if kind == "mlp" and layer < birth["layer"]]
        return [n for layer in steps for n in self.neurons_of(layer)]

    @property
    def need(self) -> str:
        return self.conclusion("exp5", factors=(), epsilons=(0.3,))[0]

    @property
    def cause(self) -> str:
        verdict, values = self.conclusion("exp6")
        return " ".join([verdict, *(sorted(values["tokens"]) if "token" in verdict else ())])

    @property
    def _heads(self) -> Stored:
        return self.results("exp7", n_whole=len(self.windows.ids), n_random=0)

    def _moving(self, *wanted: tuple[str, str]) -> list[tuple[int, int]]:
        """[(layer, head)] of the heads that do (what, to which value of experiment 7)."""
        moves = self._heads["conclusion"]["values"]["moves"]["zero"]
        return sorted({(layer, head) for layer, head, does, key in moves if (does, key) in wanted})

    @property
    def single_heads(self) -> list[str]:
        return named(self._moving(("lowers", "birth"), ("lowers", "end")))

    @property
    def erasing_heads(self) -> list[str]:
        return named(self._moving(("raises", "last")))

    @property
    def costly_heads(self) -> list[str]:
        return named(self._heads["conclusion"]["values"]["costs"])

    @property
    def pruning(self) -> str:
        """Of the single heads, or of a head of layer 0; the other set is a head of another layer."""
        rows = sorted(self._heads["heads"], key=lambda row: -row["score"])
        order = [(row["layer"], row["head"]) for row in rows]
        top = self._moving(("lowers", "birth"), ("lowers", "end")) or [next(head for head in order if head[0] == 0)]
        bottom = next(head for head in order if head[0] not in {layer for layer, _head in top})
        sets = {name: tuple(f"{i}.{h}" for i, h in heads) for name, heads in (("top", top), ("bottom", [bottom]))}
        verdict, _values = self.conclusion("head_pruning", n_random=0, **sets)
        null = self.results("head_pruning", n_random=0, **sets)["null"]["top"]
        beyond = verdict not in ("persists", "none found") and null["at_least_as_large"] == 0
        return verdict + (", beyond the null" if beyond else "")

    @property
    def _experts(self) -> dict[str, Stored]:
        """{name: row} of those that experiment 8 names."""
        found = self.results("exp8", n_whole=WHOLE)
        named_ones = found["conclusion"]["values"]["experts"]
        rows = [row for row in found["experts"] if [row["layer"], row["expert"]] in named_ones]
        return {expert_name(row["layer"], row["expert"]): row for row in rows}

    @property
    def made_by(self) -> str:
        return self.conclusion("exp8", n_whole=WHOLE)[0]

    @property
    def experts(self) -> list[str]:
        return sorted(self._experts)

    @property
    def expert_writes(self) -> list[list[Any]]:
        value = self.results("exp8", n_whole=WHOLE)["baseline"]["value"]["mean"]
        writes = {name: row["write"]["mean"] if "write" in row else 0.0 for name, row in self._experts.items()}
        return [[name, write / value] for name, write in sorted(writes.items())]

    @property
    def expert_retained(self) -> list[list[Any]]:
        return [[name, row["off"]["retained"]["mean"]] for name, row in sorted(self._experts.items())]

    @property
    def _sinks(self) -> Stored:
        return self.results("exp9", input=("natural",))

    @property
    def _natural(self) -> Stored:
        measured: Stored = self._sinks["inputs"]["natural"]
        return measured

    where, sink_kind = (value_of("exp9", name, input=("natural",)) for name in ("where", "kind"))

    @property
    def sink_heads(self) -> list[str]:
        heads = self._sinks["conclusion"]["values"]["sinks"]
        return sorted(f"head {head['layer']}.{head['head']} {head['kind']}" for head in heads)

    @property
    def sink_positions(self) -> list[int]:
        return [key for key, rate in enumerate(self._natural["sink_rate"]) if rate["mean"] > SINKS]

    @property
    def listed_keys(self) -> list[str]:
        found: dict[int, list[Stored]] = {}
        for key in self._natural["keys"]:
            found.setdefault(key["position"], []).append(key)
        listed = []
        for position, keys in found.items():
            times, massive = (sum(key[name] for key in keys) for name in ("times", "massive"))
            if times == len(self.windows.ids) and massive in (0, times):
                token = keys[0]["token"] if position and len(keys) == 1 else None
                listed.append(listed_key(position, token, massive > 0))
            else:
                listed.append(f"unclear: {times} of {len(self.windows.ids)} windows, {massive} massive, at {position}")
        return sorted(listed)

    @property
    def secondary(self) -> list[str]:
        return [
            lifetime(found["token"], found["first_layer"], found["layers"])
            + ("" if found["times"] == len(self.windows.ids) else f", {found['times']} times")
            for found in self._sinks["secondary"]
        ]

    @property
    def foreseen(self) -> str | None:
        every = self.results("exp12")["forecast"]
        generators = (one for one in every if one["role"] == "generator")
        return next((f"mlp {one['layer']} {one['sign']}{one['dim']}" for one in generators), None)

    edge, carrier, forecast, quantised = map(verdict_of, ("exp10", "exp11", "exp12", "exp13"))
    massive_born, sinks_born = (value_of("exp14", what, "verdict") for what in ("massive", "sinks"))
    last_writer = value_of("exp14", "writer")

    @property
    def by_query_bias(self) -> list[str]:
        heads = [(sink["layer"], sink["head"]) for sink in self._sinks["conclusion"]["values"]["sinks"]]
        with without_query_bias(self.lm):
            after = self.run("exp9", input=("natural",))["conclusion"]["values"]["sinks"]
        return named(head for head in heads if head not in [(sink["layer"], sink["head"]) for sink in after])


def without_query_bias(lm: LanguageModel) -> AbstractContextManager[None]:
    """The bias of all queries at zero, where there is one."""
    found = {layer: of_layer.query for layer, of_layer in queries.find(lm).items()}
    projections = {layer: query for layer, query in found.items() if isinstance(query, queries.Projection)}
    nothing = {layer: 0 * bias for layer, bias in queries.biases_of(lm.arch, projections).items()}
    return queries.biases_replaced(lm.arch, projections, nothing)


def _trigger(lm: LanguageModel, windows: Windows, born: list[Stored]) -> str:
    """What the places of the largest dim have in common in the layer where it is born."""
    if not born:
        return "none"
    places = [entry for entry in born if entry["dim"] == born[0]["dim"]]
    texts = [text_of(lm.tokenizer, token) for token in windows.ids.flatten().tolist()]

    def token(entries: list[Stored]) -> str:
        tokens = {entry["token"] for entry in entries}
        if len(tokens) == 1 and texts.count(entries[0]["token"]) == sum(entry["sequences"] for entry in entries):
            return f"token {tokens.pop()}"
        return f"unclear: {len(entries)} positions, {len(tokens)} tokens"

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


def _massive_zeroed(_layer: int, hidden: Tensor) -> Tensor:
    median = hidden.abs().flatten(1).median(1).values[:, None, None]
    return hidden.masked_fill(is_massive(hidden, median), 0)
