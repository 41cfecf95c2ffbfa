"""What every head, attention bias and MLP writes into the place, to be hovered."""

from collections import defaultdict

from experiments.ledger.results import Stored
from lib.core.results import LedgerWrite
from lib.report.tables import number
from lib.report.views import HeatMap, View


def views(result: Stored) -> list[View]:
    """The experts of a layer are one column, as in the figure: their sum."""
    results = result.results
    writes = [write for write in results.writes if write.layer is not None]
    columns = sorted(dict.fromkeys(map(_column, writes)), key=lambda name: not name.startswith("head"))
    sums: defaultdict[tuple[int, str], float] = defaultdict(float)
    for write in writes:
        sums[write.order, _column(write)] += write.value
    layers = range(len(results.layers))
    values = [[sums.get((layer, column)) for column in columns] for layer in layers]
    return [
        HeatMap(
            figure="exp3_writes.png",
            title=f"writes into dim {results.place.dim} ({results.condition.label})",
            x="part",
            y="layer",
            unit="write, signed, log",
            columns=columns,
            rows=[*map(str, layers)],
            values=values,
            said=[[number(value, True) for value in row] for row in values],
            diverging=True,
            log=True,
        )
    ]


def _column(write: LedgerWrite) -> str:
    return "experts" if write.kind == "expert" else write.component
