"""How much each head attends to the first token, and the logits that make it so."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext

import numpy as np
import torch

from lib.core.data import Windows
from lib.core.definitions import ALL, SINK_EPSILON, SINK_WINDOW
from lib.core.evidence import Average
from lib.core.on_device import OnDevice, Taken, exact
from lib.core.results import FirstTokenLogits, HeadScore
from lib.core.stats import SHARE, Draws, Samples
from lib.model import attention, hooks
from lib.model.arch import Architecture
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.run import processes

QUERIES = "scores", "later", "window"  # of which HeadScores gives means: all, all but the first, the first of a window


def logits(lm: LanguageModel, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """(heads, seq, seq) float64 of one layer for one window of (1, seq) ids; see attention.watch_logits."""
    seen: dict[int, torch.Tensor] = {}
    with attention.watch_logits(lm, seen.__setitem__, [layer]), hooks.stop_after(lm.arch, layer):
        hooks.forward(lm, ids)
    require_finite(layer, seen[layer].amax(3))  # -inf is hidden, and no query sees nothing
    return seen[layer][0].cpu().double()


def first_token_logits(head: torch.Tensor) -> FirstTokenLogits:
    """Of one head's (seq, seq) logits."""
    rows = [row[row > -torch.inf] for row in head[1:] if row[0] > -torch.inf]
    means = [(row[0], row[1:].mean(), row.softmax(0)[0]) for row in rows]
    return FirstTokenLogits(*(torch.tensor(means).mean(0).tolist() if means else [None] * 3))


def sees_only_itself(lm: LanguageModel, ids: torch.Tensor) -> bool:
    """Whether every head of the first token of (windows, seq) ids gives it all of its attention; where a head has a
    learned sink, it does not."""
    kept = OnDevice()

    def see(layer: int, probability: torch.Tensor, _visible: torch.Tensor) -> None:
        kept.keep(layer, probability.float().amin())

    with attention.watch_first_token(lm, see):
        hooks.forward(lm, ids[:1, :1])
    return all(least > ALL for least in kept.take().values())


class QueryMeans:
    """Of one pass, the mean probability on the first token over these of QUERIES.

    Feed `update` to lib.model.attention.watch_parts.
    """

    def __init__(self, kept: OnDevice, queries: Iterable[str] = QUERIES) -> None:
        """kept: whose `take` is given to `taken`."""
        self.kept, self.queries = kept, tuple(queries)
        self.parts = kept.stack(self._multiply)
        self.attention = kept.stack(self._look)  # of more layers at once than their parts
        self.seen: list[tuple[int, ...]] = []  # layers that were looked at together

    def update(self, layer: int, visible: torch.Tensor, *parts: torch.Tensor) -> None:
        self.parts.add(layer, visible, *parts)

    def _multiply(self, layers: tuple[int, ...], visible: torch.Tensor, *parts: torch.Tensor) -> None:
        """Of several layers, each with a leading axis for these."""
        for values in zip(layers, attention.probability(*parts), visible, strict=True):
            self.attention.add(*values)

    def _look(self, layers: tuple[int, ...], probability: torch.Tensor, visible: torch.Tensor) -> None:
        """probability: (layers, batch, heads, seq); visible: (layers, batch or 1, heads or 1, seq)."""
        nth = visible.cumsum(3)
        chosen = {"scores": visible, "later": visible & (nth > 1), "window": visible & (nth <= SINK_WINDOW)}
        summed = exact(probability)
        for query in self.queries:
            here = chosen[query]
            self.kept.keep((query, layers), (summed * here).sum(3) / here.sum(3))
        self.seen.append(layers)

    def taken(self, taken: Taken) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(layer, {query: (batch, heads) means}) of each layer that was seen. Raises UserError for inf or nan."""
        seen, self.seen = self.seen, []
        for layers in seen:
            for i, layer in enumerate(layers):
                means = {query: taken[query, layers][i] for query in self.queries}
                require_finite(layer, means[self.queries[0]])
                yield layer, means


class _ByHead:
    """Rows of (sequences, layers, heads), NaN where a layer has fewer heads than others."""

    def __init__(self, arch: Architecture, queries: Iterable[str]) -> None:
        self.shape = (arch.n_layers, arch.n_heads)
        self.rows = {query: Samples() for query in queries}

    def _padded(self, n: int, means: Mapping[int, np.ndarray]) -> np.ndarray:
        """means: {layer: (n, heads)}."""
        rows = np.full((n, *self.shape), np.nan)
        for layer, of_layer in means.items():
            rows[:, layer, : of_layer.shape[1]] = of_layer
        return rows

    def gather(self) -> None:
        """Have the rows of all processes; call it after the last batch."""
        self.rows = processes.merged(self.rows)

    @property
    def scores(self) -> np.ndarray:
        return self.rows["scores"].array

    @property
    def window(self) -> np.ndarray:
        return self.rows["window"].array


class HeadScores(_ByHead):
    """Per-sequence means of the probability on the first token; feed `update` to
    lib.model.attention.watch_parts.

    Three arrays of (sequences, layers, heads), NaN where a layer has fewer heads than others. Each is a mean over the
    queries that can see the first token: `scores` over all queries, the first (always 1) included; `later` without it;
    `window` over the first SINK_WINDOW queries, which by causality is what a window of SINK_WINDOW tokens would give.
    """

    def __init__(self, arch: Architecture, kept: OnDevice | None = None) -> None:
        """kept: where `update` keeps what it sees; shared with others, one copy takes all of it to the host."""
        arch.require_attention()
        super().__init__(arch, QUERIES)
        self.kept = OnDevice() if kept is None else kept
        self.means = QueryMeans(self.kept)
        self.update = self.means.update

    def end_batch(self, taken: Taken | None = None, first: int = 0, baseline: "HeadScores | None" = None) -> None:
        """Take the batch's rows in; call it after each forward pass. Raises UserError for inf or nan.

        taken: of the shared `kept`. What the heads before layer `first` do is the last batch of `baseline`.
        """
        seen = dict(self.means.taken(self.kept.take() if taken is None else taken))
        self.last: dict[str, np.ndarray] = {}
        n = len(next(iter(seen.values()))["scores"]) if seen or baseline is None else len(baseline.last["scores"])
        for query in QUERIES:
            rows = self._padded(n, {layer: means[query] for layer, means in seen.items()})
            if baseline is not None:
                rows[:, :first] = baseline.last[query][:, :first]
            self.rows[query].extend(rows)
            self.last[query] = rows

    @property
    def later(self) -> np.ndarray:
        return self.rows["later"].array

    def sink_rates(self) -> np.ndarray:
        """(sequences,) share of all heads over SINK_EPSILON in `window` (Gu et al. 2025, arXiv 2410.10781)."""
        return rates(self.window)


class LearnedSinks(_ByHead):
    """Per-sequence means of the probability on learned sinks; feed `update` to
    lib.model.attention.watch_learned_sinks.

    scores, window: (sequences, layers, heads), NaN where there is none, over all queries and over the first
    SINK_WINDOW.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch, ["scores", "window"])
        self.kept = OnDevice()
        self.layers: list[int] = []  # of the batch, that have one

    def __bool__(self) -> bool:
        """Whether the model has any."""
        return bool(self.rows["scores"].rows)

    def update(self, layer: int, probability: torch.Tensor) -> None:
        self.layers.append(layer)
        self.kept.keep(("scores", layer), exact(probability).mean(2))
        self.kept.keep(("window", layer), exact(probability[:, :, :SINK_WINDOW]).mean(2))

    def end_batch(self) -> None:
        taken, layers = self.kept.take(), self.layers
        self.layers = []
        for name, samples in self.rows.items() if layers else ():
            samples.extend(self._padded(len(taken[name, layers[0]]), {layer: taken[name, layer] for layer in layers}))


def rates(probabilities: np.ndarray, epsilon: float = SINK_EPSILON) -> np.ndarray:
    """(sequences,) share of the heads over `epsilon`, of (sequences, layers, heads); NaN is no head."""
    return (probabilities > epsilon).sum((1, 2)) / np.isfinite(probabilities).sum((1, 2))


def by_head(values: np.ndarray, draws: Draws, family: bool = False) -> list[list[Average]]:
    """[layer][head] of (sequences, layers, heads), NaN where there is no head; family: as in Draws.ratios."""
    rows: list[list[Average]] = [[] for _ in range(values.shape[1])]
    layers, numbers = np.nonzero(np.isfinite(values).all(0))
    for layer, average in zip(layers, draws.averages(values[:, layers, numbers], family, within=SHARE), strict=True):
        rows[layer].append(average)
    return rows


def rank(scores: Iterable[Iterable[float]]) -> list[HeadScore]:
    """Heads, highest first, of (layers, heads) mean scores, NaN where there is no head; ties in layer order."""
    heads = [HeadScore(layer, head, float(score)) for layer, row in enumerate(scores) for head, score in enumerate(row)]
    heads = [head for head in heads if np.isfinite(head.score)]
    return sorted(heads, key=lambda head: -head.score)


def measure(
    lm: LanguageModel,
    windows: Windows,
    batch_size: int,
    last_layer: int | None = None,
    learned: LearnedSinks | None = None,
) -> HeadScores:
    """All windows; with `last_layer` no later layer is run (their scores are nan). learned: gets the learned sinks."""
    scores = HeadScores(lm.arch)
    stop = nullcontext() if last_layer is None else hooks.stop_after(lm.arch, last_layer)
    with (
        processes.progress(len(windows.ids), batch_size, "attention") as progress,
        attention.watch_parts(lm, scores.update),
        nullcontext() if learned is None else attention.watch_learned_sinks(lm, learned.update),
        stop,
    ):
        for _rows, ids in windows.batches(batch_size):
            hooks.forward(lm, ids)
            scores.end_batch()
            if learned is not None:
                learned.end_batch()
            progress.update(len(ids))
    scores.gather()
    if learned is not None:
        learned.gather()
    return scores
