"""The TXT of the inside of an MLP: its checkpoints, the followed place, the neurons behind it."""

import re
from typing import Any

from lib.report import tables


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    followed, check, activation = r["followed"], r["contribution_check"], r["followed"]["activation_function"]
    checkpoints = [
        [c["label"], c["width"], tables.number(c["max"]), tables.number(c["median"]), _ratio(c), _place(c)]
        for c in r["checkpoints"]
    ]
    values = [[c["label"], tables.interval(c["value"], True)] for c in followed["values"]]
    neurons = [
        [n["neuron"], *(tables.number(n[key], True) for key in followed["neuron_checkpoints"]), *_contribution(n)]
        for n in r["neurons"]
    ]
    by_weight = [
        [
            n["neuron"],
            f"{n['weight']:+.4f}",
            tables.number(n["activation"], True),
            *_contribution(n)[1:],
            n["rank_by_contribution"],
        ]
        for n in r["by_weight"]
    ]
    replaced = [
        [
            f["label"],
            tables.interval(f["mlp_output"], True),
            tables.interval(f["block_output"], True),
            tables.number(f["perplexity"]["value"]),
        ]
        for f in r["replaced"].values()
    ]
    positions = ", ".join(f"{n} at {position}" for position, n in followed["positions"].items())
    return "\n".join(
        [
            tables.header(payload, f"Experiment 2C: inside the MLP of layer {r['layer']}"),
            "Maxima of |value| over all tokens of all windows (each may sit at another token), and the mean of the",
            "windows' medians",
            tables.table(["checkpoint", "width", "max", "median", "ratio", "where the maximum is"], checkpoints),
            f"Followed: dim {followed['dim']}, in {followed['sequences']} of {followed['of']} windows where it is the "
            f"MLP's largest output (position: {positions})",
            tables.table(["checkpoint", f"dim {followed['dim']}, signed"], values),
            "The neurons behind it at that position, means over these windows",
            tables.table(["neuron", *followed["neuron_checkpoints"], "weight", "contribution", "share"], neurons),
            f"All contributions {tables.number(check['sum'], True)} + bias {tables.number(check['bias'], True)} = "
            f"{tables.number(check['sum'] + check['bias'], True)}; output of the down projection "
            f"{tables.number(check['output'], True)}; relative error {tables.number(check['relative_error'])}",
            f"Largest activation of a neuron there, in parts of the output: {tables.interval(r['largest_activation'])}",
            "",
            "For contrast, the largest weights to this dim, whatever the neurons do (this is no contribution)",
            tables.table(["neuron", "weight", "activation", "contribution", "share", "rank"], by_weight),
            f"{activation} replaced in this layer",
            tables.table(["activation function", "MLP output there", "block output there", "perplexity"], replaced),
            f"Conclusion: {r['conclusion']['verdict']} give at least {_share(r['conclusion']['rule'])} of the output",
            f"Rule: {r['conclusion']['rule']}",
            "",
        ]
    )


def _share(rule: str) -> str:
    """The share that the rule asks for."""
    found = re.search(r"\d+%", rule)
    return found[0] if found else "a share"


def _ratio(checkpoint: dict[str, Any]) -> str:
    """The median may be zero: ReLU leaves most neurons at exactly that."""
    return "inf" if checkpoint["ratio"] is None else f"{checkpoint['ratio']:,.0f}"


def _place(checkpoint: dict[str, Any]) -> str:
    at = checkpoint["at"]
    return f"window {at['sequence']}, position {at['position']} {at['token']!r}, index {at['index']}"


def _contribution(n: dict[str, Any]) -> list[str]:
    return [f"{n['weight']:+.4f}", tables.number(n["contribution"], True), tables.fraction(n["share"])]
