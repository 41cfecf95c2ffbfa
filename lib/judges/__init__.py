"""The verdict of each experiment, from its stored results alone: no model, no torch.

A verdict is never frozen into a run: whoever reads a result judges it by the rules of today, so that a threshold can
change without a model. Each module has one experiment's `RULE` and `judge(results) -> lib.evidence.conclusion(...)`,
where `results` are those of the JSON.
"""

from lib import report
from lib.judges import ablation, census, heads, interventions, layers, ledger, neurons, pruning

JUDGES = {
    "exp1": ablation.judge,
    "exp2a": ablation.judge,
    "head_pruning": pruning.judge,
    "exp2b": layers.judge,
    "exp3": ledger.judge,
    "exp4": neurons.judge,
    "exp5": interventions.judge,
    "intervention": interventions.judge_single,
    "exp6": census.judge,
    "exp7": heads.judge,
}


def judged(experiment, results):
    """`results` (a dataclass or what a JSON holds) as JSON types, with their conclusion, if they have a judge."""
    results = report.plain(results)
    judge = JUDGES.get(experiment)
    return results if judge is None else results | {"conclusion": report.plain(judge(results))}
