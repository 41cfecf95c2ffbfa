"""Checkpoints of a training that never was: a planted model whose mechanism is switched on at a known step."""

import copy

from tests.conftest import save
from tests.reference import blocks, matrix, parts


def with_writes(planted, factor):
    """A copy of the planted model in which the generator writes so much of the spike."""
    model, truth = copy.deepcopy(planted.lm.model), planted.truth
    block = parts(blocks(model)[truth.layer])
    dims = list(truth.values)
    if truth.head is None:
        for neuron in truth.neurons:
            matrix(block.down)[dims, neuron] *= factor
    else:
        width = matrix(block.heads).shape[1] // model.config.num_attention_heads
        for dim in dims:
            matrix(block.heads)[dim, truth.head * width : (truth.head + 1) * width] *= factor
    return model


def saved(folder, planted, factors):
    """The folder with a checkpoint for each of {name: factor}."""
    for name, factor in factors.items():
        save(folder / name, with_writes(planted, factor), planted.lm.tokenizer)
    return folder
