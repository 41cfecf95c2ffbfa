"""What every head does to the place, the sinks and the loss, to be hovered."""

from experiments.head_sweep.results import VALUE_EFFECTS, Effect, Results, Stored
from lib.core.evidence import Cell
from lib.report.tables import interval
from lib.report.views import HeatMap, View


def views(result: Stored) -> list[View]:
    """Heads at zero; where each effect is impossible by causality, there is nothing."""
    results = result.results
    at_place = [_map(results, effect, "exp7_place_heatmap.png") for effect in VALUE_EFFECTS if effect in results.shown]
    of_model: list[Effect] = ["sink_rate", "loss"]
    return [*at_place, *(_map(results, effect, "exp7_model_heatmap.png") for effect in of_model)]


def _map(results: Results, effect: Effect, figure: str) -> HeatMap:
    """The change of the value is along the spike's sign, as in the figure: negative is a smaller spike."""
    sign = results.place.sign if effect in VALUE_EFFECTS else 1
    changes = {(head.layer, head.head): head.zero.effect(effect) for head in results.heads}
    layers = range(1 + max(layer for layer, _head in changes))
    heads = range(1 + max(head for _layer, head in changes))
    cells = [[_along(changes.get((layer, head)), sign) for head in heads] for layer in layers]
    return HeatMap(
        figure=figure,
        title=results.effects[effect].label,
        x="head",
        y="layer",
        unit="change, log",
        columns=[*map(str, heads)],
        rows=[*map(str, layers)],
        values=[[cell.mean if cell else None for cell in row] for row in cells],
        said=[[interval(cell, True) if cell else "" for cell in row] for row in cells],
        diverging=True,
        log=True,
    )


def _along(cell: Cell | None, sign: int) -> Cell | None:
    if cell is None or sign > 0:
        return cell
    return Cell(-cell.mean, None if cell.ci95 is None else (-cell.ci95[1], -cell.ci95[0]))
