"""Which layers' MLPs or attention blocks are necessary for the value at the place, and which are sufficient."""

import numpy as np

from lib import ledger, sweep
from lib.ablation import Condition
from lib.definitions import COLLAPSES, PERSISTS

KINDS = {"mlp": "mlps", "attention": "attention"}  # kind: the field of Condition
RUNS = {
    "alone": "this one off",
    "only": "all others off",
    "from_front": "off up to this one",
    "from_back": "off from this one on",
}
REPAIR_LEAST = 0.1
RULE = (
    "retained = ablated / baseline value at the place at the end of the plateau, mean over windows; necessary: "
    f"retained <= {COLLAPSES} with this one off; sufficient: retained >= {PERSISTS} with all others of its kind off, "
    f"where with all of its kind off it is <= {COLLAPSES}; redundant: sufficient and not necessary; self-repair = "
    "(free - frozen) / write, for writes of at least "
    f"{REPAIR_LEAST:.0%} of the peak: what is made good, at the end of the plateau, of a removed write; frozen: the "
    "baseline without the write, later writes as they were; free: the ablated run"
)


def off_sets(n_layers):
    """{(run of RUNS, layer): the layers that are off}."""
    every = tuple(range(n_layers))
    sets = {}
    for layer in every:
        sets["alone", layer] = (layer,)
        sets["only", layer] = every[:layer] + every[layer + 1 :]
        sets["from_front", layer] = every[: layer + 1]
        sets["from_back", layer] = every[layer:]
    return sets


def sweep_layers(lm, windows, place, batch_size):
    """(baseline, {kind: rows}): every layer's row holds its write, a report of each run in RUNS, its self-repair and
    whether it is necessary, sufficient or redundant by RULE."""
    sets = {run: off for run, off in off_sets(lm.arch.n_layers).items() if off}
    changes = {
        (kind, off): Condition(f"{kind} {off}", "", **{field: off})
        for kind, field in KINDS.items()
        for off in dict.fromkeys(sets.values())
    }
    measured = sweep.measure(lm, windows, place, list(changes.values()), batch_size)
    writes = ledger.measure(lm, windows, place, Condition("baseline", "baseline"), batch_size)
    baseline = measured[sweep.BASELINE]
    end, draws = place.plateau[1], place.draws

    def report(of):
        rates = of.sink_rates()
        return {
            "value": draws.averages(of.values[:, end]),
            "retained": draws.averages(of.values[:, end] / baseline.values[:, end]),
            "values": of.values.mean(0),
            "perplexity": draws.perplexity(of.losses),
            "loss_change": draws.averages(of.losses - baseline.losses),
            "sink_rate": draws.averages(rates),
        }

    reports = {key: report(measured[change.name]) for key, change in changes.items()}
    peak = np.abs(place.values).mean(0).max()
    kinds = {}
    for kind in KINDS:
        all_off = reports[kind, tuple(range(lm.arch.n_layers))]
        needed = all_off["retained"]["mean"] <= COLLAPSES[1]
        kinds[kind] = []
        for layer in range(lm.arch.n_layers):
            runs = {run: reports[kind, sets[run, layer]] for run in RUNS if (run, layer) in sets}
            write = sum(
                of.values for of in writes.writes if of.layer == layer and (of.component == "mlp") == (kind == "mlp")
            )
            necessary = layer <= end and runs["alone"]["retained"]["mean"] <= COLLAPSES[1]
            alone = measured[changes[kind, (layer,)].name]
            sufficient = needed and "only" in runs and runs["only"]["retained"]["mean"] >= PERSISTS[0]
            kinds[kind].append(
                {
                    "layer": layer,
                    "write": draws.averages(write),
                    **runs,
                    "repair": _repair(write, baseline.values[:, end], alone.values[:, end], peak, layer <= end, draws),
                    "necessary": bool(necessary),
                    "sufficient": bool(sufficient),
                    "redundant": bool(sufficient and not necessary),
                }
            )
    return report(baseline), kinds


def _repair(write, before, free, peak, reaches, draws):
    """Self-repair of RULE; None for a small write, or one after the plateau."""
    if not reaches or abs(write.mean()) < REPAIR_LEAST * peak:
        return None
    frozen = before - write
    return {
        "frozen": draws.averages(frozen),
        "free": draws.averages(free),
        "ratio": draws.averages((free - frozen) / write),
    }
