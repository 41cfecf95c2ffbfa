"""What a forecast from the weights alone stores, and what was measured after it."""

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from lib.core.evidence import Average, Conclusion
from lib.core.results import FollowedPlace, LedgerWrite
from lib.report.result_files import Result

GENERATOR, ERASER = "generator", "eraser"


@dataclass(frozen=True)
class Carrier:
    """A neuron, and its share of the eigenvalue."""

    neuron: int
    share: float


@dataclass(frozen=True)
class Pointing:
    """A token as the first one, and the cosine of its stream before any block with the direction."""

    token: str
    cosine: float


@dataclass(frozen=True)
class Forecast:
    """That the MLP of a layer, or an expert of it, blows up a dim.

    norm: of the dim's form; times_mean: over the mean norm of all dims of its layer. eigenvalue: the form's largest,
    whose eigenvector is the direction. sign: of what is written.
    own: the share of the direction's squared length that lies on the dim itself, in parts of 1 / hidden. neurons: the
    fewest that carry the eigenvalue, measure.NEURONS at most. tokens: those whose stream points along the direction
    most.
    """

    layer: int
    dim: int
    role: str
    norm: float
    times_mean: float
    eigenvalue: float
    sign: str
    own: float
    neurons: list[Carrier]
    tokens: list[Pointing]
    expert: int | str | UnsetType = UNSET

    @property
    def mlp(self) -> str:
        """As in "11" and, of expert 3, "11.3"."""
        return f"{self.layer}" if self.expert is UNSET else f"{self.layer}.{self.expert}"


@dataclass(frozen=True)
class DimNorm:
    dim: int
    norm: float
    role: str


@dataclass(frozen=True)
class Singular:
    """Of a down projection: a singular value, the dim with most of its left vector and that dim's share of the squared
    length, and the neuron with most of its right one."""

    value: float
    dim: int
    share: float
    neuron: int


@dataclass(frozen=True)
class ScreenedLayer:
    """form: "quadratic" of gated MLPs, "linear" of plain ones. mean: of the norms of all dims. largest: the dims with
    the largest norms; of a mixture of any expert, and `singular` of the one with the largest, as many as are
    not 0."""

    layer: int
    form: str
    mean: float
    largest: list[DimNorm]
    singular: list[Singular]
    experts: int | UnsetType = UNSET


@dataclass(frozen=True)
class LeftOut:
    layer: int
    why: str


@dataclass(frozen=True)
class Compared:
    """The forecast of what was measured: of the layer of the birth, or of the largest of those between which it cannot
    be told, and of the dim of the place.

    norm, times_mean: as in Forecast; rank: by times_mean among all dims of all screened MLPs, the largest is 1. role:
    as it was forecast; None of what is not among the dims with its layer's largest norms. generator: the rank among
    generators that were forecast, None of anything else. overlap: how many of the forecast's neurons are among as many
    with the largest contributions at the place; cosine: of the direction with the normed stream there; None where there
    is no role.
    """

    layer: int
    dim: int
    norm: float
    times_mean: float
    rank: int
    role: str | None
    generator: int | None
    neurons: list[str]
    measured: list[str]
    overlap: float | None
    cosine: Average | None


@dataclass(frozen=True)
class Measured:
    """place: of the model as it is; writes: into it, up to the layer of its peak, as experiment 3 has them. compared:
    None where that is no MLP, or its neurons are not known."""

    place: FollowedPlace
    writes: list[LedgerWrite]
    compared: Compared | None


@dataclass(frozen=True)
class Results:
    """forecast: what stands out most, the best first; n_forecast: how many there were, n_generators: of these.

    hidden: dims of the stream. times_mean: {dim: of each layer, None where it has no screened MLP} of the first dims.
    """

    hidden: int
    forecast: list[Forecast]
    n_forecast: int
    n_generators: int
    layers: list[ScreenedLayer]
    times_mean: dict[int, list[float | None]]
    left_out: list[LeftOut]
    measured: Measured


@dataclass(frozen=True)
class Named:
    """layer: None of embeddings; what: as the ledger names it, or the MLP of a forecast."""

    layer: int | None
    dim: int
    what: str


@dataclass(frozen=True)
class Values:
    """forecast: the first generator; measured: the birth; None where there is none. birth: experiment 3's verdict."""

    forecast: Named | None
    measured: Named | None
    birth: str


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
