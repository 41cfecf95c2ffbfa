"""TOP and BOTTOM heads off, beside random heads of the same layers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from math import comb, prod
from typing import Any

import numpy as np

from experiments.head_pruning.results import SETS, Null, OfSets, Results, Sets
from lib.core import ablation, first_tokens, provenance, pruning, sinks, sweep
from lib.core.data import Windows
from lib.core.heads import HeadsSet, label
from lib.core.massive import DEFINITION
from lib.core.place import Place, find
from lib.core.pruning import Heads
from lib.core.results import FirstTokens, Head
from lib.core.stats import Draws
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.report import identity
from lib.run.errors import LackingError

NULL = 200  # draws of random heads
RANKINGS = 200  # draws of documents that rank heads anew
SEED_STUDY = Sets(
    (Head(2, 7), Head(5, 1), Head(6, 1)),
    (Head(0, 1), Head(4, 11), Head(11, 8)),
    "the seed study's sets for GPT-2",
)


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    sets, rankings = choose_sets(lm, windows, options)
    draws = {name: random_heads(lm.arch, sets, name, options.seed) for name in SETS}
    conditions = [ablation.Condition(name, f"{name.upper()} heads off", heads=sets.named(name)) for name in SETS]
    whole = {
        name: [
            ablation.Condition(
                f"random_like_{name}_{i}", f"random heads off, layers of {name.upper()}, draw {i}", heads
            )
            for i, heads in enumerate(draws[name][0][: options.n_random])
        ]
        for name in SETS
    }
    result = ablation.compare(lm, windows, [*conditions, *whole["top"], *whole["bottom"]], options, options.dims)
    perplexities = {
        name: {condition.name: result.conditions[condition.name].perplexity.value for condition in whole[name]}
        for name in SETS
    }
    place = find(lm, windows, options.batch_size, seed=options.seed)
    return Results(
        definition=DEFINITION,
        place=place.described(),
        sets=sets,
        conditions=result.conditions,
        changes=result.changes,
        places=result.places,
        first_tokens=exact_of(lm, windows, result, conditions),
        massive=result.massive,
        dims=result.dims,
        null=null_of(lm, windows, place, sets, rankings, draws, perplexities, options.batch_size),
    )


def choose_sets(lm: LanguageModel, windows: Windows, options: Any) -> tuple[Sets, OfSets[list[Heads]]]:
    """TOP and BOTTOM, as the options say, and, of each that is ranked here, what other documents would rank into it.

    Raises UserError for heads out of range.
    """
    rankings: OfSets[list[Heads]] = OfSets([], [])
    top, bottom = pruning.parse_heads(options.top), pruning.parse_heads(options.bottom)
    if options.config:
        ranked = Sets(*pruning.read_config(options.config), options.config.name)
    elif top and bottom:
        ranked = Sets(top, bottom, "--top and --bottom")
    elif identity.is_gpt2(provenance.of_model(options, lm)) and (lm.arch.n_layers, lm.arch.n_heads) == (12, 12):
        ranked = SEED_STUDY
    else:
        scores = sinks.measure(lm, windows, options.batch_size).scores
        here = ranked_by(scores.mean(0), lm.arch)
        ranked = Sets(here.top, here.bottom, "this model's ranking on these windows")
        anew = ranked_anew(scores, windows.draws(options.seed), lm.arch)
        rankings = OfSets([] if top else [one.top for one in anew], [] if bottom else [one.bottom for one in anew])
    sets = Sets(top or ranked.top, bottom or ranked.bottom, ranked.source)
    for head in (*sets.top, *sets.bottom):
        lm.arch.check_head(*head)
    return sets, rankings


def ranked_by(scores: np.ndarray, arch: Architecture) -> OfSets[Heads]:
    """The heads of the highest and of the lowest (layers, heads) scores."""
    heads = tuple(Head(*head) for head in sorted(arch.heads, key=lambda head: -scores[head]))
    return OfSets(heads[: pruning.OVERALL], heads[::-1][: pruning.OVERALL])


def ranked_anew(scores: np.ndarray, draws: Draws, arch: Architecture) -> list[OfSets[Heads]]:
    """What (windows, layers, heads) scores rank highest and lowest when documents are drawn with replacement.

    A set that is picked by scores that differ little is another one in other documents (bootstrap, Efron 1979).
    """
    return [ranked_by(np.average(scores, axis=0, weights=times), arch) for times in draws.redrawn(RANKINGS)]


def random_heads(arch: Architecture, sets: Sets, name: str, seed: int) -> tuple[list[Heads], int]:
    """(draws, how many are possible) of as many heads in the same layers, none in either set, in random order: all that
    are possible, or NULL different ones.

    Raises LackingError if a layer has too few other heads for one draw.
    """
    rng = np.random.default_rng([seed, name == "bottom"])
    taken = {*sets.top, *sets.bottom}
    free, wanted = {}, Counter(head.layer for head in sets.named(name))
    for layer in sorted(wanted):
        free[layer] = [head for head in range(arch.layers[layer].n_heads) if (layer, head) not in taken]
        if len(free[layer]) < wanted[layer]:
            raise LackingError(
                f"layer {layer} has too few heads outside TOP and BOTTOM to draw random heads from, "
                f"{len(free[layer])}; name others by --top and --bottom"
            )
    possible = prod(comb(len(others), wanted[layer]) for layer, others in free.items())
    if possible <= NULL:
        every = product(*(combinations(others, wanted[layer]) for layer, others in free.items()))
        draws = [_heads(free, heads) for heads in every]
        return [draws[i] for i in rng.permutation(possible)], possible
    drawn: dict[Heads, None] = {}
    while len(drawn) < NULL:
        heads = [
            sorted(rng.choice(others, size=wanted[layer], replace=False).tolist()) for layer, others in free.items()
        ]
        drawn[_heads(free, heads)] = None
    return list(drawn), possible


def _heads(layers: Iterable[int], heads: Iterable[Iterable[int]]) -> Heads:
    """heads: of each layer."""
    return tuple(Head(layer, head) for layer, here in zip(layers, heads, strict=True) for head in here)


def null_of(
    lm: LanguageModel,
    windows: Windows,
    place: Place,
    sets: Sets,
    rankings: OfSets[list[Heads]],
    draws: Mapping[str, tuple[list[Heads], int]],
    perplexities: Mapping[str, Mapping[str, float]],
    batch_size: int,
) -> OfSets[Null]:
    """rankings: as `choose_sets` gives them; draws: of each set, as `random_heads` does; perplexities: of each set, of
    the draws that were run whole, by the condition's name."""
    end, spiking = place.plateau[1], place.spiking
    off = {label(heads): heads for name in SETS for heads in (sets.named(name), *draws[name][0], *rankings.named(name))}
    changes = [HeadsSet(name, dict.fromkeys(heads, 0.0)) for name, heads in off.items()]
    values = sweep.values_at_place(lm, windows, place, changes, batch_size) if place.massive else {}
    size = np.abs(place.values[spiking, end]).sum()

    def changed(heads: Heads) -> float:
        difference = values[label(heads)][spiking, end] - values[sweep.BASELINE][spiking, end]
        return float(np.abs(difference).sum() / size)

    def null(name: str) -> Null:
        drawn, possible = draws[name]
        same = [set(heads) == set(sets.named(name)) for heads in rankings.named(name)]
        of_set = changed(sets.named(name)) if place.massive else None
        absolute_change = [changed(heads) for heads in drawn] if place.massive else []
        late = min(head.layer for head in sets.named(name)) > end
        as_large = None
        if of_set is not None and not late:
            as_large = sum(change >= of_set for change in absolute_change)
        return Null(
            possible=possible,
            enumerated=len(drawn) == possible,
            draws=drawn,
            absolute_change=absolute_change,
            of_set=of_set,
            impossible=f"causality: all of its heads run after layer {end}" if late else None,
            at_least_as_large=as_large,
            p=None if as_large is None else (as_large + 1) / (len(drawn) + 1),
            run_whole=list(perplexities[name]),
            perplexity=list(perplexities[name].values()),
            ranked_anew=[changed(heads) for heads in rankings.named(name)] if place.massive else [],
            picked_again=float(np.mean(same)) if same else None,
        )

    return OfSets(*map(null, SETS))


def exact_of(
    lm: LanguageModel, windows: Windows, result: ablation.Comparison, conditions: Sequence[ablation.Condition]
) -> OfSets[FirstTokens | None]:
    """lib.core.first_tokens of the largest place, or None where that is not the first position."""
    largest = next(iter(result.places["top"]), None)
    if largest is None or largest.position != "first":
        return OfSets(None, None)
    medians = {name: [layer.median.mean for layer in here.layers] for name, here in result.conditions.items()}
    exact = first_tokens.measure(lm, windows, largest.dim, largest.layer, conditions, medians)
    return OfSets(None, None) if exact is None else OfSets(**exact)
