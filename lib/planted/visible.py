"""What of a planted truth the scripts should see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lib.core.definitions import ABSOLUTE

if TYPE_CHECKING:
    from lib.planted.truth import Course, Neuron, Sinks, Truth

NONE_FOUND, FIRST_TOKEN = "none found", "the first token's embedding"
FORECASTS = {"mlp": "hit", "head": "miss", "unwoken": NONE_FOUND, "unforeseen": "miss"}
EDGES = {
    "ten": "needed as an edge",
    "informed": "needed as an edge and as a value",
    "decoy": "not needed",
    "no_op": "not needed",
    "content": NONE_FOUND,
    "no_sink": NONE_FOUND,
}
QUANTISED = {"fine": "the spike costs", "coarse": "the spike costs nothing", "spikeless": NONE_FOUND}
TRIGGERS = {"gpt2": "the first position's embedding", "llama": FIRST_TOKEN, "qwen2": FIRST_TOKEN}
CARRIERS = {  # with more than one head in each layer; {trigger}: of TRIGGERS
    "all_look": "carried by {trigger}",
    "bias_alone": "carried by the query bias and {trigger}",
    "content": NONE_FOUND,
    "no_sink": NONE_FOUND,
}


def visible_of(truth: Truth) -> dict[str, Any]:
    """{field: value} of fields.FIELDS that a right diagnosis gives."""
    if truth.attention is not None:
        return _of_sinks(truth.attention) | _verdicts(truth)
    if truth.course is not None:
        return _of_course(truth, truth.course)
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
    mixture = {} if truth.decoy_expert is None else _of_mixture(truth)
    return (
        mixture
        | _verdicts(truth)
        | {
            "generator": truth.generator,
            "layer": truth.layer,
            "neurons": in_order(truth.most),
            "dims": signed(
                [*truth.values.items(), *later.get("values", {}).items(), *informed.get("values", {}).items()]
            ),
            "trigger": truth.trigger,
            "positions": list(truth.positions),
            "share": truth.share,
            "sinks": [list(head) for head in truth.sinks],
            "readers": [list(head) for head in truth.readers],
            "birth": "none found" if nothing else _birth(truth),
            "erasers": erasers,
            "eraser_neurons": list(eraser.get("neurons", ())),
            "necessary": [] if nothing else sorted(needed),
            "sufficient": [] if nothing else sorted(enough),
            "retained": [list(pair) for pair in sorted(truth.retained.items())],
            "repair": [list(pair) for pair in sorted(truth.repair.items())],
            "first_step_neurons": list(first.get("neurons", ())),
            "neuron_set": in_order(truth.neurons),
            "need": _need(truth),
            "cause": _cause(truth),
            "single_heads": heads,
            "erasing_heads": [name for name in erasers if name.startswith("head")],
            "costly_heads": [f"head {layer}.{head}" for layer, head in truth.costly],
            "pruning": "none found" if nothing else "collapses, beyond the null" if heads else "persists",
        }
    )


def _verdicts(truth: Truth) -> dict[str, Any]:
    """What experiments 10 to 13 say of the kinds in which what is planted decides it."""
    if truth.architecture not in TRIGGERS:  # mixtures
        return {}
    foreseen = truth.foreseen
    if truth.kind == "mlp":
        largest = max(truth.values.items(), key=lambda pair: abs(pair[1]))
        foreseen = f"mlp {truth.layer} {signed([largest])[0]}"
    by_kind = {"edge": EDGES, "carrier": CARRIERS, "forecast": FORECASTS, "quantised": QUANTISED}
    told = {
        name: words[truth.kind].format(trigger=TRIGGERS[truth.architecture])
        for name, words in by_kind.items()
        if truth.kind in words
    }
    return told | ({"foreseen": foreseen} if foreseen else {})


def _of_mixture(truth: Truth) -> dict[str, Any]:
    made_by = {
        "none": "none found",
        "two_experts": "several experts together",  # as the removal of neither leaves the whole
        "redundant_experts": "several experts, each is enough",
        "shared_expert": "the shared expert",
    }
    return {
        "experts": sorted(truth.expert_writes),
        "made_by": made_by.get(truth.kind, "one expert" if truth.experts else "not the experts"),
        "expert_writes": [list(pair) for pair in sorted(truth.expert_writes.items())],
        "expert_retained": [list(pair) for pair in sorted(truth.expert_retained.items())],
    }


def _of_sinks(sinks: Sinks) -> dict[str, Any]:
    return {
        "where": sinks.where,
        "sink_kind": sinks.kind,
        "sink_heads": sorted(f"head {layer}.{head} {kind}" for layer, head, kind in sinks.heads),
        "sink_positions": list(sinks.positions),
        "listed_keys": sorted(listed_key(*key) for key in sinks.keys),
        "secondary": [lifetime(*life) for life in sinks.secondary],
        "by_query_bias": named(sinks.by_bias),
    }


def _of_course(truth: Truth, course: Course) -> dict[str, Any]:
    largest = max(map(abs, truth.values.values()))
    told = {
        "massive_born": _birth_of({step: factor * largest > ABSOLUTE for step, factor in course.factors.items()}),
        "sinks_born": _birth_of({step: factor > 0 for step, factor in course.factors.items()}),
    }
    last = [*course.factors.values()][-1]
    return told | ({"last_writer": _birth(truth)} if last else {})


def _birth_of(there: dict[int, bool]) -> str:
    """When what is there at these steps came to stay, in experiment 14's words."""
    steps = [*there]
    absent = [step for step in steps if not there[step]]
    if not absent:
        return "from the first step on"
    if not any(there.values()):
        return NONE_FOUND
    if absent[-1] == steps[-1]:
        return "gone again"
    return f"between steps {absent[-1]} and {steps[steps.index(absent[-1]) + 1]}"


def listed_key(position: int, token: str | None, massive: bool) -> str:
    """token: None for any."""
    return f"{token or 'any token'} at {position}{', massive' if massive else ''}"


def lifetime(token: str, first: int, layers: int) -> str:
    return f"{token}, {layers} layers from {first}"


def _birth(truth: Truth) -> str:
    if truth.generator == "head":
        return f"head {truth.layer}.{truth.head}"
    return max(truth.expert_writes, key=truth.expert_writes.__getitem__, default=f"mlp {truth.layer}")


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


def in_order(neurons: Iterable[Neuron | list[Any]]) -> list[Any]:
    """Numbers, or of a mixture [expert, number]."""
    each = [neuron if isinstance(neuron, int) else list(neuron) for neuron in neurons]
    return sorted(each, key=lambda neuron: neuron if isinstance(neuron, int) else (str(neuron[0]), neuron[1]))


def named(heads: Iterable[Sequence[int]]) -> list[str]:
    """["head 2.0", "head 4.3"] of (layer, head) pairs."""
    return [f"head {layer}.{head}" for layer, head in heads]


def signed(values: Iterable[tuple[int, float]]) -> list[str]:
    """["+4", "-53"] of (dim, value) pairs, each once."""
    return [f"{'+' if positive else '-'}{dim}" for dim, positive in sorted({(dim, value > 0) for dim, value in values})]
