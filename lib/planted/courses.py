"""The kinds of courses of training: checkpoints of one model in which what is planted is written, or not yet, or no
more. Heads look at it wherever it is the largest by far, which it is before it is massive.
"""

import copy
from collections.abc import Callable, Sequence

import torch

from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.planted.blank import HEAD_DIM
from lib.planted.builder import Builder
from lib.planted.truth import Course, Fields, Truth

STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


def _born(b: Builder) -> Fields:
    """Nothing is there at first; heads look at it before it is massive, in some courses."""
    small = int(b.rng.integers(3))
    absent, whole = (int(n) for n in b.rng.integers(1, 4, size=2))
    return _course(b, [0.0] * absent + [_small(b) for _ in range(small)] + [1.0] * whole)


def _flickers(b: Builder) -> Fields:
    """It is there at one early step, then not, and then comes to stay."""
    return _course(b, [0.0, 1.0, 0.0, *([1.0] * int(b.rng.integers(1, 4)))])


def _gone(b: Builder) -> Fields:
    """It was there, and is not at the last step."""
    return _course(b, [0.0, *([1.0] * int(b.rng.integers(1, 4))), 0.0])


def _never_massive(b: Builder) -> Fields:
    """Heads look at it from the first step on, and it never gets massive."""
    return _course(b, [_small(b) for _ in range(int(b.rng.integers(2, 5)))])


def _small(b: Builder) -> float:
    """How much of the values makes the largest of them 20 to 60."""
    return float(b.rng.uniform(20, 60) / abs(b.values[b.largest]))


def _course(b: Builder, factors: Sequence[float]) -> Fields:
    """As "mlp" or as "head", with two readers; written times a factor at each of some steps."""
    layer = b.layers(1, before=b.n_layers - 1)[0]
    by_head = b.rng.random() < 0.5
    own: Fields = (
        {"head": b.head_writes(layer, b.flag, b.values)}
        if by_head
        else {"neurons": b.neurons_write(layer, b.flag - b.one, b.values)}
    )
    steps = sorted(b.rng.choice(STEPS, size=len(factors), replace=False).tolist())
    return own | {
        "generator": "head" if by_head else "mlp",
        "layer": layer,
        "values": b.values,
        "readers": b.readers(layer + 1, b.n_layers - 1, n=2),
        "course": Course(dict(zip(steps, factors, strict=True))),
    }


def checkpoints(lm: LanguageModel, truth: Truth) -> dict[int, LanguageModel]:
    """{step: model} of a truth that is of a course; nothing of others."""
    factors = {} if truth.course is None else truth.course.factors
    return {step: written(lm, truth, factor) for step, factor in factors.items()}


def written(lm: LanguageModel, truth: Truth, factor: float) -> LanguageModel:
    """A copy in which the part that writes the planted values writes them times a factor."""
    model = copy.deepcopy(lm.model)
    arch = Architecture(model)
    assert truth.layer is not None
    if truth.head is None:
        weights, columns = arch.weight(truth.layer, "down"), torch.tensor(truth.neurons)
    else:
        weights = arch.weight(truth.layer, "head_projection")
        columns = torch.arange(truth.head * HEAD_DIM, (truth.head + 1) * HEAD_DIM)
    for dim in truth.values:
        weights[dim, columns] *= factor
    return LanguageModel(model, arch, lm.tokenizer, lm.source)


KINDS: dict[str, Callable[[Builder], Fields]] = {
    "born": _born,
    "flickers": _flickers,
    "gone": _gone,
    "never_massive": _never_massive,
}
