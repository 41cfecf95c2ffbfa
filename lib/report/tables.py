"""Numbers as text: tables, intervals, the head of a TXT, a conclusion with its tests."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import tabulate

from lib.core import definitions
from lib.core.evidence import Cell, Conclusion, StoredTest
from lib.core.results import AblatedPlace, FirstTokens, FollowedPlace, MassiveActivation, Mixture
from lib.report.result_files import Result

tabulate.MIN_PADDING = 0  # columns are as narrow as they can be
NOISE = 1e-12  # what rounding leaves of numbers that cancel


@dataclass(frozen=True)
class Table:
    """Texts. numeric: of each column, whether it is aligned to the right."""

    headers: list[str]
    rows: list[list[str]]
    numeric: list[bool]


LONGEST = 400  # characters of a line of a TXT's head
_kept: ContextVar[list[Table] | None] = ContextVar("_kept", default=None)
MARK = "\0"


@contextmanager
def set_aside() -> Iterator[list[Table]]:
    """In the block a table is not laid out: it goes into the list, and its number there, in MARKs, stands for it."""
    kept: list[Table] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def header(result: Result[Any, Any], title: str, *, intervals: bool = True) -> str:
    """The first lines of a TXT: what ran on what, and what its `intervals` are."""
    p = result.provenance
    data = p["data"]
    bos, dataset = "on" if data["bos"] else "off", _in_a_line(data["dataset"])
    source = ", ".join(f"{key} {value}" for key, value in p["model"].items() if key not in ("name", "type"))
    warning = [f"warning  {p['warning']}"] if "warning" in p else []
    return "\n".join(
        [
            title,
            "=" * len(title),
            f"model    {p['model']['name']} ({p['model']['type']}; {source})",
            f"data     {data['windows']} x {data['seqlen']} tokens of {dataset}, BOS {bos}{_documents(data)}",
            f"run      {p['dtype']}, {p['device']}, seed {p['seed']}, {p['time']}",
            f"command  {_in_a_line(p['command'])}",
            *([f"spread   {definitions.INTERVALS}"] if intervals else []),
            *warning,
            "",
        ]
    )


def _in_a_line(text: str) -> str:
    """What the JSON has as it is; a long one without its middle."""
    return shortened(text.replace("\n", "\\n"), LONGEST)


def shortened(text: str, longest: int = 20) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]}\u2026{text[-longest // 2 :]}"


def sink_window(result: Result[Any, Any]) -> int:
    """The tokens of a window over which its sink rates are."""
    tokens: int = result.provenance["data"]["seqlen"]
    return min(definitions.SINK_WINDOW, tokens)


def _documents(data: dict[str, Any]) -> str:
    """From how many documents the windows are: what intervals draw from."""
    if data.get("documents_drawn") is None:
        return ""
    if data["documents_drawn"] == 1:
        return "; from one document: intervals tell windows of it apart, not texts"
    return f"; from {data['documents_drawn']} documents (as good as {data['documents_effective']} of equal size)"


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Plain-text table; columns of numbers are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    numeric = [not all(map(_is_word, column)) for column in zip(*cells, strict=True)]
    if (kept := _kept.get()) is not None:
        kept.append(Table([*headers], cells, numeric))
        return f"{MARK}{len(kept) - 1}{MARK}\n"
    aligned = ["right" if numbers else "left" for numbers in numeric]
    text = tabulate.tabulate(cells, headers, tablefmt="simple", disable_numparse=True, colalign=aligned)
    return "".join(f"{line.rstrip()}\n" for line in text.split("\n"))


def _is_word(cell: str) -> bool:
    return not cell.lstrip("+-")[:1].isdigit() and cell not in ("", "-")


def number(value: float | None, signed: bool = False) -> str:
    """Four significant digits, thousands grouped: 0.6021, 23,512, +1.250, 3.1e-05; what is below NOISE is 0."""
    if value is None:
        return "-"
    value = 0.0 if abs(value) < NOISE else value
    if 0 < abs(value) < 0.001 or abs(value) >= 1e9:
        return f"{value:{'+' if signed else ''}.1e}"
    digits = 0 if abs(value) >= 1000 else max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:{'+' if signed else ''},.{min(digits, 4)}f}"


def mean(cell: Cell, signed: bool = False) -> str:
    return number(cell.mean, signed)


def interval(cell: Cell | None, signed: bool = False) -> str:
    """`mean [low, high]`, or the mean alone where one sequence gives no interval; `-` of None."""
    if cell is None:
        return "-"
    if cell.ci95 is None:
        return mean(cell, signed)
    return f"{mean(cell, signed)} [{', '.join(number(x, signed) for x in cell.ci95)}]"


def told(cell: Cell | None, signed: bool = False) -> str:
    """As `interval`; the mean alone of what is exact."""
    exact = cell is not None and cell.ci95 == (cell.mean, cell.mean)
    return mean(cell, signed) if cell is not None and exact else interval(cell, signed)


def percent(before: float, after: float) -> str:
    """Relative change in per cent; `-` where the value before is zero. Print it beside both values only."""
    return "-" if not before else f"{100 * (after - before) / abs(before):+.1f} %"


def counted(n: int, what: str) -> str:
    """1, "window" -> "1 window"; else with an s at its end."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def fraction(value: float | None) -> str:
    """A share in per cent; `-` of None: there is nothing to share."""
    return "-" if value is None else f"{100 * value:.1f} %"


def massive_table(massive: Iterable[MassiveActivation], definition: str, at_most: int = 20) -> str:
    """Identities of the massive activations: one row a (position, dim), with its layers and its largest value.

    windows: in how many it passes the test, fewest and most over these layers.
    """
    places: dict[tuple[int, int], list[MassiveActivation]] = {}
    for entry in massive:
        places.setdefault((entry.position, entry.dim), []).append(entry)
    peaks = [(max(entries, key=lambda entry: abs(entry.value)), entries) for entries in places.values()]
    peaks.sort(key=lambda pair: -abs(pair[0].value))
    rows = [
        [
            peak.position,
            repr(peak.token),
            peak.dim,
            spans(entry.layer for entry in entries),
            _range([entry.sequences for entry in entries]),
            peak.layer,
            number(peak.value, True),
            "-" if peak.ratio is None else f"{peak.ratio:,.0f}",
        ]
        for peak, entries in peaks[:at_most]
    ]
    text = f"Massive: {definition}\n"
    if not rows:
        return text + "none found\n"
    heads = [
        "position",
        "most frequent token",
        "dim",
        "massive in layers",
        "windows",
        "largest at",
        "value",
        "x median",
    ]
    more = len(peaks) - len(rows)
    return text + table(heads, rows) + (f"and {counted(more, 'more place')}, in the JSON\n" if more else "")


def spans(numbers: Iterable[int]) -> str:
    """[2, 3, 4, 9] -> '2-4, 9'."""
    spans: list[list[int]] = []
    for n in sorted(numbers):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def _range(numbers: Sequence[int]) -> str:
    """[8, 5, 7] -> '5-8'."""
    least, most = min(numbers), max(numbers)
    return f"{least}" if least == most else f"{least}-{most}"


def place_text(place: FollowedPlace) -> str:
    """The followed place in words, and the rule that chose it."""
    positions = ", ".join(f"{n} at {position}" for position, n in list(place.positions.items())[:8])
    values = place.values
    found = f" (massive in {place.spiking.mean:.0%} of the windows)" if place.massive else " (nothing is massive)"
    return (
        f"Followed: dim {place.dim}, most often token {place.token!r}{found}; windows: {positions}\n"
        f"peak {interval(values[place.peak_layer], True)} at layer {place.peak_layer}, "
        f"{plateau_text(place)}\n"
        f"Rule: {place.rule}\n" + spread_at_0(place)
    )


def plateau_text(place: FollowedPlace) -> str:
    first, last = place.plateau
    return f"plateau layer{'s' * (first < last)} {_range(place.plateau)}"


def spread_at_0(place: FollowedPlace) -> str:
    """Of a place at position 0: what the spread of its values is of."""
    if place.first_tokens is None:
        return ""
    draws = f"all windows begin with {place.token!r}, so that it is the same in all"
    if place.first_tokens > 1:
        draws = f"{_draws(place.values[0].n)}, {place.first_tokens} different ones here"
    return f"At position 0 a value depends on the first token alone: {draws}\n"


def _draws(windows: int) -> str:
    return "1 window is 1 draw of a token" if windows == 1 else f"{windows} windows are {windows} draws of a token"


def tests_table(tests: Iterable[StoredTest]) -> str:
    """Every threshold that a verdict hangs on: what was measured, what was asked, how far away the threshold is.

    distance: from the nearer end of the interval; 0 where the interval holds the threshold, which is never a verdict.
    """
    rows = [
        [
            test.what,
            number(test.mean) if test.mean is None else interval(Cell(test.mean, test.interval)),
            f"{test.wanted} {number(test.threshold)}",
            test.side,
            number(test.distance, True),
        ]
        for test in tests
    ]
    return table(["what", "measured", "asked", "it is", "distance"], rows) if rows else ""


def first_tokens_text(largest: AblatedPlace, exact: FirstTokens | None) -> str:
    """What the windows' spread at position 0 is of, and the exact numbers over all first tokens, if there are any."""
    if largest.position != "first":
        return ""
    draws = (
        "all windows begin with the same token" if exact is not None and exact.tokens == 1 else _draws(largest.windows)
    )
    text = f"At position 0 a value depends on the first token alone: {draws}.\n"
    return text if exact is None else text + exact_text(exact)


def exact_text(exact: FirstTokens) -> str:
    still = "" if exact.still_massive is None else f", still massive {exact.still_massive:.1%}"
    tokens = (
        "The first token of all windows"
        if exact.tokens == 1
        else f"All {exact.tokens:,} first tokens that the text could give, each as often as the text has it, "
        f"{exact.share:.1%} of which have the spike"
    )
    return (
        f"{tokens}, exactly: dim {exact.dim} after layer {exact.layer} "
        f"{number(exact.value, True)} -> {number(exact.ablated, True)}, retained {number(exact.retained)}, "
        f"|change| / |value| {number(exact.absolute_change)}{still}\n"
        "Token by token, it " + ", ".join(f"{fate} for {share:.1%}" for fate, share in exact.shares.items()) + "\n"
    )


def mixture_text(mixture: Mixture) -> str:
    """Which experts the followed place is sent to."""
    beside = f", and a shared expert of {mixture.shared}" if mixture.shared else ""
    rows = [[row.expert, row.windows, number(row.weight)] for row in mixture.reached]
    return (
        f"{mixture.experts} experts of {mixture.width} neurons each{beside}; neurons are named expert.number. "
        f"The place is sent to\n{table(['expert', 'windows', 'mean routing weight in these'], rows)}"
    )


def conclusion_text(conclusion: Conclusion[Any], note: str | None = None) -> str:
    """note: what the verdict alone would hide, or why it cannot be told."""
    verdict = f"{conclusion.verdict} ({note})" if note else conclusion.verdict
    asked = f"{tests_table(conclusion.tests)}\n" if conclusion.tests else ""
    return f"Conclusion: {verdict}\nRule: {conclusion.rule}\n{asked}"
