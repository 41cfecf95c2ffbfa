"""Measure many changed versions of a model beside the baseline, at one place, without running what cannot change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lib.core import sinks
from lib.core.changes import Change, ChangeEverywhere
from lib.core.data import Windows
from lib.core.on_device import OnDevice, Taken, exact
from lib.core.place import Place, vectors_at
from lib.core.versions import BASELINE, applied, each_batch, sharing_a_pass
from lib.model import attention, hooks, next_token
from lib.model.arch import Architecture
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.run import processes
from lib.run.unfinished import Unfinished

MEASURED = ("values", "losses", "attention")


@dataclass(frozen=True)
class Measured:
    """One version of the model.

    values: (windows, layers) signed block outputs at the place. losses: (windows,) mean loss in nats a token.
    attention: (windows, layers, heads) mean probability on the first token in windows of sinks.SINK_WINDOW tokens.
    """

    values: np.ndarray
    losses: np.ndarray
    attention: np.ndarray

    def sink_rates(self, epsilon: float = sinks.SINK_EPSILON) -> np.ndarray:
        """(windows,) share of all heads whose attention exceeds epsilon."""
        return sinks.rates(self.attention, epsilon)


def measure(
    lm: LanguageModel, windows: Windows, place: Place, changes: Sequence[Change], batch_size: int
) -> dict[str, Measured]:
    """{name: Measured} of the baseline and of each change.

    After each batch but the last, what has been measured is saved; if the sweep is interrupted, the next one goes on.
    """
    passes = {name: Passes(lm, place) for name in (BASELINE, *(change.name for change in changes))}
    # the values at the place, to the bit, tell one model and device from another
    unfinished = Unfinished(windows.ids, place, changes, batch_size, torch.get_num_threads())
    mine, measured = processes.own(len(windows.ids), batch_size), unfinished.load()
    done = mine.start + (measured["losses"].shape[1] if measured else 0)
    for i, version in enumerate(passes.values() if measured else ()):
        for name, array in zip(MEASURED, version.arrays(slice(mine.start, done)), strict=True):
            array[:] = measured[name][i]

    def run(together: Sequence[Change], ids: torch.Tensor, rows: slice) -> None:
        if not together:
            return passes[BASELINE].run(ids, rows)
        one, *others = (passes[change.name] for change in together)
        one.run(ids, rows, together[0].first_layer, passes[BASELINE], others)

    for rows in each_batch(lm, windows, changes, batch_size, "sweep", run, start=done, share=True):
        if rows.stop < mine.stop:
            so_far = zip(*(version.arrays(slice(mine.start, rows.stop)) for version in passes.values()), strict=True)
            unfinished.save(dict(zip(MEASURED, map(np.stack, so_far), strict=True)))
    unfinished.remove()
    return {name: version.measured(mine) for name, version in passes.items()}


def values_at_place(
    lm: LanguageModel, windows: Windows, place: Place, changes: Sequence[ChangeEverywhere], batch_size: int
) -> dict[str, np.ndarray]:
    """{name: (windows, layers) values} at the place, of the baseline and of each change.

    Windows are cut after the place where no later token can change it (Architecture.prefix), and those that are the
    same up to there run once: of all that begin with BOS, one. Changes of one layer that can share a pass, which holds
    no more tokens than `batch_size` windows have; so values are those of `measure` but for the order in which float32
    products are summed up.
    """
    different, same_as = _different(lm.arch, windows.ids, place.positions)
    every, positions = windows.ids[different], place.positions[different]
    values: dict[str, list[np.ndarray]] = {name: [] for name in (BASELINE, *(change.name for change in changes))}
    budget = batch_size * windows.ids.shape[1]
    mine = processes.own(len(every), batch_size)
    with processes.progress(len(every), batch_size, "place", len(changes)) as progress:
        for rows, ids in _up_to_the_place(lm.arch, every, positions, mine, budget):
            kept: dict[int, Any] = {}
            before = _Column(lm, positions[rows], place.dim)
            with hooks.keep_block_outputs(lm.arch, kept), hooks.watch_outputs(lm.arch, "block", before.see):
                hooks.forward(lm, ids)
            before.take_in(before.kept.take())
            values[BASELINE].append(before.values)
            for together in sharing_a_pass(changes, budget // ids.numel()):
                n, first = len(together), together[0].first_layer
                column = _Column(lm, np.tile(positions[rows], n), place.dim)
                column.values[:, :first] = np.tile(before.values[:, :first], (n, 1))
                with (
                    applied(lm.arch, together, kept, rows),
                    hooks.watch_outputs(lm.arch, "block", column.see, range(first, lm.arch.n_layers)),
                ):
                    hooks.forward(lm, ids.repeat(n, 1))
                column.take_in(column.kept.take())
                for change, rows_of_change in zip(together, np.split(column.values, n), strict=True):
                    values[change.name].append(rows_of_change)
                progress.update(n * len(ids))
    return {name: np.concatenate(processes.gather(parts))[same_as] for name, parts in values.items()}


def _different(arch: Architecture, ids: torch.Tensor, positions: np.ndarray) -> tuple[list[int], np.ndarray]:
    """(the first of all windows that are the same up to the place, which of these each window is the same as)."""
    number: dict[tuple[int, bytes], int] = {}
    first: list[int] = []
    same_as = np.empty(len(ids), dtype=int)
    for i, position in enumerate(positions.tolist()):
        until = ids[i, : arch.prefix(position + 1, ids.shape[1])]
        same_as[i] = number.setdefault((position, until.numpy().tobytes()), len(first))
        if same_as[i] == len(first):
            first.append(i)
    return first, same_as


def _up_to_the_place(
    arch: Architecture, ids: torch.Tensor, positions: np.ndarray, mine: slice, budget: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """(slice of the windows, their ids up to the last place) of batches of at most `budget` tokens, or one window, of
    the windows `mine`."""

    def length(rows: slice) -> int:
        return arch.prefix(int(positions[rows].max()) + 1, ids.shape[1])

    start = mine.start
    while start < mine.stop:
        stop = start + 1
        while stop < mine.stop and (stop + 1 - start) * length(slice(start, stop + 1)) <= budget:
            stop += 1
        rows = slice(start, stop)
        yield rows, ids[rows, : length(rows)]
        start = stop


class _Column:
    """(windows, layers) values at the place, of one batch."""

    def __init__(self, lm: LanguageModel, positions: np.ndarray, dim: int, kept: OnDevice | None = None) -> None:
        self.positions, self.dim = torch.from_numpy(positions).to(lm.device), dim
        self.kept = OnDevice() if kept is None else kept
        self.values = np.full((len(positions), lm.arch.n_layers), np.nan)

    def see(self, layer: int, hidden: torch.Tensor) -> None:
        self.kept.keep(("at the place", layer), vectors_at(hidden, self.positions)[:, self.dim])

    def take_in(self, taken: Taken) -> None:
        """Raises UserError for inf or nan."""
        for layer in range(self.values.shape[1]):
            if ("at the place", layer) in taken:
                require_finite(layer, taken["at the place", layer])
                self.values[:, layer] = taken["at the place", layer]


class Passes:
    """All passes of one version of the model; what they measure, as in Measured, is filled in window by window.

    The arrays are made before the first pass: small ones that stay, made between passes, would each split the room that
    the logits of one pass leave to those of the next, and memory would grow with the passes.
    """

    def __init__(self, lm: LanguageModel, place: Place) -> None:
        self.lm, self.place = lm, place
        n, n_layers = len(place.positions), lm.arch.n_layers
        self.values, self.losses = np.full((n, n_layers), np.nan), np.full(n, np.nan)
        self.attention = np.full((n, n_layers, lm.arch.n_heads), np.nan)

    def run(
        self,
        ids: torch.Tensor,
        rows: slice,
        first: int = 0,
        baseline: "Passes | None" = None,
        others: "Sequence[Passes]" = (),
    ) -> None:
        """One pass over the windows `rows`, whose ids are there once for this version and for each of `others`; inside
        hooks.resume_at of `first`, what is before that is the `baseline`'s, another of these."""
        arch, kept, versions = self.lm.arch, OnDevice(), (self, *others)
        n = len(versions)
        column = _Column(self.lm, np.tile(self.place.positions[rows], n), self.place.dim, kept)
        means = sinks.QueryMeans(kept, ["window"])
        layers = range(first, arch.n_layers)
        with (
            attention.watch_parts(self.lm, means.update, layers),
            hooks.watch_outputs(arch, "block", column.see, layers),
        ):
            kept.keep("losses", exact(next_token.losses(self.lm, ids)).mean(1))
        taken = kept.take()
        column.take_in(taken)
        probabilities = np.full((len(ids), arch.n_layers, arch.n_heads), np.nan)
        for layer, of_layer in means.taken(taken):
            probabilities[:, layer, : of_layer["window"].shape[1]] = of_layer["window"]
        measured = zip(*(np.split(array, n) for array in (column.values, taken["losses"], probabilities)), strict=True)
        for version, (values, losses, of_heads) in zip(versions, measured, strict=True):
            version.values[rows], version.losses[rows], version.attention[rows] = values, losses, of_heads
            if baseline is not None:
                version.values[rows, :first] = baseline.values[rows, :first]
                version.attention[rows, :first] = baseline.attention[rows, :first]

    def arrays(self, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """values, losses and attention of the windows `rows`."""
        return self.values[rows], self.losses[rows], self.attention[rows]

    def measured(self, own: slice) -> Measured:
        """Of the windows of all processes; `own` are this one's."""
        return Measured(*(np.concatenate(processes.gather([array])) for array in self.arrays(own)))
