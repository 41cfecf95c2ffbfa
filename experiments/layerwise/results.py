"""What the statistics of every layer store."""

from dataclasses import dataclass

from lib.core.definitions import ABSOLUTE, LASTING, MASSIVE, MOST_DIMS, RELATIVE
from lib.core.results import LayerAverages, MassiveActivation
from lib.report.masks import MaskedPlace
from lib.report.result_files import Result

SUN, TOKEN, DEVIATION = "layer's median", "token's median", "deviation"
FEW_DIMS, LASTING_DIMS = f"at most {MOST_DIMS} dims", f"in {LASTING:.0%} of the layers"
HERETIC = "a criterion of heretic's pull request 154, there of one token's vector"
DEFINITIONS = {  # what each is over, and who has it
    SUN: f"{MASSIVE}; over all positions and dims of a layer's output in one window",
    TOKEN: f"|value| > {ABSOLUTE:,.0f} and > {RELATIVE:,.0f} x the median of |value| over the dims of its own position "
    "in a layer's output (compared so in arXiv 2605.15572)",
    DEVIATION: f"|value| > {ABSOLUTE:,.0f} and, by more than {RELATIVE:,.0f} median absolute deviations, above the "
    f"median of |value|, both over all positions and dims of a layer's output in one window ({HERETIC})",
    FEW_DIMS: f"of the first, in each layer the {MOST_DIMS} dims of the largest |value|, a mean over the windows in "
    f"which it passes, at whatever position ({HERETIC})",
    LASTING_DIMS: f"of the first, the dims that pass in at least {LASTING:.0%} of the layers, at any position of any "
    f"window ({HERETIC})",
}


@dataclass(frozen=True, order=True)
class Where:
    layer: int
    position: int
    dim: int


@dataclass(frozen=True)
class FoundBy:
    """What the definition `name` of DEFINITIONS finds beside the first, Sun et al.'s.

    places: how many (layer, position, dim) pass in some window; layers, dims: that have one. shared: places that both
    find; jaccard: of those that either finds, None where neither finds any. more, fewer: places that it alone finds, or
    that it does not.
    """

    name: str
    places: int
    layers: list[int]
    dims: list[int]
    shared: int
    jaccard: float | None
    more: list[Where]
    fewer: list[Where]


@dataclass(frozen=True)
class Results:
    """massive: every (layer, position, dim) that passes the test of `definition`. compared: what each of DEFINITIONS
    finds. hidden_size: dims of a block's output. masked: what is massive by the rule that its positions follow. Results
    of older versions have none of these three."""

    definition: str
    layers: list[LayerAverages]
    massive: list[MassiveActivation]
    compared: list[FoundBy] | None = None
    hidden_size: int | None = None
    masked: list[MaskedPlace] | None = None


Stored = Result[Results, None]
