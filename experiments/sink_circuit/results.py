"""What is stored of the parameters behind the sink."""

from dataclasses import dataclass

from lib.core.evidence import Average, Conclusion
from lib.report.result_files import Result

QUERY_BIAS, FIRST_POSITION, EPES, RAW = "query_bias", "first_position", "epes_swapped", "raw_swapped"
FIRST_TOKEN, MLPS, POSITIONS, KEY_COLUMNS = "first_token", "mlps", "positions", "key_columns"
CANDIDATES = QUERY_BIAS, FIRST_POSITION, FIRST_TOKEN


@dataclass(frozen=True)
class Measured:
    """The model with a change. attention: as in Baseline; change, loss_change: changed - baseline, paired. left: of the
    baseline's attention, ratio of sums; with a simultaneous interval in CANDIDATES and their controls."""

    label: str
    attention: Average
    change: Average
    left: Average
    loss_change: Average


@dataclass(frozen=True)
class Edit:
    """A change of one part, and a control that changes as much elsewhere. Where the part is not there, only `why`."""

    label: str
    there: bool
    why: str | None = None
    attention: Average | None = None
    change: Average | None = None
    left: Average | None = None
    loss_change: Average | None = None
    control: Measured | None = None


@dataclass(frozen=True)
class Dose:
    """The model with something times `factor`; fields as in Measured."""

    factor: float
    attention: Average
    loss_change: Average


@dataclass(frozen=True)
class Logits:
    """Mean logits of one layer's heads at key 0 and at the other keys that a query of the second half sees.

    bias, bias_others: what the query bias gives of them; content, content_others: all else, position biases included.
    None where it is not told apart.
    """

    layer: int
    content: Average
    content_others: Average
    bias: Average | None
    bias_others: Average | None


@dataclass(frozen=True)
class Baseline:
    """attention: mean probability on position 0 from the queries of the second half that see it, over the heads of
    Results.layers. evenly: if each attended evenly to all keys before it. loss: nats a token."""

    attention: Average
    evenly: float
    loss: Average


@dataclass(frozen=True)
class Results:
    """layers: whose heads count. edits: by name. doses: by edit, in the order of the factors, 1 being the baseline; of
    what is not there none. logits: of every layer with attention; why_no_bias: why the query bias has no part in them.
    dims: the largest of position 0's embedding as block 0's MLP makes it; random_dims: those of the control.
    control_positions: the two whose embeddings controls change."""

    layers: list[int]
    baseline: Baseline
    edits: dict[str, Edit]
    doses: dict[str, list[Dose]]
    logits: list[Logits]
    why_no_bias: str | None
    dims: list[int] | None
    random_dims: list[int] | None
    control_positions: tuple[int, int]


@dataclass(frozen=True)
class Values:
    """Of CANDIDATES, those that carry the sink, those of which it cannot be told, and those that are not there."""

    carriers: list[str]
    open: list[str]
    absent: list[str]


Verdict = Conclusion[Values]
Stored = Result[Results, Verdict]
