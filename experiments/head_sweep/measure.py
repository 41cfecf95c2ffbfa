"""Every head off or at its mean, one by one and in order of its write."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from experiments.head_sweep.results import (
    VALUE_EFFECTS,
    AllEffects,
    Change,
    Early,
    Effect,
    EffectOnModel,
    Levels,
    Quarter,
    Removal,
    Removals,
    Results,
    Simultaneous,
    SingleHead,
    SingleHeadsOfLayer,
    Step,
    ValueEffects,
)
from lib.core import first_tokens, sinks, sweep
from lib.core.ablation import all_heads_off
from lib.core.data import Windows
from lib.core.evidence import Average
from lib.core.heads import HeadsSet, label
from lib.core.on_device import OnDevice, by_layer, summed
from lib.core.place import Place, find, vectors_at
from lib.core.results import Head
from lib.core.stats import Draws
from lib.core.sweep import Measured
from lib.model import attention, hooks
from lib.model.models import LanguageModel
from lib.run import processes
from lib.run.errors import UserError


@dataclass(frozen=True)
class Survey:
    """Every head of the model as it is.

    scores: (windows, layers, heads) mean probability on the first token, nan where a layer has fewer heads than others.
    writes: (windows, layers, heads), signed, what a head adds to the residual stream at the place. outputs: of each
    layer, (heads, width of a head), a head's part of the input of the attention output projection, mean over all tokens
    of all windows.
    """

    scores: np.ndarray
    writes: np.ndarray
    outputs: list[torch.Tensor]

    @property
    def heads(self) -> list[Head]:
        """All, in order."""
        return [Head(*head) for head in np.argwhere(np.isfinite(self.scores).all(0)).tolist()]


def survey(lm: LanguageModel, windows: Windows, place: Place, batch_size: int) -> Survey:
    """The Survey of all windows, in one pass.

    Raises UserError if there are no heads, or those of a layer cannot be told apart.

    Where a norm follows the output projection, a write is multiplied by what the norm does to the projection's output
    at the place. Biases belong to no head.
    """
    arch, dim = lm.arch, place.dim
    layers = [*dict.fromkeys(layer for layer, _head in arch.heads)]
    shapes = {layer: (arch.layers[layer].n_heads, arch.head_dims[layer]) for layer in layers}
    kept = OnDevice()
    scores = sinks.HeadScores(arch, kept)
    sums: list[processes.Sum] = [processes.Sum() for _ in layers]
    weights = [arch.weight(layer, "head_projection")[dim].detach().cpu().double() for layer in layers]
    scales = [arch.scale(layer, "attention_write") for layer in layers]
    writes = np.zeros((len(windows.ids), arch.n_layers, arch.n_heads))
    own = processes.own(len(windows.ids), batch_size)
    with processes.progress(len(windows.ids), batch_size, "heads") as progress:
        for rows, ids in windows.batches(batch_size):
            positions = torch.from_numpy(place.positions[rows]).to(lm.device)

            def heads(layer, value, positions=positions):
                kept.keep(("heads", layer), vectors_at(value, positions))
                kept.keep(("sum", layer), summed(value.flatten(0, -2)))

            def into(name, positions=positions):
                return lambda block, value: kept.keep((name, block), vectors_at(value, positions)[:, dim])

            with (
                attention.watch_parts(lm, scores.update),
                hooks.watch_inputs(arch, "head_projection", heads),
                hooks.watch_outputs(arch, "head_projection", into("projected")),
                hooks.watch_outputs(arch, "attention_write", into("written")),
            ):
                hooks.forward(lm, ids)
            taken = kept.take()
            scores.end_batch(taken)
            before, written = (by_layer(taken, name, layers) for name in ("projected", "written"))
            norm = np.divide(written, before, out=np.ones_like(before), where=before != 0) * scales
            for i, (layer, shape) in enumerate(shapes.items()):
                sums[i] += torch.from_numpy(taken["sum", layer]).double().sum(0).view(shape)
                parts = torch.from_numpy(taken["heads", layer]).double() * weights[i]
                writes[rows, layer, : shape[0]] = parts.view(-1, *shape).sum(2).numpy() * norm[:, i, None]
            progress.update(len(ids))
    scores.gather()
    writes = np.concatenate(processes.gather([writes[own]]))
    totals = zip(layers, processes.merged(sums), strict=True)
    means = {layer: (outputs.total / windows.ids.numel()).float() for layer, outputs in totals}
    return Survey(scores.scores, writes, [means.get(layer, torch.empty(0, 0)) for layer in range(arch.n_layers)])


@dataclass(frozen=True)
class Orders:
    """In which order every head is removed.

    score, write: largest mean first (of |write|). random: the head of each step is a random one of the layer from which
    `score` takes its head, so both have removed as many heads of each layer at each step.
    """

    score: list[Head]
    write: list[Head]
    random: list[list[Head]]

    @property
    def every(self) -> list[list[Head]]:
        return [self.score, self.write, *self.random]


def orders(surveyed: Survey, n_random: int, seed: int) -> Orders:
    def largest_first(size: np.ndarray) -> list[Head]:
        return sorted(surveyed.heads, key=lambda head: -size[head])

    by_score = largest_first(surveyed.scores.mean(0))
    counts = Counter(head.layer for head in surveyed.heads)
    rng = np.random.default_rng(seed)
    random = []
    for _draw in range(n_random):
        left = {layer: rng.permutation(n_heads).tolist() for layer, n_heads in counts.items()}
        random.append([Head(layer, left[layer].pop()) for layer, _head in by_score])
    return Orders(by_score, largest_first(np.abs(surveyed.writes.mean(0))), random)


def steps(n: int) -> list[int]:
    """1, 2, 4, ... and `n`."""
    return [2**i for i in range((n - 1).bit_length())] + [n]


def off(heads: Iterable[tuple[int, int]]) -> str:
    """The name of the version without these heads."""
    return f"off {label(heads)}"


def at_its_mean(head: Head) -> str:
    return f"mean {label([head])}"


def heads_off(surveyed: Survey, orders: Iterable[Sequence[Head]]) -> list[HeadsSet]:
    """Every single head off, and of each order the first 1, 2, 4, ... heads."""
    sets: list[Sequence[tuple[int, int]]] = [[head] for head in surveyed.heads]
    sets += [order[:n] for order in orders for n in steps(len(order))]
    outputs = {off(heads): dict.fromkeys(heads, 0.0) for heads in sets}
    return [HeadsSet(name, zeros) for name, zeros in outputs.items()]


def heads_at_mean(surveyed: Survey) -> list[HeadsSet]:
    """Every single head at its mean."""
    return [HeadsSet(at_its_mean(head), {head: surveyed.outputs[head.layer][head.head]}) for head in surveyed.heads]


class Effects:
    """What measured versions change: the value at the place after three layers, the sink rate, the loss.

    values: of sweep.at_place, for all windows. whole: of sweep.measure, for the windows `rows` (a slice); a version
    that is not among these has effects on the value alone.
    The sink rate is of all heads, the removed ones too (they write nothing and still look somewhere), so that no change
    comes from which heads are counted.
    """

    def __init__(
        self, values: Mapping[str, np.ndarray], whole: Mapping[str, Measured], place: Place, rows: slice
    ) -> None:
        self.values, self.whole, self.place, self.draws_whole = values, whole, place, place.draws.of(rows)
        self.layers = [*place.plateau, place.values.shape[1] - 1]
        first, end, last = self.layers
        later, of_later = "causality: they run later", "a head changes only the attention of later layers"

        def described(name: str, note: str | None, reach: int, why: str) -> EffectOnModel:
            without = f"heads of layers after {reach}" if reach >= 0 else "all heads"
            return EffectOnModel(name, note, reach, None if reach == last else f"{without}: {why}")

        self.effects: dict[Effect, EffectOnModel] = {
            "birth": described(f"value at layer {first}", "first of the plateau", first, later),
            "end": described(f"value at layer {end}", "end of the plateau", end, later),
            "last": described(f"value at layer {last}", "the last", last, later),
            "sink_rate": described("sink rate", None, last - 1, of_later),
            "loss": described("loss", "nats a token", last, later),
        }

    def levels(self, name: str) -> dict[Effect, np.ndarray]:
        """(windows,) values of one version, by effect."""
        measured = self.whole.get(name)
        whole = () if measured is None else (measured.sink_rates(), measured.losses)
        return dict(zip(self.effects, (*self.values[name][:, self.layers].T, *whole), strict=False))

    def draws(self, values: np.ndarray) -> Draws:
        """The Draws of (windows, ...) values: of all windows, or of those run whole."""
        return self.place.draws if len(values) == len(self.place.positions) else self.draws_whole

    def described(self, name: str) -> Levels:
        """Of one version."""
        levels = self.levels(name)
        averages: dict[Any, Average] = {
            effect: self.draws(values).averages(values) for effect, values in levels.items()
        }
        return Levels(
            **averages,
            perplexity=self.draws_whole.perplexity(self.whole[name].losses),
            retained=self._relative(levels["end"][:, None], "end")[0],
        )

    def changes(self, versions: Mapping[str, int]) -> list[dict[str, Any]]:
        """The fields of each one's AllEffects[Change], or ValueEffects[Change], of {version: the layer of its one
        head}."""
        measured = self._differences(versions)
        rows: list[dict[str, Any]] = [dict.fromkeys(measured) for _ in versions]
        for effect, differences in measured.items():
            able = [i for i, layer in enumerate(versions.values()) if layer <= self.effects[effect].reach]
            if not able:
                continue
            averages = self.draws(differences).averages(differences[:, able], family=True)
            relative: list[Simultaneous | None] = [None] * len(able)
            if effect in VALUE_EFFECTS:
                relative = self._relative(differences[:, able], effect)
            for i, average, ratio in zip(able, averages, relative, strict=True):
                rows[i][effect] = Change(average.mean, average.ci95, average.together, ratio)
        return rows

    def by_layer(self, versions: Mapping[str, int]) -> list[dict[str, Any]]:
        """The fields of AllEffects[Average], or ValueEffects[Average], of each layer of {version: the layer of its one
        head}: the mean over its heads of |change|."""
        sizes, layers = self._sizes(versions), np.unique(list(versions.values()))
        rows: list[dict[str, Any]] = [dict.fromkeys(sizes) for _ in layers]
        for effect, of_layers in sizes.items():
            able = of_layers[:, layers <= self.effects[effect].reach]
            averages = self.draws(able).averages(able, family=True) if able.size else ()
            for row, average in zip(rows, averages, strict=False):
                row[effect] = average
        return rows

    def early(self, versions: Mapping[str, int]) -> Early | None:
        losses, numbers = self._sizes(versions)["loss"], np.unique(list(versions.values()))
        quarters = np.array_split(np.arange(len(numbers)), 4)
        if not all(map(len, quarters)):
            return None
        means = np.stack([losses[:, layers].mean(1) for layers in quarters], axis=1)
        draws = self.draws(losses)

        def minus(first):
            return draws.averages(first[:, None] - means[:, 1:], family=True)

        rest = quarters[0][numbers[quarters[0]] >= 2]
        return Early(
            quarters=[
                Quarter((int(numbers[layers[0]]), int(numbers[layers[-1]])), average)
                for layers, average in zip(quarters, draws.averages(means, family=True), strict=True)
            ],
            first_minus=minus(means[:, 0]),
            first_minus_from_2=minus(losses[:, rest].mean(1)) if len(rest) else None,
        )

    def _differences(self, versions: Mapping[str, int]) -> dict[Effect, np.ndarray]:
        """(windows, versions) paired differences to the baseline, by effect, of what is measured of these versions."""
        baseline, levels = self.levels(sweep.BASELINE), [self.levels(name) for name in versions]
        return {
            effect: np.stack([after[effect] - baseline[effect] for after in levels], axis=1) for effect in levels[0]
        }

    def _sizes(self, versions: Mapping[str, int]) -> dict[Effect, np.ndarray]:
        """(windows, layers) mean |paired difference| over the heads of each layer that has some, by effect."""
        layer_of = np.array(list(versions.values()))
        layers = np.unique(layer_of)
        return {
            effect: np.stack([abs(differences[:, layer_of == layer]).mean(1) for layer in layers], axis=1)
            for effect, differences in self._differences(versions).items()
        }

    def _relative(self, values: np.ndarray, effect: Effect) -> list[Simultaneous | None]:
        """Of (windows, n) values along the baseline's sign in each window, relative to the baseline's over the windows
        that have the spike; [None] * n if none has it."""
        place = self.place
        if not place.massive:
            return [None] * values.shape[1]
        has = place.spiking
        before = self.levels(sweep.BASELINE)["birth" if effect == "birth" else "end"][has]
        along = np.sign(before)[:, None] * values[has]
        ratios = place.draws.of(has).ratios(along, np.abs(before), family=True)
        return [Simultaneous(ratio.mean, ratio.ci95, ratio.together) for ratio in ratios]


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    if options.n_whole < 1:
        raise UserError("--n_whole: at least 1")
    all_off = all_heads_off(lm.arch)
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    surveyed = survey(lm, windows, place, options.batch_size)
    ordered = orders(surveyed, options.n_random, options.seed)
    at_zero = heads_off(surveyed, ordered.every)
    values = sweep.values_at_place(lm, windows, place, [*at_zero, *heads_at_mean(surveyed)], options.batch_size)
    rows = windows.spread(options.n_whole)
    some = replace(windows, ids=windows.ids[rows])
    whole = sweep.measure(lm, some, place.of(rows), at_zero, options.batch_size)
    effects = Effects(values, whole, place, rows)
    zero = {off([head]): head.layer for head in surveyed.heads}
    mean = {at_its_mean(head): head.layer for head in surveyed.heads}
    scores, writes = surveyed.scores.mean(0), surveyed.writes.mean(0)
    exactly = first_tokens.at_plateau(lm, windows, place, [all_off])
    first, end, last = effects.layers
    shown: list[Effect] = ["birth"]
    if end > first:
        shown.append("end")
    if last > end:
        shown.append("last")

    def removal(order: list[Head]) -> Removal:
        return Removal(order, [Step(**vars(effects.described(off(order[:n]))), removed=n) for n in steps(len(order))])

    return Results(
        place=place.described(),
        effects=effects.effects,
        shown=[*shown, "sink_rate", "loss"],
        through_scores=None
        if place.positions.any() or not sinks.sees_only_itself(lm, windows.ids)
        else "impossible, position 0 sees only itself: what a head changes there goes through its values",
        baseline=effects.described(sweep.BASELINE),
        heads=[
            SingleHead(*head, scores[head], writes[head], AllEffects(**changes), ValueEffects(**changes_mean))
            for head, changes, changes_mean in zip(
                surveyed.heads, effects.changes(zero), effects.changes(mean), strict=True
            )
        ],
        layers=[
            SingleHeadsOfLayer(layer, scores[layer, :n_heads].mean(), AllEffects(**sizes), ValueEffects(**sizes_mean))
            for (layer, n_heads), sizes, sizes_mean in zip(
                Counter(head.layer for head in surveyed.heads).items(),
                effects.by_layer(zero),
                effects.by_layer(mean),
                strict=True,
            )
        ],
        early=effects.early(zero),
        cumulative=Removals(removal(ordered.score), removal(ordered.write), [*map(removal, ordered.random)]),
        first_tokens=None if exactly is None else exactly[all_off.name],
    )
