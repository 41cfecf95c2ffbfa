"""What the model as it is has at every site: its range, its massive places, and what is calibrated on some windows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.quantisation.results import BLOCK, INT8, LEVELS
from experiments.quantisation.sites import Site, watched
from lib.core.data import Windows
from lib.core.massive import AT_MOST, is_massive, seen_in
from lib.core.on_device import OnDevice
from lib.model import hooks
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.run import processes

NAMES = "largest", "places", "median", "later", "zero"


@dataclass(frozen=True)
class Seen:
    """One site. median: of |value|, later: the largest |value| but at the first position, zero: as in results.Range;
    (windows,) each. top, places, massive: (windows, n) the largest |values|, position x width + dim, and whether
    massive.DEFINITION holds, with that median; there are more of them than of a window's massive places."""

    median: np.ndarray
    later: np.ndarray
    zero: np.ndarray
    top: np.ndarray
    places: np.ndarray
    massive: np.ndarray

    @property
    def largest(self) -> np.ndarray:
        return self.top[:, 0]


def look(lm: LanguageModel, windows: Windows, sites: Sequence[Site], batch_size: int) -> list[Seen]:
    """Of each site. Raises UserError for inf or nan."""
    at_most = AT_MOST
    while True:
        taken = _look(lm, windows, sites, batch_size, at_most)
        massive = [is_massive(of["largest"], of["median"][:, None]) for of in taken]
        most = max(int(here.sum(1).max()) for here in massive)
        if 3 * most < at_most:  # a site's own, those of the block before it and of its own block
            return [
                Seen(of["median"], of["later"], of["zero"], of["largest"], of["places"], here)
                for of, here in zip(taken, massive, strict=True)
            ]
        at_most = 3 * most + 1


def _look(
    lm: LanguageModel, windows: Windows, sites: Sequence[Site], batch_size: int, at_most: int
) -> list[dict[str, np.ndarray]]:
    parts: list[list[dict[str, np.ndarray]]] = []  # by batch and site
    with processes.progress(len(windows.ids), batch_size, "sites") as progress:
        for _rows, ids in windows.batches(batch_size):
            kept = OnDevice()

            def see(number: int, value: Tensor, n: int = len(ids), kept: OnDevice = kept) -> None:
                value = value.reshape(n, -1, value.shape[-1])
                found = seen_in(value, at_most)
                size = value.abs().float()
                step = found["largest"][:, :1, None] / LEVELS[INT8]
                lost = ((size > 0) & (size <= step / 2)).sum((1, 2))
                found["zero"] = lost / (size > 0).sum((1, 2)).clamp(min=1)
                found["later"] = size[:, 1:].amax((1, 2))
                for name in NAMES:
                    kept.keep((name, number), found[name])

            with watched(lm.arch, [*enumerate(sites)], see):
                hooks.forward(lm, ids)
            taken = kept.take()
            parts.append([{name: taken[name, number] for name in NAMES} for number in range(len(sites))])
            for site, of in zip(sites, parts[-1], strict=True):
                require_finite(site.layer, of["largest"])
            progress.update(len(ids))
    batches = processes.gather(parts)
    return [
        {name: np.concatenate([of[number][name] for of in batches]) for name in NAMES} for number in range(len(sites))
    ]


def massive_places(sites: Sequence[Site], seen: Sequence[Seen]) -> list[np.ndarray]:
    """(n, 3) ints of each site: window, position and dim, by results.MASSIVE_RULE."""
    own = [_index(of.places, of.massive, site.width) for site, of in zip(sites, seen, strict=True)]
    of_block = {site.layer: index for site, index in zip(sites, own, strict=True) if site.kind == BLOCK}
    found = []
    for site, index in zip(sites, own, strict=True):
        around = (site.layer - 1, site.layer) if site.in_stream and site.kind != BLOCK else ()
        together = np.concatenate([index, *(of_block[layer] for layer in around if layer in of_block)])
        found.append(np.unique(together, axis=0))
    return found


def _index(places: np.ndarray, massive: np.ndarray, width: int) -> np.ndarray:
    window, n = np.nonzero(massive)
    position, dim = np.divmod(places[window, n], width)
    return np.stack([window, position, dim], axis=1).astype(np.int64)


def within(index: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The places of the `chosen` windows, counted among these; chosen: (windows,) ints in order."""
    index = index[np.isin(index[:, 0], chosen)]
    return np.column_stack([np.searchsorted(chosen, index[:, 0]), index[:, 1:]])


@dataclass(frozen=True)
class Calibrated:
    """One site, over the calibration windows. largest: |value| of all; rest: but at the massive places; later: but at
    the first position. limit: `rest` where there are massive places, else None. means: {(whether at the first position,
    dim): mean value} of the massive places."""

    largest: float
    rest: float
    later: float
    limit: float | None
    means: dict[tuple[bool, int], float]

    def constants(self, index: np.ndarray) -> np.ndarray:
        """(n,) means for these massive places; NaN where there is none."""
        return np.array([self.means.get((not position, dim), np.nan) for _w, position, dim in index.tolist()])


def calibrate(
    lm: LanguageModel,
    windows: Windows,
    chosen: np.ndarray,
    sites: Sequence[Site],
    seen: Sequence[Seen],
    massive: Sequence[np.ndarray],
    batch_size: int,
) -> list[Calibrated]:
    """On the `chosen` of the windows, (n,) ints in order. massive: of massive_places."""
    values = _values(lm, windows.ids[chosen], sites, [within(index, chosen) for index in massive], batch_size)
    calibrated = []
    for site, of, index, here in zip(sites, seen, massive, values, strict=True):
        index = index[np.isin(index[:, 0], chosen)]
        rest = _rest(of, index, site.width)[chosen].max()
        pairs: dict[tuple[bool, int], list[float]] = {}
        for (_window, position, dim), value in zip(index.tolist(), here.tolist(), strict=True):
            pairs.setdefault((not position, dim), []).append(value)
        calibrated.append(
            Calibrated(
                largest=float(of.largest[chosen].max()),
                rest=float(rest),
                later=float(of.later[chosen].max()),
                limit=float(rest) if len(index) else None,
                means={pair: float(np.mean(of_pair)) for pair, of_pair in pairs.items()},
            )
        )
    return calibrated


def _rest(seen: Seen, index: np.ndarray, width: int) -> np.ndarray:
    """(windows,) the largest |value| that is at none of these places."""
    top = seen.top.astype(np.float64)
    for window in np.unique(index[:, 0]):
        taken = index[index[:, 0] == window]
        top[window, np.isin(seen.places[window], taken[:, 1] * width + taken[:, 2])] = 0
    return top.max(1)


def _values(
    lm: LanguageModel, ids: Tensor, sites: Sequence[Site], index: Sequence[np.ndarray], batch_size: int
) -> list[np.ndarray]:
    """(n,) float64 signed values at the places of each site, in the model as it is."""
    numbered = [(number, site) for number, site in enumerate(sites) if len(index[number])]
    parts: list[list[np.ndarray]] = []
    for rows, of_batch in processes.batches(ids, batch_size):
        kept = OnDevice()

        def see(number: int, value: Tensor, rows: slice = rows, kept: OnDevice = kept) -> None:
            value = value.reshape(rows.stop - rows.start, -1, value.shape[-1])
            kept.keep(number, value[at(index[number], rows, value.device)])

        with watched(lm.arch, numbered, see):
            hooks.forward(lm, of_batch)
        taken = kept.take()
        parts.append([taken.get(number, np.zeros(0)) for number in range(len(sites))])
    batches = processes.gather(parts)
    return [np.concatenate([of[number] for of in batches]).astype(np.float64) for number in range(len(sites))]


def at(index: np.ndarray, rows: slice, device: torch.device) -> tuple[Tensor, ...]:
    """What of the places is in the windows `rows`, for a tensor of these."""
    here = index[(index[:, 0] >= rows.start) & (index[:, 0] < rows.stop)] - [rows.start, 0, 0]
    return tuple(torch.from_numpy(here.T.copy()).to(device))
