"""Experiment 2C: which neurons make the MLP's largest output."""

from experiments.mlp_internal.results import Results, Values, Verdict
from lib.core.definitions import MADE
from lib.core.evidence import conclusion
from lib.core.results import smallest_set

NAMED = 50
RULE = (
    "smallest number of neurons, largest contributions along the output's sign first, that give "
    f"{MADE:.0%} of the output; none if all together do not"
)


def judge(results: Results) -> Verdict:
    needed = smallest_set(results.contributions, results.contribution_check.output, MADE)
    verdict = "none" if needed is None else f"{needed} of {results.width} neurons"
    return conclusion(verdict, RULE, Values([row.name for row in results.contributions[: needed or 0]][:NAMED]))
