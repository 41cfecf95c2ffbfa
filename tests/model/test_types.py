"""Every type of decoder that transformers builds, with random weights: what is found in it is what the model does, or
it is refused with the reason."""

import json

import numpy as np
import pytest
import torch

from lib.core import attribution, mlp, neurons, sinks
from lib.core.ablation import Condition
from lib.model import edits, hooks, models, next_token
from lib.run.cli import Options
from lib.run.errors import UserError
from tests import architectures, every_type
from tests.cases import close
from tests.conftest import exhaustive_unless
from tests.core.test_sweep import fixed_place, windows_of
from tests.mixtures import tokenizer

pytestmark = pytest.mark.slow
MEASURED = 120  # types, at least
POSITIONS, DIM = [0, 9], 3
IDS = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(3))
POST_NORM = ["bert", "electra", "openai-gpt", "roberta", "xmod", "bart", "marian"]  # some of them
NO_SUM = ["deepseek_v4", "doge", "minimax", "qwen4_exp_text", "zaya"]


@pytest.fixture(params=every_type.TYPES, scope="module")
def model_type(request):
    return request.param


@pytest.fixture
def lm(model_type):
    outcome = every_type.attempted(model_type)
    if isinstance(outcome, UserError):
        pytest.skip(str(outcome))
    return outcome


def logits(lm, *watchers):
    with edits._together(*watchers), torch.inference_mode():
        return lm.model(input_ids=IDS, use_cache=False).logits


def test_most_types_are_measured():
    """As the README says, which is held to what is found by the next test."""
    said = json.loads(every_type.FOUND.read_text())
    assert list(said) == every_type.TYPES
    assert sum(isinstance(of_type, list) for of_type in said.values()) >= MEASURED


def test_what_is_found_is_what_the_readme_says(model_type):
    assert every_type.found(model_type) == json.loads(every_type.FOUND.read_text())[model_type]


@pytest.mark.parametrize("refused", [*POST_NORM, *NO_SUM])
def test_refused(refused):
    error = str(every_type.attempted(refused))
    assert f"unsupported architecture '{refused}': layer 0: " in error
    assert ("post-norm" if refused in POST_NORM else "not its input plus what its modules give") in error


NOT_AS_SAVED = {  # what transformers loads of it is not what it has saved
    "bigbird_pegasus": "its head and its embedding differ, against its configuration",
    "dbrx": "a rope_theta of its attention, which is not carried out",
    "emu3": "its decoder alone cannot be loaded",
    "youtu": "the embedding of the padding token is set to 0",
}


@pytest.mark.parametrize(
    "model_type", [exhaustive_unless(of in architectures.TESTED, of) for of in every_type.TYPES], indirect=True
)
def test_it_is_loaded_from_its_files(lm, model_type, tmp_path):
    if model_type in NOT_AS_SAVED:
        pytest.skip(NOT_AS_SAVED[model_type])
    lm.model.save_pretrained(tmp_path)
    tokenizer(lm.n_embeddings).save_pretrained(tmp_path)
    close(logits(models.load(Options(model=str(tmp_path), device="cpu"))), logits(lm), 1e-5)


def test_losses_are_cross_entropies_of_the_logits(lm):
    expected = torch.nn.functional.cross_entropy(logits(lm)[:, :-1].mT.double(), IDS[:, 1:], reduction="none")
    for _pass in range(2):  # the first shows whether the logits are what the output embeddings give
        close(next_token.losses(lm, IDS), expected.float(), 1e-5)


def test_block_outputs_are_the_hidden_states(lm):
    outputs = {}
    with (
        hooks.watch_outputs(lm.arch, "block", lambda layer, value: outputs.update({layer: value.clone()})),
        torch.inference_mode(),
    ):
        hidden = lm.model.base_model(input_ids=IDS, use_cache=False, output_hidden_states=True)
    states = getattr(hidden, "hidden_states", None) or getattr(hidden, "decoder_hidden_states", None) or ()
    assert list(outputs) == list(range(lm.arch.n_layers))
    for layer in range(lm.arch.n_layers - 1 if states else 0):  # the last may be after the final norm
        assert any(torch.allclose(outputs[layer], state, atol=1e-5) for state in states)


def test_writes_add_up(lm):
    place = fixed_place(POSITIONS, lm.arch.n_layers)
    ledger = attribution.measure(lm, windows_of(IDS), place, Condition("nothing", "nothing off"), 2)
    assert ledger.check().relative_error < 1e-5
    assert np.isfinite(ledger.place.values).all()


def test_a_head_off_is_zero_columns_of_the_projection(lm):
    for layer in lm.arch.with_role("head_projection")[:2]:
        head = lm.arch.layers[layer].n_heads - 1
        weight = lm.arch.weight(layer, "head_projection")
        kept, columns = weight.clone(), slice(head * lm.arch.head_dims[layer], (head + 1) * lm.arch.head_dims[layer])
        off = logits(lm, edits.heads_off(lm.arch, [(layer, head)]))
        with torch.no_grad():
            weight[:, columns] = 0
            expected = logits(lm)
            weight.copy_(kept)
        close(off, expected)
        assert (off - logits(lm)).abs().max() > 1e-4


def test_all_attention_or_all_mlps_off(lm):
    """By what is skipped, or by PyTorch's own hooks."""
    for role, off in (("attention_write", edits.attention_off), ("mlp_write", edits.mlps_off)):
        layers = lm.arch.with_role(role)
        got = logits(lm, off(lm.arch, layers))
        handles = [
            lm.arch.module(layer, role).register_forward_hook(
                lambda _m, _a, output: (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0
            )
            for layer in layers
        ]
        expected = logits(lm)
        for handle in handles:
            handle.remove()
        close(got, expected)


def test_versions_in_one_pass_are_those_alone(lm):
    for role, off in (("attention_write", edits.attention_off), ("mlp_write", edits.mlps_off)):
        layers = lm.arch.with_role(role)
        versions = [layers[:1], layers, layers[1:], []]
        with edits._together(off(lm.arch, *versions)), torch.inference_mode():
            together = lm.model(input_ids=IDS.repeat(len(versions), 1), use_cache=False).logits
        for version, got in zip(versions, together.chunk(len(versions)), strict=True):
            close(got, logits(lm, off(lm.arch, version)))


def test_neurons_add_up_to_the_mlp_output(lm):
    inner, given = {}, {}
    layers = [layer for layer in lm.arch.with_role("down") if lm.arch.layers[layer].inner is None]
    with (
        hooks.watch_inputs(lm.arch, "down", lambda layer, value: inner.update({layer: value.clone()}), layers),
        hooks.watch_outputs(lm.arch, "down", lambda layer, value: given.update({layer: value.clone()}), layers),
    ):
        logits(lm)
    for layer in layers:
        bias, weight = lm.arch.bias(layer, "down"), lm.arch.weight(layer, "down").detach()
        with torch.inference_mode():
            close(inner[layer] @ weight.T + (0 if bias is None else bias), given[layer])


def test_neurons_of_experts_add_up_to_the_output_of_the_mixture(lm):
    place = fixed_place(POSITIONS, lm.arch.n_layers)
    for layer in lm.arch.with_role("experts"):
        if lm.arch.layers[layer].inner is None:
            values = neurons.checkpoints_at_place(lm, windows_of(IDS), place, layer, 2)
            rows, check = mlp.at_place(lm.arch, layer, DIM, values)
            size = sum(abs(row.contribution) for row in rows)
            assert check.sum + check.bias == pytest.approx(check.output, abs=1e-6 * size)


def test_attention_to_the_first_token(lm):
    if not lm.arch.n_heads:
        with pytest.raises(UserError, match="no attention heads"):
            sinks.measure(lm, windows_of(IDS), 2)
        return
    scores = sinks.measure(lm, windows_of(IDS), 2).scores
    heads = np.isfinite(scores).all(0)
    assert [row.sum() for row in heads] == [layer.n_heads for layer in lm.arch.layers]
    assert ((scores[:, heads] >= 0) & (scores[:, heads] <= 1)).all()
