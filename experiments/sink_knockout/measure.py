"""The model as it is, then without edges or values of attention, one pass each, on the same windows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from experiments.sink_knockout.changes import (
    Choose,
    EdgesOff,
    EqualMass,
    Knockout,
    OnlySink,
    Random,
    RandomValues,
    ValueZero,
    middle,
    recent,
    sink,
)
from experiments.sink_knockout.results import (
    CONTROLS,
    EQUAL_MASS,
    ITSELF,
    MIDDLE,
    ONLY_SINK,
    POSITION,
    PREVIOUS,
    RANDOM,
    RANDOM_VALUES,
    RECENT,
    SINK,
    SINK_FIRST,
    SINK_SECOND,
    TEXT,
    VALUE_ZERO,
    Baseline,
    Condition,
    Moved,
    Results,
    random_values_at,
    sink_at,
)
from lib.core import sinks
from lib.core.changes import Change
from lib.core.data import Windows
from lib.core.definitions import SINK_EPSILON
from lib.core.keys import at_once
from lib.core.on_device import OnDevice, Taken, exact
from lib.core.place import Place, find, vectors_at
from lib.core.stats import SHARE, SIZE
from lib.core.versions import each_batch
from lib.model import attention_edits, attention_rows, hooks, next_token
from lib.model.attention_rows import Attended
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.model.tokens import text_of
from lib.run import processes
from lib.run.errors import LackingError, UserError

LISTED = 5  # keys to which attention moves
COMMON = 0.5  # of the windows: in so many a token must be to be named


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    """Raises UserError for a model without attention, and for a position that no later query follows."""
    lm.arch.require_attention()
    n, seqlen = windows.ids.shape
    position = options.position or 0
    if not 0 <= position < seqlen - 1:
        raise UserError(f"--position {position} is out of range: in windows of {seqlen} tokens it is 0 to {seqlen - 2}")
    place = find(lm, windows, options.batch_size, seed=options.seed)
    watched = Watched(lm, place, position)
    before = Version(lm, n, seqlen)
    with watched.watching(), processes.progress(n, options.batch_size, "sinks") as progress:
        for rows, ids in windows.batches(options.batch_size):
            watched.rows = rows
            hooks.forward(lm, ids)
            before.take_in(rows, watched.kept.take())
            progress.update(len(ids))
    mine = processes.own(n, options.batch_size)
    before.gather(mine)
    has_sink = np.nan_to_num(before.on_sink.mean(0)) > SINK_EPSILON
    left_out = None if attention_edits.values_can_be_set(lm, windows.ids) else attention_edits.SOFTMAX_ALONE
    changes = knockouts(lm, windows, place, position, has_sink, left_out is None, options.seed, watched.kept)
    baseline, versions = Version(lm, n, seqlen), {change.name: Version(lm, n, seqlen) for change in changes}
    layers = {change.name: change.layers for change in changes}

    def one_pass(together: Sequence[Change], ids: torch.Tensor, rows: slice) -> None:
        watched.rows = rows
        watched.kept.keep("losses", exact(next_token.losses(lm, ids)).mean(1))
        if not together:
            return baseline.take_in(rows, watched.kept.take())
        name = together[0].name
        versions[name].take_in(rows, watched.kept.take(), baseline, layers[name])

    with watched.watching():  # before changes are made: what is seen is what they make
        for _rows in each_batch(lm, windows, changes, options.batch_size, "knock-outs", one_pass):
            pass
    for version in (baseline, *versions.values()):
        version.gather(mine)
    return Reduced(lm, windows, place, position, baseline).results(changes, versions, left_out)


def knockouts(
    lm: LanguageModel,
    windows: Windows,
    place: Place,
    position: int,
    has_sink: np.ndarray,
    with_values: bool,
    seed: int,
    kept: OnDevice,
) -> list[Knockout]:
    """All conditions. has_sink: (layers, heads) bool. kept: of EdgesOff."""
    layers = lm.arch.with_role("attention_module")
    half = lm.arch.n_layers // 2
    rng = np.random.default_rng(seed)
    keys, queries, other = (rng.random(windows.ids.shape, dtype=np.float32) for _ in range(3))
    heads = rng.random(has_sink.shape, dtype=np.float32)
    edges: list[tuple[str, str, list[int], Choose]] = [
        (SINK, "sink's key masked", layers, sink),
        (SINK_FIRST, "sink's key masked, first half", [layer for layer in layers if layer < half], sink),
        (SINK_SECOND, "sink's key masked, second half", [layer for layer in layers if layer >= half], sink),
        (RANDOM, "a random key masked", layers, Random(other)),
        (RECENT, "the previous key masked", layers, recent),
        (MIDDLE, "the middle key masked", layers, middle),
        (EQUAL_MASS, "random keys of the sink's mass masked", layers, EqualMass(keys, queries, heads)),
        (ONLY_SINK, "all but the sink masked, in its heads", layers, OnlySink(has_sink)),
        *((sink_at(layer), f"sink's key masked in layer {layer}", [layer], sink) for layer in layers),
    ]
    changes: list[Knockout] = [
        EdgesOff(name, label, lm, where, choose, position, kept) for name, label, where, choose in edges if where
    ]
    if with_values:
        changes.append(ValueZero(VALUE_ZERO, "sink's value zero", lm, layers, position))
        changes.append(RandomValues(RANDOM_VALUES, "all values random", lm, layers, seed))
        first = place.plateau[0]
        if place.massive and first in layers:
            changes.append(
                RandomValues(random_values_at(first), f"all values random in layer {first}", lm, [first], seed)
            )
    return changes


class Watched:
    """What a pass shows, kept on the device: of each layer the attention on keys, and the value at the place."""

    def __init__(self, lm: LanguageModel, place: Place, position: int) -> None:
        self.lm, self.place, self.position = lm, place, position
        self.kept = OnDevice()
        self.rows = slice(0)
        """The windows of the pass."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        with (
            attention_rows.watch_rows(self.lm, self._attention),
            hooks.watch_outputs(self.lm.arch, "block", self._block),
        ):
            yield

    def _block(self, layer: int, hidden: torch.Tensor) -> None:
        positions = torch.from_numpy(self.place.positions[self.rows])
        self.kept.keep(("value", layer), vectors_at(hidden, positions)[:, self.place.dim])

    def _attention(self, layer: int, attended: Attended) -> None:
        """Keep ("keys", layer): (batch, seq + 2) probability on each key, on the query's own and on the previous one,
        summed up over heads and later queries; ("sink", layer): (batch, heads) on the sink's, over all queries; and
        ("seen", layer), how many queries of each window and head, or of all alike, see that."""
        n, device, sink = attended.shape[2], attended.device, slice(self.position, self.position + 1)
        sums: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for first, probability, visible in attended.rows(at_once(device)):
            last = probability.shape[3]
            keys, queries = (torch.arange(start, last, device=device) for start in (0, first))
            own, previous = queries[:, None] == keys, (queries[:, None] - 1 == keys) & (keys != self.position)
            of_heads = probability.sum(1) * (queries > self.position)[:, None]
            others = pad((of_heads * ~(own | previous)).sum(1), (0, n - last))
            relative = [(of_heads * one).sum((1, 2))[:, None] for one in (own, previous)]
            on_keys = torch.cat([others, *relative], dim=1)
            sums.append((on_keys, probability[..., sink].sum((2, 3)), visible[..., sink].sum((2, 3))))
        on_keys, on_sink, seen = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
        self.kept.keep(("keys", layer), on_keys)
        self.kept.keep(("sink", layer), on_sink)
        self.kept.keep(("seen", layer), seen)


class Version:
    """All passes of one version of the model.

    losses: (windows,) nats a token. values: (windows, layers) at the place. on_sink: (windows, layers, heads) mean
    probability on the sink's key, over the queries that see it in the model as it is; NaN where there is no head. Of a
    change: removed, (windows, 2), the edges and their mean probability; gains, (windows, seq + 2), by how much the mean
    probability on each key, on the query's own and on the previous one is above the baseline's.
    """

    def __init__(self, lm: LanguageModel, n: int, seqlen: int) -> None:
        self.n_heads = {layer: lm.arch.layers[layer].n_heads for layer in lm.arch.with_role("attention_module")}
        self.losses, self.values = np.full(n, np.nan), np.full((n, lm.arch.n_layers), np.nan)
        self.on_sink = np.full((n, lm.arch.n_layers, lm.arch.n_heads), np.nan)
        self.removed, self.gains = np.zeros((n, 2)), np.zeros((n, seqlen + 2))
        self.seen: dict[int, int] = {}
        """By layer, how many queries see the sink in the model as it is."""
        self.on_keys: dict[int, np.ndarray] = {}
        """By layer, of the last batch."""

    def take_in(
        self, rows: slice, taken: Taken, baseline: "Version | None" = None, layers: Sequence[int] = (0,)
    ) -> None:
        """The pass over the windows `rows`, of a change in `layers`. Raises UserError for inf or nan."""
        if baseline is not None:
            self.values[rows], self.on_sink[rows] = baseline.values[rows], baseline.on_sink[rows]
        self.losses[rows] = taken.get("losses", np.nan)
        for layer in range(layers[0], self.values.shape[1]):
            require_finite(layer, taken["value", layer])
            self.values[rows, layer] = taken["value", layer]
        run = [layer for layer in self.n_heads if layer >= layers[0]]
        self.seen = {layer: _alike(layer, taken["seen", layer]) for layer in run} if baseline is None else baseline.seen
        self.on_keys = {layer: taken["keys", layer].astype(np.float64) for layer in run}
        for layer in run:
            self.on_sink[rows, layer, : self.n_heads[layer]] = taken["sink", layer] / self.seen[layer]
        if baseline is not None:
            edges = sum(self.n_heads[layer] * (self.seen[layer] - 1) for layer in layers)
            for layer in layers:
                self.removed[rows] += taken.get(("removed", layer), 0) / np.array([1, edges])
                self.gains[rows] += self.on_keys[layer] - baseline.on_keys[layer]
            self.gains[rows] /= sum(self.n_heads[layer] for layer in layers)

    def gather(self, mine: slice) -> None:
        """Have the windows of all processes; `mine` are this one's."""
        own = [self.losses, self.values, self.on_sink, self.removed, self.gains]
        parts = zip(*processes.gather([[array[mine] for array in own]]), strict=True)
        self.losses, self.values, self.on_sink, self.removed, self.gains = map(np.concatenate, parts)


def _alike(layer: int, seen: np.ndarray) -> int:
    """Raises LackingError for sparse attention, where the text says what a query sees: edges cannot be counted."""
    if seen.min() != seen.max():
        raise LackingError(f"layer {layer}: which queries see the sink differs by window or head (sparse attention)")
    return int(seen.max())


class Reduced:
    """Versions of the model, all windows of each, to results."""

    def __init__(self, lm: LanguageModel, windows: Windows, place: Place, position: int, baseline: Version) -> None:
        self.lm, self.place, self.position, self.baseline = lm, place, position, baseline
        self.ids, self.draws = windows.ids.numpy(), place.draws

    def results(self, changes: Sequence[Knockout], versions: dict[str, Version], left_out: str | None) -> Results:
        draws, baseline = self.draws, self.baseline
        return Results(
            position=self.position,
            token=self._token(self.ids[:, self.position]),
            epsilon=SINK_EPSILON,
            place=self.place.described(),
            heads=sinks.by_head(baseline.on_sink, draws, family=True),
            baseline=Baseline(
                loss=draws.averages(baseline.losses, within=SIZE),
                sink_rate=draws.averages(sinks.rates(baseline.on_sink), within=SHARE),
                value=draws.averages(baseline.values[:, self.place.peak]),
            ),
            conditions={
                change.name: self._condition(change, versions[change.name], versions[SINK]) for change in changes
            },
            left_out=left_out,
        )

    def _condition(self, change: Knockout, here: Version, without: Version) -> Condition:
        """without: the sink."""
        draws, baseline, peak, spiking = self.draws, self.baseline, self.place.peak, self.place.spiking
        before, after = (version.values[spiking, peak] for version in (baseline, here))
        return Condition(
            label=change.label,
            layers=[*change.layers],
            edges=float(here.removed[:, 0].mean()),
            mass=draws.averages(here.removed[:, 1], within=SHARE),
            loss_change=draws.averages(here.losses - baseline.losses),
            beyond=draws.averages(without.losses - here.losses) if change.name in CONTROLS else None,
            sink_rate_after=draws.averages(sinks.rates(here.on_sink), within=SHARE),
            moved_to=self._moved(here.gains / (self.ids.shape[1] - 1 - self.position)),
            value=draws.averages(here.values[:, peak]),
            retained=draws.of(spiking).ratios(np.sign(before) * after, np.abs(before)) if spiking.any() else None,
        )

    def _moved(self, gains: np.ndarray) -> list[Moved]:
        """gains: (windows, seq + 2) of the mean probability."""
        seqlen = self.ids.shape[1]
        besides = np.delete(gains, [self.position, seqlen, seqlen + 1], axis=1)
        others = np.delete(self.ids, self.position, axis=1)
        times = Counter(token for window in others.tolist() for token in {*window})
        texts = [token for token, n in times.items() if n >= COMMON * len(others)]
        of_texts = [(besides * (others == token)).sum(1) for token in texts]
        keys = [
            *((POSITION, position, self._token(self.ids[:, position])) for position in range(seqlen)),
            *((ITSELF, None, None), (PREVIOUS, None, None)),
            *((TEXT, None, text_of(self.lm.tokenizer, token)) for token in texts),
        ]
        averages = self.draws.averages(np.column_stack([gains, *of_texts]), family=True)
        moved = [Moved(*key, average) for key, average in zip(keys, averages, strict=True) if average.mean > 0]
        return sorted(moved, key=lambda one: -one.gain.mean)[:LISTED]

    def _token(self, tokens: np.ndarray) -> str | None:
        """The text of the most frequent one, if so many windows have it."""
        ((token, times),) = Counter(tokens.tolist()).most_common(1)
        return text_of(self.lm.tokenizer, token) if times >= COMMON * len(tokens) else None
