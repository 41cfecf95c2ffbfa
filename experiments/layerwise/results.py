"""What the statistics of every layer store."""

from dataclasses import dataclass

from lib.core.results import LayerAverages, MassiveActivation
from lib.report.result_files import Result


@dataclass(frozen=True)
class Results:
    """massive: every (layer, position, dim) that passes the test of `definition`."""

    definition: str
    layers: list[LayerAverages]
    massive: list[MassiveActivation]


Stored = Result[Results, None]
