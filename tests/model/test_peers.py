"""TransformerLens as a witness: block outputs, ablations and attention of the same weights, through its hooks.

It reads the saved model itself and has its own attention and norms. `make test-peers` runs this.
"""

from contextlib import nullcontext

import pytest
import torch

from lib.core import sinks
from lib.model import attention, edits, hooks
from tests.conftest import HEADS, LAYERS, language_model, logits, tiny_model, token_ids

pytestmark = pytest.mark.peer
IDS = token_ids(2, 40)
LAYER_SETS = ([0], [1], [2], [0, 1, 2])


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def lm(family):
    return language_model(tiny_model(family))


@pytest.fixture(scope="module")
def peer(family, request):
    """The folder is that of the same random model as `lm`."""
    from transformer_lens.model_bridge import TransformerBridge  # only .venv-peers has it

    folder = request.getfixturevalue(f"tiny_{family}_folder")
    return TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)


def ours(lm, off=None):
    """Every block's output, and the logits, with `off` entered."""
    blocks = {}
    with off or nullcontext(), hooks.watch_outputs(lm.arch, "block", blocks.__setitem__):
        last = logits(lm, IDS)
    return [blocks[layer] for layer in range(LAYERS)], last


def theirs(peer, zeroed=()):
    """The same from TransformerLens; zeroed: (hook name, index of what to zero in that hook's value)."""

    def zero(index):
        def hook(value, hook):  # TransformerLens passes the second by this name
            value = value.clone()
            value[index] = 0
            return value

        return hook

    with torch.inference_mode(), peer.hooks(fwd_hooks=[(name, zero(index)) for name, index in zeroed]):
        last, cache = peer.run_with_cache(IDS)
    return [cache[f"blocks.{layer}.hook_resid_post"] for layer in range(LAYERS)], last


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def close_and_changed(lm, actual, expected, first):
    """Both agree, and both differ from the intact model from block `first` on, but not before."""
    close(actual, expected)
    intact, _ = ours(lm)
    for result in (actual[0], expected[0]):
        change = [(block - whole).abs().max().item() for block, whole in zip(result, intact, strict=True)]
        assert all(value < 1e-4 for value in change[:first])
        assert all(value > 1e-2 for value in change[first:])


def test_block_outputs_and_logits(lm, peer):
    close(ours(lm), theirs(peer))


@pytest.mark.parametrize(
    "heads", [*([(layer, head)] for layer in range(LAYERS) for head in range(HEADS)), [(0, 1), (0, 3), (2, 0)]], ids=str
)
def test_heads_off(lm, peer, heads):
    zeroed = [(f"blocks.{layer}.attn.hook_z", (..., head, slice(None))) for layer, head in heads]
    close_and_changed(lm, ours(lm, edits.heads_off(lm.arch, heads)), theirs(peer, zeroed), heads[0][0])


@pytest.mark.parametrize("layers", LAYER_SETS, ids=str)
def test_attention_off(lm, peer, layers):
    zeroed = [(f"blocks.{layer}.hook_attn_out", ...) for layer in layers]
    close_and_changed(lm, ours(lm, edits.attention_off(lm.arch, layers)), theirs(peer, zeroed), layers[0])


@pytest.mark.parametrize("layers", LAYER_SETS, ids=str)
def test_mlps_off(lm, peer, layers):
    zeroed = [(f"blocks.{layer}.hook_mlp_out", ...) for layer in layers]
    close_and_changed(lm, ours(lm, edits.mlps_off(lm.arch, layers)), theirs(peer, zeroed), layers[0])


def test_attention_to_the_first_token(lm, peer):
    scores = sinks.HeadScores(lm.arch)
    seen = {}

    def see(layer, probability, visible):
        seen[layer] = probability
        scores.update(layer, visible, probability)

    with attention.watch_first_token(lm, see):
        hooks.forward(lm, IDS)
    scores.end_batch()
    with torch.inference_mode():
        _, cache = peer.run_with_cache(IDS)
    pattern = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"][..., 0] for layer in range(LAYERS)], dim=1)
    close(torch.stack([seen[layer] for layer in range(LAYERS)], dim=1), pattern)
    close(torch.from_numpy(scores.scores), pattern.double().mean(-1))
    close(torch.from_numpy(scores.later), pattern[..., 1:].double().mean(-1))
