"""Views: what a figure shows, as data that a page draws anew, to be turned and hovered. No model, no drawing library.

An experiment's views.py makes them of its stored result; each stands for one figure of its script.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

CELLS = 40_000  # of a text in 3D; where a model is wider, its dims with the largest values

Values = list[list[float | None]]  # [row][column]; None: there is nothing


@dataclass(frozen=True)
class HeatMap:
    """figure: how the name of the file ends for which it stands. said: of each cell. log: colours go by the logarithm
    of |value| from 1 / 1000 of the largest on, with its sign. most: where colours end; None: at the largest |value|."""

    figure: str
    title: str
    x: str
    y: str
    unit: str
    columns: list[str]
    rows: list[str]
    values: Values
    said: list[list[str]]
    diverging: bool = False
    log: bool = False
    most: float | None = None
    kind: Literal["heat map"] = field(default="heat map", init=False)

    @property
    def limit(self) -> float:
        largest = max((abs(value) for row in self.values for value in row if value is not None), default=0.0)
        return self.most or largest or 1.0

    def colour(self, value: float) -> float:
        if not self.log:
            return value
        return math.copysign(math.log10(1 + 1000 * abs(value) / self.limit), value)

    def ticks(self) -> list[float]:
        """The values at the colour bar."""
        parts = (0.01, 0.1, 1) if self.log else (0.25, 0.5, 0.75, 1)
        high = [part * self.limit for part in parts]
        return [*(-value for value in reversed(high) if self.diverging), 0.0, *high]


@dataclass(frozen=True)
class Lines3D:
    """|activation| of one text: values[token][i] of dims[i], of `width` dims in all; top: where the axis ends."""

    figure: str
    title: str
    tokens: list[str]
    dims: list[int]
    width: int
    values: list[list[float]]
    top: float
    kind: Literal["lines in 3D"] = field(default="lines in 3D", init=False)


View = HeatMap | Lines3D


def text_in_3d(figure: str, title: str, tokens: list[str], values: list[list[float]], top: float) -> Lines3D:
    """The view of values[token][dim], signed; of a wide model the dims with the largest values only."""
    width = len(values[0])
    most = [max(abs(row[dim]) for row in values) for dim in range(width)]
    dims = sorted(sorted(range(width), key=lambda dim: -most[dim])[: max(1, CELLS // len(values))])
    shown = [[float(f"{abs(row[dim]):.4g}") for dim in dims] for row in values]
    return Lines3D(figure, title, tokens, dims, width, shown, top)
