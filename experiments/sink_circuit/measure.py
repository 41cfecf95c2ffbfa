"""The model as it is, and with each edit, control and dose; and what query biases give of its logits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from experiments.sink_circuit import changes
from experiments.sink_circuit.changes import Change, Pair, Split
from experiments.sink_circuit.results import (
    CANDIDATES,
    Baseline,
    Dose,
    Edit,
    Logits,
    Measured,
    Results,
)
from lib.core import changes as changes_of
from lib.core.data import Windows
from lib.core.evidence import Average
from lib.core.on_device import OnDevice, exact
from lib.core.stats import SHARE, SIZE, Draws, Samples
from lib.core.versions import BASELINE, each_batch
from lib.model import attention, hooks, next_token, queries
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.run import processes
from lib.run.errors import UserError

FIRST, END = 1 / 4, 11 / 12  # of the layers: 3 to 10 of GPT-2's 12


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    """Raises UserError for a model without attention, windows that are too short, and layers in which no query of the
    second half sees the first token."""
    lm.arch.require_attention()
    if not all(np.isfinite(options.factors)):
        raise UserError("--factors must be finite")
    seqlen = windows.ids.shape[1]
    circuit = changes.find(lm, seqlen, options.seed)
    pairs = changes.pairs(lm, circuit, seqlen, options.seed)
    factors = sorted({float(factor) for factor in options.factors} - {1.0})
    doses = changes.doses(circuit, factors)
    every = [change for pair in pairs.values() if isinstance(pair, Pair) for change in (pair.edit, pair.control)]
    every += [change for of_edit in doses.values() for _factor, change in of_edit]
    versions = Versions(lm, windows, every, options.batch_size)
    draws, split = windows.draws(options.seed), circuit.split()
    return Results(
        layers=versions.layers,
        baseline=Baseline(
            attention=draws.averages(versions.attention[BASELINE], within=SHARE),
            evenly=float(np.mean(1 / np.arange(seqlen // 2 + 1, seqlen + 1))),
            loss=draws.averages(versions.losses[BASELINE], within=SIZE),
        ),
        edits=_edits(pairs, versions, draws),
        doses={
            name: _doses([(1.0, BASELINE), *((factor, change.name) for factor, change in of_edit)], versions, draws)
            for name, of_edit in doses.items()
        },
        logits=_logits(lm, windows, split, options.batch_size, draws),
        why_no_bias=split if isinstance(split, str) else None,
        dims=circuit.dims,
        random_dims=circuit.random_dims,
        control_positions=changes.control_positions(seqlen),
    )


class Versions:
    """attention, losses: (windows,) of each version, by name, as in Baseline. layers: whose heads count."""

    def __init__(self, lm: LanguageModel, windows: Windows, every: Sequence[Change], batch_size: int) -> None:
        """Raises UserError if no head's queries of the second half see the first token."""
        with_attention = [layer for layer, parts in enumerate(lm.arch.layers) if parts.n_heads]
        middle = range(int(FIRST * lm.arch.n_layers), max(1, int(END * lm.arch.n_layers)))
        self.wanted = [layer for layer in with_attention if layer in middle] or with_attention
        self.lm, self.half, self.kept = lm, windows.ids.shape[1] // 2, OnDevice()
        names = [BASELINE, *(change.name for change in every)]
        self.rows = {name: {"attention": Samples(), "losses": Samples()} for name in names}
        for _rows in each_batch(lm, windows, every, batch_size, "edits", self._run):
            pass
        self.rows = processes.merged(self.rows)
        attention = {name: rows["attention"].array for name, rows in self.rows.items()}
        seen = np.isfinite(attention[BASELINE]).all(0)
        if not seen.any():
            raise UserError(
                f"no query of the second half of {windows.ids.shape[1]} tokens sees the first one in layers "
                f"{self.wanted[0]} to {self.wanted[-1]}: choose a shorter --seqlen"
            )
        self.layers = [layer for layer, is_seen in zip(self.wanted, seen, strict=True) if is_seen]
        self.attention = {name: every_layer[:, seen].mean(1) for name, every_layer in attention.items()}
        self.losses = {name: rows["losses"].array for name, rows in self.rows.items()}

    def _see(self, layer: int, probability: Tensor, visible: Tensor) -> None:
        summed = exact(probability[:, :, self.half :]).sum(2)  # 0 where the first token is hidden
        sees = exact(visible[:, :, self.half :].sum(2).expand_as(summed)).mean(1)
        self.kept.keep(("attention", layer), summed.mean(1) / torch.where(sees == 0, 1, sees))
        self.kept.keep(("sees", layer), sees)

    def _run(self, together: Sequence[changes_of.Change], ids: Tensor, _rows: slice) -> None:
        with attention.watch_first_token(self.lm, self._see, self.wanted):
            self.kept.keep("losses", exact(next_token.losses(self.lm, ids)).mean(1))
        taken = self.kept.take()
        means = np.full((len(ids), len(self.wanted)), np.nan)
        for column, layer in enumerate(self.wanted):
            require_finite(layer, taken["attention", layer])
            means[:, column] = np.where(taken["sees", layer] > 0, taken["attention", layer], np.nan)
        require_finite(self.lm.arch.n_layers - 1, taken["losses"])
        name = together[0].name if together else BASELINE
        self.rows[name]["attention"].extend(means)
        self.rows[name]["losses"].extend(taken["losses"])


def _edits(pairs: dict[str, Pair | str], versions: Versions, draws: Draws) -> dict[str, Edit]:
    there = {name: pair for name, pair in pairs.items() if isinstance(pair, Pair)}
    baseline = versions.attention[BASELINE]
    left: dict[str, Average] = {}
    for candidates in (True, False):
        names = [
            change.name
            for name, pair in there.items()
            if (name in CANDIDATES) is candidates
            for change in (pair.edit, pair.control)
        ]
        if names:
            attention = np.stack([versions.attention[name] for name in names], axis=1)
            left |= dict(zip(names, draws.ratios(attention, baseline, family=candidates), strict=True))

    def measured(change: Change) -> Measured:
        attention, losses = versions.attention[change.name], versions.losses[change.name]
        return Measured(
            label=change.label,
            attention=draws.averages(attention, within=SHARE),
            change=draws.averages(attention - baseline),
            left=left[change.name],
            loss_change=draws.averages(losses - versions.losses[BASELINE]),
        )

    return {
        name: Edit(there=True, control=measured(pair.control), **vars(measured(pair.edit)))
        if isinstance(pair, Pair)
        else Edit(changes.LABELS[name], there=False, why=pair)
        for name, pair in pairs.items()
    }


def _doses(of_factor: list[tuple[float, str]], versions: Versions, draws: Draws) -> list[Dose]:
    """Of names of versions."""
    return [
        Dose(
            factor,
            draws.averages(versions.attention[name], within=SHARE),
            draws.averages(versions.losses[name] - versions.losses[BASELINE]),
        )
        for factor, name in sorted(of_factor)
    ]


def _logits(lm: LanguageModel, windows: Windows, split: Split, batch_size: int, draws: Draws) -> list[Logits]:
    """Where the query bias is told apart, every window is there three times: as it is; with the bias alone as query,
    beside the same keys; and with nothing as query, so that what is left are position biases."""
    copies = 1 if isinstance(split, str) else 3
    half, kept, samples = windows.ids.shape[1] // 2, OnDevice(), Samples()
    layers = lm.arch.with_role("attention_module")

    def query(_layer: int, taken: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        own = linear(taken.chunk(copies)[0], weight, bias)
        nothing = torch.zeros_like(own)
        return torch.cat([own, nothing if bias is None else nothing + bias, nothing])

    def key(_layer: int, taken: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.cat([linear(taken.chunk(copies)[0], weight, bias)] * copies)

    def see(layer: int, logits: Tensor) -> None:
        own, *others = logits[:, :, half:, : logits.shape[2]].chunk(copies)  # learned sinks stand behind the keys
        visible = own > -torch.inf
        visible = visible & visible[..., :1]
        own, *others = (part.masked_fill(~visible, 0) for part in (own, *others))
        terms = [own]
        if others:
            bias = others[0] - others[1]
            terms = [own - bias, bias]
        counts = visible[..., 0].sum((1, 2)), visible[..., 1:].sum((1, 2, 3))
        sums = [(exact(term[..., 0]).sum((1, 2)), exact(term[..., 1:]).sum((1, 2, 3))) for term in terms]
        means = [summed / n.clamp(min=1) for of_term in sums for summed, n in zip(of_term, counts, strict=True)]
        kept.keep(("logits", layer), torch.stack([*means, counts[0].to(means[0])], dim=1))

    with (
        processes.progress(len(windows.ids), batch_size, "logits") as progress,
        attention.watch_logits(lm, see),
        nullcontext() if isinstance(split, str) else queries.computed(lm.arch, split[0], query),
        nullcontext() if isinstance(split, str) else queries.computed(lm.arch, split[1], key),
    ):
        for _rows, ids in windows.batches(batch_size):
            hooks.forward(lm, ids.repeat(copies, 1))
            taken = kept.take()
            for layer in layers:
                require_finite(layer, taken["logits", layer])
            samples.extend(np.stack([taken["logits", layer] for layer in layers], axis=1))
            progress.update(len(ids))
    values = processes.merged([samples])[0].array  # (windows, layers, parts and how many queries see key 0)
    seen = np.flatnonzero(values[..., -1].all(0))
    averages = draws.averages(values[:, seen, :-1])
    untold = () if copies > 1 else (None, None)
    return [Logits(layers[i], *of_layer, *untold) for i, of_layer in zip(seen, averages, strict=True)]
