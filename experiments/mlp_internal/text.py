"""The TXT of the inside of an MLP: its checkpoints, the followed place, the neurons behind it."""

from msgspec import UNSET

from experiments.mlp_internal.results import Checkpoint, Stored
from lib.core.definitions import MADE
from lib.core.results import Neuron
from lib.report import tables

NOT_REPLACED = "Not with another activation function: these experts have none that is a module"


def summarise(result: Stored) -> str:
    results, conclusion = result.results, result.conclusion
    followed, check = results.followed, results.contribution_check
    checkpoints = [
        [point.label, point.width, tables.number(point.max), tables.number(point.median), _ratio(point), _place(point)]
        for point in results.checkpoints
    ]
    values = [[point.label, tables.interval(point.value, True)] for point in followed.values]
    mixture = results.mixture
    output = "down projection" if mixture is UNSET else "mixture"
    activation = "activation" if mixture is UNSET else "routing weight x activation"
    columns = [activation if name == "activation" else name for name in followed.neuron_checkpoints]
    neurons = [
        [
            row.name,
            *(tables.number(getattr(row, name), True) for name in followed.neuron_checkpoints),
            *_contribution(row),
        ]
        for row in results.neurons
    ]
    by_weight = [
        [
            row.name,
            f"{row.weight:+.4f}",
            tables.number(row.activation, True),
            *_contribution(row)[1:],
            row.rank_by_contribution,
        ]
        for row in results.by_weight
    ]
    replaced = [
        [
            function.label,
            tables.interval(function.mlp_output, True),
            tables.interval(function.block_output, True),
            tables.number(function.perplexity.value),
        ]
        for function in results.replaced.values()
    ]
    largest = tables.interval(results.largest_activation)
    positions = ", ".join(f"{n} at {position}" for position, n in followed.positions.items())
    return "\n".join(
        [
            tables.header(result, f"Experiment 2C: inside the MLP of layer {results.layer}"),
            "Maxima of |value| over all tokens of all windows (each may sit at another token), and the mean of the",
            "windows' medians",
            tables.table(["checkpoint", "width", "max", "median", "ratio", "where the maximum is"], checkpoints)
            + ("" if mixture is UNSET else "What is inside of experts is measured where followed alone\n"),
            f"Followed: dim {followed.dim}, in {followed.sequences} of {followed.of} windows where it is the "
            f"MLP's largest output (position: {positions})",
            tables.table(["checkpoint", f"dim {followed.dim}, signed"], values),
            *([] if mixture is UNSET else [tables.mixture_text(mixture)]),
            "The neurons behind it at that position, means over these windows",
            tables.table(["neuron", *columns, "weight", "contribution", "share"], neurons),
            f"All contributions {tables.number(check.sum, True)} + bias {tables.number(check.bias, True)} = "
            f"{tables.number(check.sum + check.bias, True)}; output of the {output} "
            f"{tables.number(check.output, True)}; relative error {tables.number(check.relative_error)}",
            f"Largest {activation} of a neuron there, in parts of the output: {largest}",
            "",
            "For contrast, the largest weights to this dim, whatever the neurons do (this is no contribution)",
            tables.table(["neuron", "weight", activation, "contribution", "share", "rank"], by_weight),
            f"{followed.activation_function} replaced in this layer" if len(replaced) > 1 else NOT_REPLACED,
            tables.table(["activation function", "MLP output there", "block output there", "perplexity"], replaced),
            f"Conclusion: {conclusion.verdict} give at least {MADE:.0%} of the output",
            f"Rule: {conclusion.rule}",
            "",
        ]
    )


def _ratio(checkpoint: Checkpoint) -> str:
    """The median may be zero: ReLU leaves most neurons at exactly that."""
    return "inf" if checkpoint.ratio is None else f"{checkpoint.ratio:,.0f}"


def _place(checkpoint: Checkpoint) -> str:
    place = checkpoint.at
    return f"window {place.sequence}, position {place.position} {place.token!r}, index {place.index}"


def _contribution(row: Neuron) -> list[str]:
    return [f"{row.weight:+.4f}", tables.number(row.contribution, True), tables.fraction(row.share)]
