"""What experiment 2B stores: every layer's MLP and attention block off, kept, and off from either end."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from lib.core.evidence import Average, Cell, Conclusion, Perplexity
from lib.core.results import FirstTokens, FollowedPlace
from lib.report.result_files import Result

Kind = Literal["mlp", "attention"]
Run = Literal["alone", "only", "only_with_first", "from_front", "from_back"]
Word = Literal["necessary", "sufficient", "redundant", "repaired"]


@dataclass(frozen=True)
class SweptWindows:
    """How many there are, the share of them that has the spike, and how many are run whole."""

    all: int
    spiking: Average
    whole: int


@dataclass(frozen=True)
class Baseline:
    """The model as it is. value: at the place, at the end of the plateau; values: means at every layer."""

    value: Average
    values: list[float]
    perplexity: Perplexity
    sink_rate: Average


@dataclass(frozen=True)
class Swept(Baseline):
    """A model with parts off. retained: None where the baseline's values are all 0. Changes are paired."""

    retained: Average | None
    loss_change: Average
    sink_rate_change: Average


@dataclass(frozen=True)
class Rebuilt:
    """A massive activation that the baseline does not have."""

    layer: int
    position: int
    token: str
    dim: int
    value: float


@dataclass(frozen=True)
class Elsewhere:
    """share: of the windows that have the spike, those with a massive activation off the place, at a (position, dim)
    where the baseline has none in that layer. largest: None if there is none."""

    share: Average
    largest: Rebuilt | None


@dataclass(frozen=True)
class Repair:
    """What is made good of a removed write. frozen: the baseline without it; free: the ablated run. elsewhere: None
    where no window that is run whole has the spike."""

    frozen: Average
    free: Average
    ratio: Average
    elsewhere: Elsewhere | None


@dataclass(frozen=True, kw_only=True)
class SweptLayer:
    """One layer's MLP or attention block: off alone, kept alone, kept with MLP 0 (of MLPs), off with all before it, off
    with all after it; None where that would leave nothing off.

    write: what it adds to the place. repair: None where that is too little, or after the plateau.
    """

    layer: int
    alone: Swept
    only: Swept | None = None
    only_with_first: Swept | None = None
    from_front: Swept
    from_back: Swept
    write: Average
    repair: Repair | None

    @property
    def runs(self) -> dict[Run, Swept]:
        """Those there are."""
        runs: dict[Run, Swept | None] = {
            "alone": self.alone,
            "only": self.only,
            "only_with_first": self.only_with_first,
            "from_front": self.from_front,
            "from_back": self.from_back,
        }
        return {name: run for name, run in runs.items() if run is not None}


@dataclass(frozen=True)
class Results:
    """kinds: "mlp" and "attention", of each every layer. first_tokens: of each kind, with all of it off; None where the
    place is not position 0 of every window. mixers: layers without attention, in which what mixes tokens in its place
    is off instead. never_off: what else writes into the residual stream. None: nothing."""

    place: FollowedPlace
    windows: SweptWindows
    baseline: Baseline
    kinds: dict[Kind, list[SweptLayer]]
    first_tokens: dict[Kind, FirstTokens] | None
    mixers: list[int] | None = None
    never_off: list[str] | None = None


class Part(NamedTuple):
    kind: Kind
    layer: int


class OpenPart(NamedTuple):
    """A part of which the word cannot be told."""

    word: Word
    kind: Kind
    layer: int

    @property
    def part(self) -> Part:
        return Part(self.kind, self.layer)


@dataclass(frozen=True)
class Values:
    """with_first: those of `sufficient` that are so with MLP 0 kept alone. all_off: what is retained with all of a kind
    off, exactly where first_tokens has it."""

    necessary: list[Part]
    sufficient: list[Part]
    redundant: list[Part]
    repaired: list[Part]
    with_first: list[Part]
    cannot_tell: list[OpenPart]
    all_off: dict[Kind, Cell | None]

    @property
    def words(self) -> dict[Word, list[Part]]:
        return {
            "necessary": self.necessary,
            "sufficient": self.sufficient,
            "redundant": self.redundant,
            "repaired": self.repaired,
        }


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
