"""TOP and BOTTOM heads off, beside random heads of the same layers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod
from typing import Any

import numpy as np

from experiments.head_pruning.judge import SETS
from lib.core import ablation, first_tokens, provenance, pruning, sinks, sweep
from lib.core.data import Windows
from lib.core.heads import HeadsSet, label
from lib.core.massive import DEFINITION
from lib.core.place import Place, find
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.report import identity
from lib.run.errors import UserError

Heads = tuple[tuple[int, int], ...]  # (layer, head) of each
NULL = 200  # draws of random heads
SEED_STUDY = {"top": ((2, 7), (5, 1), (6, 1)), "bottom": ((0, 1), (4, 11), (11, 8))}


@dataclass(frozen=True)
class Pruning:
    """Conditions `top`, `bottom` and random draws beside the baseline; see lib.core.ablation.Comparison.

    place: of lib.core.place. sets: the heads and where they come from. first_tokens: {set: of the largest place, see
    lib.core.ablation.Feasibility}. null: {set: see `null_of`}.
    """

    definition: str
    place: dict[str, Any]
    sets: dict[str, Any]
    conditions: dict[str, Any]
    changes: dict[str, Any]
    places: dict[str, Any]
    first_tokens: dict[str, Any]
    massive: list[dict[str, Any]]
    dims: list[int]
    null: dict[str, Any]


def run(lm: LanguageModel, windows: Windows, options: Any) -> Pruning:
    sets = choose_sets(lm, windows, options)
    draws = {name: random_heads(lm.arch, sets, name, options.seed) for name in SETS}
    conditions = [ablation.Condition(name, f"{name.upper()} heads off", heads=sets[name]) for name in SETS]
    whole = {
        name: [
            ablation.Condition(f"random_like_{name}_{i}", f"random heads off, layers of {name.upper()}, draw {i}", of)
            for i, of in enumerate(draws[name][0][: options.n_random])
        ]
        for name in SETS
    }
    result = ablation.compare(lm, windows, [*conditions, *whole["top"], *whole["bottom"]], options, options.dims)
    place = find(lm, windows, options.batch_size, seed=options.seed)
    null = null_of(lm, windows, place, sets, draws, options)
    for name in SETS:
        names = [condition.name for condition in whole[name]]
        perplexities = [result.conditions[of]["perplexity"]["value"] for of in names]
        null[name] |= {"run_whole": names, "perplexity": perplexities}
    exact = exact_of(lm, windows, result, conditions)
    return Pruning(
        DEFINITION, place.described(), sets, result.conditions, result.changes, result.places, exact, result.massive,
        result.dims, null,
    )  # fmt: skip


def choose_sets(lm: LanguageModel, windows: Windows, options: Any) -> dict[str, Any]:
    """{"top", "bottom": ((layer, head), ...), "source"}. Raises UserError for heads out of range."""
    top, bottom = pruning.parse_heads(options.top), pruning.parse_heads(options.bottom)
    if options.config:
        ranked, source = pruning.read_config(options.config), options.config.name
    elif top and bottom:
        ranked, source = (top, bottom), "--top and --bottom"
    elif identity.is_gpt2(provenance.of_model(options, lm)) and (lm.arch.n_layers, lm.arch.n_heads) == (12, 12):
        ranked, source = (SEED_STUDY["top"], SEED_STUDY["bottom"]), "the seed study's sets for GPT-2"
    else:
        scores = sinks.measure(lm, windows, options.batch_size).scores.mean(0)
        cells = [(cell["layer"], cell["head"]) for cell in sinks.rank(scores)]
        ranked = (tuple(cells[: pruning.OVERALL]), tuple(cells[::-1][: pruning.OVERALL]))
        source = "this model's ranking on these windows"
    sets = {"top": top or ranked[0], "bottom": bottom or ranked[1], "source": source}
    for layer, head in (*sets["top"], *sets["bottom"]):
        lm.arch.check_head(layer, head)
    return sets


def random_heads(arch: Architecture, sets: dict[str, Any], name: str, seed: int) -> tuple[list[Heads], int]:
    """(draws, how many are possible) of as many heads in the same layers, none in either set, in random order: all that
    are possible, or NULL different ones.

    Raises UserError if a layer has too few other heads for one draw.
    """
    rng = np.random.default_rng([seed, name == "bottom"])
    taken = {*sets["top"], *sets["bottom"]}
    free, wanted = {}, Counter(layer for layer, _head in sets[name])
    for layer in sorted(wanted):
        free[layer] = [head for head in range(arch.n_heads) if (layer, head) not in taken]
        if len(free[layer]) < wanted[layer]:
            raise UserError(
                f"layer {layer} has only {len(free[layer])} heads outside TOP and BOTTOM to draw random heads from"
            )
    possible = prod(comb(len(of), wanted[layer]) for layer, of in free.items())
    if possible <= NULL:
        every = product(*(combinations(of, wanted[layer]) for layer, of in free.items()))
        draws = [tuple(_pairs(free, heads)) for heads in every]
        return [draws[i] for i in rng.permutation(possible)], possible
    drawn: dict[Heads, None] = {}
    while len(drawn) < NULL:
        heads = [sorted(rng.choice(of, size=wanted[layer], replace=False).tolist()) for layer, of in free.items()]
        drawn[tuple(_pairs(free, heads))] = None
    return list(drawn), possible


def _pairs(layers: Iterable[int], heads: Iterable[Iterable[int]]) -> list[tuple[int, int]]:
    return [(layer, head) for layer, of in zip(layers, heads, strict=True) for head in of]


def null_of(
    lm: LanguageModel,
    windows: Windows,
    place: Place,
    sets: dict[str, Any],
    draws: dict[str, tuple[list[Heads], int]],
    options: Any,
) -> dict[str, dict[str, Any]]:
    """{set: its absolute change at the followed place, beside that of the draws}.

    Each has possible, enumerated (whether all possible draws are here), draws, absolute_change (of each: sum of
    |change| over sum of |baseline|, after the end of the plateau, over the windows that have the spike), of_set,
    at_least_as_large (how many draws) and p, (that + 1) / (draws + 1). impossible: None, or why no head of these layers
    can change it, which leaves no p; nothing is compared where nothing is massive.
    """
    end, has = place.plateau[1], place.spiking
    off = {label(of): of for name in SETS for of in (sets[name], *draws[name][0])} if place.massive else {}
    changes = [HeadsSet(name, dict.fromkeys(of, 0.0)) for name, of in off.items()]
    values = sweep.at_place(lm, windows, place, changes, options.batch_size) if changes else {}
    before = place.values[has, end]

    def changed(of):
        return float(np.abs(values[label(of)][has, end] - values[sweep.BASELINE][has, end]).sum() / size)

    size = np.abs(before).sum()
    null: dict[str, dict[str, Any]] = {}
    for name in SETS:
        drawn, possible = draws[name]
        null[name] = {
            "possible": possible,
            "enumerated": len(drawn) == possible,
            "draws": drawn,
            "absolute_change": [changed(of) for of in drawn] if place.massive else [],
            "of_set": changed(sets[name]) if place.massive else None,
            "impossible": None,
            "at_least_as_large": None,
            "p": None,
        }
        if min(layer for layer, _head in sets[name]) > end:
            null[name]["impossible"] = f"causality: all of its heads run after layer {end}"
        elif place.massive:
            k = sum(change >= null[name]["of_set"] for change in null[name]["absolute_change"])
            null[name] |= {"at_least_as_large": k, "p": (k + 1) / (len(drawn) + 1)}
    return null


def exact_of(
    lm: LanguageModel, windows: Windows, result: ablation.Comparison, conditions: Sequence[ablation.Condition]
) -> dict[str, Any]:
    """{set: lib.core.first_tokens of the largest place, or None where that is not the first position}."""
    largest = next(iter(result.places["top"]), None)
    if largest is None or largest["position"] != "first":
        return dict.fromkeys(SETS)
    medians = {name: [layer["median"]["mean"] for layer in of["layers"]] for name, of in result.conditions.items()}
    found = first_tokens.measure(lm, windows, largest["dim"], largest["layer"], conditions, medians)
    return found or dict.fromkeys(SETS)
