"""What matters most of one model's results, in sentences: each is made of stored numbers and today's verdicts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.interventions.results import SAME
from experiments.ledger.results import NamedWrite
from experiments.ledger.results import Results as Ledger
from lib.claims.cells import retained
from lib.claims.measured import birth_layer
from lib.core.births import share_test
from lib.core.definitions import WRITTEN
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, note_of
from lib.core.results import FollowedPlace
from lib.page.words import Words
from lib.report.result_files import Result
from lib.report.tables import interval, number, spans, told

Found = Mapping[str, Sequence[Result[Any, Any]]]  # by experiment, the one that counts first


def sentences(results: Iterable[Result[Any, Any]], words: Words) -> list[str]:
    """Where it is, who writes it, what is left without parts, whether it is needed, when training made it; what was
    not measured is left out."""
    found: dict[str, list[Result[Any, Any]]] = {}
    for result in results:
        found.setdefault(result.experiment, []).append(result)
    makers: list[Callable[[Found, Words], str | None]] = [_where, _who, _without, _needed, _trained]
    return [said for make in makers if (said := make(found, words))]


def _where(found: Found, words: Words) -> str | None:
    if "exp3" not in found:
        return None
    place, values = found["exp3"][0].results.place, found["exp3"][0].conclusion.values
    peak = {"dim": place.dim, "value": number(values.peak.value, True), "layer": values.peak.layer}
    if not place.massive or values.plateau is None:
        return words.nothing.format(**peak)
    (start, end), ratio = values.plateau, _ratio(found, place, words)
    plateau = words.one_layer if start == end else words.plateau.format(first=start, last=end)
    return words.where.format(**peak, position=_position(place, words), ratio=ratio, plateau=plateau)


def _position(place: FollowedPlace, words: Words) -> str:
    most = max(place.positions, key=lambda position: place.positions[position])
    return (words.position if len(place.positions) == 1 else words.positions).format(position=most)


def _ratio(found: Found, place: FollowedPlace, words: Words) -> str:
    """The largest of any layer whose largest value is in the followed dim."""
    layers = found["layerwise"][0].results.layers if "layerwise" in found else []
    ratios = [layer.ratio.mean for layer in layers if layer.ratio is not None and layer.at[0].dim == place.dim]
    return words.ratio.format(ratio=f"{max(ratios):,.0f}") if ratios else ""


def _who(found: Found, words: Words) -> str | None:
    if "exp3" not in found or not found["exp3"][0].results.place.massive:
        return None
    conclusion = found["exp3"][0].conclusion
    values = conclusion.values
    if values.birth is not None:
        writer = _writes(found["exp3"][0].results, values.birth, words)
    elif len(values.generators) > 1:
        writer = words.write_together.format(writers=_listed(values.generators, words))
    else:
        writer = words.writer_unknown if conclusion.verdict == CANNOT_TELL else words.no_writer
    return words.who.format(writer=writer, eraser=_eraser(values.erasers[:3], words))


def _writes(results: Ledger, birth: NamedWrite, words: Words) -> str:
    """A birth writes more of it than any other; whether that is half of the peak, its interval must tell."""
    write = next(write for write in results.writes if write.name == birth.name)
    said = words.writes if share_test(write, "above", WRITTEN).answer else words.writes_most
    return said.format(birth=_write(birth, words), share=f"{write.share.mean:.1%}")


def _eraser(erasers: Sequence[Any], words: Words) -> str:
    if not erasers:
        return words.no_eraser
    return (words.erases if len(erasers) == 1 else words.erase).format(erasers=_listed(erasers, words))


def _listed(writes: Sequence[Any], words: Words) -> str:
    *first, last = (_write(write, words) for write in writes)
    return words.last_and.join([words.list_and.join(first), last]) if first else last


def _write(write: Any, words: Words) -> str:
    return words.write.format(name=write.name, value=number(write.value, True))


def _without(found: Found, words: Words) -> str | None:
    parts: list[str] = []
    for experiment, part in (("exp1", words.attention_head), ("exp2a", words.mlp)):
        conclusion = found[experiment][0].conclusion if experiment in found else None
        if conclusion is None or conclusion.verdict == NONE_FOUND:
            continue
        values = conclusion.values
        left = told(retained(values))
        said = words.unknown_fate if conclusion.verdict == CANNOT_TELL else words.without
        fate = words.fates.get(conclusion.verdict, conclusion.verdict)
        it = words.again if parts else words.it
        note = words.noted(note_of(conclusion))
        parts.append(words.left.format(fate=said.format(part=part, it=it, fate=fate), left=left) + note)
    later = (part[:1].lower() + part[1:] for part in parts[1:])
    return words.clause.join([*parts[:1], *later]) + words.stop.rstrip() if parts else None


def _needed(found: Found, words: Words) -> str | None:
    """By the result at the layer of the birth."""
    if "exp3" not in found or not found["exp3"][0].results.place.massive:
        return None
    layer = birth_layer(found["exp3"][0])
    there = [result for result in found.get("exp5", []) if result.results.layer == layer]
    if not there or there[0].conclusion.values is None:
        return None
    values, writers = there[0].conclusion.values, there[0].results.mlp
    verdict, off = words.shown(there[0].conclusion.verdict), values.counterfactual
    if values.why == SAME:
        verdict += words.one_beforehand
    written = words.written_by_mlp.format(layer=layer)
    if writers is not None and writers.neurons:
        written = words.written_by_neurons.format(n=len(writers.neurons), layers=spans(writers.by_layer))
    left = "" if off.left is None else words.left_there.format(left=number(off.left.mean))
    loss, put_back = interval(off.loss_change, True), there[0].results.put_back
    back = "" if put_back is None else words.put_back.format(loss=interval(put_back.loss_change, True))
    return words.needed.format(verdict=verdict, written=written, left=left, loss=loss, back=back)


def _trained(found: Found, words: Words) -> str | None:
    return words.trained.format(verdict=words.shown(found["exp14"][0].conclusion.verdict)) if "exp14" in found else None
