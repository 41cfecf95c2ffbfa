"""The atlas as a TXT: a line a model, then what can be compared side by side, a column a model."""

import textwrap
from collections.abc import Callable, Sequence

import tabulate

from lib import catalogue
from lib.atlas import agreement
from lib.atlas.results import Mechanism, Results, Said
from lib.claims.judging import CANNOT_TELL, FAILS, HOLDS
from lib.report import tables
from lib.report.tables import Table

TITLE = "Massive activations, model by model"
MECHANISM, VERDICTS, CLAIMS = (
    "The mechanism (depth: the share of the blocks that have run)",
    "The experiments' verdicts",
    "Claims",
)
SIGNS = {HOLDS: "yes", FAILS: "no", CANNOT_TELL: "?"}
LEGEND = (
    "yes: holds here, no: does not hold here, ?: cannot tell; beside it the number nearest to the threshold that the "
    "verdict hangs on (of which quantity: <model>_claims.txt of verify_claims.py)"
)
CLAIM_WIDTH, VERDICT_WIDTH = 56, 24


def listed(names: Sequence[str] | None, at_most: int = 4) -> str:
    if names is None:
        return "-"
    return ", ".join(names[:at_most]) + " ..." * (len(names) > at_most) if names else "none"


PROPERTIES: dict[str, Callable[[Mechanism], str]] = {
    "layers": lambda m: str(m.n_layers or "-"),
    "largest top-1 / median": lambda m: "-" if m.ratio is None else f"{m.ratio:,.0f}",
    "dim": lambda m: "-" if m.dim is None else str(m.dim),
    "position": lambda m: "-" if m.position is None else str(m.position),
    "most frequent token there": lambda m: "-" if m.token is None else repr(m.token),
    "peak": lambda m: tables.told(m.peak, True),
    "born in": lambda m: m.birth or m.verdict or "-",
    "its share of the peak": lambda m: tables.told(m.share),
    "depth of the birth": lambda m: tables.number(m.depth),
    "generators": lambda m: listed(m.generators),
    "its neurons": lambda m: listed(m.neurons),
    "plateau, layers": lambda m: "-" if m.plateau is None else f"{m.plateau[0]} to {m.plateau[1]}",
    "erasers": lambda m: listed(m.erasers),
    "left without any head": lambda m: tables.told(m.left_without_heads),
    "left without any MLP": lambda m: tables.told(m.left_without_mlps),
    "loss without its writer, nats": lambda m: tables.told(m.cost, True),
    "then its mean put back": lambda m: tables.told(m.put_back, True),
    "sink rate": lambda m: tables.told(m.sink_rate),
    "cosine with the forecast": lambda m: tables.told(m.cosine),
}


def summarise(results: Results, command: str) -> str:
    parts = [TITLE, "=" * len(TITLE), f"command  {command}", ""]
    for row in results.models:
        parts += [*_wrapped(f"{row.model}: {' '.join(row.said) or '-'}"), f"    {row.described}; {row.data}"]
    parts += [f"left out: {what}" for what in results.left_out]
    parts += ["", MECHANISM, _laid_out(mechanism(results))]
    parts += [VERDICTS, _laid_out(verdicts(results), VERDICT_WIDTH)]
    parts += [CLAIMS, *textwrap.wrap(LEGEND, 100), _laid_out(claims(results), CLAIM_WIDTH)]
    for line in groups(results):
        parts += _wrapped(line)
    return "\n".join([*parts, *textwrap.wrap(f"Rule: {results.rule}", 100), ""])


def mechanism(results: Results) -> Table:
    rows = [[name, *(of(row.mechanism) for row in results.models)] for name, of in PROPERTIES.items()]
    return _table(["", *(row.model for row in results.models)], rows)


def verdicts(results: Results) -> Table:
    rows = [
        [
            catalogue.EXPERIMENTS[name].command,
            *(row.verdicts.get(name, "-") for row in results.models),
            together.kind,
        ]
        for name, together in results.verdicts.items()
    ]
    return _table(["script", *(row.model for row in results.models), "together"], rows)


def claims(results: Results) -> Table:
    rows = [
        [claim.row, claim.claim, *(_said(row.claims[claim.row]) for row in results.models), claim.together.kind]
        for claim in results.claims
    ]
    return _table(["row", "claim", *(row.model for row in results.models), "together"], rows)


def _table(heads: list[str], rows: list[list[str]]) -> Table:
    """Words and numbers are mixed in a column: all to the left."""
    return Table(heads, rows, [False] * len(heads))


def _laid_out(table: Table, widest: int | None = None) -> str:
    """In columns of at most `widest` characters, but for longer words."""
    rows = [
        [textwrap.fill(cell, widest, break_long_words=False) if widest else cell for cell in row] for row in table.rows
    ]
    text = tabulate.tabulate(rows, table.headers, tablefmt="simple", disable_numparse=True, stralign="left")
    return "".join(f"{line.rstrip()}\n" for line in text.split("\n"))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent="    ")


def _said(said: Said) -> str:
    sign = SIGNS[said.verdict]
    return sign if said.number is None else f"{sign} {tables.mean(said.number)}"


def groups(results: Results) -> list[str]:
    """How many claims are of each kind, and which."""
    lines = []
    for kind in agreement.KINDS:
        of_kind = [claim for claim in results.claims if claim.together.kind == kind]
        verdicts = {claim.together.verdict for claim in of_kind}
        for verdict in sorted(verdicts, key=str):
            rows = [claim.row for claim in of_kind if claim.together.verdict == verdict]
            what = kind if verdict in (None, CANNOT_TELL) else f"{kind}, {verdict}"
            lines.append(f"{what} ({len(rows)}): {', '.join(rows)}")
    return lines
