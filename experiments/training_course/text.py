"""The TXT of a course of training."""

from experiments.training_course.results import FITTED, FORMULA, NAMES, TOO_FEW, Birth, Fit, Parameter, Step, Stored
from lib.core.definitions import SINK_EPSILON
from lib.core.results import Head, LedgerWrite
from lib.report import tables


def summarise(result: Stored) -> str:
    results, conclusion = result.results, result.conclusion
    values = conclusion.values
    return "\n".join(
        [
            tables.header(result, "Experiment 14: when massive activations and sinks were born"),
            "ratio: mean over windows of top-1 / median of |block output|, in the layer where it is largest.",
            "massive: share of the windows that hold a massive activation. sink rate: share of all heads that give the",
            f"first token more than {SINK_EPSILON} in windows of {tables.sink_window(result)} tokens. highest head: by "
            "mean attention\nto the first token. Intervals: 95 %.",
            "",
            tables.table(
                ["step", "loss", "ratio", "layer", "massive", "sink rate", "highest head"],
                [_row(step) for step in results.steps],
            ),
            "Who writes most: at the place of each step, of the components up to the layer where its value is largest,",
            "as share of this value; what is listed gives 1 % of it or more.",
            tables.table(
                ["step", "dim", "position", "token", "layer", "value", "writes most", "share", "then"],
                [_followed(step) for step in results.steps],
            ),
            _born("Massive activations", values.massive),
            _born("Sinks", values.sinks),
            f"Writes most at the last step, by experiment 3's rule: {values.writer}",
            "",
            *_fits(values.fits),
            tables.conclusion_text(conclusion),
            f"Massive: {results.definition}",
            "Place: " + results.place.removeprefix("place: "),
            "",
        ]
    )


def largest_layer(step: Step) -> int:
    """The layer of the largest ratio."""
    ratios = [layer.ratio.mean if layer.ratio else 0.0 for layer in step.layers]
    return max(range(len(ratios)), key=ratios.__getitem__)


def highest_head(step: Step) -> tuple[Head, float]:
    heads = [(Head(layer, head), score) for layer, row in enumerate(step.scores) for head, score in enumerate(row)]
    return max(heads, key=lambda pair: pair[1])


def by_share(step: Step) -> list[LedgerWrite]:
    return sorted(step.followed.writers, key=lambda write: -write.share.mean)


def _row(step: Step) -> list[object]:
    layer = largest_layer(step)
    head, score = highest_head(step)
    return [
        f"{step.step:,}",
        tables.interval(step.loss),
        tables.interval(step.layers[layer].ratio),
        layer,
        tables.interval(step.massive),
        tables.interval(step.sink_rate),
        f"{head} ({score:.3f})",
    ]


def _followed(step: Step) -> list[object]:
    place, written = step.followed, by_share(step)
    first = [written[0].name, tables.interval(written[0].share)] if written else ["none of so much", "-"]
    then = ", ".join(f"{write.name} ({write.share.mean:.0%})" for write in written[1:3]) or "-"
    return [
        f"{step.step:,}",
        place.dim,
        place.position,
        repr(place.token),
        place.peak_layer,
        tables.interval(place.value, True),
        *first,
        then,
    ]


def _born(what: str, birth: Birth) -> str:
    had = f"; there before, too, at steps {_listed(birth.had)}" if birth.had else ""
    unclear = f"; cannot be told at steps {_listed(birth.unclear)}" if birth.unclear else ""
    return f"{what}: {birth.verdict}{had}{unclear}"


def _listed(steps: list[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps)


def _fits(fits: list[Fit]) -> list[str]:
    if all(fit.outcome == TOO_FEW for fit in fits):
        return []
    rows = [
        [
            fit.layer,
            *(
                [_parameter(fit.parameters[name]) for name in NAMES]
                if fit.outcome == FITTED
                else [fit.outcome] + ["-"] * 4
            ),
            tables.number(fit.residual),
            tables.number(fit.explained),
        ]
        for fit in fits
    ]
    return [
        f"Course of the ratio in every layer, in the published form (arXiv 2508.03616): {FORMULA}",
        "t: optimiser steps in thousands, so gamma is per thousand steps, all else without unit. The logarithm of",
        "the mean ratio is fitted by least squares, every step counting alike. +-: standard error by the curvature",
        "at the minimum; ?, or larger than the value: these steps do not determine it. residual: root mean square of",
        "ln(ratio); explained: share of its variance over steps",
        tables.table(["layer", *NAMES, "residual", "explained"], rows),
    ]


def _parameter(parameter: Parameter) -> str:
    error = "?" if parameter.error is None else tables.number(parameter.error)
    return f"{tables.number(parameter.value)} +- {error}"
