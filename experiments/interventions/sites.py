"""What is changed: the places of one layer's massive activations, and what the model has there."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lib.core.data import Windows
from lib.core.massive import LayerStatistics
from lib.core.on_device import OnDevice, by_layer
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.run import processes

FIRST, LATER = "first", "later"
Pair = tuple[str, int]  # FIRST or LATER, and a dim
SITES_RULE = (
    f"sites: the pairs of a position ({FIRST}: 0; {LATER}: any other) and a dim that are massive in the output of the "
    "layer, of the model as it is, in some of windows 0, 2, 4, ... (estimation). All is measured on those of windows "
    "1, 3, 5, ... in which such a pair is massive. In each of them the same is changed: the dims of the first "
    "position there, massive in this window or not; those of later positions wherever they are massive. Means, "
    "ordinary values (of positions without anything massive) and values of other windows are those of the estimation "
    "windows in which such a pair is massive, each pair for itself"
)
MASK_RULE = (
    "sites: what the mask names in the output of the layer, massive or not, by pairs of a position "
    f"({FIRST}: 0; {LATER}: any other) and a dim that it names in some of windows 0, 2, 4, ... (estimation). All is "
    "measured on those of windows 1, 3, 5, ... in which it names such a pair. Means, ordinary values (of positions "
    "without anything massive) and values of other windows are those of the estimation windows in which it names such "
    "a pair, each pair for itself"
)


def pair_of(position: int, dim: int) -> Pair:
    return (LATER if position else FIRST), dim


@dataclass(frozen=True)
class Sites:
    """What is changed in some windows, by SITES_RULE.

    index: (sites, 3) ints: window, position, dim. massive: (sites,) whether it is so in the output of `layer`. values:
    (sites, layers from `layer` on) signed block outputs there; ordinary: {dim: (layers,) mean of the positions
    without anything massive}.
    All of the model as it is.
    """

    layer: int
    index: np.ndarray
    massive: np.ndarray
    values: np.ndarray
    ordinary: dict[int, np.ndarray]

    @property
    def pairs(self) -> list[Pair]:
        """Of each site."""
        return [pair_of(position, dim) for _window, position, dim in self.index.tolist()]

    def by_pair(self) -> dict[Pair, list[int]]:
        """Indices of the sites of each pair."""
        indices: dict[Pair, list[int]] = {}
        for i, pair in enumerate(self.pairs):
            indices.setdefault(pair, []).append(i)
        return indices

    def means(self) -> dict[Pair, np.ndarray]:
        """(layers,) of each pair, over its sites."""
        return {pair: self.values[indices].mean(0) for pair, indices in self.by_pair().items()}

    def there(self, shape: tuple[int, ...]) -> np.ndarray:
        """(windows, seq) bool: the positions that hold a site."""
        mask = np.zeros(shape, dtype=bool)
        mask[self.index[:, 0], self.index[:, 1]] = True
        return mask


def find_massive(lm: LanguageModel, windows: Windows, layer: int, batch_size: int) -> np.ndarray:
    """(n, 3) ints: window, position and dim of all that is massive in the output of `layer`, by massive.DEFINITION.

    Raises UserError for non-finite values.
    """
    statistics, found = LayerStatistics(lm.arch, lm.tokenizer), []

    def forward(ids):
        with hooks.stop_after(lm.arch, layer):
            hooks.forward(lm, ids)

    with processes.progress(len(windows.ids), batch_size, "sites") as progress:
        for rows, ids in windows.batches(batch_size):
            statistics.run(ids, partial(forward, ids), [layer])
            found += [(rows.start + one.sequence, one.position, one.dim) for one in statistics.batch_massive]
            progress.update(len(ids))
    return np.array(processes.gather(found), dtype=int).reshape(-1, 3)


def find_sites(
    lm: LanguageModel,
    windows: Windows,
    chosen: np.ndarray,
    massive: np.ndarray,
    changed: np.ndarray,
    layer: int,
    batch_size: int,
) -> Sites:
    """The Sites of `layer` in the windows `chosen` (indices; sites count windows within them).

    massive: of find_massive; changed: the same of what is to be changed.
    """
    massive_here = _within(chosen, massive)
    index = np.array(sorted(_within(chosen, changed)))
    dims = sorted({*index[:, 2].tolist()})
    column = np.searchsorted(dims, index[:, 2])
    ordinary = np.ones(windows.ids[chosen].shape, dtype=bool)
    for window, position, _dim in massive_here:
        ordinary[window, position] = False
    parts = []
    for rows, ids in processes.batches(windows.ids[chosen], batch_size):
        columns = _columns(lm, ids, layer, dims)
        here = (index[:, 0] >= rows.start) & (index[:, 0] < rows.stop)
        values = columns[index[here, 0] - rows.start, index[here, 1], column[here]]
        parts.append((values, columns[ordinary[rows]].sum(0)))
    values, sums = zip(*processes.gather(parts), strict=True)
    means = sum(sums) / max(1, ordinary.sum())
    is_so = np.array([tuple(site) in massive_here for site in index.tolist()])
    return Sites(layer, index, is_so, np.concatenate(values), dict(zip(dims, means, strict=True)))


def _within(chosen: np.ndarray, found: np.ndarray) -> set[tuple[int, int, int]]:
    """Window within `chosen`, position and dim of what is `found`, (n, 3), in these windows."""
    return {
        (window, position, dim)
        for window, original in enumerate(chosen.tolist())
        for position, dim in found[found[:, 0] == original, 1:].tolist()
    }


def _columns(lm: LanguageModel, ids: torch.Tensor, layer: int, dims: list[int]) -> np.ndarray:
    """(batch, seq, dims, layers from `layer` on) float64 block outputs."""
    kept, layers = OnDevice(), range(layer, lm.arch.n_layers)

    def see(block, hidden):
        kept.keep(("columns", block), hidden[:, :, dims])

    with hooks.watch_outputs(lm.arch, "block", see, layers):
        hooks.forward(lm, ids)
    return by_layer(kept.take(), "columns", layers)
