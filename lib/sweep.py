"""Measure many changed versions of a model beside the baseline, at one place, without running what cannot change."""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from lib import hooks, ranks, sinks
from lib.sinks import SINK_WINDOW

BASELINE = "baseline"


@dataclass(frozen=True)
class Measured:
    """One version of the model.

    values: (windows, layers) signed block outputs at the place. losses: (windows,) mean loss in nats a token.
    attention: (windows, layers, heads) mean probability on the first token in windows of sinks.SINK_WINDOW tokens.
    """

    values: np.ndarray
    losses: np.ndarray
    attention: np.ndarray

    def sink_rates(self, epsilon=sinks.SINK_EPSILON, off=()):
        """(windows,) share of the heads, without the (layer, head) pairs in `off`, whose attention exceeds epsilon;
        None if that leaves no head."""
        keep = np.ones(self.attention.shape[1:], dtype=bool)
        for layer, head in off:
            keep[layer, head] = False
        return (self.attention[:, keep] > epsilon).mean(1) if keep.any() else None


def measure(lm, windows, place, changes, batch_size):
    """{name: Measured} of the baseline and of each change.

    A change has `name`, `first_layer` (before which nothing differs from the baseline; its passes start there) and
    `hooks(arch, rows)`, the context manager that applies it to the windows `rows` (a slice).
    One batch's block outputs are kept until its changes are done, so memory does not grow with the windows.
    """
    passes = {name: _Passes(lm, place) for name in (BASELINE, *(change.name for change in changes))}
    with ranks.progress(len(windows.ids), batch_size, "sweep", len(passes)) as progress:
        for rows, ids in windows.batches(batch_size):
            kept = {}
            with hooks.keep_block_outputs(lm.arch, kept):
                passes[BASELINE].run(ids, rows)
            progress.update(len(ids))
            for change in changes:
                first = change.first_layer
                with hooks.resume_at(lm.arch, first, kept.get(first - 1)), change.hooks(lm.arch, rows):
                    passes[change.name].run(ids, rows, first, passes[BASELINE])
                progress.update(len(ids))
    return {name: of.measured() for name, of in passes.items()}


def at_place(lm, windows, place, changes, batch_size):
    """{name: (windows, layers) values} at the place, of each change.

    Windows are cut after the place: by causality no later token can change it.
    """
    length = int(place.positions.max()) + 1
    values = {change.name: [] for change in changes}
    batch_size = max(batch_size, batch_size * windows.ids.shape[1] // length)
    with tqdm(total=len(changes), unit="change", desc="place", disable=None) as progress:
        for change in changes:
            for rows, ids in ranks.batches(windows.ids[:, :length], batch_size):
                column = _Column(lm.arch.n_layers, place, rows)
                with change.hooks(lm.arch, rows), hooks.watch_outputs(lm.arch, "block", column.see):
                    hooks.forward(lm, ids)
                values[change.name].append(column.values)
            progress.update()
    return {name: np.concatenate(ranks.gather(parts)) for name, parts in values.items()}


class _Column:
    """(windows, layers) values at the place, of one batch."""

    def __init__(self, n_layers, place, rows):
        self.positions = torch.from_numpy(place.positions[rows])
        self.dim = place.dim
        self.values = np.full((len(self.positions), n_layers), np.nan)

    def see(self, layer, hidden):
        index = torch.arange(len(hidden), device=hidden.device), self.positions.to(hidden.device)
        at = hidden[(*index, self.dim)]
        hooks.require_finite(layer, at)
        self.values[:, layer] = at.double().cpu()


class _Passes:
    """All passes of one version of the model."""

    def __init__(self, lm, place):
        self.lm, self.place = lm, place
        self.values, self.losses, self.attention = [], [], []

    def run(self, ids, rows, first=0, baseline=None):
        """One pass over a batch from block `first` on; what comes before is the baseline's last batch."""
        arch = self.lm.arch
        column = _Column(arch.n_layers, self.place, rows)
        attention = np.full((len(ids), arch.n_layers, arch.n_heads), np.nan)
        if first:
            column.values[:, :first] = baseline.values[-1][:, :first]
            attention[:, :first] = baseline.attention[-1][:, :first]
        layers = range(first, arch.n_layers)

        def see(layer, probability, visible):
            hooks.require_finite(layer, probability)
            attention[:, layer] = probability[:, :, visible][:, :, :SINK_WINDOW].double().mean(2).cpu()

        with (
            sinks.watch(self.lm, see, layers) if layers else nullcontext(),
            hooks.watch_outputs(arch, "block", column.see, layers),
        ):
            self.losses.append(hooks.token_losses(self.lm, ids).double().mean(1).cpu().numpy())
        self.values.append(column.values)
        self.attention.append(attention)

    def measured(self):
        every = (self.values, self.losses, self.attention)
        return Measured(*(np.concatenate(ranks.gather(parts)) for parts in every))
