"""The TXT of the smallest set of neurons: who is in it, what runs without and with it alone show, what it reads."""

from msgspec import UNSET

from experiments.neuron_sets.judge import SUPER_RULE
from experiments.neuron_sets.results import Carried, NeuronsRun, Null, Reads, Results, Stored
from lib.core.definitions import CARRIED, HARDLY_ANY
from lib.report import tables

LISTED = 20


def summarise(result: Stored) -> str:
    results, conclusion = result.results, result.conclusion
    written, check, layer, end = results.written, results.contribution_check, results.layer, results.end_layer
    null, windows, mixture = results.null, results.windows, results.mixture
    output, activation = "down projection", "activation"
    if mixture is not UNSET:
        output, activation = "mixture", "routing weight x activation"
    minimal_set = [
        [
            row.name,
            tables.number(row.activation, True),
            f"{row.weight:+.4f}",
            tables.number(row.contribution, True),
            tables.fraction(row.share),
        ]
        for row in results.minimal_set[:LISTED]
    ]
    more = len(results.minimal_set) - len(minimal_set)
    random = [*(draw.keep_only for draw in null.draws), *(draw.remove_only for draw in null.draws)]
    own = [results.runs.baseline, results.runs.keep_only, results.runs.remove_only]
    return "\n".join(
        [
            tables.header(result, f"Experiment 4: the neurons of the MLP of layer {layer}"),
            tables.place_text(results.place),
            f"Massive there at layer {layer}: {tables.interval(windows.massive)} of {windows.all} windows; what "
            "follows is of these, or of all if there is none",
            f"Block output there {tables.interval(written.block_output, True)}; of it the MLP adds "
            f"{tables.interval(written.mlp, True)} (share {tables.interval(written.share)})",
            "",
            *([] if mixture is UNSET else [tables.mixture_text(mixture)]),
            f"The smallest set with {CARRIED:.0%} of the MLP's output there, means over windows",
            tables.table(["neuron", activation, "weight", "contribution", "share"], minimal_set)
            + (f"and {more} more, in the JSON\n" if more else ""),
            *_carried(results.carried),
            f"All contributions {tables.number(check.sum, True)} + bias {tables.number(check.bias, True)} = "
            f"{tables.number(check.sum + check.bias, True)}; output of the {output} "
            f"{tables.number(check.output, True)}; relative error {tables.number(check.relative_error)}",
            "",
            f"Sets of {tables.counted(len(results.minimal_set), 'neuron')} alone or off, in every position; share: of "
            "the baseline's value, sums over the windows where it is massive there",
            f"{_null(null, _others(results), activation)}Perplexity and sink rate: of {windows.whole} whole windows",
            tables.table(
                ["run", f"layer {layer}", "share", f"layer {end}", "share", "perplexity", "sink rate"],
                [_run(run) for run in [*own, *(run for run in random if run.perplexity)]],
            ),
            *_super_weights(result),
            _reading(results.reads, layer, "" if mixture is UNSET else ", those of an expert where it is chosen"),
            tables.conclusion_text(conclusion, conclusion.values.note or conclusion.values.why),
        ]
    )


def _carried(carried: Carried | None) -> list[str]:
    if carried is None:
        return []
    whole, less = tables.interval(carried.set), tables.interval(carried.without_its_last)
    return [f"Share of the output: the set {whole}, without its last neuron {less}"]


def _others(results: Results) -> float:
    """The largest share of the output that as many neurons outside the set give."""
    n, cumulative = len(results.minimal_set), [share or 0.0 for share in results.cumulative]
    return cumulative[min(2 * n, len(cumulative)) - 1] - cumulative[n - 1] if n else 0.0


def _null(null: Null, others: float, activation: str = "activation") -> str:
    """How random sets are drawn, what the best of them do, and what is known of them without a run."""
    draws = null.draws
    if not draws:
        return ""
    drawn = f"all {null.possible} that are possible" if null.enumerated else tables.counted(len(draws), "different one")
    active = [draw.activity for draw in draws]
    alone, without = ([share.mean for share in shares] for shares in null.shares)
    kept = ""
    if alone and without:
        kept = f"; they keep {tables.number(max(alone))} at most, and {tables.number(min(without))} is left at least"
    return (
        f"{null.rule}\n{drawn}; mean |{activation}| {tables.number(min(active))} to {tables.number(max(active))}, of "
        f"the set {tables.number(null.activity_of_set)}{kept}\n{_foreseen(null, others)}"
    )


def _foreseen(null: Null, others: float) -> str:
    """How far random sets could do as the set does."""
    most, of_set = max(draw.activity for draw in null.draws), null.activity_of_set or 0.0
    active = f"none of these is as active: at most {tables.fraction(most / of_set)} of it; " if most < of_set else ""
    certain = ": this null is near certain beforehand" if others < HARDLY_ANY else ""
    return f"{active}no other neurons, as many, give more than {tables.fraction(others)} of the output{certain}\n"


def _run(run: NeuronsRun) -> list[str]:
    return [
        run.label,
        tables.interval(run.value, True),
        tables.interval(run.share),
        tables.interval(run.end_value, True),
        tables.interval(run.end_share),
        tables.number(run.perplexity.value) if run.perplexity else "-",
        tables.mean(run.sink_rate) if run.sink_rate else "-",
    ]


def _super_weights(result: Stored) -> list[str]:
    """Single scalars of the down projection, scaled, beside random ones."""
    results, told = result.results, result.conclusion.values.super_weights
    if results.super_weights is UNSET:
        return [] if results.mixture is UNSET else ["Single weights are not scaled in a mixture of experts\n"]
    if not results.super_weights:
        return []
    rows = [
        [
            f"[{row.dim}, {row.neuron}]" + ("" if row.dim == results.place.dim else ", random"),
            f"{row.weight:+.4f}",
            f"{row.factor:g}",
            tables.interval(row.value, True),
            tables.interval(row.share),
            tables.interval(row.loss_change, True),
            tables.interval(row.sink_rate_change, True),
        ]
        for scalar in results.super_weights
        for row in (*scalar.doses, *scalar.random)
    ]
    names = {scalar.neuron: f"[{results.place.dim}, {scalar.neuron}]" for scalar in results.super_weights}
    answers = [f"{names[neuron]} {answer}" for neuron, answer in told.items()] if told else []
    return [
        "Single scalars of the down projection, [dim, neuron], times a factor, in every position of the whole windows;",
        "random: others, of those nearest in size, zeroed",
        tables.table(["scalar", "weight", "times", f"layer {results.layer}", "share", "loss", "sink rate"], rows)
        + f"Super weights: {', '.join(answers) or '-'}\nRule: {SUPER_RULE}\n",
    ]


def _reading(reads: Reads, layer: int, where: str) -> str:
    """What the neurons read: one table a neuron and projection."""
    through = f"through its {reads.norm}" if reads.norm else "without a norm"
    parts = [
        f"What they read: the residual stream before the MLP of layer {layer}, {through}, at the same place{where}\n"
    ]
    for neuron in reads.neurons:
        for role, projection in neuron.projections.items():
            total, bias = projection.sum, projection.bias
            parts.append(
                f"Neuron {neuron.name}, {role} projection: all dims {tables.number(total, True)} + bias "
                f"{tables.number(bias, True)} = {tables.number(total + bias, True)}; its output "
                f"{tables.number(projection.pre_activation, True)}; relative error "
                f"{tables.number(projection.relative_error)}; "
                f"half of it in {projection.dims_to_half or '-'} of {reads.dims} dims"
            )
            rows = [
                [
                    row.dim,
                    *(tables.number(x, True) for x in (row.residual, row.normed, row.weight, row.contribution)),
                    tables.fraction(row.share),
                ]
                for row in projection.inputs
            ]
            parts.append(
                tables.table(["dim", "residual value", "normed value", "weight", "contribution", "share"], rows)
            )
    return "\n".join(parts)
