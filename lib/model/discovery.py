"""Where a model keeps its parts, found by running it on a few tokens: no names, no list of architectures.

A block's output is its input plus what its modules write into the residual stream. So: keep what every module in a
block takes and gives (lib/model/trace.py), look for the one, two or three outputs whose sum is the difference
(writes.py), and go back from each to the projection it comes from and to what that projection reads (parts.py). All is
compared element by element, within the rounding of the dtype; what does not hold is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lib.model.finite import require_finite
from lib.model.layer import Layer
from lib.model.parts import Parts, same
from lib.model.trace import Block, Recorder, outside
from lib.model.writes import Kind, fitted, is_sum, path_of
from lib.run.errors import UserError

TOKENS = 2, 7  # sequences, and a length that is no number of heads or experts
SAME_ULPS, SAME_PARTS = 64, 2**-13  # what may be rounding: units of the last place, and parts, of the largest value
NOT_FINITE = "its output is not finite"


@dataclass(frozen=True)
class Pass:
    """The pass of a few tokens. ids: (sequences, tokens); taken, given: what each block takes and gives, (sequences,
    tokens, hidden); returned: what it returned, as it is."""

    ids: Tensor
    taken: list[Tensor]
    given: list[Tensor]
    returned: list[Any]


@dataclass(frozen=True)
class Found:
    """Paths in the base model: blocks: of the list of its blocks; layers: the Layer of each; position_embedding: of the
    learned or fixed vectors that are added to the tokens' before the first block, None where there are none."""

    blocks: str
    layers: list[Layer]
    position_embedding: str | None
    seen: Pass


def discover(model: PreTrainedModel, longest: int | None) -> Found:
    """The blocks of `model.base_model`, by one pass of a few tokens.

    longest: how many tokens a sequence may have.

    Raises UserError: no list of blocks, or a block whose writes are not found; the model sees ahead, or gives infinite
    values.
    """
    base, length = model.base_model, min(TOKENS[1], longest or TOKENS[1])
    tokens = cast(torch.nn.Embedding, model.get_input_embeddings())
    shape = TOKENS[0], length
    unsupported = f"unsupported architecture '{model.config.model_type}'"
    lists = {
        path: module for path, module in base.named_modules() if isinstance(module, torch.nn.ModuleList) and len(module)
    }
    outer = {path: of for path, of in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    layers: dict[tuple[str, int], Layer | str] = {}
    ends: dict[tuple[str, int], tuple[Tensor | None, Tensor | None]] = {}
    returned: dict[tuple[str, int], Any] = {}
    kinds: dict[Kind, None] = {}

    def done(key: tuple[str, int], block: Block) -> None:
        if key in layers:
            layers[key] = "it runs more than once"
            return
        ends[key], returned[key] = (block.taken, block.given), block.raw
        if block.taken is None or block.given is None or block.taken.shape != block.given.shape:
            layers[key] = "it takes or gives no residual stream"
            return
        if not block.given.isfinite().all():
            layers[key] = NOT_FINITE
            return
        if block.taken.shape[:2] != shape:
            layers[key] = "it runs over something else than the tokens that are given"
            return
        if any(isinstance(layer, str) for (path, _i), layer in layers.items() if path == key[0]):
            layers[key] = "one before it does not hold"
            return
        parts = Parts(block, kinds)
        if parts.writes is not None:
            kinds[tuple(path_of(found) for _scale, found in parts.writes.outputs)] = None
        layers[key] = parts.layer()

    blocks = {(path, i): block for path, of in outer.items() for i, block in enumerate(of)}
    before: dict[str, Tensor] = {}  # what modules outside of blocks give
    ids = torch.randint(len(tokens.weight), shape, generator=torch.Generator().manual_seed(0))
    ids[:, 0] = ids[0, 0]
    device = torch.device("cpu") if model.device.type == "meta" else model.device
    with torch.inference_mode(), Recorder(shape, done).watching(blocks), outside(base, lists, tokens, before):
        base(input_ids=ids.to(device), use_cache=False)
    chains = [path for path, of in outer.items() if _chained([ends.get((path, i)) for i in range(len(of))])]
    if not chains:
        raise UserError(f"{unsupported}: no list of blocks, each of which takes what the one before gives")
    path = max(chains, key=lambda path: sum(p.numel() for p in outer[path].parameters()))
    width = cast(Tensor, ends[path, 0][0]).shape
    also = [other for other in chains if other != path and all(cast(Tensor, x).shape == width for x in ends[other, 0])]
    if also:
        raise UserError(f"{unsupported}: several lists of blocks run: {path}, {', '.join(also)}")
    keys = [(path, i) for i in range(len(outer[path]))]
    taken, given = ([cast(Tensor, ends[key][end]) for key in keys] for end in (0, 1))
    found: list[Layer] = []
    for i, key in enumerate(keys):
        layer = layers[key]
        if layer == NOT_FINITE:
            require_finite(i, given[i])
        if isinstance(layer, str):
            raise UserError(f"{unsupported}: layer {i}: {layer}")
        require_causal(i, given[i])
        found.append(layer)
    position_embedding = _position_embedding(taken[0], before)
    return Found(path, found, position_embedding, Pass(ids, taken, given, [returned[key] for key in keys]))


def require_causal(layer: int, output: Tensor) -> None:
    """Raise UserError if a block's output at the first token, the same in both sequences, depends on later ones.

    The same row of two sequences is rounded differently, as it may lie elsewhere in a matrix product: 1.4e-5 of the
    largest value was seen. Models that see ahead differ by 0.04 and more of it (SmolLM2 and Gemma 3 without a mask).
    """
    one, other = output[:2, 0].float()
    difference, largest = (one - other).abs().max(), one.abs().max()
    if difference > max(SAME_ULPS * torch.finfo(output.dtype).eps, SAME_PARTS) * largest:
        raise UserError(
            f"the model sees ahead: the output of layer {layer} at the first token depends on later tokens, by "
            f"{difference:.2g} of {largest:.2g}; only causal models can be measured"
        )


def _position_embedding(first: Tensor, before: dict[str, Tensor]) -> str | None:
    """The module whose output, the same for all sequences, is a part of the sum that enters the first block."""
    entered = first.flatten().cpu().double()
    values = {}
    for path, value in before.items():
        if value.ndim in (2, 3) and value.shape[-2:] == first.shape[-2:]:
            values[path] = value.expand(first.shape).flatten().cpu().double()
    for path, positions in values.items():
        one, other = positions.view(first.shape)
        if not torch.equal(one, other) or torch.equal(one[0], one[1]):
            continue
        for others in (other for n in (1, 2) for other in combinations(values, n)):
            rest = [values[other] for other in others]
            if path in others:
                continue
            for scales in ([1.0] * len(rest), fitted(rest, entered - positions)):
                parts = [scale * part for scale, part in zip(scales, rest, strict=True)]
                if is_sum(entered, [positions, *parts], torch.finfo(first.dtype).eps):
                    return path
    return None


def _chained(ends: Sequence[tuple[Tensor | None, Tensor | None] | None]) -> bool:
    """Whether each block takes what the one before gives, inf and nan included."""
    if not all(end is not None and end[0] is not None and end[1] is not None for end in ends):
        return False
    links = ((cast(tuple, one)[1], cast(tuple, other)[0]) for one, other in pairwise(ends))
    return all(same(*(x.nan_to_num() for x in link)) for link in links)
