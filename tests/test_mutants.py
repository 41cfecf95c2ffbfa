"""Mistakes that were published, put back into our measuring code: each must make a named check fail.

A mutant that survives is a hole in the checks. Every witness here passes on the real code: it is a test of its own,
or the diagnosis of a planted model.
"""

import copy
import functools
from contextlib import contextmanager

import pytest
import torch

import check_controls
from lib import ablation, arch, data, hooks, mlp, planted, sinks
from tests import reference, test_ablation, test_capture, test_sinks
from tests.conftest import language_model, planted_model, tiny_model

WATCH_OUTPUTS = hooks.watch_outputs


def head_slice_after_the_projection(patch):
    """Zeroes residual coordinates 64h..64h+63 and calls them head h."""

    def heads_off(view, heads):
        def zero(layer, value):
            value = value.clone()
            for _layer, head in (pair for pair in heads if pair[0] == layer):
                value[..., head * view.head_dim : (head + 1) * view.head_dim] = 0
            return value

        return WATCH_OUTPUTS(view, "head_projection", zero, {layer for layer, _head in heads})

    patch.setattr(hooks, "heads_off", heads_off)


def weight_along_the_wrong_axis(patch):
    """Reads a row of Conv1D's (in, out) weight where a column is meant; zeros fill up what the row lacks."""

    def weight(self, layer, role):
        stored = self.module(layer, role).weight
        wrong = torch.zeros_like(stored.T)
        rows, columns = (min(pair) for pair in zip(wrong.shape, stored.shape, strict=True))
        wrong[:rows, :columns] = stored[:rows, :columns]
        return wrong

    patch.setattr(arch.Architecture, "weight", weight)


def weight_without_activation(patch):
    """Ranks neurons by their weight to the dim."""
    means = mlp.Internals._means
    patch.setattr(
        mlp.Internals, "_means", lambda self, dim: {name: torch.ones_like(x) for name, x in means(self, dim).items()}
    )


def largest_value_over_layers(patch):
    """Compares the largest value over layers and places of one run with that of the other."""

    compared = ablation._Place.compared

    def wrong(place, baseline, here, draws):
        before, after = (run.layers.rows.array[:, :, 0].max(1) for run in (baseline, here))
        return compared(place, baseline, here, draws) | {"retained": draws.ratios(after, before)}

    patch.setattr(ablation._Place, "compared", wrong)


def first_item_of_the_batch(patch):
    """Takes `output[0]` of a block that returns a tensor."""

    def watch_outputs(view, role, see, layers=None):
        return WATCH_OUTPUTS(view, role, lambda layer, value: see(layer, value[0].expand_as(value)), layers)

    patch.setattr(hooks, "watch_outputs", watch_outputs)


def last_layer_after_the_final_norm(patch):
    """Reads the last layer where Hugging Face's hidden_states[-1] has it."""

    def watch_outputs(view, role, see, layers=None):
        def normed(layer, value):
            last = role == "block" and layer == view.n_layers - 1
            return see(layer, torch.nn.functional.layer_norm(value, value.shape[-1:]) if last else value)

        return WATCH_OUTPUTS(view, role, normed, layers)

    patch.setattr(hooks, "watch_outputs", watch_outputs)


def unsigned_comparison(patch):
    """Compares magnitudes."""
    split = ablation._by_sequence
    patch.setattr(ablation, "_by_sequence", lambda *args: [abs(values) for values in split(*args)])


def hooks_left_behind(patch):
    """Does not remove the hooks."""

    @contextmanager
    def registered(view, role, layers, register):
        for layer in range(view.n_layers) if layers is None else layers:
            register(layer, view.module(layer, role))
        yield

    patch.setattr(hooks, "_registered", registered)


def masked_queries_counted(patch):
    """Averages over queries that cannot see the first token, too."""
    not_masked = sinks._not_masked
    patch.setattr(sinks, "_not_masked", lambda *args: torch.ones_like(not_masked(*args)))


def padding_in_the_statistics(patch):
    """Pads the windows and counts the padding."""
    batches = data.Windows.batches
    patch.setattr(
        data.Windows,
        "batches",
        lambda self, size: [(rows, torch.nn.functional.pad(ids, (0, 5))) for rows, ids in batches(self, size)],
    )


def planted_reference(tokenizer):
    """What the fixture `planted` of test_ablation gives: a model and its naive results."""
    lm = language_model(planted_model("gpt2"), tokenizer)
    return lm, reference.compare(lm.model, test_ablation.windows().ids, test_ablation.CONDITIONS)


build = functools.cache(planted.build)


@pytest.fixture(autouse=True)
def _built_by_the_real_code():
    for architecture, kind in (("gpt2", "mlp"), ("gpt2", "decoy"), ("llama", "decoy"), ("gpt2", "content")):
        build(architecture, kind, 3)


def diagnosed(kind, architecture="gpt2"):
    """check_controls on one planted model, as an assertion; a diagnosis that crashes is none."""
    try:
        misses = check_controls._check(copy.deepcopy(build(architecture, kind, 3)))["misses"]
    except Exception as error:
        raise AssertionError("no diagnosis") from error
    assert misses == []


MUTANTS = {  # mutant: (name of the check that must fail, the check)
    head_slice_after_the_projection: {
        "test_off_equals_zero_weights": lambda tokenizer: test_ablation.test_off_equals_zero_weights(
            language_model(tiny_model("gpt2")), "some heads"
        ),
    },
    weight_along_the_wrong_axis: {
        "test_contributions_add_up_to_the_mlp_output": lambda tokenizer: (
            test_capture.test_contributions_add_up_to_the_mlp_output(language_model(tiny_model("gpt2")))
        ),
        "check_controls: decoy": lambda tokenizer: diagnosed("decoy"),
    },
    weight_without_activation: {
        "check_controls: decoy": lambda tokenizer: diagnosed("decoy"),
        "check_controls: decoy, Llama": lambda tokenizer: diagnosed("decoy", "llama"),
    },
    largest_value_over_layers: {
        "test_compare_places": lambda tokenizer: test_ablation.test_compare_places(planted_reference(tokenizer)),
    },
    first_item_of_the_batch: {
        "test_off_equals_zero_weights": lambda tokenizer: test_ablation.test_off_equals_zero_weights(
            language_model(tiny_model("gpt2")), "some heads"
        ),
        "check_controls: content": lambda tokenizer: diagnosed("content"),
    },
    last_layer_after_the_final_norm: {
        "test_off_equals_zero_weights": lambda tokenizer: test_ablation.test_off_equals_zero_weights(
            language_model(tiny_model("gpt2")), "some heads"
        ),
    },
    unsigned_comparison: {
        "test_compare_conditions": lambda tokenizer: test_ablation.test_compare_conditions(
            planted_reference(tokenizer)
        ),
    },
    hooks_left_behind: {
        "test_off_equals_zero_weights": lambda tokenizer: test_ablation.test_off_equals_zero_weights(
            language_model(tiny_model("llama")), "one MLP"
        ),
        "check_controls: mlp": lambda tokenizer: diagnosed("mlp"),
    },
    masked_queries_counted: {
        "test_only_queries_that_can_see_the_first_token_count": lambda tokenizer: (
            test_sinks.test_only_queries_that_can_see_the_first_token_count(language_model(tiny_model("gemma3_text")))
        ),
    },
    padding_in_the_statistics: {
        "test_compare_conditions": lambda tokenizer: test_ablation.test_compare_conditions(
            planted_reference(tokenizer)
        ),
    },
}
CASES = [(mutant, name) for mutant, witnesses in MUTANTS.items() for name in witnesses]
IDS = [f"{mutant.__name__}: {name}" for mutant, name in CASES]


@pytest.mark.parametrize(("mutant", "name"), CASES, ids=IDS)
def test_mutant_is_caught(mutant, name, tokenizer, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        MUTANTS[mutant][name](tokenizer)


@pytest.mark.parametrize(("mutant", "name"), CASES, ids=IDS)
def test_its_witness_passes_on_the_real_code(mutant, name, tokenizer):
    MUTANTS[mutant][name](tokenizer)
