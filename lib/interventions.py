"""Set the massive activations of one layer to something else, there or from there on, and see what the model loses."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch

from lib import hooks, ranks, sweep
from lib.cli import UserError
from lib.massive import DEFINITION, is_massive

COST = 0.05
LAYER, ONWARD = "layer", "onward"
ZERO, MEAN, MEDIAN = "zero", "mean", "median"
SITES_RULE = (
    "sites: in each window every (position, dim) that is massive in the output of the layer, of the model as it is; "
    "means and medians are those of windows 0, 2, 4, ... (estimation), all else is measured on windows 1, 3, 5, ...; "
    "sites of a dim that is massive in no estimation window are left alone"
)
COST_RULE = (
    f"a change costs if it raises the mean loss by at least {COST} nats a token and the interval, where there is one, "
    f"lies above 0; it is free if the mean change is below {COST}; otherwise it is unclear"
)
RULE = (
    f"{COST_RULE}. With the sites set from the layer on, so that nothing can come back: not needed if zero is free, "
    "a constant is enough if zero costs and the mean is free, needed as it is if both cost, otherwise undecided; none "
    "found if there is no site to change. values has the same for the layer alone"
)
SINGLE_RULE = f"{COST_RULE}; none found if there is no site to change"


@dataclass(frozen=True)
class Sites:
    """Where one layer's output is massive, in the model as it is.

    index: (sites, 3) ints: window, position, dim. values: (sites, layers from `layer` on) signed block outputs there.
    """

    layer: int
    index: np.ndarray
    values: np.ndarray

    @property
    def dims(self):
        return self.index[:, 2]

    def of(self, keep):
        """The sites of a (sites,) mask."""
        return Sites(self.layer, self.index[keep], self.values[keep])

    def means(self):
        """{dim: (layers,) mean over its sites}."""
        return {dim: self.values[self.dims == dim].mean(0) for dim in np.unique(self.dims).tolist()}


@dataclass(frozen=True)
class Intervention:
    """A change for lib.sweep: the sites' `values`, (sites, layers from theirs on), put there in the output of their
    layer (`where` is LAYER) or of that and all later ones (ONWARD)."""

    set_to: str
    where: str
    sites: Sites
    values: np.ndarray

    @property
    def name(self):
        return f"{self.set_to}_{self.where}".replace(" ", "_")

    @property
    def label(self):
        return (
            f"{self.set_to} "
            + (f"at layer {self.first_layer}", f"from layer {self.first_layer} on")[self.where == ONWARD]
        )

    @property
    def first_layer(self):
        return self.sites.layer

    def hooks(self, arch, rows):
        windows = self.sites.index[:, 0]
        here = (windows >= rows.start) & (windows < rows.stop)
        index = torch.from_numpy((self.sites.index[here] - [rows.start, 0, 0]).T)
        values = torch.from_numpy(self.values[here])

        def put(layer, hidden):
            new = hidden.clone()
            new[tuple(index.to(hidden.device))] = values[:, layer - self.first_layer].to(hidden)
            return new

        last = arch.n_layers - 1 if self.where == ONWARD else self.first_layer
        return hooks.watch_outputs(arch, "block", put, range(self.first_layer, last + 1))


@dataclass(frozen=True)
class Interventions:
    """place: of lib.place, on all windows. sites: what is changed, by dim, and the constants that take its place.

    conditions: {"baseline" or name: label, perplexity, sink_rates by epsilon, values (signed, at the place, by layer)},
    and for an intervention set_to, where, loss_change and sink_rate_changes (paired, changed - baseline), comes_back
    (LAYER only: the share of the baseline's value at the end of the plateau; None if the followed place is not changed
    before it) and cost (by COST_RULE). All of them on the measured windows.
    """

    place: dict
    layer: int
    epsilons: tuple
    sites: dict
    conditions: dict
    conclusion: dict


def compare(lm, windows, place, layer, wanted, epsilons, options):
    """Set the sites of `layer` to each of `wanted`, beside the model as it is; returns Interventions.

    wanted: pairs of what to set (ZERO, MEAN, MEDIAN, or a factor of what the model has) and LAYER or ONWARD.

    Raises UserError for a single window, epsilons beyond 0 to 1 and non-finite values.
    """
    if not all(0 <= epsilon <= 1 for epsilon in epsilons):
        raise UserError("--epsilons must be between 0 and 1")
    if len(windows.ids) < 2:
        raise UserError(
            "--nsamples must be at least 2: every second window estimates the means, the others are measured"
        )
    halves = [replace(windows, ids=windows.ids[first::2]) for first in (0, 1)]
    estimation, found = (find_sites(lm, half, layer, options.batch_size) for half in halves)
    known = np.isin(found.dims, estimation.dims)
    sites = found.of(known)
    medians = place.of(slice(0, None, 2)).medians[:, layer:].mean(0)
    there = place.of(slice(1, None, 2))
    changes = (
        [_intervention(*pair, sites, estimation, medians) for pair in dict.fromkeys(wanted)] if known.any() else []
    )
    measured = sweep.measure(lm, halves[1], there, changes, options.batch_size)
    changed = {tuple(site) for site in sites.index.tolist()}
    place_changed = sum((w, position, place.dim) in changed for w, position in enumerate(there.positions.tolist()))
    returns_at = place.plateau[1] if place_changed and place.plateau[1] > layer else None
    conditions = _conditions(measured, changes, returns_at, epsilons, there.draws)
    return Interventions(
        place=place.described(),
        layer=layer,
        epsilons=tuple(epsilons),
        sites={
            "rule": SITES_RULE,
            "definition": DEFINITION,
            "estimation_windows": len(halves[0].ids),
            "windows": len(halves[1].ids),
            "changed_windows": len(np.unique(sites.index[:, 0])),
            "place_changed_windows": place_changed,
            "left_alone": int((~known).sum()),
            "dims": _dims(sites, estimation),
            "medians": medians,
        },
        conditions=conditions,
        conclusion=_conclusion(conditions, single=len(wanted) == 1),
    )


def find_sites(lm, windows, layer, batch_size):
    """The Sites of `layer` in all windows, by massive.DEFINITION. Raises UserError for non-finite values."""
    found = []
    with ranks.progress(len(windows.ids), batch_size, "sites") as progress:
        for rows, ids in windows.batches(batch_size):
            index, values = _batch_sites(lm, ids, layer)
            found.append((index + np.array([rows.start, 0, 0]), values))
            progress.update(len(ids))
    return Sites(layer, *map(np.concatenate, zip(*ranks.gather(found), strict=True)))


def _batch_sites(lm, ids, layer):
    index, values = [], []

    def see(at, hidden):
        if at == layer:
            magnitude = hidden.abs().float()
            hooks.require_finite(layer, magnitude)
            median = magnitude.flatten(1).median(1).values
            index.extend(is_massive(magnitude, median[:, None, None]).nonzero().T)
        values.append(hidden[tuple(of.to(hidden.device) for of in index)].double().cpu())

    with hooks.watch_outputs(lm.arch, "block", see, range(layer, lm.arch.n_layers)):
        hooks.forward(lm, ids)
    return torch.stack(index, 1).cpu().numpy(), torch.stack(values, 1).numpy()


def _intervention(set_to, where, sites, estimation, medians):
    if set_to == ZERO:
        values = np.zeros_like(sites.values)
    elif set_to == MEAN:
        means = estimation.means()
        values = np.stack([means[dim] for dim in sites.dims.tolist()])
    elif set_to == MEDIAN:
        values = np.sign(sites.values) * medians
    else:
        values, set_to = set_to * sites.values, f"times {set_to:.10g}"
    return Intervention(set_to, where, sites, values)


def _dims(sites, estimation):
    """results.sites.dims, largest first. value: mean at the layer, measured windows; means: what MEAN puts, by layer;
    positions: in how many measured windows each is changed."""
    means, values = estimation.means(), sites.means()
    return [
        {
            "dim": dim,
            "value": values[dim][0],
            "means": means[dim],
            "sites": int((sites.dims == dim).sum()),
            "estimation_sites": int((estimation.dims == dim).sum()),
            "positions": dict(Counter(sites.index[sites.dims == dim, 1].tolist()).most_common()),
        }
        for dim in sorted(values, key=lambda dim: -abs(values[dim][0]))
    ]


def _conditions(measured, changes, returns_at, epsilons, draws):
    baseline = measured[sweep.BASELINE]
    conditions = {sweep.BASELINE: {"label": sweep.BASELINE, **_described(baseline, epsilons, draws)}}
    for change in changes:
        here = measured[change.name]
        loss = draws.averages(here.losses - baseline.losses)
        rates = {str(e): draws.averages(here.sink_rates(e) - baseline.sink_rates(e)) for e in epsilons}
        conditions[change.name] = {
            "label": change.label,
            "set_to": change.set_to,
            "where": change.where,
            **_described(here, epsilons, draws),
            "loss_change": loss,
            "sink_rate_changes": rates,
            "comes_back": None,
            "cost": _cost(loss),
        }
        if change.where == LAYER and returns_at is not None:
            before, after = baseline.values[:, returns_at], here.values[:, returns_at]
            conditions[change.name]["comes_back"] = {
                "layer": returns_at,
                "baseline": draws.averages(before),
                "value": draws.averages(after),
                "share": draws.averages(after / before.mean()),
            }
    return conditions


def _described(measured, epsilons, draws):
    return {
        "perplexity": draws.perplexity(measured.losses),
        "sink_rates": {str(e): draws.averages(measured.sink_rates(e)) for e in epsilons},
        "values": draws.averages(measured.values),
    }


def _cost(loss_change):
    """costs, free or unclear, by COST_RULE."""
    if loss_change["mean"] < COST:
        return "free"
    return "costs" if loss_change["ci95"] is None or loss_change["ci95"][0] > 0 else "unclear"


def _conclusion(conditions, single):
    changed = [condition for name, condition in conditions.items() if name != sweep.BASELINE]
    rule = SINGLE_RULE if single else RULE
    if not changed:
        return {"verdict": "none found", "rule": rule, "values": {}}
    if single:
        return {"verdict": changed[0]["cost"], "rule": rule, "values": {"loss_change": changed[0]["loss_change"]}}
    values = {}
    for where in (LAYER, ONWARD):
        zero, mean = (
            next(c for c in changed if (c["set_to"], c["where"]) == (set_to, where)) for set_to in (ZERO, MEAN)
        )
        verdict = {
            ("free", mean["cost"]): "not needed",
            ("costs", "free"): "a constant is enough",
            ("costs", "costs"): "needed as it is",
        }.get((zero["cost"], mean["cost"]), "undecided")
        values[where] = {"verdict": verdict, "zero": zero["loss_change"], "mean": mean["loss_change"]}
    return {"verdict": values[ONWARD]["verdict"], "rule": rule, "values": values}
