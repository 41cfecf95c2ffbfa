"""What counts as massive, and the per-layer statistics of the residual stream."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lib.core.definitions import ABSOLUTE, MASSIVE, PLATEAU, RELATIVE
from lib.core.evidence import Stored
from lib.core.on_device import OnDevice, Taken
from lib.core.results import LayerAverages, MassiveActivation, TopPlace
from lib.core.stats import SIZE, Draws, Samples
from lib.model import hooks
from lib.model.arch import Architecture
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.run import processes

AT_MOST = 16  # values of a sequence that are looked at in the first pass, more than are massive
GROWTH = 4  # of AT_MOST, where all of them are
SEEN = "largest", "places", "values", "median"  # (layers, batch, AT_MOST), and (layers, batch) medians
LONG = 2**15  # values from which on one block of a GPU's threads is slow to look for the median
NEAR_LIMIT = 0.5  # of float16's largest value
DEFINITION = MASSIVE

Where = tuple[int, int, bool]  # position, dim, whether the value is positive


class Found(NamedTuple):
    """A massive value of a batch. sequence: in it; value: signed; ratio: to the median."""

    sequence: int
    layer: int
    position: int
    dim: int
    value: float
    ratio: float


def is_massive(value: Any, median: Any) -> Any:  # numbers, arrays or tensors
    """Elementwise test of DEFINITION; median is that of |value| in the same layer and sequence."""
    return (abs(value) > ABSOLUTE) & (abs(value) > RELATIVE * median)


def where_massive(size: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(layers,) mean |value| at a place, 0 but in definitions.IN_LAYERS. times: (layers,) how often it is massive."""
    return np.where(times >= PLATEAU * times.max(), size, 0)


def plateau_of(size: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Those of definitions.IN_LAYERS with at least PLATEAU of their largest mean |value|, ascending; of the same."""
    there = where_massive(size, times)
    return np.flatnonzero(there >= PLATEAU * there.max())


class LayerStatistics:
    """Top-3, median and massive values of |block output|.

    rows: per sequence (layers, 4), top-1, top-2, top-3 and median over positions x dims.
    batch_massive: of the last batch.
    """

    further: Callable[..., dict[str, torch.Tensor]] | None = None
    """What else a subclass looks for: tensors of as many rows, kept by their names; called with magnitude: (rows, seq,
    hidden_size); peaks: (rows, seq), the largest of each position; median: (rows,)."""

    def __init__(self, arch: Architecture, tokenizer: PreTrainedTokenizerBase, kept: OnDevice | None = None) -> None:
        """kept: where `update` keeps what it sees; shared with others, one copy takes all of it to the host."""
        self.arch, self.tokenizer = arch, tokenizer
        self.kept = OnDevice() if kept is None else kept
        self.hidden = self.kept.stack(self._look)
        self.seen: list[tuple[int, ...]] = []  # layers that were looked at together in the last pass
        self.at_most = AT_MOST
        self.rows = Samples()
        self.massive_positions = Samples()
        self.where: list[list[Counter[Where]]] = [[Counter() for _ in range(3)] for _ in range(arch.n_layers)]
        self.found: dict[tuple[int, int, int], Stored] = {}

    def run(self, ids: torch.Tensor, forward: Callable[[], object], layers: Collection[int] | None = None) -> Taken:
        """Measure `layers` (default: all) in one batch of (batch, seq) ids; `forward` makes the pass, again if there
        was too little room. Gives what was `kept`, also by others during the last pass."""
        while True:
            with hooks.watch_outputs(self.arch, "block", self.update, layers):
                forward()
            taken = self.kept.take()
            if self.is_whole(taken):
                self.end_batch(ids, taken)
                return taken

    def update(self, layer: int, hidden: torch.Tensor) -> None:
        """Feed it to `hooks.watch_outputs`. hidden: (batch, seq, hidden_size) output of block `layer`."""
        self.hidden.add(layer, hidden if self.arch.outputs_stay else hidden.clone())

    def _look(self, layers: tuple[int, ...], hidden: torch.Tensor) -> None:
        """hidden: (layers, batch, seq, hidden_size)."""
        seen = seen_in(hidden.flatten(0, 1), self.at_most, self.further)
        for name, value in seen.items():
            self.kept.keep((name, layers), value.unflatten(0, hidden.shape[:2]))
        self.seen.append(layers)

    def is_whole(self, taken: Taken) -> bool:
        """Whether all that is massive in the batch was kept. If not, it must be run again: there is more room now."""
        whole = not any(self.is_full(taken, layers) for layers in self.seen)
        if not whole:
            self.at_most, self.seen = GROWTH * self.at_most, []
        return whole

    def is_full(self, taken: Taken, layers: tuple[int, ...]) -> bool:
        """Whether in a sequence all the values that were kept of these layers are massive: there may be more."""
        return bool(is_massive(taken["largest", layers][..., -1], taken["median", layers]).any())

    def end_batch(self, ids: torch.Tensor, taken: Taken) -> None:
        """Take the batch in. Raises UserError for inf or nan."""
        batch = np.full((len(ids), self.arch.n_layers, 4), np.nan)
        tokens = ids.cpu().numpy()
        self.batch_massive: list[Found] = []
        for layers in self.seen:
            largest, places, values, median = (taken[name, layers] for name in SEEN)
            massive = is_massive(largest, median[..., None])
            for layer, here in zip(layers, largest, strict=True):
                require_finite(layer, here)
            batch[:, layers] = np.concatenate([largest[..., :3], median[..., None]], axis=2).swapaxes(0, 1)
            order = np.lexsort((places, -largest))[..., :3]  # of equal ones the first place
            self._count_places(layers, *(np.take_along_axis(array, order, 2) for array in (places, values)))
            for i, sequence in np.argwhere(massive.any(2)).tolist():
                there = massive[i, sequence]
                found = zip(places[i, sequence, there].tolist(), values[i, sequence, there].tolist(), strict=True)
                self._list_massive(layers[i], sequence, tokens[sequence], float(median[i, sequence]), sorted(found))
        self.seen = []
        self.rows.extend(batch)
        positions = {(found.sequence, found.position) for found in self.batch_massive}
        counts = Counter(sequence for sequence, _position in positions)
        self.massive_positions.extend(counts[sequence] for sequence in range(len(ids)))

    def _count_places(self, layers: tuple[int, ...], places: np.ndarray, values: np.ndarray) -> None:
        """places, values: (layers, batch, 3)."""
        for layer, of_layer, signs in zip(layers, places.tolist(), (values > 0).tolist(), strict=True):
            for three, positive in zip(of_layer, signs, strict=True):
                for counter, place, sign in zip(self.where[layer], three, positive, strict=True):
                    counter[*divmod(place, self.arch.hidden_size), sign] += 1

    def _list_massive(
        self, layer: int, sequence: int, tokens: np.ndarray, median: float, found: list[tuple[int, float]]
    ) -> None:
        """found: (place, value) of each in one layer of one sequence, which has these tokens."""
        for place, value in found:
            position, dim = divmod(place, self.arch.hidden_size)
            ratio = abs(value) / median if median else float("inf")
            self.batch_massive.append(Found(sequence, layer, position, dim, value, ratio))
            new: Stored = {"values": processes.Sum(), "ratios": processes.Sum(), "tokens": Counter()}
            entry = self.found.setdefault((layer, position, dim), new)
            entry["values"] += value
            entry["ratios"] += ratio
            entry["tokens"][int(tokens[position])] += 1

    def gather(self) -> None:
        """Take in the windows of all processes; call it after the last batch."""
        own: list[Any] = [self.rows, self.massive_positions, self.where, self.found]
        self.rows, self.massive_positions, self.where, self.found = processes.merged(own)

    @property
    def top1(self) -> np.ndarray:
        """(sequences, layers)."""
        return self.rows.array[:, :, 0]

    @property
    def medians(self) -> np.ndarray:
        """(sequences, layers)."""
        return self.rows.array[:, :, 3]

    def layers(self, draws: Draws) -> list[LayerAverages]:
        rows = self.rows.array
        with np.errstate(divide="ignore", invalid="ignore"):
            table = draws.averages(np.concatenate([rows, rows[:, :, :1] / rows[:, :, 3:]], axis=2), within=SIZE)
        return [
            LayerAverages(
                layer, top1, top2, top3, median, ratio if np.isfinite(ratio.mean) else None, [*map(_most_common, where)]
            )
            for layer, ((top1, top2, top3, median, ratio), where) in enumerate(zip(table, self.where, strict=True))
        ]

    def massive(self) -> list[MassiveActivation]:
        """One entry a (layer, position, dim), largest first within a layer."""
        entries = []
        for (layer, position, dim), entry in self.found.items():
            n = entry["tokens"].total()
            token, _times = entry["tokens"].most_common(1)[0]
            value, ratio = entry["values"].total / n, entry["ratios"].total / n
            text = text_of(self.tokenizer, token)
            entries.append(
                MassiveActivation(layer, position, text, dim, value, ratio if np.isfinite(ratio) else None, n)
            )
        return sorted(entries, key=lambda entry: (entry.layer, -abs(entry.value)))


@contextmanager
def limit_watched(lm: LanguageModel) -> Iterator[dict[int, float]]:
    """Yield a dict that comes to hold {layer: largest |block output|}; it stays empty but for float16, which alone
    ends near massive values."""
    largest: dict[int, float] = {}
    on_device: dict[int, torch.Tensor] = {}

    def see(layer: int, hidden: torch.Tensor) -> None:
        peak = hidden.abs().max()
        on_device[layer] = torch.maximum(peak, on_device.get(layer, peak))

    with hooks.watch_outputs(lm.arch, "block", see, None if lm.model.dtype == torch.float16 else ()):
        yield largest
    largest |= {layer: peak.item() for layer, peak in on_device.items()}


def limit_warning(lm: LanguageModel, largest: dict[int, float]) -> str | None:
    """One line if the values of `limit_watched`, in any process, come close to the end of float16; else None."""
    limit = torch.finfo(torch.float16).max
    value, layer = max(((v, layer) for layer, v in processes.gather([*largest.items()])), default=(0, None))
    if value <= limit * NEAR_LIMIT:
        return None
    return f"|value| up to {value:,.0f} at layer {layer}, where float16 ends at {limit:,.0f}: compare with float32"


def seen_in(
    values: torch.Tensor, at_most: int, further: Callable[..., dict[str, torch.Tensor]] | None = None
) -> dict[str, torch.Tensor]:
    """SEEN of (rows, seq, dims) values: (rows, at_most) and (rows,). further: of LayerStatistics."""
    magnitude = values.abs().float()
    peaks = magnitude.amax(2)
    largest, places = largest_of(*rows_of(magnitude, peaks, at_most), at_most)
    median = medians(magnitude.flatten(1), reorder=further is None)  # nothing but `further` looks at it after this
    seen = {"largest": largest, "places": places, "values": values.flatten(1).gather(1, places), "median": median}
    return seen if further is None else seen | further(magnitude, peaks, median)


def rows_of(magnitude: torch.Tensor, peaks: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, n, dims) of the n positions (batch, n) with the largest peaks, of (batch, seq, dims) magnitudes.

    peaks: (batch, seq), the maximum of each position. The n largest of all are among these, so no others are ranked.
    """
    positions = peaks.topk(min(n, peaks.shape[1]), dim=1).indices
    sequence = torch.arange(len(magnitude), device=magnitude.device)[:, None]
    return magnitude[sequence, positions], positions  # which is faster than torch.take_along_dim


def largest_of(rows: torch.Tensor, positions: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n largest of each (rows, dims) of `rows_of`: (batch, n) values and places, position x dims + dim."""
    n_dims = rows.shape[2]
    largest = rows.flatten(1).topk(min(n, rows[0].numel()), dim=1)
    return largest.values, positions.gather(1, largest.indices // n_dims) * n_dims + largest.indices % n_dims


def medians(magnitude: torch.Tensor, reorder: bool = False) -> torch.Tensor:
    """(batch,) torch.median over dim 1 of finite (batch, n) values, which nobody needs in their order if `reorder`."""
    middle = (magnitude.shape[1] - 1) // 2
    if magnitude.device.type != "cpu":
        if magnitude.shape[1] <= LONG:
            return magnitude.median(dim=1).values
        if magnitude.device.type == "cuda":  # a quarter of the time of sorting
            return magnitude.topk(magnitude.shape[1] - middle, dim=1, sorted=False).values.amin(1)
        return magnitude.sort(dim=1).values[:, middle]
    values = magnitude.numpy() if reorder else magnitude.numpy().copy()
    values.partition(middle, axis=1)  # ten times as fast
    return torch.from_numpy(values[:, middle].copy())


def _most_common(counter: Counter[Where]) -> TopPlace:
    (position, dim, positive), n = counter.most_common(1)[0]
    return TopPlace(position, dim, "+" if positive else "-", n)
