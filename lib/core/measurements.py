"""What one version of the model shows, and what is left in it of the baseline's massive values."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lib.core import sinks
from lib.core.data import Windows
from lib.core.massive import Found, LayerStatistics, is_massive, plateau_of
from lib.core.on_device import OnDevice, Taken, by_layer, exact
from lib.core.results import AblatedPlace
from lib.core.stats import Draws, Samples
from lib.model import attention, hooks, next_token
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.run import processes

Sites = dict[tuple[int, int], list[int]]  # of one sequence: {(position, dim): layers at which it is massive}
Rows = dict[int, list[tuple[int, int]]]  # {dim: [(sequence, index of its site)]}


class Measurements:
    """All that is measured in one condition.

    tracked: of each sequence, (sites, layers) values.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.kept = OnDevice()
        self.layers = LayerStatistics(lm.arch, lm.tokenizer, self.kept)
        self.heads = sinks.HeadScores(lm.arch, self.kept)
        self.losses = Samples()
        self.tracked: list[np.ndarray] = []

    def run(
        self,
        lm: LanguageModel,
        ids: torch.Tensor,
        see: Callable[[int, torch.Tensor], None],
        first: int = 0,
        baseline: "Measurements | None" = None,
    ) -> Taken:
        """One forward pass from block `first` on; `see(layer, hidden)` gets each block output after the statistics
        have. What the heads before do is the baseline's last batch. Gives what was `kept`, also by `see`."""

        def forward() -> None:
            with (
                attention.watch_parts(lm, self.heads.update, range(first, lm.arch.n_layers)),
                hooks.watch_outputs(lm.arch, "block", see),
            ):
                self.kept.keep("losses", exact(next_token.losses(lm, ids)).mean(1))

        taken = self.layers.run(ids, forward)
        self.losses.extend(taken["losses"])
        self.heads.end_batch(taken, first, baseline.heads if baseline else None)
        return taken

    def gather(self) -> None:
        """Take in the windows of all processes; call it after the last batch."""
        self.layers.gather()
        self.heads.gather()
        self.losses = processes.merged(self.losses)
        self.tracked = processes.gather(self.tracked)


def index_of(sites: list[Sites]) -> torch.Tensor:
    """(3, all sites of the batch): sequence, position, dim."""
    index = torch.tensor([(s, *site) for s, own in enumerate(sites) for site in own], dtype=torch.long)
    return index.view(-1, 3).T


def values_at(hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(sites,) values of one layer; layers may be on different devices."""
    return hidden[tuple(index.to(hidden.device))]


def sites_of(massive: list[Found], kept: dict[int, torch.Tensor], n_sequences: int, dims: Sequence[int]) -> list[Sites]:
    """Per sequence; named dims are added at their peak."""
    sites: list[Sites] = [{} for _ in range(n_sequences)]
    for sequence, layer, position, dim, _value, _ratio in massive:
        sites[sequence].setdefault((position, dim), []).append(layer)
    for dim in dims:
        columns = OnDevice()
        for layer, hidden in kept.items():
            columns.keep(layer, hidden[:, :, dim].abs())
        peaks = np.stack([*columns.take().values()]).max(0).argmax(1)
        for sequence, position in enumerate(peaks.tolist()):
            sites[sequence].setdefault((position, dim), [])
    return sites


def by_sequence(taken: Taken, n_layers: int, batch_sites: list[Sites]) -> list[np.ndarray]:
    """Split {("sites", layer): (all sites of the batch,)} into one (sites, layers) array a sequence."""
    return np.split(by_layer(taken, "sites", range(n_layers)), np.cumsum([len(own) for own in batch_sites])[:-1])


def dim_rows(sites: list[Sites], tracked: list[np.ndarray]) -> Rows:
    """Of each sequence and dim the site where the baseline's |value| peaks."""
    rows: Rows = {}
    for sequence, own in enumerate(sites):
        best: dict[int, tuple[float, int]] = {}
        for i, (_position, dim) in enumerate(own):
            peak = np.abs(tracked[sequence][i]).max()
            if dim not in best or peak > best[dim][0]:
                best[dim] = (peak, i)
        for dim, (_peak, i) in best.items():
            rows.setdefault(dim, []).append((sequence, i))
    return rows


@dataclass(frozen=True)
class Spike:
    """Where one dim is massive in the baseline, at position 0 ("first") or at others ("later").

    sites: {window that has it: indices of its sites}; a window may have it at several positions. token: the most
    frequent text there. layer: the end of its plateau, the last of massive.plateau_of.
    """

    position: str
    dim: int
    token: str
    sites: dict[int, list[int]]
    layer: int

    def compared(self, baseline: Measurements, here: Measurements, draws: Draws) -> AblatedPlace:
        """What is left of it in `here`, after `layer`.

        It votes once, whatever the number of layers in which it is massive. share: of the windows that have it, and of
        these: value, ablated (signed), size_baseline, size_ablated (along the baseline's sign): means over positions;
        retained, absolute_change: sums of size_ablated and of |ablated - value| over the sum of |value|; massive,
        still_massive: the share of its positions (mean over windows) that passes the test in this layer.
        """
        windows = list(self.sites)
        before, after = ([run.tracked[s][own, self.layer] for s, own in self.sites.items()] for run in (baseline, here))
        still = []
        for run, values in ((baseline, before), (here, after)):
            medians = run.layers.medians[windows, self.layer]
            still.append([is_massive(v, median).mean() for v, median in zip(values, medians, strict=True)])
        sums = np.array(
            [
                (b.sum(), a.sum(), np.abs(b).sum(), (np.sign(b) * a).sum(), np.abs(a - b).sum())
                for b, a in zip(before, after, strict=True)
            ]
        )
        there = draws.of(windows)
        value, ablated, size, size_ablated = there.ratios(sums[:, :4], [len(b) for b in before])
        retained, change = there.ratios(sums[:, 3:], sums[:, 2])
        return AblatedPlace(
            position=self.position,
            dim=self.dim,
            token=self.token,
            windows=len(windows),
            share=draws.share(np.isin(np.arange(len(draws.groups)), windows)),
            layer=self.layer,
            value=value,
            ablated=ablated,
            size_baseline=size,
            size_ablated=size_ablated,
            retained=retained,
            absolute_change=change,
            massive=there.share(still[0]),
            still_massive=there.share(still[1]),
        )


def spikes(
    sites: list[Sites], tracked: list[np.ndarray], windows: Windows, tokenizer: PreTrainedTokenizerBase
) -> list[Spike]:
    """The Spikes of the baseline, by the sum over windows of their largest massive |value|, largest first."""
    rows: dict[tuple[str, int], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    tokens: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    times: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)  # that it is massive in each layer
    peaks: dict[tuple[str, int], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for s, own in enumerate(sites):
        for i, ((position, dim), layers) in enumerate(own.items()):
            if layers:
                place = "later" if position else "first", dim
                rows[place][s].append(i)
                tokens[place][int(windows.ids[s, position])] += 1
                times[place].update(layers)
                peaks[place][s] = max(peaks[place][s], np.abs(tracked[s][i, layers]).max())
    every: list[Spike] = []
    for place, spiking in rows.items():
        by_layer = reduce(np.add, (np.abs(tracked[s][own]).sum(0) for s, own in spiking.items()))
        end = plateau_of(by_layer, np.array([times[place][layer] for layer in range(len(by_layer))]))[-1]
        token = text_of(tokenizer, tokens[place].most_common(1)[0][0])
        every.append(Spike(*place, token, dict(spiking), int(end)))
    return sorted(every, key=lambda spike: -sum(peaks[spike.position, spike.dim].values()))
