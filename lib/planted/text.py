"""Truth and diagnosis of planted models as a table."""

from typing import Any

from lib.core.evidence import Stored
from lib.report import tables

SHOWN = (
    "generator",
    "layer",
    "trigger",
    "share",
    "birth",
    "erasers",
    "necessary",
    "retained",
    "repair",
    "need",
    "cause",
    "made_by",
    "experts",
    "where",
    "sink_kind",
    "secondary",
    "edge",
    "carrier",
    "forecast",
    "quantised",
    "massive_born",
    "sinks_born",
    "last_writer",
)


def summarise(payload: Stored) -> str:
    r = payload["results"]
    rows = []
    for model in r["models"]:
        truth, misses = model["truth"], model["misses"]
        found = "; ".join(f"{name}: {_text(model['diagnosis'][name])}" for name in misses)
        described = [_text(model["visible"].get(name)) for name in SHOWN]
        diagnosis = f"MISS {found}" if misses else "right"
        rows.append([truth["architecture"], truth["kind"], truth["seed"], *described, diagnosis])
    heads = ["model", "kind", "seed", *SHOWN, "diagnosis"]
    return "\n".join(
        [
            "Planted truth against diagnosis",
            "===============================",
            f"command  {payload['provenance']['command']} ({payload['provenance']['seconds']} s)",
            "",
            "Rules of the diagnosis, the same for every model",
            r["rule"],
            "",
            f"Truth of each model ({len(SHOWN)} of {len(r['fields'])} fields; all are in the JSON), and whether the "
            "diagnosis agrees in every field",
            tables.table(heads, rows),
            f"Conclusion: {r['conclusion']['verdict']}",
            f"Rule: {r['conclusion']['rule']}",
            "",
        ]
    )


def _text(value: Any) -> str:
    """`-`, `3`, `+4 -53`, `4.2 4.3`, `mlp 1 0.60, mlp 3 0.60`."""
    if isinstance(value, list):
        if value and isinstance(value[0], list) and isinstance(value[0][0], str):
            return ", ".join(f"{name} {'-' if number is None else f'{number:.2f}'}" for name, number in value)
        return " ".join(".".join(map(str, x)) if isinstance(x, list) else str(x) for x in value) or "-"
    return "-" if value is None else str(value)
