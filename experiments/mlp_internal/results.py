"""What the inside of one MLP stores."""

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from lib.core.evidence import Average, Conclusion, Perplexity
from lib.core.results import ContributionCheck, Mixture, Neuron, NeuronName
from lib.report.result_files import Result


@dataclass(frozen=True)
class Largest:
    """Where a checkpoint's largest |value| is. value: signed."""

    sequence: int
    position: int
    token: str
    index: int
    value: float


@dataclass(frozen=True)
class Checkpoint:
    """Maximum of |value| over all tokens of all windows, and the mean of the windows' medians.

    ratio: of both; None where the median is 0, as after a ReLU.
    """

    name: str
    label: str
    width: int
    max: float
    at: Largest
    median: float
    ratio: float | None


@dataclass(frozen=True)
class FollowedValue:
    """The followed dim at one checkpoint of its width, signed."""

    name: str
    label: str
    value: Average


@dataclass(frozen=True)
class Followed:
    """The followed dim, and `sequences` of the `of` windows in which it is.

    positions: {position: windows}. neuron_checkpoints: the names of those with one value a neuron.
    """

    dim: int
    positions: dict[int, int]
    sequences: int
    of: int
    activation_function: str
    neuron_checkpoints: list[str]
    values: list[FollowedValue]


@dataclass(frozen=True)
class NeuronInside(Neuron):
    """With its mean at each of followed.neuron_checkpoints; None at those that the MLP does not have."""

    gate: float | None = None
    up: float | None = None
    product: float | None = None
    after_linear1: float | None = None
    after_activation: float | None = None


@dataclass(frozen=True)
class HeavyNeuron(Neuron):
    """rank_by_contribution: from 1."""

    rank_by_contribution: int


@dataclass(frozen=True)
class Replaced:
    """The followed place and the perplexity with one activation function in this layer.

    mlp_output_change: paired, relative to the mean with the model's own function; None where that is 0. loss_change:
    paired.
    """

    label: str
    mlp_output: Average
    block_output: Average
    mlp_output_change: Average | None
    perplexity: Perplexity
    loss_change: Average


@dataclass(frozen=True)
class Results:
    """contributions: every neuron's mean activation (the input of the down projection) x weight, the largest along the
    output's sign first. largest_activation: in each window of any neuron there, in parts of the MLP's output, a ratio
    of sums; None where that output is 0. neurons: the first of the contributions. by_weight: the largest weights alone,
    for contrast. replaced: by activation function, "actual" (the model's own), "identity" and "relu"; "actual" alone
    where it cannot be replaced. mixture: where the MLP is one; contributions are then of the experts that are reached.
    """

    layer: int
    checkpoints: list[Checkpoint]
    followed: Followed
    contributions: list[Neuron]
    contribution_check: ContributionCheck
    largest_activation: Average | None
    neurons: list[NeuronInside]
    by_weight: list[HeavyNeuron]
    replaced: dict[str, Replaced]
    mixture: Mixture | UnsetType = UNSET

    @property
    def width(self) -> int:
        """How many neurons the MLP has."""
        return len(self.contributions) if self.mixture is UNSET else self.mixture.neurons


@dataclass(frozen=True)
class Values:
    """The first neurons of the smallest set; none if there is no such set."""

    neurons: list[NeuronName]


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
