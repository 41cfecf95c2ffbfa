"""Every expert of every mixture: how large its outputs get, what it writes at the place, what is left without it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from msgspec import UNSET

from experiments.experts.results import (
    Baseline,
    MeasuredExpert,
    MeasuredWindows,
    Mixture,
    Results,
    Run,
    Tried,
)
from lib.core import attribution, sweep
from lib.core.ablation import Condition
from lib.core.changes import Everywhere
from lib.core.data import Windows
from lib.core.definitions import CANDIDATE, SUPER
from lib.core.evidence import Average
from lib.core.experts import ExpertsOff
from lib.core.on_device import OnDevice
from lib.core.place import Place, find
from lib.core.results import Expert
from lib.core.stats import SHARE, SIZE
from lib.model import experts, hooks
from lib.model.experts import Chosen, Off
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.run import processes
from lib.run.errors import UserError

Key = TypeVar("Key")


@dataclass(frozen=True)
class Seen:
    """What one layer's experts show in the model as it is.

    tokens: (experts,) how many are sent to each; largest: (experts,) its largest |output|; shared: that of the shared
    expert, None without one. chosen, weights: (windows, k) experts and routing weights of the token at the place.
    """

    tokens: np.ndarray
    largest: np.ndarray
    shared: float | None
    chosen: np.ndarray
    weights: np.ndarray


def look(lm: LanguageModel, windows: Windows, place: Place, batch_size: int) -> dict[int, Seen]:
    """{layer: Seen} of every mixture. Costs a pass in which experts run twice. Raises UserError for inf or nan."""
    layers = lm.arch.with_role("experts")
    batches: list[dict[Any, np.ndarray]] = []
    with processes.progress(len(windows.ids), batch_size, "experts") as progress:
        for rows, ids in windows.batches(batch_size):
            kept, length = OnDevice(), ids.shape[1]
            here = torch.from_numpy(place.positions[rows] + np.arange(len(ids)) * length).to(lm.device)

            def see(layer: int, value: Chosen, kept: OnDevice = kept, here: torch.Tensor = here) -> None:
                module = lm.arch.module(layer, "experts")
                size, sent = experts.largest_outputs(module, value).flatten(), value.experts.flatten()
                n_experts, _width = experts.sizes(module)
                none, one = size.new_zeros(n_experts), torch.ones_like(size, dtype=torch.float32)
                kept.keep(("largest", layer), none.scatter_reduce(0, sent, size, "amax"))
                kept.keep(("tokens", layer), none.to(one.dtype).scatter_add(0, sent, one))
                at_place = value.at(here.to(value.hidden.device))
                kept.keep(("chosen", layer), at_place.experts)
                kept.keep(("weights", layer), at_place.weights)

            def see_shared(layer: int, value: torch.Tensor, kept: OnDevice = kept) -> None:
                kept.keep(("shared", layer), value.abs().amax())

            with (
                hooks.watch_experts(lm.arch, see),
                hooks.watch_outputs(lm.arch, "shared_expert", see_shared, layers_with_shared(lm)),
            ):
                hooks.forward(lm, ids)
            taken = kept.take()
            for layer in layers:
                require_finite(layer, taken["largest", layer])
            batches.append({key: np.asarray(value) for key, value in taken.items()})
            progress.update(len(ids))
    batches = processes.gather(batches)

    def rows_of(name: str, layer: int) -> list[np.ndarray]:
        return [batch[name, layer] for batch in batches if (name, layer) in batch]

    return {
        layer: Seen(
            tokens=np.stack(rows_of("tokens", layer)).sum(0, dtype=np.float64),
            largest=np.stack(rows_of("largest", layer)).max(0),
            shared=max(map(float, rows_of("shared", layer)), default=None),
            chosen=np.concatenate(rows_of("chosen", layer)).astype(int),
            weights=np.concatenate(rows_of("weights", layer)).astype(np.float64),
        )
        for layer in layers
    }


def layers_with_shared(lm: LanguageModel) -> list[int]:
    """Those with a shared expert beside a mixture."""
    return [layer for layer in lm.arch.with_role("experts") if lm.arch.layers[layer].shared_expert is not None]


def writes_of(
    lm: LanguageModel, windows: Windows, place: Place, batch_size: int, without: Sequence[Expert] = ()
) -> dict[Expert, np.ndarray]:
    """{expert: (windows,) what it adds to the place} of all that the token there is sent to in any window; without:
    those that are off."""
    condition: Everywhere = Condition("baseline", "baseline")
    if without:
        condition = ExpertsOff("without", Off(tuple(without)))
    ledger = attribution.measure(lm, windows, place, condition, batch_size)
    return {
        Expert(write.layer, write.head): write.values
        for write in ledger.writes
        if write.layer is not None and write.kind in ("expert", "shared expert")
    }


def there(place: Place) -> np.ndarray:
    """(windows,) which have the spike; all, if none has."""
    return place.spiking if place.massive else np.full(len(place.positions), True)


class Choice:
    """Which experts are turned off, by what they show in the model as it is.

    seen: of `look`; writes: of writes_of. every: all experts of every layer, the shared one last.
    """

    def __init__(self, seen: Mapping[int, Seen], writes: Mapping[Expert, np.ndarray], place: Place) -> None:
        self.there = there(place)
        self.peak = abs(float(place.values[self.there, place.peak].mean()))
        self.every: list[Expert] = []
        self.largest: dict[Expert, float] = {}  # of those that a token is sent to
        for layer, of_layer in seen.items():
            self.every += [Expert(layer, expert) for expert in range(len(of_layer.tokens))]
            reached = np.flatnonzero(of_layer.tokens).tolist()
            self.largest |= {Expert(layer, expert): float(of_layer.largest[expert]) for expert in reached}
            if of_layer.shared is not None:
                self.every.append(Expert(layer, None))
                self.largest[Expert(layer, None)] = of_layer.shared
        routed = [size for expert, size in self.largest.items() if expert.expert is not None]
        self.percentile = float(np.percentile(routed, SUPER[0]))
        self.super = {
            expert
            for expert, size in self.largest.items()
            if expert.expert is not None and size > self.percentile and size > SUPER[1] * max(routed)
        }
        self.tried: dict[Expert, Tried] = dict.fromkeys(self.large(writes), "candidate")
        above = (expert for expert, size in self.largest.items() if size > self.percentile)
        self.tried |= dict.fromkeys(above, "candidate")

    def large(self, writes: Mapping[Expert, np.ndarray]) -> list[Expert]:
        """Those that write at least CANDIDATE of the peak."""
        return [expert for expert, values in writes.items() if abs(values[self.there].mean()) >= CANDIDATE * self.peak]

    @property
    def candidates(self) -> list[Expert]:
        """And backups."""
        return [expert for expert in self.every if self.tried.get(expert) in ("candidate", "backup")]

    def draw_random(self, n: int, seed: int) -> None:
        """As many random ones a candidate as `n`, of its layer, that tokens are sent to; fewer where there are too
        few."""
        rng, candidates = np.random.default_rng(seed), self.candidates
        for layer in dict.fromkeys(one.layer for one in candidates):
            routed = [one for one in self.largest if one.layer == layer and one.expert is not None]
            able = [one for one in routed if one not in self.tried]
            wanted = n * sum(one.layer == layer for one in candidates)
            for i in rng.permutation(len(able))[:wanted].tolist():
                self.tried[able[i]] = "random"


class Runs:
    """The model with each set of experts off: the place in all windows, cut after it, losses and sinks of `n_whole`."""

    def __init__(self, lm: LanguageModel, windows: Windows, place: Place, sets: Sequence[Off], options: Any) -> None:
        changes = {off: ExpertsOff(f"off {i}", off) for i, off in enumerate(dict.fromkeys(sets))}
        self.names = {off: change.name for off, change in changes.items()}
        rows = windows.spread(options.n_whole)
        some, batch_size = replace(windows, ids=windows.ids[rows]), options.batch_size
        values = sweep.values_at_place(lm, windows, place, list(changes.values()), batch_size)
        self.whole = sweep.measure(lm, some, place.of(rows), list(changes.values()), batch_size)
        self.values = {name: array[there(place), place.plateau[1]] for name, array in values.items()}
        self.draws, self.draws_whole = place.draws.of(there(place)), place.draws.of(rows)
        self.before, self.whole_before = self.values[sweep.BASELINE], self.whole[sweep.BASELINE]

    def baseline(self) -> Baseline:
        return Baseline(
            value=self.draws.averages(self.before),
            sink_rate=self.draws_whole.averages(self.whole_before.sink_rates(), within=SHARE),
            loss=self.draws_whole.averages(self.whole_before.losses, within=SIZE),
        )

    def described(self, sets: Mapping[Key, Off]) -> dict[Key, Run]:
        """The runs of these sets, whose `retained` are one family."""
        if not sets:
            return {}
        names = [self.names[off] for off in sets.values()]
        retained: Sequence[Average | None] = [None] * len(names)
        if self.before.any():
            retained = self.draws.ratios(self._along(list(sets.values())), np.abs(self.before), family=True)
        rates = self.whole_before.sink_rates()
        return {
            key: Run(
                value=self.draws.averages(self.values[name]),
                retained=share,
                sink_rate=self.draws_whole.averages(self.whole[name].sink_rates(), within=SHARE),
                sink_rate_change=self.draws_whole.averages(self.whole[name].sink_rates() - rates),
                loss=self.draws_whole.averages(self.whole[name].losses, within=SIZE),
                loss_change=self.draws_whole.averages(self.whole[name].losses - self.whole_before.losses),
            )
            for key, name, share in zip(sets, names, retained, strict=True)
        }

    def _along(self, sets: Sequence[Off]) -> np.ndarray:
        """(windows, sets) of the value, signed so that the baseline's is positive."""
        values = np.stack([self.values[self.names[off]] for off in sets], axis=1)
        return np.sign(self.before)[:, None] * values

    def most_needed(self, sets: Sequence[Off]) -> Average | None:
        """What is retained where in each window that one of these is off that leaves least."""
        if not self.before.any():
            return None
        retained: Average = self.draws.ratios(self._along(sets).min(1), np.abs(self.before))
        return retained


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    lm.arch.require_experts()
    lm.arch.require_attention()
    if options.n_whole < 1:
        raise UserError("--n_whole: at least 1")
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    seen, writes = look(lm, windows, place, options.batch_size), writes_of(lm, windows, place, options.batch_size)
    choice = Choice(seen, writes, place)
    if options.all:
        choice.tried |= dict.fromkeys(choice.largest, "candidate")
    new = choice.candidates if place.massive else []
    while new:
        left = writes_of(lm, windows, place, options.batch_size, choice.candidates)
        new = [expert for expert in choice.large(left) if expert not in choice.tried]
        choice.tried |= dict.fromkeys(new, "backup")
    choice.draw_random(options.n_random, options.seed)

    candidates = choice.candidates
    together = Off(tuple(candidates))
    off = {expert: Off((expert,)) for expert in choice.every if expert in choice.tried}
    renormalised = {expert: Off((expert,), True) for expert in candidates if expert.expert is not None}
    alone = {expert: Off(tuple(one for one in candidates if one != expert)) for expert in candidates}
    if len(candidates) < 2:
        alone = {}
    sets = [*off.values(), *renormalised.values(), *alone.values(), *([together] if candidates else [])]
    runs = Runs(lm, windows, place, sets, options)
    described = [runs.described(family) for family in (off, renormalised, alone)]
    return Results(
        place=place.described(),
        windows=MeasuredWindows(
            all=len(windows.ids), spiking=place.draws.share(place.spiking), whole=min(options.n_whole, len(windows.ids))
        ),
        mixtures=[
            Mixture(layer, len(of_layer.tokens), of_layer.chosen.shape[1], of_layer.shared is not None)
            for layer, of_layer in seen.items()
        ],
        baseline=runs.baseline(),
        peak=choice.peak,
        percentile=choice.percentile,
        experts=[
            MeasuredExpert(
                layer=expert.layer,
                expert=expert.expert,
                share_of_tokens=_share_of_tokens(expert, seen[expert.layer], windows.ids.numel()),
                largest_output=choice.largest.get(expert),
                super=expert in choice.super,
                **_at_place(expert, seen[expert.layer], writes, place),
                tried=choice.tried.get(expert, UNSET),
                off=described[0].get(expert, UNSET),
                off_renormalised=described[1].get(expert, UNSET),
                alone=described[2].get(expert, UNSET),
            )
            for expert in choice.every
        ],
        together=runs.described({"": together})[""] if candidates else UNSET,
        most_needed=runs.most_needed([off[expert] for expert in candidates]) if candidates else UNSET,
    )


def _share_of_tokens(expert: Expert, seen: Seen, n_tokens: int) -> float:
    return 1.0 if expert.expert is None else float(seen.tokens[expert.expert] / n_tokens)


def _at_place(expert: Expert, seen: Seen, writes: Mapping[Expert, np.ndarray], place: Place) -> dict[str, Average]:
    """The fields of MeasuredExpert that are of the place."""
    here = there(place)
    if expert.expert is None:
        return {"write": place.draws.of(here).averages(writes[expert][here])}
    is_it = seen.chosen == expert.expert
    sent = is_it.any(1) & here
    if not sent.any():
        return {"write": place.draws.of(here).averages(np.zeros(here.sum()))}
    weights = np.where(is_it, seen.weights, 0).sum(1)
    return {
        "write": place.draws.of(here).averages(writes[expert][here]),
        "routed": place.draws.of(here).share(sent[here]),
        "weight": place.draws.of(sent).averages(weights[sent], within=SIZE),
    }
