"""The TXT of the head sweep: single heads, heads removed together, every layer."""

from experiments.head_sweep.results import (
    KINDS,
    Change,
    Correlations,
    Early,
    Effect,
    Level,
    Results,
    Simultaneous,
    SingleHead,
    Stored,
    Values,
    kinds_of,
)
from lib.core.evidence import Average, Cell
from lib.core.results import Head
from lib.report import tables


def summarise(result: Stored) -> str:
    results, conclusion = result.results, result.conclusion
    place = results.place
    return "\n".join(
        [
            tables.header(result, "Experiment 7: every attention head off"),
            tables.place_text(place),
            f"Massive: {'yes' if place.massive else 'none found'} ({place.definition})",
            f"Through attention scores: {results.through_scores or 'possible'}",
            "score: mean probability on the first token. write: what the head adds to that dim there, signed.",
            "zero, mean: paired change when the head's output is zero, or its mean over all tokens, with its 95 %",
            "interval; relative: to the value, along its sign, over the windows that have the spike, with the interval",
            "that holds for all heads together. Sink rate: of all heads, the removed ones too.",
            "",
            *(_largest(results, effect) for effect in results.shown),
            tables.conclusion_text(conclusion),
            *_named(conclusion.values),
            _correlations(conclusion.values.correlations),
        ]
    )


def _largest(results: Results, effect: Effect, at_most: int = 8) -> str:
    """The largest changes of single heads."""
    described, baseline = results.effects[effect], results.baseline.average(effect)
    able = [(head, changes) for head in results.heads if (changes := _changes(head, effect))]
    able.sort(key=lambda pair: -abs(pair[1][0].mean))
    rows = []
    for head, changes in able[:at_most]:
        row = [f"{head.layer}.{head.head}", f"{head.score:.4f}", tables.number(head.write, True)]
        for change in changes:
            row.append(tables.interval(change, True))
            if change.relative:
                row.append(tables.interval(_together(change.relative), True))
        rows.append(row)
    heading = (
        f"{described.label}: {tables.interval(baseline, True)} with all heads, mean of "
        f"{tables.counted(baseline.n, 'window')}; largest changes of {tables.counted(len(able), 'single head')}\n"
    )
    impossible = f"impossible: {described.impossible}\n" if described.impossible else ""
    relative = ["relative"] if any(changes[0].relative for _head, changes in able) else []
    columns = ["layer.head", "score", "write", *(name for kind in kinds_of(effect) for name in (kind, *relative))]
    return heading + impossible + tables.table(columns, rows)


def _changes(head: SingleHead, effect: Effect) -> list[Change]:
    """Of each kind in which the effect is measured; none where causality forbids it."""
    return [change for kind in kinds_of(effect) if (change := head.changes(kind).effect(effect))]


def _together(cell: Simultaneous | Average) -> Cell:
    return Cell(cell.mean, cell.together)


def _named(values: Values) -> list[str]:
    """Every head that the rule names, and those of which it cannot tell."""
    lines = []
    for kind in KINDS:
        moves = values.moves.kind(kind)
        names = "; ".join(f"{move.layer}.{move.head} {move.does} ({move.effect})" for move in moves)
        lines += [
            f"moves it, {kind}: {names or 'none'}",
            f"cannot tell at the plateau, {kind}: {_heads(values.cannot_tell.kind(kind))}",
            f"cannot tell at the last layer, {kind}: {_heads(values.cannot_tell_last.kind(kind))}",
        ]
    return [
        *lines,
        f"costs, zero: {_heads(values.costs)}",
        f"gains, zero: {_heads(values.gains)}",
        f"costs cannot tell, zero: {_heads(values.costs_cannot_tell)}",
        "",
    ]


def _heads(heads: list[Head]) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "none"


def _correlations(correlations: Correlations) -> str:
    named = {
        "score and place": correlations.score_place,
        "write and place": correlations.write_place,
        "score and loss": correlations.score_loss,
        "write and loss": correlations.write_loss,
    }
    rows = [
        [
            name,
            correlation.heads,
            tables.number(correlation.rho, True),
            tables.number(correlation.within_layers, True),
            tables.number(correlation.p),
        ]
        for name, correlation in named.items()
    ]
    return tables.table(["Spearman's rho of", "heads", "rho", "within layers", "p"], rows)


def details(result: Stored) -> str:
    """Heads removed together, and every layer."""
    results = result.results
    parts = [
        "Heads removed together (output zero); random: of the same layers as those by score, lowest to highest draw",
        *_removed(results),
    ]
    if results.first_tokens is not None:
        parts.append(f"Without any head: {tables.exact_text(results.first_tokens)}")
    columns = [(kind, effect) for effect in results.shown for kind in kinds_of(effect)]
    rows = []
    for layer in results.layers:
        sizes = [layer.sizes(kind).effect(effect) for kind, effect in columns]
        cells = ["impossible" if size is None else tables.interval(size) for size in sizes]
        rows.append([layer.layer, f"{layer.score:.4f}", *cells])
    names = [f"{effect.replace('_', ' ')}, {kind}" for kind, effect in columns]
    parts += [
        "Every layer: |change| without a single head, mean over its heads and over windows",
        tables.table(["layer", "score", *names], rows),
    ]
    return "\n".join([*parts, *_early(results.early)])


def _removed(results: Results) -> list[str]:
    """A table of each effect, by the number of heads removed."""
    levels: dict[Level, str] = {effect: results.effects[effect].label for effect in results.shown if effect != "loss"}
    levels["perplexity"] = "perplexity"
    if results.place.massive:
        levels["retained"] = "retained of the value at the end of the plateau, over the windows that have the spike"
    by_score, by_write, draws = results.cumulative.score, results.cumulative.write, results.cumulative.random
    parts = []
    for name, label in levels.items():
        rows = []
        for i, (score, write) in enumerate(zip(by_score.steps, by_write.steps, strict=True)):
            null = [draw.steps[i].level(name).mean for draw in draws]
            spread = f"{tables.number(min(null))} to {tables.number(max(null))}" if null else "-"
            rows.append([score.removed, *(tables.interval(step.level(name)) for step in (score, write)), spread])
        parts.append(f"{label}: {tables.interval(results.baseline.level(name))} with all heads")
        parts.append(tables.table(["removed", "by score", "by write", "random, layers as by score"], rows))
    return parts


def _early(early: Early | None) -> list[str]:
    """Quarters of the layers, and what the first has more than each other, with and without layers 0 and 1."""
    if early is None:
        return []
    rows = []
    for i, quarter in enumerate(early.quarters):
        more = [
            tables.interval(_together(others[i - 1]), True) if i and others else "-"
            for others in (early.first_minus, early.first_minus_from_2)
        ]
        first, last = quarter.layers
        rows.append([f"{first}-{last}", tables.interval(_together(quarter.loss)), *more])
    columns = ["layers", "|change of the loss|", "first quarter more by", "without layers 0 and 1"]
    return [
        "Quarters of the layers: |change of the loss| without a single head (zero), mean over heads and windows;",
        "intervals hold for all quarters together",
        tables.table(columns, rows),
    ]
