"""The place that the causal experiments follow: one dim, in each window at one position, through all layers."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from lib.core import remembered
from lib.core.data import Windows
from lib.core.definitions import IN_LAYERS, PLATEAU
from lib.core.massive import DEFINITION, LayerStatistics, is_massive, plateau_of, where_massive
from lib.core.on_device import OnDevice, by_layer
from lib.core.results import FollowedPlace
from lib.core.stats import Draws, Rows
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.run import processes
from lib.run.errors import UserError

RULE = (
    "place: the dim whose massive activations are largest in sum over windows (where nothing is massive, the dim of "
    "the largest |value|), in each window at the position where its massive |value| over layers is largest (where it "
    f"is massive nowhere in the window, its |value|); of {IN_LAYERS}, peak: the one with the largest mean |value|; "
    f"plateau: from the first to the last with at least {PLATEAU:.0%} of it (means over the windows that have the "
    "spike: where it is massive there in some layer; over all, if none has)"
)


@dataclass(frozen=True)
class Place:
    """One dim at one position a window, in the model as it is.

    positions: (windows,). token: the most frequent text there. values, medians: (windows, layers), signed block outputs
    there and the median of |block output|. tokens: (windows,) ids there. draws: of the windows.
    """

    dim: int
    positions: np.ndarray
    token: str
    values: np.ndarray
    medians: np.ndarray
    tokens: np.ndarray
    draws: Draws

    @property
    def spiking(self) -> np.ndarray:
        """(windows,) whether it is massive, by massive.DEFINITION, in some layer."""
        return is_massive(self.values, self.medians).any(1)

    @property
    def massive(self) -> bool:
        """Whether it is so in some window."""
        return bool(self.spiking.any())

    @property
    def _typical(self) -> tuple[np.ndarray, np.ndarray]:
        """(layers,) mean |value| and mean value over the windows that have the spike, or over all."""
        values = self.values[self.spiking] if self.massive else self.values
        return np.abs(values).mean(0), values.mean(0)

    @property
    def _times(self) -> np.ndarray:
        """(layers,) in how many windows it is massive."""
        return np.asarray(is_massive(self.values, self.medians).sum(0))

    @property
    def peak(self) -> int:
        """The layer of RULE."""
        return int(where_massive(self._typical[0], self._times).argmax())

    @property
    def sign(self) -> int:
        """+1 or -1, of the mean value at the peak."""
        return 1 if self._typical[1][self.peak] >= 0 else -1

    @property
    def plateau(self) -> tuple[int, int]:
        """(first, last) layer of RULE."""
        layers = plateau_of(self._typical[0], self._times)
        return int(layers[0]), int(layers[-1])

    def of(self, rows: Rows) -> "Place":
        """The Place of some of the windows."""
        arrays = {name: getattr(self, name)[rows] for name in ("positions", "values", "medians", "tokens")}
        return replace(self, **arrays, draws=self.draws.of(rows))

    def described(self) -> FollowedPlace:
        return FollowedPlace(
            rule=RULE,
            definition=DEFINITION,
            dim=self.dim,
            positions=dict(Counter(self.positions.tolist()).most_common()),
            token=self.token,
            massive=self.massive,
            peak_layer=self.peak,
            sign=self.sign,
            plateau=self.plateau,
            spiking=self.draws.share(self.spiking),
            values=self.draws.averages(self.values),
            first_tokens=None if self.positions.any() else len(np.unique(self.tokens)),
        )


def find(
    lm: LanguageModel,
    windows: Windows,
    batch_size: int,
    dim: int | None = None,
    position: int | None = None,
    seed: int = 0,
) -> Place:
    """The Place of RULE; `dim` or `position`, where given, are taken instead. Costs two passes.

    Raises UserError for what is out of range and for non-finite values.
    """
    key = "place", windows.text, windows.sha256, batch_size, dim, position, seed
    return remembered.once(lm, key, lambda: _found(lm, windows, batch_size, dim, position, seed))


def _found(
    lm: LanguageModel, windows: Windows, batch_size: int, dim: int | None, position: int | None, seed: int
) -> Place:
    seqlen = windows.ids.shape[1]
    if dim is not None:
        lm.arch.check_dim(dim)
    if position is not None and not 0 <= position < seqlen:
        raise UserError(f"position {position} is out of range: a window has 0 to {seqlen - 1}")
    statistics = LayerStatistics(lm.arch, lm.tokenizer)
    massive: list[tuple[int, float]] = []
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    with processes.progress(len(windows.ids), batch_size, "place") as progress:
        for _rows, ids in windows.batches(batch_size):
            statistics.run(ids, partial(hooks.forward, lm, ids))
            largest: dict[tuple[int, int], float] = {}
            for found in statistics.batch_massive:
                if position in (None, found.position):
                    one = found.sequence, found.dim
                    largest[one] = max(abs(found.value), largest.get(one, 0))
            massive.extend((found_dim, value) for (_sequence, found_dim), value in largest.items())
            progress.update(len(ids))
    statistics.gather()
    medians = statistics.medians
    size: dict[int, float] = {}  # of each dim: its largest massive value in each window, summed
    for found_dim, value in processes.gather(massive):
        size[found_dim] = size.get(found_dim, 0) + value
    if dim is None:
        dim = max(size, key=size.__getitem__) if size else _largest_dim(statistics)
    for rows, ids in windows.batches(batch_size):
        column = OnDevice()

        def see(layer: int, hidden: torch.Tensor, column: OnDevice = column, dim: int = dim) -> None:
            column.keep(("column", layer), hidden[:, :, dim])

        with hooks.watch_outputs(lm.arch, "block", see):
            hooks.forward(lm, ids)
        columns = by_layer(column.take(), "column", range(lm.arch.n_layers))
        massive_there = is_massive(columns, medians[rows, None])  # of (batch, seq, layers)
        counts = massive_there | ~massive_there.any((1, 2), keepdims=True)
        peaks = np.where(counts, np.abs(columns), 0).max(2).argmax(1)
        followed = peaks if position is None else np.full_like(peaks, position)
        index = np.arange(len(ids)), followed
        parts.append((followed, columns[index], ids.numpy()[index]))
    positions, values, tokens = map(np.concatenate, zip(*processes.gather(parts), strict=True))
    (token, _n), *_others = Counter(tokens.tolist()).most_common(1)
    return Place(dim, positions, text_of(lm.tokenizer, token), values, medians, tokens, windows.draws(seed))


def vectors_at(value: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(batch, width) of a (batch, seq, width) or (batch x seq, width) value at the (batch,) positions, wherever it
    is."""
    value = value.reshape(len(positions), -1, value.shape[-1])
    return value[torch.arange(len(value), device=value.device), positions.to(value.device)]


def tokens_at(positions: torch.Tensor, seq: int) -> torch.Tensor:
    """(batch,) where the (batch,) positions are among all batch x seq tokens."""
    return torch.arange(len(positions), device=positions.device) * seq + positions


def _largest_dim(statistics: LayerStatistics) -> int:
    top1 = statistics.top1.mean(0)
    (_position, dim, _positive), _n = statistics.where[int(top1.argmax())][0].most_common(1)[0]
    return dim
