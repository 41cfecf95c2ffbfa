"""Who writes a massive activation and who takes it away, in the model as it is or with parts off."""

from typing import Any

from experiments.ledger.results import LedgerCondition, Results
from lib.core import attribution
from lib.core.ablation import Condition
from lib.core.data import Windows
from lib.core.place import find
from lib.core.pruning import parse_heads
from lib.core.results import Head
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.run.errors import UserError


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    condition = condition_of(lm.arch, options)
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    ledger = attribution.measure(lm, windows, place, condition, options.batch_size)
    return Results(
        condition=LedgerCondition(condition.label, list(condition.mlps), [Head(*head) for head in condition.heads]),
        place=place.described(),
        writes=ledger.listed(),
        layers=ledger.layers(),
        residual=place.draws.averages(ledger.place.values),
        profile=ledger.profile(),
        drop=ledger.drop(),
        check=ledger.check(),
    )


def condition_of(arch: Architecture, options: Any) -> Condition:
    """The ablation.Condition of --mlps_off and --heads_off. Raises UserError for what is no layer or no head."""
    if options.mlps_off == ("all",):
        mlps = tuple(arch.mlps)
    else:
        for name in options.mlps_off:
            if not name.isdigit():
                raise UserError(f"'{name}' is not a layer; write layers, for example --mlps_off 28 29, or all")
        mlps = tuple(sorted({int(name) for name in options.mlps_off}))
    heads = tuple(arch.heads) if options.heads_off == ("all",) else parse_heads(options.heads_off)
    for layer in mlps:
        arch.check_layer(layer)
    for layer, head in heads:
        arch.check_head(layer, head)
    named = {"MLPs off": options.mlps_off, "heads off": options.heads_off}
    label = "; ".join(
        f"{kind}: {' '.join(names) if len(names) < 9 else len(names)}" for kind, names in named.items() if names
    )
    return Condition("ledger", label or "nothing off", heads, mlps)
