"""What experiment 4 stores: the smallest set of neurons, alone and removed, beside random sets; what each reads."""

from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from lib.core.evidence import Average, Conclusion, Perplexity
from lib.core.results import ContributionCheck, FollowedPlace, Mixture, Neuron, NeuronName, OfExpert
from lib.report.result_files import Result


@dataclass(frozen=True)
class MeasuredWindows:
    """How many there are, the share in which the place is massive at `layer`, and how many are run whole."""

    all: int
    massive: Average
    whole: int


@dataclass(frozen=True)
class Written:
    """The block output at the place, what the MLP adds to it, and their ratio; None where it is massive nowhere."""

    block_output: Average
    mlp: Average
    share: Average | None


@dataclass(frozen=True)
class Carried:
    """The share of the down projection's output that the set gives, and the set without its last neuron."""

    set: Average
    without_its_last: Average


@dataclass(frozen=True)
class NeuronsRun:
    """One run: value and share of the baseline's at `layer`, end_value and end_share at `end_layer`.

    Values are over the windows in which the place is massive at `layer` (over all, if it is in none). Shares are sums
    over sums of those in which it is massive at their layer, along the baseline's sign; None where there is none.
    perplexity, loss_change, sink_rate, sink_rate_change: of whole windows; None of a run without them.
    """

    label: str
    value: Average
    share: Average | None
    end_value: Average
    end_share: Average | None
    perplexity: Perplexity | None = None
    loss_change: Average | None = None
    sink_rate: Average | None = None
    sink_rate_change: Average | None = None


@dataclass(frozen=True)
class Runs:
    baseline: NeuronsRun
    keep_only: NeuronsRun
    remove_only: NeuronsRun


@dataclass(frozen=True)
class RandomSet:
    """activity: mean |activation| of its neurons at the place; in a mixture of routing weight x activation."""

    neurons: list[NeuronName]
    activity: float
    keep_only: NeuronsRun
    remove_only: NeuronsRun


@dataclass(frozen=True)
class Null:
    """Random sets of the same size, drawn by `rule`.

    activity_of_set: as RandomSet's; None where there is no set. possible: how many sets there are, where the set is a
    single neuron; None of more. enumerated: whether these are all.
    """

    rule: str
    activity_of_set: float | None
    possible: int | None
    enumerated: bool
    draws: list[RandomSet]

    @property
    def shares(self) -> tuple[list[Average], list[Average]]:
        """What each keeps alone, and what is left without it; nothing where the place is not massive."""
        alone = [draw.keep_only.share for draw in self.draws if draw.keep_only.share]
        return alone, [draw.remove_only.share for draw in self.draws if draw.remove_only.share]


@dataclass(frozen=True)
class Input:
    """One dim that a neuron reads. share: of the pre-activation, None where that is 0."""

    dim: int
    residual: float
    normed: float
    weight: float
    contribution: float
    share: float | None


@dataclass(frozen=True)
class Projection:
    """Where a pre-activation comes from: the sum over all dims, which with the bias is the pre-activation.

    relative_error: None where the pre-activation is 0. dims_to_half: how many dims, the largest contributions along its
    sign first, give half of it; None where all do not. inputs: the dims with the largest |normed value x weight|.
    """

    pre_activation: float
    sum: float
    bias: float
    relative_error: float | None
    dims_to_half: int | None
    inputs: list[Input]


@dataclass(frozen=True)
class ReadingNeuron:
    """projections: by role, "up", and "gate" where the MLP is gated; expert: as Neuron's."""

    neuron: int
    projections: dict[str, Projection]
    expert: int | str | UnsetType = field(default=UNSET, kw_only=True)

    @property
    def name(self) -> NeuronName:
        return self.neuron if self.expert is UNSET else OfExpert(self.expert, self.neuron)


@dataclass(frozen=True)
class Reads:
    """norm: the class of that before the MLP; None without one. dims: of the residual stream."""

    norm: str | None
    dims: int
    neurons: list[ReadingNeuron]


@dataclass(frozen=True)
class Scaled:
    """One scalar of the down projection, [dim, neuron], that counts `factor` times, in every position.

    value, share: as in NeuronsRun, of the windows that are run whole. loss_change: in nats a token, and
    sink_rate_change: paired with the model as it is.
    """

    dim: int
    neuron: int
    weight: float
    factor: float
    value: Average
    share: Average | None
    loss_change: Average
    sink_rate_change: Average


@dataclass(frozen=True)
class SuperWeight:
    """The scalar from a neuron of the set to the followed dim.

    doses: in order of their factors, 0 first. random: others, of those nearest in size, zeroed.
    """

    neuron: int
    weight: float
    doses: list[Scaled]
    random: list[Scaled]


@dataclass(frozen=True)
class Results:
    """windows: what follows is of those in which the place is massive at `layer`, or of all if there is none.

    carried: None of no neuron. cumulative: the share of the down projection's output by the first 1, 2, ... neurons,
    None where that is 0. keep_only_share, remove_share: of the baseline's value at `layer`; None where it is not
    massive. reads: the inputs of the first neurons of the set. mixture: where the MLP is one; there are no
    super_weights then.
    """

    place: FollowedPlace
    layer: int
    end_layer: int
    width: int
    windows: MeasuredWindows
    written: Written
    minimal_set: list[Neuron]
    carried: Carried | None
    cumulative: list[float | None]
    contribution_check: ContributionCheck
    runs: Runs
    keep_only_share: Average | None
    remove_share: Average | None
    null: Null
    reads: Reads
    mixture: Mixture | UnsetType = UNSET
    super_weights: list[SuperWeight] | UnsetType = UNSET


@dataclass(frozen=True)
class Values:
    """share: of the output, that the set must give. neurons: the first of the set. note: what the verdict alone would
    hide. why: of what cannot be told. confirmed: by the runs; None where that is not asked or cannot be told.
    super_weights: by neuron, whether the scalar from it is one: yes, no or cannot tell.
    """

    share: float
    layer: int
    neurons: list[NeuronName]
    written_share: Average | None
    note: str | None
    why: str | None
    confirmed: bool | None
    super_weights: dict[int, str] | UnsetType = UNSET


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
