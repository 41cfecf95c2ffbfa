"""The TXT of the census of triggers: tokens as the first one and elsewhere, and which cause fits."""

from experiments.census.results import Bos, Cause, Census, Elsewhere, Measured, Outcome, Stored
from lib.report import tables


def summarise(result: Stored) -> str:
    results, conclusion = result.results, result.conclusion
    census, tried, values = results.census, results.tried, conclusion.values
    quantiles = [[f"{100 * share:g} %", tables.number(value, True)] for share, value in census.quantiles.items()]
    return "\n".join(
        [
            tables.header(result, f"Experiment 6: what triggers the spike? Output of layer {results.layer}"),
            tables.place_text(results.place),
            f"In the windows as they are: {tables.interval(results.ordinary.value, True)}; "
            f"{tables.interval(results.ordinary.spikes)} of the windows spike",
            f"Threshold {tables.number(results.spike.threshold)}: {results.spike.rule}",
            "",
            f"Census: each of {census.tokens:,} tokens as the first one ({census.left_out:,} embedding rows "
            "without a token left out)",
            f"{tables.number(census.mean, True)} +- {tables.number(census.std)} (standard deviation); "
            f"{census.n_spiking:,} spike, {census.n_failing:,} do not; {census.below_1000:,} below 1,000",
            tables.table(["quantile", "value"], quantiles),
            _tokens(census),
            f"Elsewhere: {tried.tokens} of {tried.possible:,} {tried.of}, in {tried.pairs} pairs of a "
            "token and a position p",
            _elsewhere(results.elsewhere),
            *_bos(results.bos),
            "What a cause predicts (all: nearly all spike; none: hardly any; part: not nearly all; few: not most; "
            "most: of the windows), and what does not fit (x) or cannot be told (?)",
            _causes(values.causes, values.measured),
            *(f"{measured.label}: {measured.tells}" for measured in values.measured.values()),
            *([f"behind itself is no evidence here: {results.not_alone}"] if results.not_alone else []),
            "",
            tables.conclusion_text(conclusion, values.note or values.why),
            *_named(values.tokens),
        ]
    )


def _tokens(census: Census, at_most: int = 20) -> str:
    """The fewer of those that spike and those that do not."""
    if census.n_failing <= census.n_spiking:
        tokens, n, which = census.failing, census.n_failing, "that do not spike, smallest first"
    else:
        tokens, n, which = census.spiking, census.n_spiking, "that spike, largest first"
    if not tokens:
        return f"First tokens {which}: none\n"
    rows = [[token.id, repr(token.token), tables.number(token.value, True)] for token in tokens[:at_most]]
    return f"First tokens {which}: {len(rows)} of {n:,}\n" + tables.table(["id", "token", "value"], rows)


def _elsewhere(rows: list[Elsewhere]) -> str:
    columns = {
        "behind p of text": [row.moved for row in rows],
        "behind itself": [row.repeated for row in rows],
        "embedding of 0 at p": [row.there for row in rows if row.there],
        "alone, embedding of p": [row.at_0 for row in rows if row.at_0],
    }
    shown = {head: outcomes for head, outcomes in columns.items() if outcomes}
    heads = ["p", "tokens", *(column for head in shown for column in (head, "spike"))]
    outcomes = zip(*shown.values(), strict=True)
    cells = [[cell for outcome in row for cell in _cells(outcome)] for row in outcomes]
    table = tables.table(heads, [[row.position, row.tokens, *rest] for row, rest in zip(rows, cells, strict=True)])
    learned = len(shown) == len(columns)
    return table if learned else table + "Position embeddings: positions act in attention, there is nothing to swap\n"


def _cells(outcome: Outcome) -> list[str]:
    return [tables.interval(outcome.value, True), f"{outcome.spikes:.1%}"]


def _bos(bos: Bos | None) -> list[str]:
    if bos is None:
        return ["BOS: this tokenizer has no BOS token", ""]
    first = f"BOS, {bos.token!r}, as the first token: {tables.number(bos.value, True)}"
    rows = [[f"{bos.tokens} of them behind BOS", *_cells(bos.behind)]] if bos.behind else []
    return [first, tables.table(["", "value", "spike"], [["the tokens alone", *_cells(bos.first)], *rows])]


def _causes(causes: dict[str, Cause], measured: dict[str, Measured]) -> str:
    """The predictions of every cause, one row a manipulation."""
    mark = {True: "", False: " x", None: " ?"}
    rows = [
        [
            manipulation.label,
            tables.interval(manipulation.cell) if manipulation.cell else "not measured",
            *(
                f"{prediction.word}{mark[prediction.answer]}" if prediction else ""
                for prediction in (cause.predictions.get(name) for cause in causes.values())
            ),
        ]
        for name, manipulation in measured.items()
    ]
    fits = [{True: "yes", False: "no", None: "?"}[cause.fits] for cause in causes.values()]
    numbered = [str(i) for i in range(1, len(causes) + 1)]
    legend = "".join(f"{i}: {cause}\n" for i, cause in zip(numbered, causes, strict=True))
    return legend + tables.table(["tried", "measured", *numbered], [*rows, ["fits", "", *fits]])


def _named(tokens: list[str] | None) -> list[str]:
    return [] if tokens is None else [f"tokens that spike: {', '.join(map(repr, tokens))}", ""]
