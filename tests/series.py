"""Checkpoints of a training that never was: a planted model whose mechanism is switched on at a known step."""

from lib.planted import courses
from tests.conftest import save


def with_writes(planted, factor):
    """A copy of the planted model in which the generator writes so much of the spike."""
    return courses.written(planted.lm, planted.truth, factor).model


def saved(folder, planted, factors):
    """The folder with a checkpoint for each of {name: factor}."""
    for name, factor in factors.items():
        save(folder / name, with_writes(planted, factor), planted.lm.tokenizer)
    return folder
