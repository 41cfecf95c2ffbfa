"""The pruning configuration: which heads a ranking puts at the top and at the bottom."""

import configparser
from collections.abc import Iterable, Sequence
from pathlib import Path

from lib.core.results import Head, HeadScore
from lib.run.errors import UserError, cause

PER_LAYER, OVERALL = 3, 3

Heads = tuple[Head, ...]


def config_text(ranking: Sequence[HeadScore], model_name: str) -> str:
    """The TXT that analyze_heads_simple.py writes and test_head_pruning_on_massive.py --pruning_config reads."""
    layers = sorted({head.layer for head in ranking})
    lines = [
        f"# {model_name}: heads by mean attention to the first token, as layer.head",
        "# top: highest first; bottom: lowest first",
        "",
        "[overall]",
        f"top = {_names(ranking[:OVERALL])}",
        f"bottom = {_names(ranking[::-1][:OVERALL])}",
    ]
    for layer in layers:
        here = [head for head in ranking if head.layer == layer]
        top, bottom = here[:PER_LAYER], here[::-1][:PER_LAYER]
        lines += ["", f"[layer {layer}]", f"top = {_names(top)}", f"bottom = {_names(bottom)}"]
    return "\n".join(lines) + "\n"


def _names(heads: Sequence[HeadScore]) -> str:
    return " ".join(f"{head.layer}.{head.head}" for head in heads)


def read_config(path: str | Path) -> tuple[Heads, Heads]:
    """(top, bottom) heads of a configuration's [overall] part. Raises UserError if one cannot be read or is empty."""
    parser = configparser.ConfigParser()
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
        overall = parser["overall"]
        sets = parse_heads(overall["top"].split()), parse_heads(overall["bottom"].split())
    except (OSError, KeyError, configparser.Error, UnicodeDecodeError) as error:
        raise UserError(f"cannot read pruning configuration {path}: {cause(error)}") from error
    if not all(sets):
        raise UserError(f"pruning configuration {path} names no heads as top or as bottom")
    return sets


def parse_heads(names: Iterable[str]) -> Heads:
    """["2.7", "5.1"] -> ((2, 7), (5, 1)). Raises UserError for anything but layer.head."""
    heads = []
    for name in names:
        layer, dot, head = name.partition(".")
        if not (dot and layer.isdigit() and head.isdigit()):
            raise UserError(f"'{name}' is not a head; write layer.head, for example 5.1")
        heads.append(Head(int(layer), int(head)))
    return tuple(dict.fromkeys(heads))
