"""The TXT of a model without the edge to its sink."""

from collections.abc import Callable

from experiments.sink_knockout.results import ITSELF, PREVIOUS, SINK, Moved, Results, Stored
from lib.core.evidence import Cell
from lib.report import tables

NAMES = {ITSELF: "the query itself", PREVIOUS: "the previous token"}
MOST = 3  # keys to which attention moves


def summarise(result: Stored) -> str:
    results, values = result.results, result.conclusion.values
    baseline = results.baseline
    return "\n".join(
        [
            tables.header(result, "Experiment 10: the model without the edge to the sink"),
            f"Sink: the key at {_position(results.position, results.token)}; {values.heads} of {values.of_all} heads "
            f"have it, {values.unclear} cannot be told",
            f"(mean probability above {results.epsilon:g}, by its interval)",
            tables.place_text(results.place),
            f"As it is: loss {tables.interval(baseline.loss)} nats a token, sink rate at this key "
            f"{tables.interval(baseline.sink_rate)}",
            "",
            "Edges of all later queries that see the sink, in all heads; a query that sees no other key but its own",
            "loses that in the controls. loss: paired change in nats a token. beyond: what masking the sink's key",
            "costs more than this, paired.",
            _losses(results, values.costs),
            "edges: masked in a window; mass: the attention that they would have in their layer, after what is masked",
            "in those before it, of a head and query. sink rate: share of all heads that have their sink at this key,",
            "after. value: at the place, in its peak layer.",
            _after(results),
            "Where attention moves: the keys whose mean probability gains most, over later queries and the heads of",
            "the changed layers, with the interval of all keys together. A position or a token counts while it is not",
            "the query's own or the previous one.",
            _moves(results),
            *([f"Left out, all that sets values: {results.left_out}\n"] if results.left_out else []),
            _headline(result) + tables.conclusion_text(result.conclusion, values.why),
        ]
    )


def _headline(result: Stored) -> str:
    """What masking the sink's key does."""
    masked, moved = result.results.conditions[SINK], result.conclusion.values.moves_to
    goes = f"attention goes to {' '.join(_moved(moved))}, and " if moved else ""
    change = tables.interval(masked.loss_change, True)
    return f"With the sink's key masked in all layers {goes}the loss changes by {change}\n"


def _losses(results: Results, costs: dict[str, str]) -> str:
    rows = [
        [cell.label, tables.interval(cell.loss_change, True), costs[name], tables.interval(cell.beyond, True)]
        for name, cell in results.together.items()
    ]
    return tables.table(["condition", "loss", "cost", "beyond"], rows)


def _after(results: Results) -> str:
    rows = [
        [
            *(cell.label, tables.number(cell.edges), tables.interval(cell.mass), tables.interval(cell.sink_rate_after)),
            *(tables.mean(cell.value, True), tables.interval(cell.retained)),
        ]
        for cell in results.together.values()
    ]
    return tables.table(["condition", "edges", "mass", "sink rate", "value", "retained"], rows)


def _moves(results: Results) -> str:
    rows = [[cell.label, *_moved(moved)] for cell in results.together.values() for moved in cell.moved_to[:MOST]]
    return tables.table(["condition", "attention moves to", "gain"], rows)


def _moved(moved: Moved) -> tuple[str, str]:
    return named(moved), tables.interval(Cell(moved.gain.mean, moved.gain.together), True)


def named(moved: Moved, quoted: Callable[[str], str] = repr) -> str:
    if moved.position is None:
        return f"token {quoted(moved.token)}" if moved.token else NAMES.get(moved.key, moved.key)
    return _position(moved.position, moved.token, quoted)


def _position(position: int, token: str | None, quoted: Callable[[str], str] = repr) -> str:
    return f"position {position}" + (f" ({quoted(token)})" if token else "")


def details(result: Stored) -> str:
    """The sink's key masked in each layer alone."""
    rows = [
        [
            layer,
            tables.interval(cell.mass),
            tables.interval(cell.loss_change, True),
            tables.interval(cell.retained),
            *(_moved(cell.moved_to[0]) if cell.moved_to else ("-", "-")),
        ]
        for layer, cell in result.results.by_layer.items()
    ]
    heads = ["layer", "mass", "loss", "retained", "attention moves to", "gain"]
    return "The sink's key masked in one layer alone\n" + tables.table(heads, rows)
