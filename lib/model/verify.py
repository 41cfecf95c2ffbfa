"""Check on a loaded model what was found on it, by its attention alone, once as it is and once by eager attention.

Each block takes what it took when its parts were found (lib/model/discovery.py), so that no rounding adds up, and runs
until its attention has written: what follows is the same however attention is computed. In both passes each head gives
nothing at some tokens. So: the projection's input must have zeros in the columns of that head there, if it is the
heads' outputs side by side; and the probabilities on the first token must be those of the eager maps, as what attention
writes must be. What is left of rounding grows with the logits, whose roundings are in the exponent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, islice
from math import comb
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from lib.model import attention, hooks
from lib.model.trace import ATTENTION, SOFTMAX, is_attention
from lib.run.errors import UserError

if TYPE_CHECKING:
    from lib.model.models import LanguageModel

ATOL = 1e-4  # of probabilities, and of values relative to the largest; beside roundings
ROUNDINGS = 2  # of the largest logit


class _HeadsOff(TorchFunctionMode):
    """Puts zeros for the outputs of heads that are off, (tokens, heads) bool; tells logits and maps before that."""

    def __init__(self, off: Tensor, see_map: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.off, self.see_map = off, see_map

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if function not in ATTENTION:
            return output
        n_heads = self.off.shape[1]
        if function in SOFTMAX:
            if not is_attention(args, kwargs, n_heads):
                return output
            self.see_map(args[0] if args else kwargs["input"], output)
        by_head = output.view(-1, n_heads, *output.shape[-2:])  # (batch, heads, queries, width or keys)
        tokens = torch.arange(by_head.shape[0] * by_head.shape[2]).view(-1, by_head.shape[2]) % len(self.off)
        off = self.off[tokens].transpose(1, 2).to(output.device)
        return by_head.masked_fill(off[..., None], 0).view(output.shape)


def verify(lm: LanguageModel) -> None:
    """Take the heads away from layers in which they cannot be told apart.

    Raises UserError if probabilities on the first token or what attention writes are not those of eager attention, or
    if code of a checkpoint's own gives no logits, or others each time.
    """
    if lm.source.get("own_code") == "run":
        _require_logits(lm)
    layers = lm.arch.with_role("attention_module")
    if not layers:
        return
    inputs: dict[int, Tensor] = {}
    probabilities: dict[int, Tensor] = {}
    writes: dict[int, Tensor] = {}
    maps: dict[int, _Map] = {}

    def run() -> None:
        with (
            attention.watch_first_token(lm, lambda layer, p, _visible: probabilities.update({layer: p}), layers),
            hooks.watch_inputs(lm.arch, "head_projection", lambda layer, value: inputs.update({layer: value})),
        ):
            _run(lm, maps, writes)

    # by another name a model may compute with what its text part is set to, and that is not known
    lm.arch.looks_up = "sdpa" if lm.model.config._attn_implementation == "sdpa" else None
    try:
        run()
    except attention.UnseenError:
        lm.arch.looks_up = None
        run()
    for layer, value in inputs.items():
        if not _side_by_side(value, _heads_off(lm.arch.seen.ids.numel(), lm.arch.layers[layer].n_heads)):
            lm.arch.layers[layer] = replace(
                lm.arch.layers[layer],
                head_projection=None,
                heads="its projection does not take one head after the other",
            )
    if not maps:
        with _eager(lm):
            eager: dict[int, Tensor] = {}
            _run(lm, maps, eager)
        for layer in maps:  # some models have no eager attention
            _require_same(lm, layer, writes[layer], eager[layer], maps[layer], "output")
    for layer, of_layer in maps.items():
        first = of_layer.first.reshape(probabilities[layer].shape)
        _require_same(lm, layer, probabilities[layer], first, of_layer, "attention to the first token")


def _require_logits(lm: LanguageModel) -> None:
    """Raise UserError if the model does not give the same logits twice."""
    ids = lm.arch.seen.ids.to(lm.device)
    with torch.inference_mode():
        one, other = (getattr(lm.model(input_ids=ids, use_cache=False), "logits", None) for _ in range(2))
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape[:2] != ids.shape:
        raise UserError("its own code gives no 'logits' of (batch, seq, vocabulary), as models of transformers do")
    error, scale = (one.float() - other.float()).abs().amax().item(), one.float().abs().amax().item()
    if not error <= ATOL * scale:
        raise UserError(f"its own code gives other logits each time, by {error:.1g}: perhaps dropout that is always on")


@dataclass(frozen=True)
class _Map:
    """first: probabilities on the first token, by eager attention; largest: |logit|."""

    first: Tensor
    largest: Tensor

    @classmethod
    def of(cls, logits: Tensor, weights: Tensor) -> _Map:
        seen = logits > torch.finfo(logits.dtype).min / 2
        return cls(weights[..., 0].clone(), logits.abs().where(seen, 0).amax())


@cache
def _heads_off(n_tokens: int, n_heads: int) -> Tensor:
    """(tokens, heads) bool: each head is off at tokens of its own, so many that no head's are among another's."""
    few = next((n for n in range(1, n_tokens) if comb(n_tokens, n) >= n_heads), n_tokens // 2)
    off = torch.zeros(n_tokens, n_heads, dtype=torch.bool)
    for head, tokens in enumerate(islice(combinations(range(n_tokens), few), n_heads)):
        off[list(tokens), head] = True
    return off


def _run(lm: LanguageModel, maps: dict[int, _Map], writes: dict[int, Tensor]) -> None:
    """What softmax gives and what attention writes goes into `maps` and `writes`."""

    layers, seen = lm.arch.with_role("attention_module"), lm.arch.seen

    def heads_off(layer: int) -> _HeadsOff:
        off = _heads_off(seen.ids.numel(), lm.arch.layers[layer].n_heads)
        return _HeadsOff(off, lambda logits, weights: maps.update({layer: _Map.of(logits, weights)}))

    with (
        attention.around_calls(lm, heads_off),
        hooks.watch_outputs(lm.arch, "attention_write", lambda layer, value: writes.update({layer: value}), layers),
        hooks.blocks_until(lm.arch, "attention_write", layers, seen.taken, seen.returned),
    ):
        hooks.forward(lm, seen.ids)


def _side_by_side(value: Tensor, off: Tensor) -> bool:
    """Of the (..., width) input of a projection at all tokens: whether zeros are where heads are off."""
    n_heads = off.shape[1]
    if value.shape[-1] % n_heads or not off.any(0).all():
        return False
    is_zero = (value.reshape(-1, n_heads, value.shape[-1] // n_heads) == 0).all(-1).cpu()
    return bool(is_zero[off].all()) and not is_zero.all()


@contextmanager
def _eager(lm: LanguageModel) -> Iterator[None]:
    parts = [part.config for part in lm.model.modules() if isinstance(part, PreTrainedModel)]
    own = [config._attn_implementation for config in parts]
    lm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for config, name in zip(parts, own, strict=True):  # a config sets those of its parts, which come later
            config._attn_implementation = name


def _require_same(lm: LanguageModel, layer: int, got: Tensor, expected: Tensor, of_layer: _Map, what: str) -> None:
    found = [(got.float() - expected.float()).abs().amax(), expected.float().abs().amax(), of_layer.largest.float()]
    error, scale, largest = torch.stack(found).tolist()
    tolerance = ATOL + ROUNDINGS * torch.finfo(lm.model.dtype).eps * max(1.0, largest)
    if not error <= tolerance * max(1.0, scale):
        name = lm.model.config._attn_implementation
        raise UserError(
            f"the {what} of layer {layer} by '{name}' attention is not that of eager attention: it differs by "
            f"{error:.1g}"
        )
