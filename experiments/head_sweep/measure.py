"""Every head off or at its mean, one by one and in order of its write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch

from experiments.head_sweep.judge import KINDS
from lib.core import first_tokens, sinks, sweep
from lib.core.ablation import Condition
from lib.core.data import Windows
from lib.core.heads import HeadsSet, label
from lib.core.place import Place, find
from lib.core.stats import Draws
from lib.core.sweep import Measured
from lib.model import hooks
from lib.model.models import LanguageModel
from lib.run import processes
from lib.run.errors import UserError

Head = tuple[int, int]  # layer and head


@dataclass(frozen=True)
class Survey:
    """Every head of the model as it is.

    scores: (windows, layers, heads) mean probability on the first token. writes: (windows, layers, heads), signed, what
    a head adds to the residual stream at the place. outputs: (layers, heads, head_dim), a head's part of the input of
    the attention output projection, mean over all tokens of all windows.
    """

    scores: np.ndarray
    writes: np.ndarray
    outputs: torch.Tensor

    @property
    def heads(self) -> list[Head]:
        """All, in order."""
        n_layers, n_heads = self.scores.shape[1:]
        return list(product(range(n_layers), range(n_heads)))


def survey(lm: LanguageModel, windows: Windows, place: Place, batch_size: int) -> Survey:
    """The Survey of all windows, in one pass.

    Where a norm follows the output projection, a write is multiplied by what the norm does to the projection's output
    at the place. Biases belong to no head.
    """
    arch, dim = lm.arch, place.dim
    scores = sinks.HeadScores(arch)
    sums: list[processes.Sum] = [processes.Sum() for _ in range(arch.n_layers)]
    weights = [arch.weight(layer, "head_projection")[dim].double().cpu() for layer in range(arch.n_layers)]
    writes = np.zeros((len(windows.ids), arch.n_layers, arch.n_heads))
    own = processes.own(len(windows.ids), batch_size)
    with processes.progress(len(windows.ids), batch_size, "heads") as progress:
        for rows, ids in windows.batches(batch_size):
            at = torch.arange(len(ids)), torch.from_numpy(place.positions[rows])
            projected: dict[int, np.ndarray] = {}
            written: dict[int, np.ndarray] = {}

            def take(layer, value, ids=ids, at=at, rows=rows):
                value = value.reshape(*ids.shape, arch.n_heads, arch.head_dim).double().cpu()
                sums[layer] += value.sum((0, 1))
                parts = value[at] * weights[layer].view(arch.n_heads, arch.head_dim)
                writes[rows, layer] = parts.sum(2)

            def keep(into, at=at):
                return lambda of, value: into.update({of: value.cpu()[(*at, dim)].double().numpy()})

            with (
                sinks.watch(lm, scores.update),
                hooks.watch_inputs(arch, "head_projection", take),
                hooks.watch_outputs(arch, "head_projection", keep(projected)),
                hooks.watch_outputs(arch, "attention_write", keep(written)),
            ):
                hooks.forward(lm, ids)
            scores.end_batch()
            for layer, before in projected.items():
                norm = np.divide(written[layer], before, out=np.ones_like(before), where=before != 0)
                writes[rows, layer] *= arch.write_scale * norm[:, None]
            progress.update(len(ids))
    scores.gather()
    writes = np.concatenate(processes.gather([writes[own]]))
    outputs = torch.stack([of.total for of in processes.merged(sums)])
    return Survey(scores.scores, writes, (outputs / windows.ids.numel()).float())


def orders(found: Survey, n_random: int, seed: int) -> dict[str, list[Head]]:
    """{name: every (layer, head)}, the order in which heads are removed.

    "score", "write": largest mean first (of |write|). "random 0", "random 1", ...: the head of each step is a random
    one of the layer from which "score" takes its head, so both have removed as many heads of each layer at each step.
    """

    def largest_first(size: np.ndarray) -> list[Head]:
        return sorted(found.heads, key=lambda head: -size[head])

    result = {"score": largest_first(found.scores.mean(0)), "write": largest_first(np.abs(found.writes.mean(0)))}
    n_layers, n_heads = found.scores.shape[1:]
    rng = np.random.default_rng(seed)
    for draw in range(n_random):
        left = [rng.permutation(n_heads).tolist() for _ in range(n_layers)]
        result[f"random {draw}"] = [(layer, left[layer].pop()) for layer, _head in result["score"]]
    return result


def steps(n: int) -> list[int]:
    """1, 2, 4, ... and `n`."""
    return [2**i for i in range((n - 1).bit_length())] + [n]


def changes(found: Survey, orders: Mapping[str, list[Head]]) -> list[HeadsSet]:
    """HeadsSets of every single head off ("off 4.1") and at its mean ("mean 4.1"), and of each order's first 1, 2, 4,
    ... heads off."""
    sets: list[Sequence[Head]] = [(head,) for head in found.heads]
    sets += [order[:n] for order in orders.values() for n in steps(len(order))]
    outputs = {f"off {label(heads)}": dict.fromkeys(heads, 0.0) for heads in sets}
    outputs |= {f"mean {label([head])}": {head: found.outputs[head]} for head in found.heads}
    return [HeadsSet(*of) for of in outputs.items()]


class Effects:
    """What measured versions change: the value at the place after three layers, the sink rate, the loss.

    values: of sweep.at_place, for all windows. whole: of sweep.measure, for the windows `rows` (a slice); a version
    that is not among these has effects on the value alone.
    keys: {key: {"label", "reach": the last layer whose heads can change it, "impossible": why none after it can}}.
    The sink rate is of all heads, the removed ones too (they write nothing and still look somewhere), so that no change
    comes from which heads are counted.
    """

    def __init__(
        self, values: Mapping[str, np.ndarray], whole: Mapping[str, Measured], place: Place, rows: slice
    ) -> None:
        self.values, self.whole, self.place, self.draws_whole = values, whole, place, place.draws.of(rows)
        self.layers = [*place.plateau, place.values.shape[1] - 1]
        first, end, last = self.layers
        later, attention = "causality: they run later", "a head changes only the attention of later layers"
        keys = (
            ("birth", f"value at layer {first} (first of the plateau)", first, later),
            ("end", f"value at layer {end} (end of the plateau)", end, later),
            ("last", f"value at layer {last} (the last)", last, later),
            ("sink_rate", "sink rate", last - 1, attention),
            ("loss", "loss (nats a token)", last, later),
        )
        self.keys = {
            key: {
                "label": name,
                "reach": reach,
                "impossible": None if reach == last else f"heads of layers after {reach}: {why}",
            }
            for key, name, reach, why in keys
        }

    def levels(self, name: str) -> dict[str, np.ndarray]:
        """{key: (windows,) values} of one version."""
        of = self.whole.get(name)
        whole = () if of is None else (of.sink_rates(), of.losses)
        return dict(zip(self.keys, (*self.values[name][:, self.layers].T, *whole), strict=False))

    def draws(self, values: np.ndarray) -> Draws:
        """The Draws of (windows, ...) values: of all windows, or of those run whole."""
        return self.place.draws if len(values) == len(self.place.positions) else self.draws_whole

    def described(self, name: str) -> dict[str, Any]:
        """{key: average} of one version, its perplexity, and what is `retained` of the value at the end of the plateau:
        ratio of sums along the spike's sign over the windows that have it; None if none has."""
        levels = self.levels(name)
        averaged = {key: self.draws(values).averages(values) for key, values in levels.items()}
        retained = self._relative(levels["end"][:, None], "end")[0]
        return averaged | {"perplexity": self.draws_whole.perplexity(self.whole[name].losses), "retained": retained}

    def changes(self, versions: Mapping[str, int]) -> list[dict[str, dict[str, Any] | None]]:
        """[{key: cell, or None where causality forbids it}] of {version: the layer of its one head}: paired differences
        to the baseline.

        A cell is {"mean", "ci95", "family95"}; the family are all heads that can change it. Of a value also "relative":
        such a cell of the ratio of sums along the spike's sign over the windows that have the spike, to the baseline's
        there (at the last layer: to that at the end of the plateau); None if no window has it.
        """
        measured = self._differences(versions)
        rows = [dict.fromkeys(measured) for _ in versions]
        for key, differences in measured.items():
            able = [i for i, layer in enumerate(versions.values()) if layer <= self.keys[key]["reach"]]
            if not able:
                continue
            cells = self.draws(differences).averages(differences[:, able], family=True)
            relative = self._relative(differences[:, able], key) if key in ("birth", "end", "last") else None
            for n, i in enumerate(able):
                rows[i][key] = _intervals(cells[n]) | ({"relative": relative[n]} if relative else {})
        return rows

    def by_layer(self, versions: Mapping[str, int]) -> list[dict[str, dict[str, Any] | None]]:
        """[{key: average over windows of the mean over its heads of |change|, None where causality forbids it}] of the
        layers of {version: the layer of its one head}, with the family of all layers that can change it."""
        sizes = self._sizes(versions)
        rows = [dict.fromkeys(sizes) for _ in range(self.layers[-1] + 1)]
        for key, of in sizes.items():
            able = of[:, : self.keys[key]["reach"] + 1]
            for row, cell in zip(rows, self.draws(able).averages(able, family=True) if able.size else (), strict=False):
                row[key] = cell
        return rows

    def early(self, versions: Mapping[str, int]) -> dict[str, Any] | None:
        """Whether heads of early layers matter more, by |change of the loss|, mean over heads, of quarters of layers.

        {"quarters": [{"layers": [first, last], "loss": average}], "first_minus": [of each other quarter: average of the
        paired difference, as a family], "first_minus_from_2": the same with layers 0 and 1 left out of the first, or
        None if it has no others}. None of fewer than four layers.
        """
        losses = self._sizes(versions)["loss"]
        quarters = np.array_split(np.arange(losses.shape[1]), 4)
        if not all(map(len, quarters)):
            return None
        means = np.stack([losses[:, of].mean(1) for of in quarters], axis=1)
        draws = self.draws(losses)

        def minus(first):
            return draws.averages(first[:, None] - means[:, 1:], family=True)

        rest = quarters[0][quarters[0] >= 2]
        return {
            "quarters": [
                {"layers": [int(of[0]), int(of[-1])], "loss": cell}
                for of, cell in zip(quarters, draws.averages(means, family=True), strict=True)
            ],
            "first_minus": minus(means[:, 0]),
            "first_minus_from_2": minus(losses[:, rest].mean(1)) if len(rest) else None,
        }

    def _differences(self, versions: Mapping[str, int]) -> dict[str, np.ndarray]:
        """{key: (windows, versions) paired differences to the baseline}, of what is measured of these versions."""
        baseline, levels = self.levels(sweep.BASELINE), [self.levels(name) for name in versions]
        return {key: np.stack([after[key] - baseline[key] for after in levels], axis=1) for key in levels[0]}

    def _sizes(self, versions: Mapping[str, int]) -> dict[str, np.ndarray]:
        """{key: (windows, layers) mean |paired difference| over the heads of a layer}."""
        layers = np.array(list(versions.values()))
        return {
            key: np.stack([abs(of[:, layers == layer]).mean(1) for layer in range(self.layers[-1] + 1)], axis=1)
            for key, of in self._differences(versions).items()
        }

    def _relative(self, values: np.ndarray, key: str) -> list[dict[str, Any] | None]:
        """Cells of (windows, n) values along the spike's sign, relative to the baseline's over the windows that have
        the spike; [None] * n if none has it."""
        place = self.place
        if not place.massive:
            return [None] * values.shape[1]
        has = place.spiking
        before = self.levels(sweep.BASELINE)["birth" if key == "birth" else "end"][has]
        cells = place.draws.of(has).ratios(place.sign * values[has], place.sign * before, family=True)
        return [_intervals(cell) for cell in cells]


def _intervals(cell: dict[str, Any]) -> dict[str, Any]:
    return {name: cell[name] for name in ("mean", "ci95", "family95")}


@dataclass(frozen=True)
class HeadSweep:
    """heads: {layer, head, score, write, zero, mean}, the last two {effect: cell, see Effects.changes}; at
    their mean heads are not run whole, and have effects on the value alone.

    effects: {effect: label, reach (the last layer whose heads can change it), impossible (why later ones cannot)};
    shown: those that differ. through_scores: None, or why attention scores cannot change the place. layers: {layer,
    score, zero, mean} of Effects.by_layer, means over the heads of a layer of |change|. early: of Effects.early, of
    heads at zero. cumulative: {order: {heads, steps: [{removed, effects, perplexity, retained}]}}.
    first_tokens: of lib.core.first_tokens, with all heads off; None where the place is not position 0.
    """

    place: dict[str, Any]
    effects: dict[str, Any]
    shown: list[str]
    through_scores: str | None
    baseline: dict[str, Any]
    heads: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    early: dict[str, Any] | None
    cumulative: dict[str, Any]
    first_tokens: dict[str, Any] | None


def run(lm: LanguageModel, windows: Windows, options: Any) -> HeadSweep:
    if options.n_whole < 1:
        raise UserError("--n_whole: at least 1")
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    found = survey(lm, windows, place, options.batch_size)
    removals = orders(found, options.n_random, options.seed)
    versions = changes(found, removals)
    values = sweep.at_place(lm, windows, place, versions, options.batch_size)
    rows = windows.spread(options.n_whole)
    some = replace(windows, ids=windows.ids[rows])
    at_zero = [version for version in versions if not version.name.startswith("mean")]
    whole = sweep.measure(lm, some, place.of(rows), at_zero, options.batch_size)
    effects = Effects(values, whole, place, rows)
    scores, writes = found.scores.mean(0), found.writes.mean(0)
    singles = {
        kind: {f"{version} {label([head])}": head[0] for head in found.heads}
        for kind, version in zip(KINDS, ("off", "mean"), strict=True)
    }
    by_head = {kind: effects.changes(of) for kind, of in singles.items()}
    layers = {kind: effects.by_layer(of) for kind, of in singles.items()}
    cumulative = {
        name: {
            "heads": order,
            "steps": [{"removed": n, **effects.described(f"off {label(order[:n])}")} for n in steps(len(order))],
        }
        for name, order in removals.items()
    }
    all_off = Condition("all_heads_off", "all heads off", heads=tuple(found.heads))
    exactly = first_tokens.at_plateau(lm, windows, place, [all_off])
    first, end, last = effects.layers
    return HeadSweep(
        place=place.described(),
        effects=effects.keys,
        shown=["birth", *["end"] * (end > first), *["last"] * (last > end), "sink_rate", "loss"],
        through_scores=None
        if place.positions.any()
        else "impossible, position 0 sees only itself: what a head changes there goes through its values",
        baseline=effects.described(sweep.BASELINE),
        heads=[
            {"layer": head[0], "head": head[1], "score": scores[head], "write": writes[head]}
            | {kind: by_head[kind][i] for kind in KINDS}
            for i, head in enumerate(found.heads)
        ],
        layers=[
            {"layer": layer, "score": of.mean()} | {kind: layers[kind][layer] for kind in KINDS}
            for layer, of in enumerate(scores)
        ],
        early=effects.early(singles["zero"]),
        cumulative=cumulative,
        first_tokens=exactly and exactly[all_off.name],
    )
