"""What is planted, in words and numbers: what a diagnosis must find."""

from dataclasses import dataclass, field
from typing import Any

from lib.core.data import Windows
from lib.core.results import SHARED_EXPERT
from lib.model.models import LanguageModel

CONSTANT, AS_IT_IS = "needed, a constant is enough", "needed as it is"

Expert = int | str  # its number, or SHARED_EXPERT
Neuron = int | tuple[Expert, int]  # of an MLP; of a mixture with its expert
Fields = dict[str, Any]  # of Truth, by name


def expert_name(layer: int, expert: Expert | None) -> str:
    """As the ledger has it; None: the shared expert, too."""
    return f"shared expert {layer}" if expert in (SHARED_EXPERT, None) else f"expert {layer}.{expert}"


@dataclass(frozen=True)
class Sinks:
    """Where attention goes, and what it finds there.

    where, kind: as experiment 9's verdict has them. heads: (layer, head, kind) of the sinks at the first key.
    positions: where heads have a sink, by their mean over the queries that see it. keys: (position, token, massive) of
    those that enough later queries see; token: None where any stands there. secondary: (token, first layer, layers in a
    row). by_bias: (layer, head) of the sinks at the first key that are made by the bias of queries alone. ignored:
    {position: token} of tokens that are large and that nobody looks at.
    """

    where: str
    kind: str | None = None
    heads: tuple[tuple[int, int, str], ...] = ()
    positions: tuple[int, ...] = ()
    keys: tuple[tuple[int, str | None, bool], ...] = ()
    secondary: tuple[tuple[str, int, int], ...] = ()
    by_bias: tuple[tuple[int, int], ...] = ()
    ignored: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Course:
    """factors: {step: times what is written of the values there}, in order; 0, 1, or so small that it is looked at and
    not massive."""

    factors: dict[int, float]


@dataclass(frozen=True)
class Truth:
    """What is planted. Layers, heads, neurons, dims and positions count from 0.

    generator: "mlp", "head", "both" (an MLP that needs a head's write) or "none"; layer: the first whose output is
    massive; neurons or head: its part that writes; most: the fewest of the neurons that give 90 % of it.
    experts: (layer, expert) of those whose neurons write it, where the MLP is a mixture; expert_writes,
    expert_retained: {expert: share} of what each writes of the value, and of what is left without it, routing weights
    as they were; decoy_expert: (layer, expert) to which no token goes, with the largest weights.
    values: {dim: signed value} where it is massive; trigger: what makes a place massive; positions: where the windows
    have it; share: of the windows that have it; tokens: those that trigger it, where some do and others do not.
    retained, repair: {part: number} of the MLPs and attention blocks that write it: what is left of the value without
    this part, and what share of its write the others make good then.
    sinks: (layer, head) of all that look at the first token; readers: of those that do so for the massive activation.
    costly: (layer, head) of those that the loss misses.
    need: what the loss needs of it, "not needed", "needed, a constant is enough" or "needed as it is".
    first_step, second_generator, eraser: {"layer", "neurons" or "head"} of what else takes part.
    later: {"token", "values"} of another spike, of a token that stands later in the windows.
    informed: {"token", "dim"} of a second dim that is massive only where that token is the first.
    noise: parts that write up to a twentieth of the value.
    foreseen: "mlp LAYER SIGN DIM" of what the weights tell of and the model does not have.
    course: what of it is written at which step, in models that are of this alone.
    decoy_neurons: of `layer`, with the largest weights to the largest dim; decoy_head: (layer, head) with the highest
    attention to the first token. outliers: {dim: value} that are written and not massive. attention: where it goes, in
    models that are of this alone.
    """

    architecture: str
    kind: str
    seed: int
    generator: str
    trigger: str
    positions: tuple[int, ...]
    share: float
    layer: int | None = None
    neurons: tuple[Neuron, ...] = ()
    most: tuple[Neuron, ...] = ()
    head: int | None = None
    values: dict[int, float] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    retained: dict[str, float] = field(default_factory=dict)
    repair: dict[str, float] = field(default_factory=dict)
    sinks: tuple[tuple[int, int], ...] = ()
    readers: tuple[tuple[int, int], ...] = ()
    costly: tuple[tuple[int, int], ...] = ()
    need: str = "not needed"
    first_step: dict[str, Any] | None = None
    second_generator: dict[str, Any] | None = None
    eraser: dict[str, Any] | None = None
    later: dict[str, Any] | None = None
    informed: dict[str, Any] | None = None
    noise: tuple[dict[str, Any], ...] = ()
    decoy_neurons: tuple[int, ...] = ()
    decoy_head: tuple[int, int] | None = None
    experts: tuple[tuple[int, Expert], ...] = ()
    expert_writes: dict[str, float] = field(default_factory=dict)
    expert_retained: dict[str, float] = field(default_factory=dict)
    decoy_expert: tuple[int, int] | None = None
    attention: Sinks | None = None
    foreseen: str | None = None
    course: Course | None = None
    outliers: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Planted:
    """A planted model (in `lm`, ready for every script's `run`), windows that show its mechanism, and its truth.

    checkpoints: {step: model} of its training, in order, where the truth is of a course.
    """

    lm: LanguageModel
    windows: Windows
    truth: Truth
    checkpoints: dict[int, LanguageModel] = field(default_factory=dict)
