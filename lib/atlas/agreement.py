"""What several models say together: by a rule, and of those alone that can tell."""

from collections.abc import Mapping

from lib.atlas.results import Together
from lib.core.evidence import CANNOT_TELL

KINDS = ALL, SOME, ONE, NOBODY = "the same in all", "differs", "told of one", "told of none"
RULE = (
    f"{ALL}: every model that can tell says the same, and at least two can; {SOME}: two say something else; {ONE}: "
    f"only one can tell; {NOBODY}: no model can. A model without the result, or whose verdict begins with "
    f"'{CANNOT_TELL}', is not counted. A few models are no sample of all models: what is the same in all of these may "
    "differ in the next"
)


def together(verdicts: Mapping[str, str]) -> Together:
    """Of {model: verdict}."""
    models: dict[str, list[str]] = {}
    for model, verdict in verdicts.items():
        models.setdefault(verdict, []).append(model)
    told = [verdict for verdict in models if not verdict.startswith(CANNOT_TELL)]
    n = sum(len(models[verdict]) for verdict in told)
    kind = SOME if len(told) > 1 else (NOBODY, ONE)[n] if n < 2 else ALL
    return Together(kind, told[0] if len(told) == 1 else None, models)
