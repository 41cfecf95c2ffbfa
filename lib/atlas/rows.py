"""A model's row in the atlas: its mechanism, its verdicts, what it says to each claim."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.layerwise.results import Results as Layerwise
from experiments.ledger.results import Stored as Ledger
from lib.atlas.results import Curve, Mechanism, Row, Said
from lib.claims import judging
from lib.claims.cells import retained
from lib.claims.every import CLAIMS
from lib.claims.measured import SCRIPTS, CannotTellError, Measured
from lib.core.definitions import COLLAPSES
from lib.core.evidence import NONE_FOUND, Cell, every, note_of, within
from lib.page import findings
from lib.page.words import ENGLISH
from lib.report import identity
from lib.report.result_files import Result

Files = Mapping[str, Sequence[Result[Any, Any]]]  # of one model, by experiment, the one that counts first


def row(model: str, files: Files) -> Row:
    every = [result for found in files.values() for result in found]
    most = max(every, key=lambda result: result.provenance["data"]["windows"] * result.provenance["data"]["seqlen"])
    measured = Measured(files)
    conclusions = {name: files[name][0].conclusion for name in SCRIPTS if _has_verdict(files.get(name))}
    judged = [judging.judge(claim, measured) for claim in CLAIMS]
    layerwise = files.get("layerwise")
    return Row(
        model=model,
        described=identity.described(most.provenance),
        data="{windows} x {seqlen} tokens of {dataset}".format(**most.provenance["data"]),
        mechanism=mechanism(measured),
        said=findings.sentences(every, ENGLISH),
        verdicts={name: conclusion.verdict for name, conclusion in conclusions.items()},
        notes={name: note for name, conclusion in conclusions.items() if (note := note_of(conclusion))},
        claims={claim.row: _said(claim) for claim in judged},
        curve=_curve(layerwise[0].results) if layerwise else None,
    )


def _has_verdict(found: Sequence[Result[Any, Any]] | None) -> bool:
    return found is not None and found[0].conclusion is not None


def _said(claim: judging.JudgedClaim) -> Said:
    nearest = claim.nearest
    if nearest is None or nearest.mean is None:
        return Said(claim.verdict)
    return Said(claim.verdict, Cell(nearest.mean, nearest.interval), nearest.what)


def _curve(layerwise: Layerwise) -> Curve:
    layers = layerwise.layers
    return Curve([layer.top1.mean for layer in layers], [layer.ratio.mean if layer.ratio else None for layer in layers])


def mechanism(measured: Measured) -> Mechanism:
    """Of what is there of a model."""
    parts: dict[str, Any] = {}
    for read in (_course, _layers, _ledger, _neurons, _ablations, _need, _sinks, _forecast):
        try:
            parts |= read(measured)
        except CannotTellError:
            continue
    return Mechanism(**parts)


def _course(measured: Measured) -> dict[str, Any]:
    """At the last step of a training, where no ledger says more."""
    course = measured.training_course
    if measured.files.get("exp3"):
        return {}
    last = course.results.steps[-1]
    place, n = last.followed, len(last.layers)
    ratios = [layer.ratio.mean for layer in last.layers if layer.ratio]
    found: dict[str, Any] = {"n_layers": n, "found": place.massive, "ratio": max(ratios, default=None)}
    found["sink_rate"] = _cell(last.sink_rate)
    if not place.massive:
        return found
    birth = next((write for write in place.writers if write.name == course.conclusion.values.writer), None)
    return found | {
        "dim": place.dim,
        "position": place.position,
        "token": place.token,
        "peak": _cell(place.value),
        "peak_layer": place.peak_layer,
        "birth": birth.name if birth else None,
        "depth": None if birth is None or birth.layer is None else (birth.layer + 1) / n,
    }


def _layers(measured: Measured) -> dict[str, Any]:
    layers = measured.layerwise.results.layers
    ratios = [layer.ratio.mean for layer in layers if layer.ratio]
    return {"n_layers": len(layers), "ratio": max(ratios, default=None)}


def _ledger(measured: Measured) -> dict[str, Any]:
    ledger: Ledger = measured.every("exp3")[0]
    place, verdict = ledger.results.place, ledger.conclusion
    found = {"n_layers": len(place.values), "found": place.massive}
    if verdict.verdict == NONE_FOUND or not place.massive:
        return found
    values, n = verdict.values, len(place.values)
    birth = values.birth
    shares = {write.name: write.share for write in ledger.results.writes}
    return found | {
        "dim": place.dim,
        "position": max(place.positions, key=lambda position: place.positions[position]),
        "token": place.token,
        "peak": _cell(place.values[place.peak_layer]),
        "peak_layer": place.peak_layer,
        "birth": birth.name if birth else None,
        "share": Cell(shares[birth.name].mean, shares[birth.name].together) if birth else None,
        "depth": None if birth is None or birth.layer is None else (birth.layer + 1) / n,
        "verdict": None if birth else verdict.verdict,
        "generators": [write.name for write in values.generators],
        "plateau": values.plateau,
        "erasers": [write.name for write in values.erasers],
    }


def _neurons(measured: Measured) -> dict[str, Any]:
    """By experiment 4, or, where that is not there, by 2C."""
    result: Any = measured.neuron_sets if measured.files.get("exp4") else measured.mlp_internal
    values = result.conclusion.values
    return {} if values is None else {"neurons": [str(neuron) for neuron in values.neurons]}


def _ablations(measured: Measured) -> dict[str, Any]:
    left = {}
    for key, experiment in (("left_without_heads", "exp1"), ("left_without_mlps", "exp2a")):
        values = measured.files[experiment][0].conclusion.values if measured.files.get(experiment) else None
        if values is not None:
            left[key] = _cell(retained(values))
    return left


def _need(measured: Measured) -> dict[str, Any]:
    """What the model loses without the value, where the change takes it away."""
    values = measured.interventions.conclusion.values
    if values is None:
        return {}
    off = values.counterfactual
    gone = off.left is not None and every(within("left", off.left, COLLAPSES))
    if not gone:
        return {}
    back = measured.interventions.results.put_back
    return {"cost": _cell(off.loss_change), "put_back": back and _cell(back.loss_change)}


def _sinks(measured: Measured) -> dict[str, Any]:
    return {"sink_rate": _cell(measured.head_scores.results.sink_rate)}


def _forecast(measured: Measured) -> dict[str, Any]:
    compared = measured.every("exp12")[0].results.measured.compared
    return {} if compared is None or compared.cosine is None else {"cosine": _cell(compared.cosine)}


def _cell(cell: Cell) -> Cell:
    """The mean and its interval, of what has more."""
    return Cell(cell.mean, cell.ci95)
