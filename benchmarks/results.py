"""What the benchmark stores."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spread:
    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Row:
    """What is known of an entry; where there is an error, it says why and the rest may be missing.

    n_layers: of how many it measures something. times: seconds of a window, or of a regime's pass, one a round, and
    `seconds` their spread; none where it is not timed. ratio: to the bare forward's times.
    """

    name: str
    label: str
    tool: str
    gives: str
    n_layers: int | None
    times: list[float]
    peak_mib: float | None
    error: str | None
    seconds: Spread | None = None
    ratio: Spread | None = None


@dataclass(frozen=True)
class Regime:
    """Entries timed on a pass of `windows` windows of `tokens` tokens."""

    windows: int
    tokens: int
    entries: list[Row]

    def __str__(self) -> str:
        return f"{self.windows} x {self.tokens}"


@dataclass(frozen=True)
class Difference:
    """The largest relative one between two entries that measure the same."""

    relative: float
    between: tuple[str, str]


@dataclass(frozen=True)
class Judged:
    """A target. interval: (low, high) of the value. verdict: met, not met, cannot tell, or unknown and why."""

    text: str
    value: float | None
    interval: tuple[float, float] | None
    verdict: str


@dataclass(frozen=True)
class Load:
    """What else kept the machine busy in the minute before."""

    average: float
    cpus: int


@dataclass(frozen=True)
class Results:
    """differences: by what is measured. memory: which one `peak_mib` is of, "resident" or "GPU"."""

    rules: str
    load: Load
    entries: list[Row]
    differences: dict[str, Difference]
    targets: list[Judged]
    regimes: list[Regime] = field(default_factory=list)
    memory: str = "resident"
