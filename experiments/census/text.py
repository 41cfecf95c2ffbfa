"""The TXT of the census of triggers: tokens as the first one and elsewhere, and which cause fits."""

from typing import Any

from lib.report import tables


def summarise(payload: dict[str, Any]) -> str:
    r = payload["results"]
    place, census, tried, conclusion = r["place"], r["census"], r["tried"], r["conclusion"]
    quantiles = [[f"{100 * float(q):g} %", tables.number(value, True)] for q, value in census["quantiles"].items()]
    return "\n".join(
        [
            tables.header(payload, f"Experiment 6: what triggers the spike? Output of layer {r['layer']}"),
            tables.place_text(place),
            f"In the windows as they are: {tables.interval(r['ordinary']['value'], True)}; "
            f"{tables.interval(r['ordinary']['spikes'])} of the windows spike",
            f"Threshold {tables.number(r['spike']['threshold'])}: {r['spike']['rule']}",
            "",
            f"Census: each of {census['tokens']:,} tokens as the first one ({census['left_out']:,} embedding rows "
            "without a token left out)",
            f"{tables.number(census['mean'], True)} +- {tables.number(census['std'])} (standard deviation); "
            f"{census['n_spiking']:,} spike, {census['n_failing']:,} do not; {census['below_1000']:,} below 1,000",
            tables.table(["quantile", "value"], quantiles),
            _tokens(census),
            f"Elsewhere: {tried['tokens']} of {tried['possible']:,} {tried['of']}, in {tried['pairs']} pairs of a "
            "token and a position p",
            _elsewhere(r["elsewhere"]),
            *_bos(r["bos"]),
            "What a cause predicts (all: nearly all spike; none: hardly any; part: not nearly all; few: not most; "
            "most: of the windows), and what does not fit (x) or cannot be told (?)",
            _causes(conclusion["values"]["causes"], conclusion["values"]["measured"]),
            *(f"{of['label']}: {of['tells']}" for of in conclusion["values"]["measured"].values()),
            "",
            tables.conclusion_text(conclusion),
            *_named(conclusion["values"]["tokens"]),
        ]
    )


def _tokens(census: dict[str, Any], at_most: int = 20) -> str:
    """The fewer of those that spike and those that do not."""
    few = "failing" if census["n_failing"] <= census["n_spiking"] else "spiking"
    tokens, n = census[few], census[f"n_{few}"]
    which = "that do not spike, smallest first" if few == "failing" else "that spike, largest first"
    if not tokens:
        return f"First tokens {which}: none\n"
    rows = [[t["id"], repr(t["token"]), tables.number(t["value"], True)] for t in tokens[:at_most]]
    return f"First tokens {which}: {len(rows)} of {n:,}\n" + tables.table(["id", "token", "value"], rows)


def _elsewhere(rows: list[dict[str, Any]]) -> str:
    learned = ["embedding of 0 at p", "alone, embedding of p"] if "there" in rows[0] else []
    names = ["moved", "repeated", *(["there", "at_0"] if learned else [])]
    heads = ["p", "tokens", *(x for of in ["behind p of text", "behind itself", *learned] for x in (of, "spike"))]
    cells = [[x for name in names for x in _cells(row[name])] for row in rows]
    table = tables.table(heads, [[row["position"], row["tokens"], *of] for row, of in zip(rows, cells, strict=True)])
    return table if learned else table + "Position embeddings: positions act in attention, there is nothing to swap\n"


def _cells(summary: dict[str, Any]) -> list[str]:
    return [tables.interval(summary["value"], True), f"{summary['spikes']:.1%}"]


def _bos(bos: dict[str, Any] | None) -> list[str]:
    if bos is None:
        return ["BOS: this tokenizer has no BOS token", ""]
    first = f"BOS, {bos['token']!r}, as the first token: {tables.number(bos['value'], True)}"
    rows = [[f"{bos['tokens']} of them behind BOS", *_cells(bos["behind"])]] if bos["behind"] else []
    return [first, tables.table(["", "value", "spike"], [["the tokens alone", *_cells(bos["first"])], *rows])]


def _causes(causes: dict[str, Any], measured: dict[str, Any]) -> str:
    """The predictions of every cause, one row a manipulation."""
    mark = {True: "", False: " x", None: " ?"}
    rows = [
        [
            of["label"],
            tables.interval(of["cell"]) if of["cell"] else "not measured",
            *(
                f"{told['word']}{mark[told['answer']]}" if told else ""
                for told in (cause["predictions"].get(name) for cause in causes.values())
            ),
        ]
        for name, of in measured.items()
    ]
    fits = [{True: "yes", False: "no", None: "?"}[cause["fits"]] for cause in causes.values()]
    numbered = [str(i) for i in range(1, len(causes) + 1)]
    legend = "".join(f"{i}: {cause}\n" for i, cause in zip(numbered, causes, strict=True))
    return legend + tables.table(["tried", "measured", *numbered], [*rows, ["fits", "", *fits]])


def _named(tokens: list[str] | None) -> list[str]:
    return [] if tokens is None else [f"tokens that spike: {', '.join(map(repr, tokens))}", ""]
