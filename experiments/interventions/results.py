"""What experiment 5 and a single intervention store."""

from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from lib.core.evidence import Average, Conclusion, Perplexity
from lib.core.results import FollowedPlace, Neuron, NeuronName
from lib.report.result_files import Result

LAYER, ONWARD = "layer", "onward"  # where values are set by hand: after that layer, after it and all later ones
THERE, EVERYWHERE = "there", "everywhere"  # where a writer is off: at the sites, at all positions
NEURONS_OFF, MLP_OFF, PUT_BACK = "neurons off", "mlp off", "put back"
ZERO, MEAN, MEDIAN, ORDINARY, RESAMPLED = "zero", "mean", "median", "ordinary", "resampled"
SAME = "it is one beforehand: all windows begin with the same token, on which alone it depends"


@dataclass(frozen=True)
class ChangedPair:
    """A position ("first", "later") and a dim.

    value: mean at the layer, in the measured windows. means, ordinary: what MEAN and ORDINARY put, (layers from the
    layer on,). sites, massive: at how many measured sites it is changed, and massive; estimation_sites: from how many
    it is estimated. positions: {position: measured sites}.
    """

    position: str
    dim: int
    value: float
    means: list[float]
    ordinary: list[float]
    sites: int
    massive: int
    estimation_sites: int
    positions: dict[int, int]


@dataclass(frozen=True)
class ChangedSites:
    """What is changed, by `rule`.

    estimation_windows, windows: how many estimate, and how many are measured. spiking: the share of the windows that
    could be measured that have a site. left_alone: what is massive there and not changed. dims: the largest first.
    medians: (layers from the layer on,) of |block output|; None where nothing is changed. mask_sha256: of the file of
    --mask, if what it names is changed.
    """

    rule: str
    definition: str
    estimation_windows: int
    windows: int
    spiking: Average
    left_alone: int
    dims: list[ChangedPair]
    medians: list[float] | None
    mask_sha256: str | UnsetType = UNSET


@dataclass(frozen=True)
class WritingNeuron(Neuron):
    """A neuron of the MLP of `layer`. contribution: what it writes into the dim, behind a norm its part of what that
    gives; share: of the block output at the place."""

    layer: int = field(kw_only=True)


@dataclass(frozen=True)
class Writers:
    """share: of the block output at the place that the MLPs up to the layer write; None where the place is not massive
    there. neurons: those that give it, by `rule`; left_out: why there are none."""

    rule: str
    share: Average | None
    neurons: list[WritingNeuron]
    left_out: str | None

    @property
    def by_layer(self) -> dict[int, list[NeuronName]]:
        """{layer: neurons of its MLP}, in the order of the layers."""
        layers = sorted({neuron.layer for neuron in self.neurons})
        return {layer: [neuron.name for neuron in self.neurons if neuron.layer == layer] for layer in layers}


@dataclass(frozen=True)
class ComesBack:
    """share: what is left of the value after `layer`."""

    layer: int
    share: Average


@dataclass(frozen=True, kw_only=True)
class Condition:
    """The model as it is, or a Change, in the measured windows.

    sink_rates: by epsilon, of all heads. values: signed, at the place, by layer. All else is None of the baseline.
    """

    label: str
    question: str | None = None
    set_to: str | None = None
    factor: float | None = None
    where: str | None = None
    perplexity: Perplexity
    sink_rates: dict[float, Average]
    values: list[Average]
    loss_change: Average | None = None
    sink_rate_changes: dict[float, Average] | None = None
    left: Average | None = None
    comes_back: ComesBack | None = None
    recovered: Average | None = None


@dataclass(frozen=True, kw_only=True)
class Change(Condition):
    """A Condition that is not the baseline.

    set_to: what the value is set to, or what is off. factor: times what the model has, if it is set to that. where:
    LAYER, ONWARD, THERE or EVERYWHERE. loss_change, sink_rate_changes: paired, changed - baseline. left: the share of
    the baseline's value at the place in the output of the layer, ratio of sums over the windows in which it is massive
    there; None if there is none. comes_back: the same at the end of the plateau; None if that is not later, or if the
    layers up to it are held. recovered, of PUT_BACK: by how much its loss is below that of the same writer off alone,
    paired.
    """

    question: str
    set_to: str
    where: str
    loss_change: Average
    sink_rate_changes: dict[float, Average]

    @property
    def held(self) -> bool:
        """Whether values are set by hand and no writer is off."""
        return self.where in (LAYER, ONWARD)


@dataclass(frozen=True)
class Results:
    """place: on all windows. sites: what is changed, and what takes its place. mlp: None where no neurons are asked
    for. conditions: by name, the baseline first."""

    place: FollowedPlace
    layer: int
    epsilons: list[float]
    sites: ChangedSites
    mlp: Writers | None
    conditions: dict[str, Condition]

    @property
    def baseline(self) -> Condition:
        return self.conditions["baseline"]

    @property
    def changes(self) -> dict[str, Change]:
        """By name, all but the baseline."""
        changed = {name: condition for name, condition in self.conditions.items() if condition.set_to is not None}
        return {name: Change(**vars(condition)) for name, condition in changed.items()}

    @property
    def put_back(self) -> Change | None:
        return next((change for change in self.changes.values() if change.set_to == PUT_BACK), None)


@dataclass(frozen=True)
class Counterfactual:
    """The condition that the verdict rests on: what it costs, and left and comes_back as in Change. sink_rate_change:
    by `epsilon`."""

    condition: str
    cost: str
    loss_change: Average
    sink_rate_change: Average
    epsilon: float
    left: Average | None
    comes_back: Average | None


@dataclass(frozen=True)
class HeldLosses:
    """Changes of the loss, by what the value is set to."""

    zero: Average
    mean: Average
    ordinary: Average
    resampled: Average


@dataclass(frozen=True)
class Values:
    """layer, onward: set at the layer, or from it on. costs: of every change by name, "costs", "free" or "cannot tell".
    why: the verdict cannot be told, or what of it was certain beforehand; else None."""

    counterfactual: Counterfactual
    layer: HeldLosses
    onward: HeldLosses
    costs: dict[str, str]
    why: str | None

    @property
    def note(self) -> str | None:
        """What the verdict alone would hide."""
        return SAME if self.why == SAME else None


@dataclass(frozen=True)
class SingleValues:
    """costs: as in Values, of the one change."""

    loss_change: Average
    costs: dict[str, str]


Verdict = Conclusion[Values | None]  # no values where nothing is massive
SingleVerdict = Conclusion[SingleValues | None]
Stored = Result[Results, Verdict]
SingleStored = Result[Results, SingleVerdict]
