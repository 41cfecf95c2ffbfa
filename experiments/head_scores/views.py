"""Attention of every head to the first token, to be hovered."""

from experiments.head_scores.results import Stored
from lib.report.tables import interval
from lib.report.views import HeatMap, View


def views(result: Stored) -> list[View]:
    scores = result.results.scores
    heads = range(max(map(len, scores)))
    return [
        HeatMap(
            figure="_head_analysis.png",
            title="attention to the first token",
            x="head",
            y="layer",
            unit="mean probability",
            columns=[*map(str, heads)],
            rows=[*map(str, range(len(scores)))],
            values=[[row[head].mean if head < len(row) else None for head in heads] for row in scores],
            said=[[interval(row[head]) if head < len(row) else "" for head in heads] for row in scores],
            most=1.0,
        )
    ]
