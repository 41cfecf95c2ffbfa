"""Check on a loaded model what was found on it, by two passes of a few tokens, one of them with eager attention.

In both, each token's query of one head after the other gives nothing. So: the projection's input must have zeros in the
columns of that head and there alone, if it is the heads' outputs side by side; and the probabilities on the first token
must be those of the eager maps, as the block outputs must be. In the second pass each block takes what it took in the
first, so that no rounding adds up; what is left of it grows with the logits, whose roundings are in the exponent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lib.model import attention, hooks
from lib.model.trace import ATTENTION, SOFTMAX, is_attention
from lib.run.errors import UserError

if TYPE_CHECKING:
    from lib.model.models import LanguageModel

LENGTH = 5
ATOL = 1e-4  # of probabilities, and of values relative to the largest; beside roundings
ROUNDINGS = 2  # of the largest logit


class _OneHeadOff(TorchFunctionMode):
    """Puts zeros for the output of head t mod n_heads at token t of the batch; tells logits and maps before that."""

    def __init__(self, n_heads: int, see_map: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.n_heads, self.see_map = n_heads, see_map

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if function not in ATTENTION:
            return output
        if function in SOFTMAX:
            if not is_attention(args, kwargs, self.n_heads):
                return output
            self.see_map(args[0] if args else kwargs["input"], output)
        by_head = output.view(-1, self.n_heads, *output.shape[-2:])  # (batch, heads, queries, width or keys)
        tokens = torch.arange(by_head.shape[0] * by_head.shape[2], device=output.device).view(-1, by_head.shape[2])
        off = (tokens % self.n_heads)[:, None] == torch.arange(self.n_heads, device=output.device)[None, :, None]
        return by_head.masked_fill(off[..., None], 0).view(output.shape)


def verify(lm: LanguageModel) -> None:
    """Take the heads away from layers in which they cannot be told apart.

    Raises UserError if probabilities or block outputs are not those of eager attention.
    """
    layers = lm.arch.with_role("attention_module")
    if not layers:
        return
    ids = _ids(lm)
    inputs: dict[int, Tensor] = {}
    probabilities: dict[int, Tensor] = {}
    blocks: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    kept: dict[int, Tensor] = {}
    maps: dict[int, _Map] = {}

    def run() -> None:
        with (
            attention.watch_first_token(lm, lambda layer, p, _visible: probabilities.update({layer: p}), layers),
            hooks.watch_inputs(lm.arch, "head_projection", lambda layer, value: inputs.update({layer: value.clone()})),
            hooks.watch_outputs(lm.arch, "block", lambda layer, value: kept.update({layer: value})),
        ):
            _run(lm, ids, lambda layer, value: blocks.update({layer: value.clone()}), maps, outputs)

    # by another name a model may compute with what its text part is set to, and that is not known
    lm.arch.looks_up = "sdpa" if lm.model.config._attn_implementation == "sdpa" else None
    try:
        run()
    except attention.UnseenError:
        lm.arch.looks_up = None
        run()
    lm.arch.outputs_stay = all(torch.equal(kept[layer], output) for layer, output in outputs.items())
    for layer, value in inputs.items():
        if not _side_by_side(value, lm.arch.layers[layer].n_heads):
            lm.arch.layers[layer] = replace(
                lm.arch.layers[layer],
                head_projection=None,
                heads="its projection does not take one head after the other",
            )
    if not maps:
        with _eager(lm):
            eager: dict[int, Tensor] = {}
            _run(lm, ids, lambda layer, _value: blocks[layer], maps, eager)
        for layer in maps:  # some models have no eager attention
            _require_same(lm, layer, outputs[layer], eager[layer], maps[layer], "output")
    for layer, of_layer in maps.items():
        first = of_layer.first.reshape(probabilities[layer].shape)
        _require_same(lm, layer, probabilities[layer], first, of_layer, "attention to the first token")


@dataclass(frozen=True)
class _Map:
    """first: probabilities on the first token, by eager attention; largest: |logit|."""

    first: Tensor
    largest: float

    @classmethod
    def of(cls, logits: Tensor, weights: Tensor) -> _Map:
        seen = logits[logits > torch.finfo(logits.dtype).min / 2]
        return cls(weights[..., 0].clone(), seen.abs().max().item())


def _ids(lm: LanguageModel) -> Tensor:
    """So many that each head is off at one token."""
    length = min(LENGTH, lm.arch.n_positions or LENGTH)
    n = max(2, -(-lm.arch.n_heads // length))
    return torch.randint(lm.n_embeddings, (n, length), generator=torch.Generator().manual_seed(0))


def _run(lm: LanguageModel, ids: Tensor, block: hooks.See, maps: dict[int, _Map], outputs: dict[int, Tensor]) -> None:
    """block: called with each block's input. What softmax gives and what blocks give goes into `maps` and `outputs`."""

    def one_head_off(layer: int) -> _OneHeadOff:
        n_heads = lm.arch.layers[layer].n_heads
        return _OneHeadOff(n_heads, lambda logits, weights: maps.update({layer: _Map.of(logits, weights)}))

    with (
        attention.around_calls(lm, one_head_off),
        hooks.watch_inputs(lm.arch, "block", block),
        hooks.watch_outputs(lm.arch, "block", lambda layer, value: outputs.update({layer: value.clone()})),
    ):
        hooks.forward(lm, ids)


def _side_by_side(value: Tensor, n_heads: int) -> bool:
    """Of the (..., width) input of a projection at all tokens: whether zeros are where the one head is off."""
    if value.shape[-1] % n_heads:
        return False
    is_zero = (value.reshape(-1, n_heads, value.shape[-1] // n_heads) == 0).all(-1)
    tokens = torch.arange(len(is_zero), device=value.device)
    return bool(is_zero[tokens, tokens % n_heads].all()) and not is_zero.all()


@contextmanager
def _eager(lm: LanguageModel) -> Iterator[None]:
    own = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.model.set_attn_implementation(own)


def _require_same(lm: LanguageModel, layer: int, got: Tensor, expected: Tensor, of_layer: _Map, what: str) -> None:
    tolerance = ATOL + ROUNDINGS * torch.finfo(lm.model.dtype).eps * max(1.0, of_layer.largest)
    error = (got.cpu().double() - expected.cpu().double()).abs().max().item()
    if not error <= tolerance * max(1.0, expected.abs().max().item()):
        name = lm.model.config._attn_implementation
        raise UserError(
            f"the {what} of layer {layer} by '{name}' attention is not that of eager attention: it differs by "
            f"{error:.1g}"
        )
