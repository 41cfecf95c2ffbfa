"""What matters most of one model's results, in sentences: each is made of stored numbers and today's verdicts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lib.claims.cells import retained
from lib.claims.measured import birth_layer
from lib.core.evidence import CANNOT_TELL, NONE_FOUND
from lib.core.results import FollowedPlace
from lib.page import words
from lib.report.result_files import Result
from lib.report.tables import interval, number, told

Found = Mapping[str, Sequence[Result[Any, Any]]]  # by experiment, the one that counts first


def sentences(results: Iterable[Result[Any, Any]]) -> list[str]:
    """Where it is, who writes it, what is left without parts, whether it is needed; without those not measured."""
    found: dict[str, list[Result[Any, Any]]] = {}
    for result in results:
        found.setdefault(result.experiment, []).append(result)
    makers: list[Callable[[Found], str | None]] = [_where, _who, _without, _needed]
    return [said for make in makers if (said := make(found))]


def _where(found: Found) -> str | None:
    if "exp3" not in found:
        return None
    place, values = found["exp3"][0].results.place, found["exp3"][0].conclusion.values
    peak = {"dim": place.dim, "value": number(values.peak.value, True), "layer": values.peak.layer}
    if not place.massive or values.plateau is None:
        return words.NOTHING.format(**peak)
    (start, end), ratio = values.plateau, _ratio(found, place, values.peak.layer)
    plateau = words.ONE_LAYER if start == end else words.PLATEAU.format(first=start, last=end)
    return words.WHERE.format(**peak, position=_position(place), ratio=ratio, plateau=plateau)


def _position(place: FollowedPlace) -> str:
    most = max(place.positions, key=lambda position: place.positions[position])
    return (words.POSITION if len(place.positions) == 1 else words.POSITIONS).format(position=most)


def _ratio(found: Found, place: FollowedPlace, layer: int) -> str:
    """Of the layer's largest value, where that is in the followed dim."""
    if "layerwise" not in found:
        return ""
    statistics = found["layerwise"][0].results.layers[layer]
    ratio, dim = statistics.ratio, statistics.at[0].dim
    return "" if ratio is None or dim != place.dim else words.RATIO.format(ratio=f"{ratio.mean:,.0f}")


def _who(found: Found) -> str | None:
    if "exp3" not in found or not found["exp3"][0].results.place.massive:
        return None
    conclusion = found["exp3"][0].conclusion
    values = conclusion.values
    if values.birth is not None:
        writer = words.WRITES.format(birth=_write(values.birth))
    else:
        writer = words.WRITER_UNKNOWN if conclusion.verdict == CANNOT_TELL else words.NO_WRITER
    erasers = [*map(_write, values.erasers[:3])]
    if not erasers:
        return f"{writer}; {words.NO_ERASER}."
    listed = words.LAST_AND.join([words.AND.join(erasers[:-1]), erasers[-1]] if erasers[1:] else erasers)
    return f"{writer}; {(words.ERASE if erasers[1:] else words.ERASES).format(erasers=listed)}."


def _write(write: Any) -> str:
    return words.WRITE.format(name=write.name, value=number(write.value, True))


def _without(found: Found) -> str | None:
    parts: list[str] = []
    for experiment, part in (("exp1", words.ATTENTION_HEAD), ("exp2a", words.MLP)):
        conclusion = found[experiment][0].conclusion if experiment in found else None
        if conclusion is None or conclusion.verdict == NONE_FOUND:
            continue
        values = conclusion.values
        left = told(retained(values))
        said = words.UNKNOWN_FATE if conclusion.verdict == CANNOT_TELL else words.WITHOUT
        fate = words.FATES.get(conclusion.verdict, conclusion.verdict)
        it = words.AGAIN if parts else words.IT
        parts.append(said.format(part=part, it=it, fate=fate) + words.LEFT.format(left=left))
    return f"{'; '.join([*parts[:1], *(part[:1].lower() + part[1:] for part in parts[1:])])}." if parts else None


def _needed(found: Found) -> str | None:
    """By the result at the layer of the birth."""
    if "exp3" not in found or not found["exp3"][0].results.place.massive:
        return None
    layer = birth_layer(found["exp3"][0])
    conclusions = [result.conclusion for result in found.get("exp5", []) if result.results.layer == layer]
    if not conclusions or conclusions[0].values is None:
        return None
    loss = interval(conclusions[0].values.counterfactual.loss_change, True)
    return words.NEEDED.format(verdict=conclusions[0].verdict, loss=loss)
