"""A mask: the massive activations of a model, as dims and rules for positions that can be applied to any tokens.

`main_llm.py --exp2 --export mask.json` writes one. Others need no code of ours to read it:

    import json, numpy as np

    def massive(path, layer, ids):
        \"\"\"{dim: (batch, seq) bool}: where the output of block `layer` is massive for (batch, seq) token ids.\"\"\"
        places = {}
        for place in json.load(open(path, encoding="utf-8"))["places"]:
            there = np.isin(ids, place["ids"])  # "tokens"; nowhere where no rule holds
            if place["rule"] == "first position":
                there = there | (np.arange(ids.shape[1]) == 0)
            elif place["rule"] == "first of tokens":
                there &= there.cumsum(1) == 1
            if place["layer"] == layer:
                places[place["dim"]] = places.get(place["dim"], False) | there
        return places

    for dim, there in massive("mask.json", layer, ids).items():
        hidden[..., dim][there] = 0  # hidden: (batch, seq, dims), the output of block `layer`, before any final norm
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lib.core.definitions import NEARLY_ALL
from lib.report import identity, result_files
from lib.run.errors import UserError, cause

MASK_VERSION = 1
FIRST, TOKENS, FIRST_OF, NO_RULE = "first position", "tokens", "first of tokens", "no rule"
RULES = {
    FIRST: "position 0 of each window",
    TOKENS: "every position that holds one of the ids",
    FIRST_OF: "of each window, the first position that holds one of the ids",
    NO_RULE: "no rule of these holds: nothing can be said of other texts",
}
HOLDS = (
    f"each for what those before it leave: {', '.join(f'{name} ({what})' for name, what in RULES.items())}. "
    f"Windows 0, 2, 4, ... propose a rule; it holds if at least {NEARLY_ALL:.0%} of the positions that it names in "
    "windows 1, 3, 5, ... are massive (of the ids of 'tokens', each by itself)"
)


@dataclass(frozen=True)
class MaskedPlace:
    """Massive activations of one dim of the output of block `layer`, whose positions follow `rule`.

    ids, tokens: of the rule, empty if it has none. value: their signed mean; massive: how many there are, of all
    windows. checked: positions that the rule names in the windows that check it; held: how many of these are massive.
    """

    layer: int
    dim: int
    rule: str
    ids: list[int]
    tokens: list[str]
    value: float
    massive: int
    checked: int
    held: int


@dataclass(frozen=True)
class Mask:
    """model, dtype, text: of the provenance of the result that it is of. layers: how many the model has. block_output:
    what layer and position mean."""

    mask_version: int
    block_output: str
    definition: str
    rules: dict[str, str]
    holds: str
    model: dict[str, Any]
    dtype: str
    hidden_size: int
    layers: int
    text: dict[str, Any]
    command: str
    places: list[MaskedPlace]

    def named(self, layer: int, ids: np.ndarray) -> np.ndarray:
        """(n, 3) ints: window, position and dim of all that is named in the output of `layer`, of (windows, seq)."""
        found = {
            (window, position, place.dim)
            for place in self.places
            if place.layer == layer
            for window, position in np.argwhere(named(place.rule, place.ids, ids)).tolist()
        }
        return np.array(sorted(found), dtype=int).reshape(-1, 3)

    @property
    def ruled(self) -> list[int]:
        """The layers of which it names something."""
        return sorted({place.layer for place in self.places if place.rule != NO_RULE})


def named(rule: str, chosen: Iterable[int], ids: np.ndarray) -> np.ndarray:
    """(windows, seq) bool: the positions that a rule names, with the ids `chosen`, in (windows, seq) ids."""
    there = np.isin(ids, [*chosen])
    if rule == FIRST:
        there[:, 0] = True
    if rule == FIRST_OF:
        there &= there.cumsum(1) == 1
    return there


def require_free(path: Path) -> None:
    """Raise UserError if there is a file that is no mask: it would be lost."""
    if not path.is_file():
        return
    try:
        is_mask = "mask_version" in result_files.read_json(path)
    except UserError:
        is_mask = False
    if not is_mask:
        raise UserError(f"cannot write a mask to {path}: there is a file that is none")


def write(path: Path, result: result_files.Result[Any, Any]) -> None:
    """The mask of a result of main_llm.py --exp2. Raises UserError if it has none, or the file cannot be written."""
    require_free(path)
    results, provenance = result.results, result.provenance
    if results.masked is None or results.hidden_size is None:
        raise UserError("this result is of an older version, which had no rules for positions; run --exp2 anew")
    mask = Mask(
        mask_version=MASK_VERSION,
        block_output="layer i: the output of block i, from 0, before any final norm; position 0: the first of a "
        "window, BOS where `text` has it",
        definition=results.definition,
        rules=RULES,
        holds=HOLDS,
        model=provenance["model"],
        dtype=provenance["dtype"],
        hidden_size=results.hidden_size,
        layers=len(results.layers),
        text=provenance["data"],
        command=provenance["command"],
        places=results.masked,
    )
    result_files.write_json(path, result_files.plain(mask))


def read(path: Path) -> Mask:
    """Raises UserError, with the cause, for what is no mask, or one that names nothing."""
    stored = result_files.read_json(path)
    version = stored.get("mask_version")
    if version is None:
        raise UserError(f"{path} is no mask; write one with main_llm.py --exp2 --export {path.name}")
    if version != MASK_VERSION:
        raise UserError(f"{path} has mask version {version}, not {MASK_VERSION}")
    try:
        mask = msgspec.convert(stored, Mask)
        unknown = {place.rule for place in mask.places} - RULES.keys()
        if unknown:
            raise ValueError(f"there is no rule {min(unknown)!r}")
        for what, limit in (("layer", mask.layers), ("dim", mask.hidden_size)):
            for number in (getattr(place, what) for place in mask.places):
                if not 0 <= number < limit:
                    raise ValueError(f"{what} {number} is out of range: {what}s 0 to {limit - 1}")
    except ValueError as error:
        raise UserError(f"{path} is not a whole mask: {cause(error)}") from error
    if not mask.places:
        raise UserError(f"{path} is empty: its model has no massive activations in that text")
    if not mask.ruled:
        raise UserError(f"{path} names no positions: no rule holds for those of its model's massive activations")
    return mask


def require_of(mask: Mask, path: Path, provenance: dict[str, Any]) -> None:
    """Raise UserError if a mask is of another model than `provenance`; its dtype may be another."""
    of_mask = {"model": mask.model, "dtype": mask.dtype}
    try:
        same = identity.of(of_mask)[0] == identity.of(provenance)[0]
        found = identity.described(of_mask)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is not a whole mask: its model cannot be told ({cause(error)})") from error
    if not same:
        raise UserError(f"{path} is of another model: {found}; this is {identity.described(provenance)}")
