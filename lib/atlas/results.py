"""What the atlas stores: of each model a row, of each claim what the models say to it together."""

from dataclasses import dataclass

from lib.core.evidence import Cell


@dataclass(frozen=True)
class Said:
    """A verdict, and the number nearest to the threshold that it hangs on; what: of which quantity. None where there is
    none."""

    verdict: str
    number: Cell | None = None
    what: str | None = None


@dataclass(frozen=True)
class Mechanism:
    """Of the followed place, None where there is no result that says it.

    found: whether anything is massive there. peak: signed, in layer peak_layer; ratio: the largest top-1 / median of
    all layers. verdict: of experiment 3, where no component is sure to be the birth. depth: the share of the blocks
    that have run when it is born. neurons: of the MLP that gives birth, as experiment 4 names them, or 2C. left: of the
    value without any head, without any MLP. share: of the peak, that the birth writes, with its simultaneous interval.
    cost, put_back: nats a token without what writes it, and with its mean put back then. cosine: of the direction that
    the weights alone forecast with the normed stream at the place.
    """

    n_layers: int | None = None
    found: bool | None = None
    dim: int | None = None
    position: int | None = None
    token: str | None = None
    peak: Cell | None = None
    peak_layer: int | None = None
    ratio: float | None = None
    birth: str | None = None
    verdict: str | None = None
    depth: float | None = None
    generators: list[str] | None = None
    plateau: tuple[int, int] | None = None
    erasers: list[str] | None = None
    neurons: list[str] | None = None
    left_without_heads: Cell | None = None
    left_without_mlps: Cell | None = None
    share: Cell | None = None
    cost: Cell | None = None
    put_back: Cell | None = None
    sink_rate: Cell | None = None
    cosine: Cell | None = None


@dataclass(frozen=True)
class Curve:
    """Means over windows, by layer; of the ratio None where a median is 0."""

    top1: list[float]
    ratio: list[float | None]


@dataclass(frozen=True)
class Row:
    """A model. described: its weights and dtype; data: of the result of most tokens. said: what matters most, in the
    sentences of its page. verdicts: {experiment: its own}; notes: what these alone would hide; claims: {row of the
    claims list: what is said to it}. curve: None without main_llm.py --exp2."""

    model: str
    described: str
    data: str
    mechanism: Mechanism
    said: list[str]
    verdicts: dict[str, str]
    notes: dict[str, str]
    claims: dict[str, Said]
    curve: Curve | None


@dataclass(frozen=True)
class Together:
    """What the models say together. kind: of agreement.KINDS. verdict: where all that can tell say the same, else None.
    models: by verdict, in the order of the rows."""

    kind: str
    verdict: str | None
    models: dict[str, list[str]]


@dataclass(frozen=True)
class ClaimTogether:
    row: str
    claim: str
    together: Together


@dataclass(frozen=True)
class Results:
    """claims: in the order of the claims list; verdicts: by experiment, of those that any model has. rule: of both.
    left_out: what of a model lies there, too, and is in no row."""

    models: list[Row]
    claims: list[ClaimTogether]
    verdicts: dict[str, Together]
    rule: str
    left_out: list[str]
