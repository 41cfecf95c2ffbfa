"""Where attention goes: one pass a batch, for every kind of input and length of windows."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from msgspec import UNSET

from experiments.sinks import judge
from experiments.sinks.results import NATURAL, REPEATED, Between, Head, Input, Key, Results, Secondary
from lib.core import data, sinks
from lib.core.data import Windows
from lib.core.definitions import SINK_EPSILON, SINK_QUERIES
from lib.core.evidence import Average
from lib.core.keys import ATTENDS, SPLIT, KeyMeans, LikeFirst
from lib.core.massive import LayerStatistics
from lib.core.stats import SHARE, SIZE, Draws, independent
from lib.model import attention, attention_rows, hooks
from lib.model.models import LanguageModel
from lib.model.tokens import known_ids, text_of
from lib.run import processes
from lib.run.errors import UserError

LISTED = 50
FIRST = -1  # among ids of tokens: the first key, whatever its token


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    """Raises UserError for a model without attention, epsilons beyond 0 to 1, and lengths that the model or the text
    does not have."""
    lm.arch.require_attention()
    if not all(0 <= epsilon <= 1 for epsilon in options.epsilons):
        raise UserError("--epsilons must be between 0 and 1")
    seqlen = windows.ids.shape[1]
    of_length = {seqlen: windows}
    for length in options.lengths:
        if length not in of_length:
            of_length[length] = data.load(replace(options, seqlen=length), lm)
    epsilons = sorted(dict.fromkeys(options.epsilons), key=lambda epsilon: abs(epsilon - SINK_EPSILON))
    names = [*dict.fromkeys(options.input)]
    inputs: dict[int, dict[str, Input]] = {length: {} for length in of_length}
    secondary: list[Secondary] = []
    between: list[Between] = []
    for length, these in of_length.items():
        for name in names:
            ids = these.ids if name == NATURAL else drawn(lm, these, name == REPEATED, options.seed)
            draws = these.draws(options.seed) if name == NATURAL else independent(len(ids), options.seed)
            measured = Measured(lm, epsilons)
            measured.run(ids, max(1, options.batch_size * seqlen // length), f"{name}, {length} tokens")
            inputs[length][name] = measured.input(draws)
            if length == seqlen:
                secondary += measured.secondary(name)
                between += [Between(name, *ends, n) for ends, n in measured.like_first.between.most_common()]
            if (length, name) == (seqlen, names[0]):
                first, first_draws = measured, draws
    learned = first.learned
    return Results(
        epsilon=epsilons[0],
        least=SINK_QUERIES,
        seqlen=seqlen,
        inputs=inputs.pop(seqlen),
        heads=[
            [replace(head, kind=judge.kind(head, epsilons[0])) for head in of_layer]
            for of_layer in first.heads(first_draws)
        ],
        secondary=secondary,
        between=between,
        lengths=inputs or UNSET,
        learned_scores=sinks.by_head(learned.scores, first_draws) if learned else UNSET,
        learned_sink_rate=first_draws.averages(sinks.rates(learned.scores, epsilons[0]), within=SHARE)
        if learned
        else UNSET,
    )


def _known(ratios: list[Average]) -> list[Average | None]:
    """None of a head whose values, or whose outputs, are zero in all windows, as one that was pruned has them."""
    return [ratio if np.isfinite(ratio.mean) else None for ratio in ratios]


def drawn(lm: LanguageModel, windows: Windows, repeated: bool, seed: int) -> torch.Tensor:
    """Ids like the windows', in which tokens of the whole vocabulary stand for the text, uniformly drawn; one for each
    window if `repeated`."""
    known = torch.from_numpy(known_ids(lm.tokenizer, lm.n_embeddings))
    ids = windows.ids.clone()
    text = ids[:, int(windows.bos) :]
    shape = (len(text), 1) if repeated else text.shape
    text[:] = known[torch.randint(len(known), shape, generator=torch.Generator().manual_seed(seed))]
    return ids


class Measured:
    """All that is measured in windows of one kind and length."""

    def __init__(self, lm: LanguageModel, epsilons: list[float]) -> None:
        """epsilons: the first is that by which keys are listed."""
        self.lm, self.arch, self.epsilons = lm, lm.arch, epsilons
        self.massive = LayerStatistics(lm.arch, lm.tokenizer)
        self.keys = KeyMeans(lm.arch, epsilons, self.massive.kept)
        self.like_first = LikeFirst(lm.arch, self.massive.kept)
        self.learned = sinks.LearnedSinks(lm.arch)
        self.found: dict[int, dict[str, Any]] = {}  # by token id, or FIRST

    def run(self, ids: torch.Tensor, batch_size: int, label: str) -> None:
        with processes.progress(len(ids), batch_size, label) as progress:
            for _rows, batch in processes.batches(ids, batch_size):
                self._batch(batch)
                progress.update(len(batch))
        self.keys.gather()
        self.like_first.gather()
        self.learned.gather()
        self.found = processes.merged(self.found)

    def _batch(self, ids: torch.Tensor) -> None:
        def forward() -> None:
            with (
                attention_rows.watch_rows(self.lm, self.keys.update),
                attention.watch_learned_sinks(self.lm, self.learned.update),
                self.like_first.watching(),
            ):
                hooks.forward(self.lm, ids)

        taken = self.massive.run(ids, forward)
        self.keys.end_batch(taken)
        self.like_first.end_batch(ids, taken, self.keys.listed)
        self.learned.end_batch()
        massive = {(found.sequence, found.position) for found in self.massive.batch_massive}
        tokens = ids.cpu().numpy()
        for window, position in np.argwhere(self.keys.listed.any(1)).tolist():
            token = int(tokens[window, position])
            new = {"positions": Counter(), "tokens": Counter(), "massive": Counter(), "heads": processes.Sum()}
            entry = self.found.setdefault(token if position else FIRST, new)
            entry["positions"][position] += 1
            entry["tokens"][token] += 1
            entry["massive"][(window, position) in massive] += 1
            entry["heads"] += self.keys.listed[window, :, position].astype(float)

    def input(self, draws: Draws) -> Input:
        rates, by_layer = self.keys.rates.array, self.keys.by_layer.total / len(draws.groups)
        elsewhere = self.keys.heads.array[..., ATTENDS.index("elsewhere")]
        secondary, alike, later = self.like_first.counts.array.T
        return Input(
            windows=len(rates),
            sink_rate=draws.averages(rates[:, 0], within=SHARE),
            sink_rates=dict(zip(self.epsilons, draws.averages(rates[:, :, 0], within=SHARE), strict=True)),
            by_layer=[[] if np.isnan(shares).any() else shares.tolist() for shares in by_layer],
            elsewhere=draws.averages(np.nanmean(elsewhere, axis=(1, 2)), within=SHARE),
            keys=self._keys(),
            n_keys=len(self.found),
            secondary=draws.averages(secondary, within=SIZE),
            n_secondary=len(self.like_first.found),
            alike=draws.averages(alike, within=SIZE),
            later=draws.averages(later, within=SIZE),
            majority=draws.averages(2 * secondary - later),
        )

    def _keys(self) -> list[Key]:
        n_heads = np.array([max(1, layer.n_heads) for layer in self.arch.layers])
        keys = {
            token: Key(
                position=entry["positions"].most_common(1)[0][0],
                token=text_of(self.lm.tokenizer, entry["tokens"].most_common(1)[0][0]),
                times=(times := entry["positions"].total()),
                massive=entry["massive"][True],
                heads=float(entry["heads"].total.sum() / times),
                layers=int((entry["heads"].total > 0).sum()),
                shares=(entry["heads"].total / times / n_heads).tolist(),
            )
            for token, entry in self.found.items()
        }
        later = [key for token, key in keys.items() if token != FIRST]
        later.sort(key=lambda key: -key.heads * key.times)
        return [*([keys[FIRST]] if FIRST in keys else []), *later[:LISTED]]

    def heads(self, draws: Draws) -> list[list[Head]]:
        array = self.keys.heads.array
        layers, numbers = np.nonzero(np.isfinite(array[..., 0]).all(0))
        every = dict(zip(ATTENDS + SPLIT, np.moveaxis(array[:, layers, numbers], 2, 0), strict=True))
        known = np.flatnonzero(np.isfinite(every["value"]).all(0))
        some = {name: values[:, known] for name, values in every.items()}
        split: dict[str, list[Any]] = {
            "value_ratio": _known(draws.ratios(some["value"], some["value_others"], family=True)),
            "output_share": _known(draws.ratios(some["from_first"], some["output"], family=True)),
            **{name: draws.averages(some[name]) for name in ("cosine", "cosine_others")},
            **{name: some[name].mean(0).tolist() for name in ("query", "key", "key_others", "value", "value_others")},
        }
        of_known = {head: {name: cells[i] for name, cells in split.items()} for i, head in enumerate(known.tolist())}
        rows: list[list[Head]] = [[] for _ in range(self.arch.n_layers)]
        for head, average in enumerate(draws.averages(every["probability"], family=True, within=SHARE)):
            rows[layers[head]].append(Head(average, **of_known.get(head, {})))
        return rows

    def secondary(self, name: str) -> list[Secondary]:
        found = sorted(self.like_first.found.items(), key=lambda pair: -pair[1].total())
        return [
            Secondary(
                input=name,
                position=positions.most_common(1)[0][0],
                token=text_of(self.lm.tokenizer, token),
                first_layer=first,
                layers=layers,
                times=positions.total(),
            )
            for (token, first, layers), positions in found[:LISTED]
        ]
