"""Who writes what into one place of the residual stream: the direct attribution of one dim at one position a window.

Every component adds its output to the stream, so the block outputs there are sums of writes, exact up to rounding. A
head's write is its slice of the projection's input times that slice of the projection's weights to the dim. A norm
after the projection (OLMo 2, Gemma) is an RMS norm: linear once its scale is known, so what it does to the whole of
attention in this dim it does to each head's part.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from msgspec import UNSET

from lib.core.changes import Everywhere
from lib.core.data import Windows
from lib.core.evidence import Average
from lib.core.massive import medians
from lib.core.on_device import OnDevice, Taken
from lib.core.place import Place, tokens_at, vectors_at
from lib.core.results import OF_MLP, LayerWrites, LedgerWrite, Profile, SumCheck
from lib.core.stats import Draws
from lib.model import experts, hooks
from lib.model.arch import Architecture
from lib.model.experts import Chosen
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.run import processes

TOLERANCE = 1e-4
OF_LAYERS = "head", "attention bias", *OF_MLP
CHECK = (
    "relative_error: largest |sum of all writes up to a layer - that block's output|, over layers and windows, "
    f"relative to the window's largest |block output| at the place; float32 keeps it below {TOLERANCE:.0e}"
)


@dataclass(frozen=True, eq=False)
class Write:
    """What one component adds to the place: (windows,) signed values. layer: None for embeddings; head: the number of a
    head or of an expert."""

    layer: int | None
    kind: str
    """"embedding", "position embedding", "head", "attention bias", "mlp" or of a mixture "expert" and "shared expert",
    "mixer" of a layer without attention, or the path of what else writes."""
    head: int | None
    values: np.ndarray

    @property
    def name(self) -> str:
        """As in "embedding", "mlp 11", "attention bias 11" and, of head 8, "head 11.8"."""
        if self.layer is None:
            return self.kind
        return f"{self.kind} {self.layer}" + ("" if self.head is None else f".{self.head}")


@dataclass(frozen=True)
class Ledger:
    """All writes into one place, in the order of the layers, and the block outputs there (`place.values`)."""

    place: Place
    writes: list[Write]
    keeps: Sequence[float] = ()
    """What each block multiplies its input by; empty where all do by 1."""

    def _kept(self, write: Write, layer: int) -> float:
        """What is left of it in the output of a later block."""
        return float(np.prod(self.keeps[(-1 if write.layer is None else write.layer) + 1 : layer + 1]))

    def _average(self, layer: int, is_meant: Callable[[str], bool]) -> Average | None:
        """Of the sum of the layer's writes of these kinds; None where it has none."""
        values = [write.values for write in self.writes if write.layer == layer and is_meant(write.kind)]
        return self.place.draws.averages(np.sum(values, axis=0)) if values else None

    def layers(self) -> list[LayerWrites]:
        return [
            LayerWrites(
                layer,
                heads=self._average(layer, "head".__eq__),
                attention_bias=self._average(layer, "attention bias".__eq__),
                mlp=self._average(layer, OF_MLP.__contains__),
                other=self._average(layer, lambda kind: kind not in OF_LAYERS) or UNSET,
            )
            for layer in range(self.place.values.shape[1])
        ]

    def check(self) -> SumCheck:
        sums = np.zeros_like(self.place.values)
        for write in self.writes:
            for layer in range(write.layer or 0, sums.shape[1]):
                sums[:, layer] += write.values * self._kept(write, layer)
        largest = np.abs(self.place.values).max(1, keepdims=True)
        error = np.abs(sums - self.place.values) / np.where(largest > 0, largest, 1)
        return SumCheck(
            sum=sums[:, -1].mean(),
            residual=self.place.values[:, -1].mean(),
            relative_error=error.max(),
            tolerance=TOLERANCE,
            definition=CHECK,
        )

    @property
    def _there(self) -> tuple[np.ndarray, Draws]:
        """Mask of the windows that have the spike, all if none has; their Draws."""
        there = self.place.spiking if self.place.massive else np.ones(len(self.place.values), dtype=bool)
        return there, self.place.draws.of(there)

    def listed(self) -> list[LedgerWrite]:
        there, draws = self._there
        values = np.stack([write.values[there] for write in self.writes], axis=1)
        at_peak = values * [self._kept(write, self.place.peak) for write in self.writes]
        peak = self.place.values[there, self.place.peak]
        along = np.sign(peak)[:, None] * at_peak
        shares = draws.ratios(along, np.where(peak.any(), np.abs(peak), 1), family=True)
        return [
            LedgerWrite(write.layer, write.kind, write.head, write.name, average.mean, average, share)
            for write, average, share in zip(self.writes, draws.averages(values), shares, strict=True)
        ]

    def profile(self) -> Profile:
        there, _draws = self._there
        size = np.abs(self.place.values[there]).mean(0).tolist()
        at = self.place
        return Profile(at.draws.share(at.spiking), size, at.peak, at.sign, at.plateau)

    def drop(self) -> Average | None:
        """The last block's output relative to that of the one before, along the sign there in each window, over the
        windows that have the spike; None where there is nothing to drop."""
        there, draws = self._there
        if self.place.values.shape[1] < 2:
            return None
        before, last = self.place.values[there][:, -2:].T
        return draws.ratios(np.sign(before) * last, np.abs(before)) if before.any() else None


def measure(lm: LanguageModel, windows: Windows, place: Place, condition: Everywhere, batch_size: int) -> Ledger:
    """The Ledger of a Place under a condition, as an ablation.Condition with nothing off. Costs one pass.

    Raises UserError for non-finite values.
    """
    arch = lm.arch
    seen, own = _Seen(arch, place), processes.own(len(windows.ids), batch_size)
    with processes.progress(len(windows.ids), batch_size, "ledger") as progress:
        for rows, ids in windows.batches(batch_size):
            with condition.hooks(arch):  # before the watchers, so that they see what is off as off
                seen.run(lm, ids, rows)
            progress.update(len(ids))
    seen.gather(own)
    # 1 where no norm follows the projection; where the projection gives exactly 0, a norm's scale cannot be told
    norm = np.divide(seen.attention, seen.projected, out=np.zeros_like(seen.projected), where=seen.projected != 0)
    writes = [Write(None, "embedding", None, seen.first - seen.position)]
    if arch.position_embedding is not None:
        writes.append(Write(None, "position embedding", None, seen.position))
    for layer, parts in enumerate(arch.layers):
        written = arch.scale(layer, "attention_write")
        if parts.head_projection is not None:
            factor = written * norm[:, layer]
            writes += [Write(layer, "head", h, factor * seen.heads[:, layer, h]) for h in range(parts.n_heads)]
            if ("bias", layer) in seen.projection:
                writes.append(Write(layer, "attention bias", None, factor * seen.projection["bias", layer]))
        elif parts.attention_write is not None:
            kind = "attention" if parts.n_heads else "mixer"
            writes.append(Write(layer, kind, None, written * seen.attention[:, layer]))
        for i, path in enumerate(parts.others):
            writes.append(Write(layer, path, None, arch.scale(layer, f"other {i}") * seen.others[i][:, layer]))
        if parts.experts is not None:
            writes += _of_experts(arch, layer, seen)
        elif parts.mlp_write is not None:
            writes.append(Write(layer, "mlp", None, arch.scale(layer, "mlp_write") * seen.mlps[:, layer]))
    keeps = [layer.keep for layer in arch.layers]
    return Ledger(replace(place, values=seen.residual, medians=seen.medians), writes, keeps)


def _of_experts(arch: Architecture, layer: int, seen: "_Seen") -> Iterator[Write]:
    """The writes of the experts that a token at the place is sent to in any window, and of the shared expert."""
    chosen, given = seen.chosen[layer], seen.given[layer]  # (windows, k) each
    total = seen.mixtures[:, layer]
    # 1 where no norm follows; where the sum is exactly 0, a norm's scale cannot be told
    factor = np.divide(seen.mlps[:, layer], total, out=np.zeros_like(total), where=total != 0)
    factor *= arch.scale(layer, "mlp_write")
    for expert in np.unique(chosen).astype(int).tolist():
        yield Write(layer, "expert", expert, factor * np.where(chosen == expert, given, 0).sum(1))
    if arch.layers[layer].shared_expert is not None:
        yield Write(layer, "shared expert", None, factor * (total - given.sum(1)))


class _Seen:
    """What forward passes show at the place, in float64, batch after batch.

    first, position: (windows,) input of block 0, and the position embedding's part of it. heads: (windows, layers,
    heads) shares of the projection's output without its bias. projected, attention: (windows, layers) output of the
    projection, and of the norm that may follow it. mlps, residual: (windows, layers) outputs of MLPs and blocks.
    others: (n, windows, layers) outputs of what else writes. mixtures: (windows, layers) sums of all experts; chosen,
    given: of each layer with experts, the (windows, k) that are chosen, and what these write.
    medians: (windows, layers) of |block output|. projection: of each layer, its weights and bias to the dim.
    """

    def __init__(self, arch: Architecture, place: Place) -> None:
        self.arch, self.dim = arch, place.dim
        projection = OnDevice()
        for layer in arch.with_role("head_projection"):
            projection.keep(("weights", layer), arch.weight(layer, "head_projection")[self.dim].detach())
            bias = arch.bias(layer, "head_projection")
            if bias is not None:
                projection.keep(("bias", layer), bias[self.dim].detach())
        self.projection = {key: value.astype(np.float64) for key, value in projection.take().items()}
        self.positions = torch.from_numpy(place.positions)
        shape = len(self.positions), arch.n_layers
        self.first, self.position = np.zeros((2, len(self.positions)))
        self.heads = np.zeros((*shape, arch.n_heads))
        self.projected, self.attention, self.mlps, self.residual, self.medians = np.zeros((5, *shape))
        self.mixtures = np.zeros(shape)
        self.chosen: dict[int, np.ndarray] = {}
        self.given: dict[int, np.ndarray] = {}
        self.others = np.zeros((max(len(layer.others) for layer in arch.layers), *shape))

    def run(self, lm: LanguageModel, ids: torch.Tensor, rows: slice) -> None:
        kept, positions = OnDevice(), self.positions[rows].to(lm.device)

        def position(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> None:
            kept.keep("position", vectors_at(output.expand(len(ids), -1, -1), positions)[:, self.dim])

        def heads(layer: int, value: torch.Tensor) -> None:
            kept.keep(("heads", layer), vectors_at(value, positions))

        def block(layer: int, value: torch.Tensor) -> None:
            magnitude = value.abs().float().flatten(1)
            kept.keep(("largest", layer), magnitude.amax())
            kept.keep(("medians", layer), medians(magnitude, reorder=True))

        def into(name: str) -> Callable[[int, torch.Tensor], None]:
            def keep(layer: int, value: torch.Tensor) -> None:
                value = value.view(len(ids), -1, value.shape[-1])  # experts take all tokens in a row
                kept.keep((name, layer), vectors_at(value, positions)[:, self.dim])

            return keep

        def chosen(layer: int, value: Chosen) -> None:
            here = value.at(tokens_at(positions, ids.shape[1]))
            kept.keep(("chosen", layer), here.experts)
            kept.keep(("given", layer), experts.writes(self.arch.module(layer, "experts"), here, self.dim))

        embedding = self.arch.position_embedding
        watched: AbstractContextManager[object] = (
            nullcontext() if embedding is None else embedding.register_forward_hook(position)
        )
        others = ExitStack()
        for i in range(len(self.others)):
            others.enter_context(hooks.watch_outputs(self.arch, f"other {i}", into(f"other {i}")))
        with (
            watched,
            hooks.watch_inputs(self.arch, "block", into("first"), [0]),
            hooks.watch_inputs(self.arch, "head_projection", heads),
            hooks.watch_outputs(self.arch, "head_projection", into("projected")),
            hooks.watch_outputs(self.arch, "attention_write", into("attention")),
            hooks.watch_outputs(self.arch, "mlp_write", into("mlps")),
            others,
            hooks.watch_experts(self.arch, chosen),
            hooks.watch_outputs(self.arch, "experts_sum", into("mixtures")),
            hooks.watch_outputs(self.arch, "block", into("residual")),
            hooks.watch_outputs(self.arch, "block", block),
        ):
            hooks.forward(lm, ids)
        self._take_in(rows, kept.take())

    def _take_in(self, rows: slice, taken: Taken) -> None:
        """Raises UserError for inf or nan."""
        self.first[rows] = taken["first", 0]
        self.position[rows] = taken.get("position", 0.0)
        for layer in range(self.arch.n_layers):
            require_finite(layer, taken["largest", layer])
            for name in ("projected", "attention", "mlps", "mixtures", "residual", "medians"):
                getattr(self, name)[rows, layer] = taken.get((name, layer), 0.0)
            for name, of_layers in (("chosen", self.chosen), ("given", self.given)):
                if (name, layer) in taken:
                    here = taken[name, layer]
                    of_layers.setdefault(layer, np.zeros((len(self.positions), here.shape[1])))[rows] = here
            for i, other in enumerate(self.others):
                other[rows, layer] = taken.get((f"other {i}", layer), 0.0)
            if ("heads", layer) in taken:
                shares = taken["heads", layer].astype(np.float64) * self.projection["weights", layer]
                n_heads = self.arch.layers[layer].n_heads
                self.heads[rows, layer, :n_heads] = shares.reshape(len(shares), n_heads, -1).sum(2)

    def gather(self, own: slice) -> None:
        """Have the windows of all processes; `own` are this one's."""
        for name, array in vars(self).items():
            if name == "others":
                self.others = np.concatenate(processes.gather([array[:, own]]), axis=1)
            elif name in ("chosen", "given"):
                setattr(self, name, {i: np.concatenate(processes.gather([rows[own]])) for i, rows in array.items()})
            elif isinstance(array, np.ndarray):
                setattr(self, name, np.concatenate(processes.gather([array[own]])))
