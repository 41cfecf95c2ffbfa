"""The change of every layer with all heads or all MLPs off, to be hovered."""

from experiments.ablation.results import Stored
from lib.core.evidence import Average
from lib.core.results import LayerOfCondition
from lib.report.tables import interval, percent
from lib.report.views import HeatMap, View

MOST = 100.0  # per cent


def views(result: Stored) -> list[View]:
    before, after, *_experts_off = result.results.conditions.values()
    dims = result.results.dims[:4]
    pairs = [
        [*zip(_averages(old, dims), _averages(new, dims), strict=True)]
        for old, new in zip(before.layers, after.layers, strict=True)
    ]
    return [
        HeatMap(
            figure="_percentage_change_heatmap.png",
            title=f"change with {after.label}",
            x="statistic",
            y="layer",
            unit="per cent",
            columns=["top 1", "top 2", "top 3", "median", *(f"dim {dim}" for dim in dims)],
            rows=[str(layer.layer) for layer in before.layers],
            values=[[100 * (y.mean - x.mean) / abs(x.mean) if x.mean else None for x, y in row] for row in pairs],
            said=[[f"{percent(x.mean, y.mean)}: {interval(x)} \u2192 {interval(y)}" for x, y in row] for row in pairs],
            diverging=True,
            most=MOST,
        )
    ]


def _averages(layer: LayerOfCondition, dims: list[int]) -> list[Average]:
    return [layer.top1, layer.top2, layer.top3, layer.median, *(layer.dims[dim] for dim in dims)]
