"""What the ledger stores."""

from dataclasses import dataclass

from lib.core.evidence import Average, Conclusion
from lib.core.results import FollowedPlace, Head, LayerWrites, LedgerWrite, Profile, SumCheck
from lib.report.result_files import Result


@dataclass(frozen=True)
class LedgerCondition:
    label: str
    mlps_off: list[int]
    heads_off: list[Head]


@dataclass(frozen=True)
class Results:
    """place: of the model as it is; everything else is under `condition`.

    residual: per layer, the block output at the place. drop: the last block's output relative to that of the one
    before, along the sign there, over the windows that have the spike; None where there is nothing to drop.
    """

    condition: LedgerCondition
    place: FollowedPlace
    writes: list[LedgerWrite]
    layers: list[LayerWrites]
    residual: list[Average]
    profile: Profile
    drop: Average | None
    check: SumCheck


@dataclass(frozen=True)
class NamedWrite:
    layer: int | None
    kind: str
    head: int | None
    name: str
    value: float


@dataclass(frozen=True)
class Peak:
    layer: int
    value: float


@dataclass(frozen=True)
class Values:
    """plateau: first and last layer; None where nothing spikes."""

    birth: NamedWrite | None
    generators: list[NamedWrite]
    plateau: tuple[int, int] | None
    erasers: list[NamedWrite]
    cannot_tell: list[NamedWrite]
    peak: Peak


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
