"""The TXT of where attention goes."""

from experiments.sinks.results import Head, Input, Results, Stored, Values
from lib.core.definitions import ALIKE
from lib.core.evidence import Average
from lib.report import tables

MOST = 10  # rows of a list
EARLY = 4  # keys whose rates are printed


def summarise(result: Stored) -> str:
    results, conclusion = result.results, result.conclusion
    return "\n".join(
        [
            tables.header(result, "Experiment 9: where attention goes"),
            "Sink rate at key k: share of all heads that give key k more than epsilon of their attention, a mean over",
            "the queries that see it (Gu et al. 2025, arXiv 2410.10781). natural: the windows; random: tokens of the",
            "whole vocabulary, uniformly drawn, in their place; repeated: one such token in each window. listed: a key",
            f"that takes as much of a head on average over later queries alone, {results.least} at least.",
            *_left_out(results),
            "",
            _rates(results.inputs, results.epsilon),
            *_lengths(results),
            *_epsilons(results),
            *(_keys(name, measured) for name, measured in results.inputs.items()),
            _heads(results, conclusion.values),
            *_learned(results),
            _secondary(results),
            tables.conclusion_text(conclusion),
        ]
    )


def _left_out(results: Results) -> list[str]:
    without = [layer for layer, heads in enumerate(results.heads) if not heads]
    return [f"Layers without attention, left out: {tables.spans(without)}"] if without else []


def _rates(inputs: dict[str, Input], epsilon: float) -> str:
    n = min(EARLY, *(len(measured.sink_rate) for measured in inputs.values()))
    rows = [
        [name, *map(tables.interval, measured.sink_rate[:n]), tables.interval(measured.elsewhere)]
        for name, measured in inputs.items()
    ]
    heads = ["input", *(f"key {key}" for key in range(n)), "heads that list a later key"]
    return f"Sink rates, epsilon {epsilon:g}\n" + tables.table(heads, rows)


def _lengths(results: Results) -> list[str]:
    if not results.lengths:
        return []
    rows = [
        [length, name, tables.interval(measured.sink_rate[0]), tables.interval(measured.elsewhere)]
        for length, inputs in ({results.seqlen: results.inputs} | results.lengths).items()
        for name, measured in inputs.items()
    ]
    return [
        "By length of the windows\n" + tables.table(["tokens", "input", "key 0", "heads that list a later key"], rows)
    ]


def _epsilons(results: Results) -> list[str]:
    epsilons = sorted(next(iter(results.inputs.values())).sink_rates)
    if len(epsilons) < 2:
        return []
    rows = [
        [name, *(tables.interval(measured.sink_rates[epsilon]) for epsilon in epsilons)]
        for name, measured in results.inputs.items()
    ]
    heads = ["input", *(f"epsilon {epsilon:g}" for epsilon in epsilons)]
    return ["Sink rate at key 0, by epsilon\n" + tables.table(heads, rows)]


def _keys(name: str, measured: Input) -> str:
    n_keys = tables.counted(measured.n_keys, "different one")
    heading = f"Listed keys, {name}: {n_keys} (the first key, and tokens at later ones)\n"
    if not measured.keys:
        return heading
    rows = [
        [key.position, repr(key.token), key.times, key.massive, f"{key.heads:.1f}", key.layers]
        for key in measured.keys[:MOST]
    ]
    heads = ["position, most often", "token", "times", "with massive activation", "heads", "of layers"]
    return heading + tables.table(heads, rows)


def _heads(results: Results, values: Values) -> str:
    counts = ", ".join(f"{n} {kind}" for kind, n in values.kinds.items())
    n_heads = sum(map(len, results.heads))
    found = (
        f"Heads that have their sink at key 0 ({results.first_input}): {len(values.sinks)} of {n_heads}, "
        f"{values.unclear} cannot be told; {counts}\n"
    )
    if not values.sinks:
        return found
    top = sorted(values.sinks, key=lambda sink: -sink.probability)[:MOST]
    rows = [[f"{sink.layer}.{sink.head}", *_head(results.heads[sink.layer][sink.head]), sink.kind] for sink in top]
    heads = ["head", "probability", "value ratio", "output share", "cosine", "to others", "|key|", "others'", "kind"]
    return (
        f"{found}"
        "probability: on key 0. value ratio: the norm of its value to the mean of the other keys'. output share: what\n"
        "it gives of the head's output, along that. cosine: of queries with key 0, and with the other keys they see.\n"
        f"The {len(rows)} with the highest probability\n{tables.table(heads, rows)}"
    )


def _head(head: Head) -> list[str]:
    cells: list[Average | None] = [head.probability, head.value_ratio, head.output_share, head.cosine]
    written = map(tables.interval, cells)
    others = "-" if head.cosine_others is None else tables.number(head.cosine_others.mean)
    return [*written, others, tables.number(head.key), tables.number(head.key_others)]


def _learned(results: Results) -> list[str]:
    if not results.learned_sink_rate:
        return []
    return [
        f"Learned sinks: {tables.interval(results.learned_sink_rate)} of the heads that have one give it more than "
        f"{results.epsilon:g}: a head that looks there needs no key.",
        "",
    ]


def _secondary(results: Results) -> str:
    text = (
        f"Secondary sinks: later tokens whose hidden state has |cosine| > {ALIKE} with the first token's, in layers\n"
        "from the largest rise of the first token's norm to before its largest fall after that, and that are listed\n"
        "for a head of a layer that reads this state; a token that no head looks at may be as like the first\n"
    )
    for name, measured in results.inputs.items():
        where = [
            f"{b.first} to {b.last} ({tables.counted(b.windows, 'window')})" for b in results.between if b.input == name
        ]
        text += (
            f"{name}: {tables.interval(measured.secondary)} of {results.seqlen - 1} later tokens in a window, "
            f"{tables.counted(measured.n_secondary, 'different one')}, in layers {', '.join(where[:EARLY])}"
            f"{_beside(measured)}\n"
        )
    rows = [
        [name, one.position, repr(one.token), one.times, one.first_layer, one.layers]
        for name in results.inputs
        for one in [one for one in results.secondary if one.input == name][:EARLY]
    ]
    heads = ["input", "position, most often", "token", "times", "first layer", "layers in a row"]
    return text + (tables.table(heads, rows) if rows else "")


def _beside(measured: Input) -> str:
    """What is like the first token, and what is a sink, without the other."""
    if not measured.alike or not measured.later:
        return "; told by the cosine alone (an older result)"
    return f"; like the first {tables.interval(measured.alike)}, listed {tables.interval(measured.later)}"
