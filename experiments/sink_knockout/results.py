"""What is stored of a model without the edge to the sink."""

from dataclasses import dataclass

from lib.core.evidence import Average, Conclusion
from lib.core.results import FollowedPlace
from lib.report.result_files import Result

IN_LAYER = "sink_layer_"
SINK, SINK_FIRST, SINK_SECOND = "sink_all", "sink_first_half", "sink_second_half"
RANDOM, RECENT, MIDDLE, EQUAL_MASS = CONTROLS = "random_all", "recent_all", "middle_all", "equal_mass_all"
ONLY_SINK = "only_sink_all"
VALUE_ZERO, RANDOM_VALUES = "value_zero_all", "random_values_all"
ITSELF, PREVIOUS, POSITION, TEXT = KEYS = "itself", "previous token", "position", "text"


def sink_at(layer: int) -> str:
    return f"{IN_LAYER}{layer}"


def random_values_at(layer: int) -> str:
    return f"random_values_layer_{layer}"


@dataclass(frozen=True)
class Moved:
    """A key that gains: the change of its mean probability, over later queries, windows and the heads of the changed
    layers; family95: among all keys of the condition.

    key: of KEYS. Neither a POSITION nor a TEXT counts while it is the query's own or the previous token; a TEXT counts
    where it is not the sink. token: of a TEXT; of a POSITION, if measure.COMMON of the windows have it there.
    """

    key: str
    position: int | None
    token: str | None
    gain: Average


@dataclass(frozen=True)
class Condition:
    """One change, paired with the model as it is.

    layers: that are changed. edges: removed a window, over heads and layers, mean. mass: the probability that these
    had, a mean over heads of the changed layers and the later queries that see the sink. beyond, of the controls:
    `loss_change` of SINK less this one's, paired. sink_rate_after: share of all heads over `Results.epsilon` at the
    sink's key, the queries that saw it counted before as after. moved_to: the largest gains. value: at the place, in
    its peak layer; retained: of the baseline's, ratio of sums over the windows that have the spike (Place.spiking),
    None if there is none.
    """

    label: str
    layers: list[int]
    edges: float
    mass: Average
    loss_change: Average
    beyond: Average | None
    sink_rate_after: Average
    moved_to: list[Moved]
    value: Average
    retained: Average | None


@dataclass(frozen=True)
class Baseline:
    """loss: in nats a token. sink_rate, value: as in Condition."""

    loss: Average
    sink_rate: Average
    value: Average


@dataclass(frozen=True)
class Results:
    """position, token: of the sink's key; the token, if measure.COMMON of the windows have it there. heads:
    [layer][head] mean probability on it, over the queries that see it; empty in layers without attention. left_out: why
    there are no conditions that set values."""

    position: int
    token: str | None
    epsilon: float
    place: FollowedPlace
    heads: list[list[Average]]
    baseline: Baseline
    conditions: dict[str, Condition]
    left_out: str | None = None

    @property
    def by_layer(self) -> dict[int, Condition]:
        """The sink's key masked in one layer alone."""
        names = {layer: sink_at(layer) for layer in range(len(self.heads))}
        return {layer: self.conditions[name] for layer, name in names.items() if name in self.conditions}

    @property
    def together(self) -> dict[str, Condition]:
        """All others, by name."""
        return {name: cell for name, cell in self.conditions.items() if not name.startswith(IN_LAYER)}


@dataclass(frozen=True)
class Values:
    """heads: how many have the sink; unclear: of how many of `of_all` it cannot be told. costs: of every condition by
    name, "costs", "free" or "cannot tell". moves_to: the largest gain where the sink's key is masked. why: the verdict
    cannot be told, or what it leaves open."""

    heads: int
    unclear: int
    of_all: int
    costs: dict[str, str]
    moves_to: Moved | None
    why: str | None


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
