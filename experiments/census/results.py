"""What the census of triggers stores."""

from dataclasses import dataclass

from lib.core.evidence import Average, Cell, Conclusion
from lib.core.results import FollowedPlace
from lib.report.result_files import Result


@dataclass(frozen=True)
class Share(Cell):
    """How many spike. n: of so many draws, or windows; None where it is exact."""

    n: int | None = None

    @classmethod
    def exact(cls, value: float) -> "Share":
        return cls(value, (value, value))


@dataclass(frozen=True)
class Spike:
    """What counts as one, by `rule`."""

    rule: str
    threshold: float
    median: float
    sign: int


@dataclass(frozen=True)
class Ordinary:
    """The place in the windows as they are: its value, and the share of them that spike."""

    value: Average
    spikes: Average


@dataclass(frozen=True)
class TokenValue:
    id: int
    token: str
    value: float


@dataclass(frozen=True)
class Census:
    """Every token as the first one. mean, std and quantiles are of the whole vocabulary, so no interval is needed.

    left_out: embedding rows without a token. failing: the tokens that do not spike, smallest first; spiking: those that
    do, largest first; measure.LISTED at most. values: by token id, to 5 significant digits; None for embedding rows
    without a token.
    """

    tokens: int
    left_out: int
    mean: float
    std: float
    quantiles: dict[int | float, float]
    n_spiking: int
    n_failing: int
    below_1000: int
    failing: list[TokenValue]
    spiking: list[TokenValue]
    values: list[float | None]


@dataclass(frozen=True)
class Tried:
    """The tokens of what follows. of: which they are, in words; possible: how many there are, tokens: how many of these
    are tried; enumerated: whether all; pairs: of a token and a position."""

    of: str
    possible: int
    tokens: int
    enumerated: bool
    pairs: int


@dataclass(frozen=True)
class Outcome:
    """Of some tokens: their value, and the share of them that spike."""

    value: Average
    spikes: float


@dataclass(frozen=True)
class Elsewhere:
    """Tokens at a position. moved: behind text; repeated: behind themselves; there: behind text, with the embedding of
    position 0; at_0: alone, with the embedding of this one; these two are None where no embeddings are learned."""

    position: int
    tokens: int
    moved: Outcome
    repeated: Outcome
    there: Outcome | None = None
    at_0: Outcome | None = None


@dataclass(frozen=True)
class Bos:
    """BOS as the first token, and the `tokens` other ones: `first` has them all (BOS, too, if it is tried) as the first
    one, `behind` the others behind BOS; None where there are none."""

    id: int
    token: str
    value: float
    spikes: bool
    tokens: int
    first: Outcome
    behind: Outcome | None


@dataclass(frozen=True)
class Shares:
    """Over all positions; None where not measured. follows: spikes with the embedding of 0 and not with another. own,
    first: of the spiking windows, those whose token spikes as the first one, those whose place is at 0."""

    moved: Share
    repeated: Share
    there: Share | None = None
    at_0: Share | None = None
    follows: Share | None = None
    behind_bos: Share | None = None
    own: Share | None = None
    first: Share | None = None


@dataclass(frozen=True)
class Results:
    """spiking: how many of the windows spike as they are. elsewhere: by position. bos: None without a BOS token.
    not_alone: why a token behind itself may have other context than one alone; None: it has not."""

    place: FollowedPlace
    layer: int
    spike: Spike
    ordinary: Ordinary
    spiking: int
    census: Census
    tried: Tried
    elsewhere: list[Elsewhere]
    bos: Bos | None
    shares: Shares
    not_alone: str | None = None


@dataclass(frozen=True)
class Measured:
    """A manipulation; tells: what it tells apart."""

    label: str
    cell: Share | None
    tells: str


@dataclass(frozen=True)
class Prediction:
    """answer: whether what is measured is as predicted; None: cannot tell."""

    word: str
    answer: bool | None


@dataclass(frozen=True)
class Cause:
    """predictions: by manipulation, of those that are measured and of which it predicts something."""

    fits: bool | None
    predictions: dict[str, Prediction]


@dataclass(frozen=True)
class Values:
    """tokens: those that spike as the first one, where they are few. simplest_possible: the first cause that nothing
    refutes. note: the exception that a verdict makes of BOS; why: the verdict cannot be told. measured, causes: by
    name."""

    first_token_share: float
    moved: Share
    repeated: Share
    own: Share | None
    follows: Share | None
    tokens: list[str] | None
    simplest_possible: str | None
    note: str | None
    why: str | None
    measured: dict[str, Measured]
    causes: dict[str, Cause]


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
