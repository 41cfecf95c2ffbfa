"""The figures of a result: the files that lie there, and what can be turned or hovered in their place."""

import base64
import functools
import gzip
import importlib.util
import inspect
import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from lib.page.html import Html, tag
from lib.page.words import Words
from lib.report.tables import number
from lib.report.views import HeatMap, Lines3D, View
from lib.run.cli import Options
from lib.run.errors import UserError, cause

SVG_SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"')  # in points, 72 an inch


@functools.cache
def plotly() -> str | None:
    """plotly's JavaScript, gzipped, in base64; None where the package is not installed."""
    found = importlib.util.find_spec("plotly")  # its import takes long, and nothing of it is needed
    if found is None or not found.submodule_search_locations:
        return None
    script = Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
    return _packed(script.read_bytes())


def _packed(content: bytes) -> str:
    """As page.js inflates it."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def caption(draw: Any) -> str:
    """What a figure shows, as the function says that draws it."""
    return " ".join((inspect.getdoc(getattr(draw, "func", draw)) or "").split())


def figure(path: Path, said: str, about: str, views: list[View], words: Words) -> Html:
    """about: of what result it is, for those who do not see it."""
    picture, (width, height) = _picture(path)
    image = tag(
        "img", src=picture, alt=f"{said} {about}".strip(), lang=words.foreign, width=str(width), height=str(height)
    )
    drawn = [_packed(json.dumps(_data(view, words)).encode()) for view in views]
    boxes = [tag("div", class_="view", data_view=data, hidden=True) for data in drawn]
    turned = tag("div", boxes, class_="views") if views else []
    swap = tag("button", words.picture, type="button", aria_pressed="false")
    hint = [tag("span", f" {_hint(views[0], words)} ", swap, class_="hint", hidden=True)] if views else []
    return tag(
        "figure",
        image,
        turned,
        tag("figcaption", tag("span", said, lang=words.foreign), hint),
        class_="wide" if width > 900 else False,
    )


def _picture(path: Path) -> tuple[str, tuple[int, int]]:
    """(data URI, width and height) of an SVG, of a PNG or, where that is smaller, the same without loss as WebP."""
    stored = path.read_bytes()
    if path.suffix == ".svg":
        sizes = SVG_SIZE.search(stored[:2000].decode("utf-8", errors="replace"))
        if sizes is None:
            raise UserError(f"cannot read {path}: no SVG of a run")
        width, height = (round(float(size) / 72 * Options.dpi) for size in sizes.groups())
        return f"data:image/svg+xml;base64,{base64.b64encode(stored).decode()}", (width, height)
    smaller = io.BytesIO()
    try:
        with Image.open(io.BytesIO(stored)) as image:
            size = image.size
            image.convert("RGB").save(smaller, "WEBP", lossless=True, quality=50, method=2)
    except OSError as error:
        raise UserError(f"cannot read {path}: {cause(error)}") from error
    kind, content = min(("png", stored), ("webp", smaller.getvalue()), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", size


def _hint(view: View, words: Words) -> str:
    if isinstance(view, HeatMap):
        return words.hover
    if len(view.dims) == view.width:
        return words.turn
    return f"{words.turn} {words.largest_dims.format(shown=len(view.dims), width=f'{view.width:,}')}"


def _data(view: View, words: Words) -> dict[str, Any]:
    """What page.js draws."""
    return _heat_map(view) if isinstance(view, HeatMap) else _lines(view, words)


def _heat_map(view: HeatMap) -> dict[str, Any]:
    ticks = view.ticks()
    return {
        "kind": view.kind,
        "title": view.title,
        "axes": [view.x, view.y, view.unit],
        "columns": view.columns,
        "rows": view.rows,
        "values": [[None if value is None else _short(view.colour(value)) for value in row] for row in view.values],
        "said": view.said,
        "limits": [view.colour(-view.limit if view.diverging else 0.0), view.colour(view.limit)],
        "diverging": view.diverging,
        "ticks": [view.colour(tick) for tick in ticks],
        "tick_texts": [_rounded(number(tick, view.diverging and tick != 0)) for tick in ticks],
    }


def _lines(view: Lines3D, words: Words) -> dict[str, Any]:
    return {
        "kind": view.kind,
        "title": view.title,
        "axes": words.axes_3d,
        "tokens": view.tokens,
        "dims": view.dims,
        "values": view.values,
        "top": view.top,
    }


def _rounded(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _short(value: float) -> float:
    return float(f"{value:.4g}")
