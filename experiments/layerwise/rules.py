"""Which positions are massive, as rules of lib.report.masks that are proposed by some windows and checked by others."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from lib.core.definitions import NEARLY_ALL
from lib.report.masks import FIRST_OF, NO_RULE, RULES, TOKENS, MaskedPlace, named

TRIED = 64  # of the most frequent ids, for the first of them


class Massive(NamedTuple):
    window: int
    layer: int
    position: int
    dim: int
    value: float


def masked(ids: np.ndarray, massive: Iterable[Massive], text: Callable[[int], str]) -> list[MaskedPlace]:
    """What is massive in windows of (windows, seq) ids, by layer, dim and rule. text: of a token's id."""
    of_dims: dict[tuple[int, int], list[Massive]] = {}
    for one in massive:
        of_dims.setdefault((one.layer, one.dim), []).append(one)
    places = []
    for (layer, dim), found in sorted(of_dims.items()):
        values = np.zeros(ids.shape)
        is_massive = np.zeros(ids.shape, dtype=bool)
        windows, positions = np.array([(one.window, one.position) for one in found]).T
        values[windows, positions] = [one.value for one in found]
        is_massive[windows, positions] = True
        for rule, chosen, covered, checked in _rules(ids, is_massive):
            here = is_massive & covered
            places.append(
                MaskedPlace(
                    layer=layer,
                    dim=dim,
                    rule=rule,
                    ids=chosen,
                    tokens=[*map(text, chosen)],
                    value=float(values[here].mean()),
                    massive=int(here.sum()),
                    checked=int(checked.sum()),
                    held=int((is_massive & checked).sum()),
                )
            )
    return places


def _rules(ids: np.ndarray, massive: np.ndarray) -> list[tuple[str, list[int], np.ndarray, np.ndarray]]:
    """(rule, its ids, what it covers, what of this checks it) of those that hold, then of what none covers.

    ids, massive and what is covered: (windows, seq).
    """
    checks = np.arange(len(ids))[:, None] % 2 == 1
    left, found = np.ones_like(massive), []
    for rule in RULES:
        chosen = _proposed(rule, ids, massive, left, ~checks)
        if rule == TOKENS:
            chosen = [one for one in chosen if _holds((ids == one) & left & checks, massive)]
        covered = named(rule, chosen, ids) & left
        if _holds(covered & checks, massive):
            found.append((rule, chosen, covered, covered & checks))
            left &= ~covered
    if (massive & left).any():
        found.append((NO_RULE, [], left, np.zeros_like(left)))
    return found


def _holds(there: np.ndarray, massive: np.ndarray) -> bool:
    """Whether nearly all positions `there` are massive, and there are any."""
    return bool(there.any() and massive[there].mean() >= NEARLY_ALL)


def _proposed(rule: str, ids: np.ndarray, massive: np.ndarray, left: np.ndarray, proposes: np.ndarray) -> list[int]:
    """Ids with which a rule would hold for what is `left` in the windows that propose it, the most frequent first: of
    FIRST_OF what remains of TRIED without those that name the wrong positions."""
    frequent = [one for one, _times in Counter(ids[massive & left & proposes].tolist()).most_common()]
    if rule == TOKENS:
        return [one for one in frequent if _holds((ids == one) & left & proposes, massive)]
    chosen = frequent[:TRIED] if rule == FIRST_OF else []
    while chosen:
        there = named(rule, chosen, ids) & left & proposes
        wrong = {one: 1 - massive[there & (ids == one)].mean() for one in set(ids[there].tolist())}
        if not wrong or _holds(there, massive):
            break
        chosen.remove(max(chosen, key=lambda one: wrong.get(one, 0)))  # what it names is least often massive
    return chosen
