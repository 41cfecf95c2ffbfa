"""What is stored of a model with quantised activations."""

from dataclasses import dataclass

from lib.core.definitions import FLOAT16_MAX, GROUP, MASSIVE
from lib.core.evidence import Average, Conclusion, Perplexity
from lib.report.result_files import Result

PROJECTIONS, BLOCKS = WHERE = "projections", "blocks"  # what is quantised: what projections read; what blocks give
INT8, INT4, FLOAT16 = "int8", "int4", "float16"
LEVELS = {INT8: 127, INT4: 7}  # the largest whole number; the smallest is its negative
STATIC, DYNAMIC, TOKEN, GROUPED = SCALINGS = "static", "dynamic", "token", "group"
PER_TENSOR = STATIC, DYNAMIC
AS_IT_IS, KEPT, CLAMPED, MEAN, PREFIX = REMEDIES = "as_it_is", "kept", "clamped", "mean", "prefix"

ATTENTION_IN, ATTENTION_OUT, UP, DOWN, EXPERTS, BLOCK = KINDS = (
    "query, key, value",
    "attention output",
    "up and gate",
    "down",
    "experts",
    "block output",
)


@dataclass(frozen=True)
class Scheme:
    """scaling: which values share a scale; None of float16, which has none."""

    format: str
    scaling: str | None

    @property
    def name(self) -> str:
        return self.format if self.scaling is None else f"{self.format}_{self.scaling}"

    @property
    def label(self) -> str:
        words = {STATIC: "per tensor, static", DYNAMIC: "per tensor, dynamic", TOKEN: "per token", GROUPED: "per group"}
        return self.format if self.scaling is None else f"{self.format} {words[self.scaling]}"


SCHEMES = [*(Scheme(format, scaling) for format in LEVELS for scaling in SCALINGS), Scheme(FLOAT16, None)]
CALIBRATES = 4  # every so many windows one, beginning with the first
RULES = [
    f"int8, int4: symmetric, whole numbers from -{LEVELS[INT8]} to {LEVELS[INT8]} and from -{LEVELS[INT4]} to "
    f"{LEVELS[INT4]}, rounded half to even; of the values that share a scale the largest |value| is the largest "
    f"number. Per tensor: all values of a site share one, static: of the calibration windows (every {CALIBRATES}th, "
    "beginning with the first), dynamic: of each window. Per group: neighbouring dims of a token, as many as the "
    f"largest divisor of the width up to {GROUP}. float16: what lies beyond {FLOAT16_MAX:,.0f} is inf. Weights, what "
    "attention computes with, embeddings and the language-model head stay as they are",
    f"massive places of a site, in each window of the model as it is: {MASSIVE}, with the median of the site; where "
    "the site is the residual stream as a norm gives it, every position and dim, too, that is massive in the output of "
    "its block or of the block before",
    "kept: massive places are not quantised, and have no part in a scale. clamped: where the calibration windows have "
    "massive places, all values of the site are clamped to the largest |value| at no such place there. mean: massive "
    "places are set to the mean of those of the calibration windows at the same dim, at the first position or at later "
    "ones, each for itself, a constant that is not quantised; what has none there is quantised. prefix: the first "
    "position is not quantised, as if its keys and values were stored, and has no part in a scale. Where nothing "
    "is massive there are none, nor of float16 where nothing is beyond it",
]


@dataclass(frozen=True)
class Range:
    """One site, in the model as it is.

    kind: of KINDS. modules: that read it, as the block calls them; none of a block's output. width, group: dims,
    and how many of them share a scale per group. largest: |value| over all measured windows; median: of |value|. zero:
    the share of the values other than 0 that become 0 in int8 per tensor, dynamic. massive: places a window. limit: to
    what values are clamped; None where nothing is massive.
    """

    layer: int
    kind: str
    modules: list[str]
    width: int
    group: int
    largest: float
    median: Average
    zero: Average
    massive: float
    limit: float | None


@dataclass(frozen=True)
class Condition:
    """One scheme with one remedy, of what is quantised (`where`).

    overflowing: windows whose loss is not finite. What is not finite in some window is None. loss_change: paired,
    quantised less as it is, nats a token. error: squared, relative to the squared values, mean over sites; elsewhere:
    the same without the massive places. final: squared error of the last block's output, relative to each token's
    squared length, mean over tokens. regained: by how much the loss is below that of the same scheme without a remedy,
    paired, as one of all; None without a remedy.
    """

    where: str
    scheme: Scheme
    remedy: str
    overflowing: int
    loss_change: Average | None
    perplexity: Perplexity | None
    error: Average | None
    elsewhere: Average | None
    final: Average | None
    regained: Average | None


@dataclass(frozen=True)
class LeftOut:
    """What is not quantised in these layers."""

    layers: list[int]
    what: str


@dataclass(frozen=True)
class Results:
    """calibration, measured: how many windows. spiking: the share of the measured ones with a massive place in some
    block output. conditions: by name_of; those with a remedy are missing where nothing is massive."""

    rules: list[str]
    calibration: int
    measured: int
    loss: Average
    spiking: Average
    ranges: list[Range]
    left_out: list[LeftOut]
    conditions: dict[str, Condition]

    def of(self, where: str, scheme: Scheme, remedy: str) -> Condition | None:
        return self.conditions.get(name_of(where, scheme, remedy))

    @property
    def where(self) -> list[str]:
        """What was quantised, of WHERE."""
        return [where for where in WHERE if any(cell.where == where for cell in self.conditions.values())]


def name_of(where: str, scheme: Scheme, remedy: str) -> str:
    return f"{where}_{scheme.name}_{remedy}"


@dataclass(frozen=True)
class Values:
    """costs: of every condition by name, "costs", "free", "cannot tell" or "overflows". best: by the name of each
    condition without a remedy that costs, the remedy that brings back most, of those that surely bring back some; None
    if none does."""

    costs: dict[str, str]
    best: dict[str, str | None]


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
