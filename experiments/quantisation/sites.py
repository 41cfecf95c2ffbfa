"""Where activations are quantised: what the projections of each block read, and what the blocks give."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from experiments.quantisation.results import (
    ATTENTION_IN,
    ATTENTION_OUT,
    BLOCK,
    BLOCKS,
    DOWN,
    EXPERTS,
    PROJECTIONS,
    UP,
    LeftOut,
)
from lib.model import hooks, queries
from lib.model.arch import SHARED, Architecture
from lib.model.models import LanguageModel
from lib.model.parts import has_matrix

See = Callable[[int, Tensor], Tensor | None]
ROLES = {  # of the modules that read a kind of site
    ATTENTION_OUT: ("head_projection",),
    UP: ("up", "gate", f"{SHARED}up", f"{SHARED}gate"),
    DOWN: ("down", f"{SHARED}down"),
    EXPERTS: ("experts",),
}


@dataclass(frozen=True)
class Site:
    """kind: of results.KINDS. modules: paths in the block of those that read it; none of the block's output. in_stream:
    whether its dims are those of the residual stream."""

    layer: int
    kind: str
    modules: tuple[str, ...]
    width: int
    in_stream: bool

    @property
    def where(self) -> str:
        return BLOCKS if self.kind == BLOCK else PROJECTIONS


def find(lm: LanguageModel, ids: Tensor) -> list[Site]:
    """Block by block, its output last. ids: (1, seq) tokens on which the model is run; modules that do not read one
    vector a token are none."""
    taken: list[tuple[Site, Tensor]] = []

    def see(layer: int, kind: str, path: str, value: Tensor) -> None:
        again = any((site.layer, path) == (layer, known) for site, _value in taken for known in site.modules)
        if again or value.shape[:-1].numel() != ids.numel():
            return
        last, other = taken[-1] if taken else (None, None)
        if last is not None and other is value and (last.layer, last.kind) == (layer, kind):
            taken[-1] = replace(last, modules=(*last.modules, path)), value
            return
        width = value.shape[-1]
        in_stream = kind in (UP, EXPERTS) or (kind == ATTENTION_IN and width == lm.arch.hidden_size)
        taken.append((Site(layer, kind, (path,), width, in_stream), value))

    with ExitStack() as stack:
        for layer, block in enumerate(lm.arch.blocks):
            for path, kind in _readers(lm.arch, layer).items():
                seen = partial(see, layer, kind, path)
                stack.callback(hooks.input_watched(block.get_submodule(path), seen).remove)
        hooks.forward(lm, ids)
    blocks = [Site(layer, BLOCK, (), lm.arch.hidden_size, True) for layer in range(lm.arch.n_layers)]
    return sorted([*(site for site, _value in taken), *blocks], key=lambda site: site.layer)


def _readers(arch: Architecture, layer: int) -> dict[str, str]:
    """{path of a module in the block: kind of the site that it reads}."""
    path_of = {module: path for path, module in arch.blocks[layer].named_modules()}
    kinds = {
        path_of[arch.module(layer, role)]: kind
        for kind, roles in ROLES.items()
        for role in roles
        if layer in arch.with_role(role)
    }
    if arch.layers[layer].attention_module is None:
        return kinds
    if has_matrix(write := arch.module(layer, "attention_write")):  # also where its heads cannot be told apart
        kinds[path_of[write]] = ATTENTION_OUT
    inside = (path for path, module in queries.candidates(arch, layer) if not isinstance(module, torch.nn.Embedding))
    return dict.fromkeys(inside, ATTENTION_IN) | kinds


@contextmanager
def watched(arch: Architecture, sites: Sequence[tuple[int, Site]], see: See) -> Iterator[None]:
    """Call `see(number, value)` once a pass with what is at each of the numbered sites; a tensor that it returns takes
    its place for all that read it."""
    last: list[tuple[int, Tensor, Tensor | None]] = []  # of the module before: number, taken, given

    def once(number: int, value: Tensor) -> Tensor | None:
        if not last or last[0][0] != number or last[0][1] is not value:
            last[:] = [(number, value, see(number, value))]
        return last[0][2]

    with ExitStack() as stack:
        for number, site in sites:
            for path in site.modules:
                module = arch.blocks[site.layer].get_submodule(path)
                stack.callback(hooks.input_watched(module, partial(once, number)).remove)
            if site.kind == BLOCK:
                stack.enter_context(hooks.watch_outputs(arch, "block", _of(see, number), [site.layer]))
        yield


def _of(see: See, number: int) -> hooks.See:
    return lambda _layer, value: see(number, value)


def left_out(arch: Architecture) -> list[LeftOut]:
    """What is not quantised."""
    found: dict[str, list[int]] = {}
    for layer, parts in enumerate(arch.layers):
        reasons = [*(f"{path}, which writes beside attention and MLP" for path in parts.others)]
        if parts.attention_module is None and parts.attention_write is not None:
            reasons.append(f"what mixes tokens without attention, up to {parts.attention_write}")
        if parts.attention_module is not None and ATTENTION_OUT not in _readers(arch, layer).values():
            reasons.append("attention, as far as its projections are not known: no single matrix gives what it writes")
        if parts.experts is not None:
            reasons.append("inside the experts, what their last projections read")
        elif parts.inner is not None:
            reasons.append(f"the MLP, as far as its projections are not known: {parts.inner}")
        for reason in reasons:
            found.setdefault(reason, []).append(layer)
    return [LeftOut(layers, what) for what, layers in found.items()]
