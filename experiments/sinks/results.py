"""What is stored of where attention goes."""

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from lib.core.evidence import Average, Conclusion
from lib.report.result_files import Result

INPUTS = NATURAL, RANDOM, REPEATED = "natural", "random", "repeated"


@dataclass(frozen=True)
class Key:
    """A sink by content: the first key, or a token at later ones.

    position: of a later token, where it is a sink most often. token: the most frequent. times: how often it is one;
    massive: how often with a massive activation. heads: mean number of heads that have it. layers: how many layers
    these are of; shares: of each layer's heads, mean share; 0 in layers without attention.
    """

    position: int
    token: str
    times: int
    massive: int
    heads: float
    layers: int
    shares: list[float]


@dataclass(frozen=True)
class Input:
    """Of one kind of input in windows of one length.

    sink_rate: of each key, share of all heads whose mean on it exceeds `Results.epsilon`; sink_rates: of the first key,
    by epsilon. by_layer: [layer][key] the share of each layer's heads, empty in layers without attention. elsewhere:
    share of all heads that list a later key. keys: the first one and measure.LISTED others, of n_keys in all.
    secondary: how many secondary sinks a window has; n_secondary: how many different ones there are. alike: how many
    later tokens become like the first one, whether or not they are sinks; later: how many are sinks, whether or not
    they do; majority: of these, those that do less those that do not. Unset in older results, in which `secondary` is
    what `alike` is now.
    """

    windows: int
    sink_rate: list[Average]
    sink_rates: dict[float, Average]
    by_layer: list[list[float]]
    elsewhere: Average
    keys: list[Key]
    n_keys: int
    secondary: Average
    n_secondary: int
    alike: Average | UnsetType = UNSET
    later: Average | UnsetType = UNSET
    majority: Average | UnsetType = UNSET


@dataclass(frozen=True)
class Head:
    """Of the first key. probability: over all queries; all else over the later ones that see it, None where it is not
    known.

    value_ratio: its value's norm to the mean of other keys', as ratio of sums; output_share: what it gives of the
    head's output, along the output, as ratio of sums. cosine, cosine_others: of queries with its key, and with the
    other keys that they see. query, key, key_others, value, value_others: mean norms. kind: of judge.KINDS, cannot
    tell, or None where it has no sink there; for others to read, while `judge` looks anew.
    """

    probability: Average
    value_ratio: Average | None = None
    output_share: Average | None = None
    cosine: Average | None = None
    cosine_others: Average | None = None
    query: float | None = None
    key: float | None = None
    key_others: float | None = None
    value: float | None = None
    value_others: float | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Secondary:
    """A later token that is a sink while it is like the first one. position: where it is so most often. first_layer,
    layers: of its longest run of layers. times: how often."""

    input: str
    position: int
    token: str
    first_layer: int
    layers: int
    times: int


@dataclass(frozen=True)
class Between:
    """In so many windows the first token's norm has its largest rise in layer `first`, and from `last` to the next one
    its largest fall after that."""

    input: str
    first: int
    last: int
    windows: int


@dataclass(frozen=True)
class Results:
    """inputs: in windows of `seqlen` tokens; lengths: in further ones, by their length. heads: [layer][head], of the
    first of the inputs. secondary: measure.LISTED of each of the inputs, the most frequent first.

    least: over how many later queries, at least, a listed key takes its mean. learned_scores, learned_sink_rate: of the
    probability on a learned sink, in models that have one; of the first of the inputs.
    """

    epsilon: float
    least: int
    seqlen: int
    inputs: dict[str, Input]
    heads: list[list[Head]]
    secondary: list[Secondary]
    between: list[Between]
    lengths: dict[int, dict[str, Input]] | UnsetType = UNSET
    learned_scores: list[list[Average]] | UnsetType = UNSET
    learned_sink_rate: Average | UnsetType = UNSET

    @property
    def first_input(self) -> str:
        return next(iter(self.inputs))

    @property
    def n_listed(self) -> int:
        """Keys that may be listed: later ones have too few queries."""
        return max(1, self.seqlen - self.least)


@dataclass(frozen=True)
class SinkHead:
    """probability: mean, on the first key. kind: of judge.KINDS, or cannot tell."""

    layer: int
    head: int
    probability: float
    kind: str


@dataclass(frozen=True)
class Values:
    """sinks: the heads that have their sink at the first key; unclear: of how many it cannot be told. kinds: how many
    of `sinks` are of each kind."""

    where: str
    kind: str | None
    sinks: list[SinkHead]
    unclear: int
    kinds: dict[str, int]


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
