"""What the results of more than one experiment hold, as dataclasses that a JSON is written from and read into.

No torch: whoever reads a stored result needs no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from lib.core.evidence import Average, Perplexity


class Head(NamedTuple):
    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"


class Expert(NamedTuple):
    """expert: None for the shared expert of the layer."""

    layer: int
    expert: int | None

    def __str__(self) -> str:
        return f"{self.layer}.{'shared' if self.expert is None else self.expert}"


@dataclass(frozen=True)
class HeadScore:
    """score: mean attention to the first token."""

    layer: int
    head: int
    score: float


@dataclass(frozen=True)
class FirstTokenLogits:
    """Of one head, means over the queries that see the first token, without the first query: logit on the first token,
    mean logit on the other visible keys, probability on the first token; None where there is no such query."""

    first: float | None
    others: float | None
    probability: float | None


@dataclass(frozen=True)
class TopPlace:
    """Where a top value sits most often: sequences says in how many."""

    position: int
    dim: int
    sign: str
    sequences: int


@dataclass(frozen=True)
class LayerAverages:
    """Of |block output|, over windows. ratio: of top1 to median; None where a median is 0. at: of top1, top2, top3."""

    layer: int
    top1: Average
    top2: Average
    top3: Average
    median: Average
    ratio: Average | None
    at: list[TopPlace]


@dataclass(frozen=True)
class MassiveActivation:
    """A (layer, position, dim) that passes the test in some sequence.

    value (signed) and ratio are means over the `sequences` in which it passes; token is the most frequent text at that
    position among them. ratio: None where a median is 0.
    """

    layer: int
    position: int
    token: str
    dim: int
    value: float
    ratio: float | None
    sequences: int


@dataclass(frozen=True)
class FollowedPlace:
    """A lib.core.place.Place.

    positions: {position: windows}. plateau: first and last layer. spiking: the share of the windows that have the
    spike. values: of each layer, over all windows. first_tokens: how many different tokens the windows have at position
    0, where a value depends on that token alone; None if some window is followed elsewhere.
    """

    rule: str
    definition: str
    dim: int
    positions: dict[int, int]
    token: str
    massive: bool
    peak_layer: int
    sign: int
    plateau: tuple[int, int]
    spiking: Average
    values: list[Average]
    first_tokens: int | None


@dataclass(frozen=True)
class FirstTokens:
    """One dim after one layer with a part off, exactly, over the `tokens` different first tokens of the text.

    share: of the text's tokens, how many have the spike; of these, value and ablated are means, retained and
    absolute_change ratios of sums (along the baseline's sign), still_massive the share that is massive with the part
    off (None where there is no median to compare with), shares the shares whose own ratio is each of
    definitions.FATES.
    """

    dim: int
    layer: int
    tokens: int
    share: float
    value: float
    ablated: float
    retained: float
    absolute_change: float
    still_massive: float | None
    shares: dict[str, float]


@dataclass(frozen=True)
class LayerOfCondition(LayerAverages):
    """dims: of each followed dim, the signed value at the position where it peaks in the baseline."""

    dims: dict[int, Average]


@dataclass(frozen=True)
class LayerChanges:
    """Paired differences, ablated - baseline."""

    layer: int
    top1: Average
    top2: Average
    top3: Average
    median: Average
    dims: dict[int, Average]


@dataclass(frozen=True)
class AblatedCondition:
    """What a model with parts off shows.

    sink_rate: of all heads; one that is off writes nothing and still looks somewhere. sink_rate_change: paired; None of
    the baseline. massive_positions: how many a sequence. experts_off: layers whose experts are all off, if there are
    any.
    """

    label: str
    heads_off: list[Head]
    mlps_off: list[int]
    layers: list[LayerOfCondition]
    perplexity: Perplexity
    sink_rate: Average
    sink_rate_change: Average | None
    massive_positions: Average
    experts_off: list[int] | UnsetType = field(default=UNSET, kw_only=True)


@dataclass(frozen=True)
class AblatedPlace:
    """What is left of a lib.core.measurements.Spike after its `layer`; see Spike.compared."""

    position: str
    dim: int
    token: str
    windows: int
    share: Average
    layer: int
    value: Average
    ablated: Average
    size_baseline: Average
    size_ablated: Average
    retained: Average
    absolute_change: Average
    massive: Average
    still_massive: Average


SHARED_EXPERT = "shared"


class OfExpert(NamedTuple):
    """A neuron of one expert of a mixture, or of SHARED_EXPERT."""

    expert: int | str
    neuron: int

    def __str__(self) -> str:
        return f"{self.expert}.{self.neuron}"


NeuronName = int | OfExpert  # the number alone in a dense MLP


@dataclass(frozen=True)
class Neuron:
    """contribution: activation x weight to the dim; share: of the MLP's output there, None where that is 0.

    Of a mixture, expert: that of OfExpert; activation: routing weight x activation.
    """

    neuron: int
    activation: float
    weight: float
    contribution: float
    share: float | None
    expert: int | str | UnsetType = field(default=UNSET, kw_only=True)

    @property
    def name(self) -> NeuronName:
        return self.neuron if self.expert is UNSET else OfExpert(self.expert, self.neuron)


@dataclass(frozen=True)
class ReachedExpert:
    """windows: in how many the followed place is sent to it; weight: its mean routing weight in these."""

    expert: int
    windows: int
    weight: float


@dataclass(frozen=True)
class Mixture:
    """A layer's experts, each of `width` neurons; `shared` neurons of the shared expert, `neurons` of all. reached: the
    experts that the followed place is sent to, the most weight first."""

    experts: int
    width: int
    shared: int
    neurons: int
    reached: list[ReachedExpert]


@dataclass(frozen=True)
class ContributionCheck:
    """The contributions of all neurons and the bias beside the MLP's output; no relative error where that is 0."""

    sum: float
    bias: float
    output: float
    relative_error: float | None


def smallest_set(contributions: Sequence[Neuron], output: float, share: float) -> int | None:
    """How many of `contributions`, in their order, give `share` of `output`; None if all do not reach it."""
    total = 0.0
    for count, row in enumerate(contributions, 1):
        total += row.contribution
        if output and total / output >= share:
            return count
    return None


OF_MLP = "mlp", "expert", "shared expert"  # kinds of writes


@dataclass(frozen=True)
class LedgerWrite:
    """A lib.core.attribution.Write, over the windows that have the spike (over all, if none has).

    head: a head's number in its layer, or an expert's. average: signed; value: its mean. share: of the block output at
    the peak, along its sign, as ratio of sums, with simultaneous intervals over all components.
    """

    layer: int | None
    kind: str
    head: int | None
    name: str
    value: float
    average: Average
    share: Average

    @property
    def of_head(self) -> Head | None:
        if self.kind != "head" or self.layer is None or self.head is None:
            return None
        return Head(self.layer, self.head)

    @property
    def component(self) -> str:
        """As in "mlp" and "head 8"."""
        return self.kind if self.head is None else f"{self.kind} {self.head}"

    @property
    def order(self) -> int:
        """The layer; -1 for embeddings."""
        return -1 if self.layer is None else self.layer


@dataclass(frozen=True)
class LayerWrites:
    """Averages of the sum of a layer's heads, of its attention bias, of its MLP (None without one) and of what else
    writes in it."""

    layer: int
    heads: Average | None
    attention_bias: Average | None
    mlp: Average | None
    other: Average | UnsetType = UNSET


@dataclass(frozen=True)
class Profile:
    """The share of the windows that have the spike, and of these the mean |block output| of each layer, the layer of
    its peak and the sign there, and the first and last layer of its plateau, as of a lib.core.place.Place."""

    spiking: Average
    size: list[float]
    peak: int
    sign: int
    plateau: tuple[int, int]


@dataclass(frozen=True)
class SumCheck:
    """The sum of all writes beside the last block's output, means over windows, and the error of `definition`."""

    sum: float
    residual: float
    relative_error: float
    tolerance: float
    definition: str
