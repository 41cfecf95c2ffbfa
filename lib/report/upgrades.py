"""Results of an older schema, as those of today: a stored file can still be read, drawn and judged."""

from typing import Any

from lib.core.definitions import PLATEAU

READABLE = (2, 3)


def readable(experiment: Any, version: Any) -> bool:
    """Whether a JSON of this schema version can be; of the benchmark version 1, too, which has what 2 has."""
    return version in READABLE or (experiment == "benchmark" and version == 1)


def upgraded(experiment: str, version: int, results: dict[str, Any]) -> dict[str, Any]:
    """`results` of a readable JSON of this schema version, in today's."""
    if version < 3 and experiment in TO_3:
        results = TO_3[experiment](results)
    return SINCE_3[experiment](results) if experiment in SINCE_3 else results


# Version 2 encoded what belongs together in one text, and a ratio to nothing as a cell without a mean.


def _layer_sweep(results: dict[str, Any]) -> dict[str, Any]:
    return results | {"kinds": {kind: [*map(_swept_layer, layers)] for kind, layers in results["kinds"].items()}}


def _swept_layer(layer: dict[str, Any]) -> dict[str, Any]:
    repair = layer.get("repair")
    runs = {key: run | {"retained": _told(run["retained"])} for key, run in layer.items() if _is_run(run)}
    return layer | runs | {"repair": repair if repair and _told(repair["ratio"]) else None}


def _is_run(value: Any) -> bool:
    return isinstance(value, dict) and "retained" in value


def _told(cell: dict[str, Any]) -> dict[str, Any] | None:
    return None if cell["mean"] is None else cell


def _mlp_internal(results: dict[str, Any]) -> dict[str, Any]:
    replaced = {
        name: function | {"mlp_output_change": _told(function["mlp_output_change"])}
        for name, function in results["replaced"].items()
    }
    return results | {"replaced": replaced, "largest_activation": _told(results["largest_activation"])}


def _ledger(results: dict[str, Any]) -> dict[str, Any]:
    return results | {"writes": [_write(write) for write in results["writes"]]}


def _write(write: dict[str, Any]) -> dict[str, Any]:
    """Kind and head of a component, as in "head 8"."""
    head = write["component"].removeprefix("head ")
    kind = {"kind": "head", "head": int(head)} if head.isdigit() else {"kind": head, "head": None}
    return {key: value for key, value in write.items() if key != "component"} | kind


def _interventions(results: dict[str, Any]) -> dict[str, Any]:
    return results | {"conditions": {name: _with_factor(value) for name, value in results["conditions"].items()}}


def _with_factor(condition: dict[str, Any]) -> dict[str, Any]:
    """What the value is multiplied by, as in "times 0.5"."""
    words, _, factor = condition.get("set_to", "").partition(" ")
    return condition | {"factor": float(factor)} if words == "times" else condition


def _head_sweep(results: dict[str, Any]) -> dict[str, Any]:
    """Orders of removal by name, as in "random 0"; notes inside labels."""
    orders = dict(results["cumulative"])
    named = {name: orders.pop(name) for name in ("score", "write")}
    effects = {key: _described(effect) for key, effect in results["effects"].items()}
    return results | {"cumulative": named | {"random": list(orders.values())}, "effects": effects}


def _described(effect: dict[str, Any]) -> dict[str, Any]:
    """As in "loss (nats a token)"."""
    name, _, note = effect["label"].removesuffix(")").partition(" (")
    return {key: value for key, value in effect.items() if key != "label"} | {"name": name, "note": note or None}


TO_3 = {
    "exp2b": _layer_sweep,
    "exp2c": _mlp_internal,
    "exp3": _ledger,
    "exp5": _interventions,
    "exp7": _head_sweep,
    "intervention": _interventions,
}


# Version 3 has got since then: the layer of a neuron that writes, where all were of one; the interval of a target;
# peak and plateau of the ledger's profile.


def _writers(results: dict[str, Any]) -> dict[str, Any]:
    mlp = results.get("mlp")
    if not mlp:
        return results
    neurons = [{"layer": results["layer"], **neuron} for neuron in mlp["neurons"]]
    return results | {"mlp": mlp | {"neurons": neurons}}


def _targets(results: dict[str, Any]) -> dict[str, Any]:
    return results | {"targets": [{"interval": None, **target} for target in results["targets"]]}


def _profile(results: dict[str, Any]) -> dict[str, Any]:
    """As it was judged then: whether it is massive in these layers was not asked."""
    size = results["profile"]["size"]
    high = [layer for layer, mean in enumerate(size) if mean >= PLATEAU * max(size)]
    of_old = {"peak": size.index(max(size)), "plateau": [high[0], high[-1]]}
    return results | {"profile": of_old | results["profile"]}


SINCE_3 = {"exp3": _profile, "exp5": _writers, "benchmark": _targets}
