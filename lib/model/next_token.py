"""Next-token losses, with no more logits at a time than are of use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from lib.model import hooks
from lib.model.skipping import output_is_seen

if TYPE_CHECKING:
    from lib.model.models import LanguageModel

CHUNK = 256  # positions that are taken to float32 at a time, where the model gives all logits
POSITIONS, TOKENS = 1024, 2048  # of the logits that a CPU forms at a time: its products are fastest in a cache
LOOK = 8  # positions whose logits are compared with what the output embeddings give

_plain: WeakKeyDictionary[torch.nn.Module, torch.nn.Linear] = WeakKeyDictionary()  # output embeddings by model


def losses(lm: "LanguageModel", ids: Tensor) -> Tensor:
    """(batch, seq - 1) next-token losses in nats, of logits taken to float32.

    Where the logits are what the output embeddings give, they are formed for a part of the vocabulary at a time, and
    log(sum(exp)) of the whole is that of the parts': on a CPU a quarter less time, and a large vocabulary's gigabytes
    are never there at once; on a GPU up to a tenth more. Whether they are is seen in the first pass.
    """
    ids = ids.to(lm.device)
    head: torch.nn.Module | None = lm.model.get_output_embeddings() if ids.device.type == "cpu" else None
    with torch.inference_mode():
        if is_plain(head, lm.model) and not output_is_seen(head):
            return _by_parts(head, hooks.input_of(lm, head, ids), ids)
        with _kept(head) as kept:
            logits = lm.model(input_ids=ids, use_cache=False).logits
        if isinstance(head, torch.nn.Linear) and len(kept) == 1:
            hidden, given = kept[0]
            if torch.equal(given.float(), logits[:, :LOOK].float()):
                _plain[lm.model] = head
                return _by_parts(head, hidden, ids)
        found = [
            cross_entropy(part.float(), target, reduction="none")
            for row, targets in zip(logits[:, :-1], ids[:, 1:], strict=True)
            for part, target in zip(row.split(CHUNK), targets.split(CHUNK), strict=True)
        ]
        return torch.cat(found).view(len(ids), -1)


def is_plain(head: torch.nn.Module | None, model: torch.nn.Module) -> TypeGuard[torch.nn.Linear]:
    """Whether a pass has shown that the model's logits are what `head` gives: not scaled, capped or masked after."""
    return head is not None and _plain.get(model) is head


@contextmanager
def _kept(head: torch.nn.Module | None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What the output embeddings take, and what they give at the first LOOK positions, at each call; nothing where they
    are of another kind of layer, or something else sees what they give."""
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(_module: torch.nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if args:
            kept.append((args[0], output[:, :LOOK].clone()))

    patched = head is not None and "forward" in vars(head) and not hasattr(head, "_hf_hook")  # accelerate's has that
    if type(head) is not torch.nn.Linear or patched or output_is_seen(head):
        yield kept
        return
    handle = head.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def _by_parts(head: torch.nn.Linear, hidden: Tensor, ids: Tensor) -> Tensor:
    """(batch, seq - 1) losses of what the output embeddings are given, (batch, seq, hidden)."""
    parts = (x.flatten(0, 1).split(POSITIONS) for x in (hidden[:, :-1], ids[:, 1:]))
    with align_module_device(head):
        return torch.cat([_of_rows(head, *part) for part in zip(*parts, strict=True)]).view(len(ids), -1)


def _of_rows(head: torch.nn.Linear, hidden: Tensor, wanted: Tensor) -> Tensor:
    """(positions,) losses of (positions, hidden) for the ids `wanted`."""
    sums, of_wanted = [], torch.zeros_like(wanted, dtype=torch.float32)
    for start in range(0, len(head.weight), TOKENS):
        part = slice(start, start + TOKENS)
        logits = linear(hidden, head.weight[part], None if head.bias is None else head.bias[part]).float()
        sums.append(logits.logsumexp(-1))
        at = (wanted - start).clamp(0, logits.shape[1] - 1)
        of_wanted = torch.where(at == wanted - start, logits.gather(-1, at[:, None]).squeeze(-1), of_wanted)
    return torch.stack(sums).logsumexp(0) - of_wanted
