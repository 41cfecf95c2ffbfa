"""Texts that a figure can show: any model name, token or text, whatever fonts this machine has."""

import dataclasses
import unicodedata
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from lib.report.tables import shortened

FAMILY = "DejaVu Sans"  # comes with matplotlib
LONGEST = 44


def legible(value: Any) -> Any:
    """A copy of a JSON value or a dataclass with every text as it can be drawn, and fonts set for it.

    What has no glyph, or none that can be seen, is escaped as in Python; long texts lose their middle; `$` is no
    formula.
    """
    known = FT2Font(font_manager.findfont(FAMILY))
    missing = {c for c in _characters(value) if c.isprintable() and not known.get_char_index(ord(c))}
    families = _families(missing)
    matplotlib.rcParams["font.family"] = [FAMILY, *dict.fromkeys(families.values())]
    return _mapped(value, missing - families.keys())


def _characters(value: Any) -> set[str]:
    if isinstance(value, str):
        return set() if value.isascii() else set(value)
    if dataclasses.is_dataclass(value):
        value = vars(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return set().union(*(_characters(item) for item in inside if not isinstance(item, (int, float))))


def _mapped(value: Any, without_glyph: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(item, without_glyph) for key, item in value.items()}
    if isinstance(value, list):
        return [item if isinstance(item, (int, float)) else _mapped(item, without_glyph) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **_mapped(vars(value), without_glyph))
    return _shown(value, without_glyph) if isinstance(value, str) else value


def _shown(text: str, without_glyph: set[str]) -> str:
    text = shortened(text, LONGEST)
    shown: list[str] = []
    for before, c in zip(" " + text, text, strict=False):
        stands_alone = unicodedata.category(c).startswith("M") and (before == " " or before in without_glyph)
        escaped = not c.isprintable() or c in without_glyph or stands_alone
        shown += c.encode("unicode_escape").decode() if escaped else c
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in shown):  # what stands beside it stays where it is
        shown = ["\u200e", *shown, "\u200e"]
    return "".join(shown).replace("$", r"\$")


def _families(missing: set[str]) -> dict[str, str]:
    """{character: family of an installed font that has it}, of those that any has."""
    found: dict[str, str] = {}
    own = Path(matplotlib.get_data_path())  # its own further fonts are of symbols and placeholders
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        if len(found) == len(missing):
            break
        if Path(font.fname).is_relative_to(own) or font.style != "normal":
            continue
        face = _face(font.fname)
        if face is None or not face.scalable:
            continue
        for c in missing - found.keys():
            if face.get_char_index(ord(c)):
                found[c] = font.name
    return found


def _face(path: str) -> FT2Font | None:
    try:
        return FT2Font(path)
    except (OSError, RuntimeError):  # gone since matplotlib listed it, or not readable by this version
        return None
