"""What the head sweep stores: every head off or at its mean, one by one, and heads removed together."""

from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

from lib.core.evidence import Average, Cell, Conclusion, Interval, Perplexity
from lib.core.results import FirstTokens, FollowedPlace, Head
from lib.report.result_files import Result

Kind: TypeAlias = Literal["zero", "mean"]
KINDS: tuple[Kind, ...] = ("zero", "mean")
ValueEffect: TypeAlias = Literal["birth", "end", "last"]
VALUE_EFFECTS: tuple[ValueEffect, ...] = ("birth", "end", "last")
Effect: TypeAlias = Literal["birth", "end", "last", "sink_rate", "loss"]
Level: TypeAlias = Literal["birth", "end", "last", "sink_rate", "loss", "perplexity", "retained"]

T = TypeVar("T")


def kinds_of(effect: Effect) -> tuple[Kind, ...]:
    """In which an effect is measured."""
    return KINDS if effect in VALUE_EFFECTS else ("zero",)


@dataclass(frozen=True)
class Simultaneous(Cell):
    """family95: the interval that holds for all of a family together; None where none can be told."""

    family95: Interval | None

    @property
    def in_family(self) -> bool:
        return True

    @property
    def together(self) -> Interval | None:
        return self.family95


@dataclass(frozen=True)
class Change(Simultaneous):
    """A paired difference to the baseline, over windows; the family are all heads that can change it.

    relative: of a value at the place, along the spike's sign, to the baseline's (at the last layer: to that at the end
    of the plateau), as ratio of sums over the windows that have the spike; None if no window has it, and of what is no
    value.
    """

    relative: Simultaneous | None = None


@dataclass(frozen=True)
class ValueEffects(Generic[T]):
    """Of the value at the place after three layers: the plateau's first and last, and the model's last. None where
    causality forbids it."""

    birth: T | None
    end: T | None
    last: T

    def effect(self, name: Effect) -> T | None:
        """One by its name; None, too, if it is not measured."""
        return getattr(self, name, None)


@dataclass(frozen=True)
class AllEffects(ValueEffects[T]):
    """Of whole windows, too: sink rate, loss in nats a token."""

    sink_rate: T | None
    loss: T


@dataclass(frozen=True)
class SingleHead:
    """score: mean probability on the first token. write: what the head adds to the dim at the place, signed. zero,
    mean: what changes with the head's output at zero, or at its mean over all tokens, which is not run whole."""

    layer: int
    head: int
    score: float
    write: float
    zero: AllEffects[Change]
    mean: ValueEffects[Change]

    def changes(self, kind: Kind) -> ValueEffects[Change]:
        return self.zero if kind == "zero" else self.mean


@dataclass(frozen=True)
class SingleHeadsOfLayer:
    """Means over the heads of a layer. zero, mean: of |change|, over windows; the family are all layers that can change
    it."""

    layer: int
    score: float
    zero: AllEffects[Average]
    mean: ValueEffects[Average]

    def sizes(self, kind: Kind) -> ValueEffects[Average]:
        return self.zero if kind == "zero" else self.mean


@dataclass(frozen=True)
class Levels:
    """What one version of the model shows. retained: of the value at the end of the plateau, as ratio of sums along the
    spike's sign over the windows that have it; None if none has."""

    birth: Average
    end: Average
    last: Average
    sink_rate: Average
    loss: Average
    perplexity: Perplexity
    retained: Simultaneous | None

    def average(self, name: Effect) -> Average:
        return getattr(self, name)

    def level(self, name: Level) -> Cell:
        if name == "perplexity":
            return Cell(self.perplexity.value, self.perplexity.ci95)
        return getattr(self, name)


@dataclass(frozen=True)
class Step(Levels):
    """The first `removed` heads of an order off."""

    removed: int


@dataclass(frozen=True)
class Removal:
    """heads: in the order of their removal."""

    heads: list[Head]
    steps: list[Step]

    def levels(self, name: Level) -> list[Cell]:
        return [step.level(name) for step in self.steps]


@dataclass(frozen=True)
class Removals:
    """By score and by |write|, largest first; random: as many heads of each layer as by score, at each step."""

    score: Removal
    write: Removal
    random: list[Removal]


@dataclass(frozen=True)
class EffectOnModel:
    """note: which layer that is, or the unit. reach: the last layer whose heads can have it. impossible: why none after
    it can; None of the last layer."""

    name: str
    note: str | None
    reach: int
    impossible: str | None

    @property
    def label(self) -> str:
        return f"{self.name} ({self.note})" if self.note else self.name


@dataclass(frozen=True)
class Quarter:
    """layers: first and last. loss: |change of the loss|, mean over heads; the family are the quarters."""

    layers: tuple[int, int]
    loss: Average


@dataclass(frozen=True)
class Early:
    """Whether heads of early layers matter more: quarters of the layers, heads at zero.

    first_minus: what the first quarter has more than each other, paired, as a family; first_minus_from_2: the same with
    layers 0 and 1 left out of the first, None if it has no others.
    """

    quarters: list[Quarter]
    first_minus: list[Average]
    first_minus_from_2: list[Average] | None


@dataclass(frozen=True)
class Results:
    """shown: those of `effects` that differ. through_scores: None, or why attention scores cannot change the place.
    heads: every head, in order. layers: those with heads. early: None of fewer than four of these. first_tokens: of
    lib.core.first_tokens, with all heads off; None where the place is not position 0."""

    place: FollowedPlace
    effects: dict[Effect, EffectOnModel]
    shown: list[Effect]
    through_scores: str | None
    baseline: Levels
    heads: list[SingleHead]
    layers: list[SingleHeadsOfLayer]
    early: Early | None
    cumulative: Removals
    first_tokens: FirstTokens | None


class Move(NamedTuple):
    layer: int
    head: int
    does: Literal["lowers", "raises"]
    effect: ValueEffect


@dataclass(frozen=True)
class ByKind(Generic[T]):
    zero: T
    mean: T

    def kind(self, name: Kind) -> T:
        return self.zero if name == "zero" else self.mean


@dataclass(frozen=True)
class Correlation:
    """Spearman's over `heads`; None where there is none. within_layers: of the ranks in each layer, pooled; p: its
    two-sided, of heads shuffled within their layers."""

    rho: float | None
    within_layers: float | None
    p: float | None
    heads: int


@dataclass(frozen=True)
class Correlations:
    """Of score or |write| with the |change| of the value at the end of the plateau, or with the change of the loss."""

    score_place: Correlation
    write_place: Correlation
    score_loss: Correlation
    write_loss: Correlation


@dataclass(frozen=True)
class Values:
    """moves: heads that move the value. cannot_tell: heads of which it cannot be told at the plateau; cannot_tell_last:
    at the last layer. costs, gains, costs_cannot_tell: of the loss, heads at zero."""

    moves: ByKind[list[Move]]
    cannot_tell: ByKind[list[Head]]
    cannot_tell_last: ByKind[list[Head]]
    costs: list[Head]
    gains: list[Head]
    costs_cannot_tell: list[Head]
    correlations: Correlations


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
