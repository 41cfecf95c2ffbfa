"""What counts as massive, and the per-layer statistics of the residual stream."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lib.core.definitions import ABSOLUTE, MASSIVE, RELATIVE
from lib.core.evidence import Stored
from lib.core.results import LayerAverages, MassiveActivation, TopPlace
from lib.core.stats import Draws, Samples
from lib.model.arch import Architecture
from lib.model.hooks import require_finite, watch_outputs
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.run import processes

NEAR_LIMIT = 0.5  # of float16's largest value
SAMPLE = 61  # one value in so many; prime, so that all dims are among them
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


class LayerStatistics:
    """Top-3, median and massive values of |block output|; feed `update` to `hooks.watch_outputs`.

    rows: per sequence (layers, 4), top-1, top-2, top-3 and median over positions x dims.
    batch_massive: of the last batch.
    """

    def __init__(self, arch: Architecture, tokenizer: PreTrainedTokenizerBase) -> None:
        self.n_layers = arch.n_layers
        self.tokenizer = tokenizer
        self.rows = Samples()
        self.massive_positions = Samples()
        self.where: list[list[Counter[Where]]] = [[Counter() for _ in range(3)] for _ in range(arch.n_layers)]
        self.found: dict[tuple[int, int, int], Stored] = {}

    def begin_batch(self, ids: torch.Tensor) -> None:
        self.ids = ids
        self.batch = np.full((len(ids), self.n_layers, 4), np.nan)
        self.batch_massive: list[Found] = []

    def update(self, layer: int, hidden: torch.Tensor) -> None:
        """hidden: (batch, seq, hidden_size) output of block `layer`. Raises UserError for inf or nan."""
        magnitude = hidden.abs().float()
        peaks = magnitude.amax(2)
        top, places = _top3(magnitude, peaks)
        require_finite(layer, top)
        median = medians(magnitude.flatten(1))
        self.batch[:, layer, :3] = top.cpu()
        self.batch[:, layer, 3] = median.cpu()
        for sequence, top_places in enumerate(places.tolist()):
            for k, (position, dim) in enumerate(top_places):
                value = hidden[sequence, position, dim].item()
                self.where[layer][k][position, dim, value > 0] += 1
            if is_massive(top[sequence, 0], median[sequence]):
                positions = torch.nonzero(is_massive(peaks[sequence], median[sequence]))[:, 0].tolist()
                self._list_massive(layer, sequence, positions, hidden[sequence, positions], median[sequence])

    def _list_massive(
        self, layer: int, sequence: int, positions: list[int], hidden: torch.Tensor, median: torch.Tensor
    ) -> None:
        """hidden: (len(positions), hidden_size), at the positions that have a massive value."""
        for row, dim in torch.nonzero(is_massive(hidden.float(), median)).tolist():
            position, value = positions[row], hidden[row, dim].item()
            ratio = abs(value) / median.item() if median else float("inf")
            self.batch_massive.append(Found(sequence, layer, position, dim, value, ratio))
            new: Stored = {"values": processes.Sum(), "ratios": processes.Sum(), "tokens": Counter()}
            entry = self.found.setdefault((layer, position, dim), new)
            entry["values"] += value
            entry["ratios"] += ratio
            entry["tokens"][self.ids[sequence, position].item()] += 1

    def end_batch(self) -> None:
        self.rows.extend(self.batch)
        places = {(found.sequence, found.position) for found in self.batch_massive}
        counts = Counter(sequence for sequence, _position in places)
        self.massive_positions.extend(counts[sequence] for sequence in range(len(self.ids)))

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
        with np.errstate(divide="ignore"):
            table = draws.averages(np.concatenate([rows, rows[:, :, :1] / rows[:, :, 3:]], axis=2))
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

    def see(layer: int, hidden: torch.Tensor) -> None:
        largest[layer] = max(largest.get(layer, 0.0), hidden.abs().max().item())

    with watch_outputs(lm.arch, "block", see, None if lm.model.dtype == torch.float16 else ()):
        yield largest


def limit_warning(lm: LanguageModel, largest: dict[int, float]) -> str | None:
    """One line if the values of `limit_watched`, in any process, come close to the end of float16; else None."""
    limit = torch.finfo(torch.float16).max
    value, layer = max(((v, layer) for layer, v in processes.gather([*largest.items()])), default=(0, None))
    if value <= limit * NEAR_LIMIT:
        return None
    return f"|value| up to {value:,.0f} at layer {layer}, where float16 ends at {limit:,.0f}: compare with float32"


def _top3(magnitude: torch.Tensor, peaks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest three of each (seq, dims) in (batch, seq, dims), as (batch, 3) values and (batch, 3, 2) position and dim.

    peaks: (batch, seq), the maximum of each position. The three are where these are largest, so no others are ranked.
    """
    positions = peaks.topk(min(3, peaks.shape[1]), dim=1).indices
    rows = magnitude.take_along_dim(positions[:, :, None], dim=1)
    top = rows.flatten(1).topk(3, dim=1)
    dims = magnitude.shape[2]
    return top.values, torch.stack([positions.take_along_dim(top.indices // dims, dim=1), top.indices % dims], dim=2)


def medians(magnitude: torch.Tensor) -> torch.Tensor:
    """(batch,) torch.median over dim 1 of finite (batch, n) values."""
    if magnitude.device.type != "cpu":
        return magnitude.median(dim=1).values
    return torch.from_numpy(np.array([_median(row) for row in magnitude.numpy()]))


def _median(values: np.ndarray) -> np.floating:
    """The median of one row, looked for among the values near the median of a sample: six times as fast, and exact.

    What lies below these is counted; should the median not be among them, it is looked for among all.
    """
    rank = (len(values) - 1) // 2
    sample = np.sort(values[::SAMPLE])
    middle, margin = len(sample) // 2, int(2 * len(sample) ** 0.5)  # 4 standard deviations, were it a random sample
    low, high = sample[max(middle - margin, 0)], sample[min(middle + margin, len(sample) - 1)]
    near = values[(values >= low) & (values <= high)]
    below = int(np.count_nonzero(values < low))
    if not below <= rank < below + len(near):
        near, below = values, 0
    return np.partition(near, rank - below)[rank - below]


def _most_common(counter: Counter[Where]) -> TopPlace:
    (position, dim, positive), n = counter.most_common(1)[0]
    return TopPlace(position, dim, "+" if positive else "-", n)
