"""Set the massive activations of one layer to something else, or keep them from being written, and see what the model
loses.

A value set by hand may make a vector that the model never meets: all else that was written with the value is still
there. What the model would be in without the value is a counterfactual state: that in which its writer is off.
"""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from lib import hooks, mlp, neurons, ranks, sweep
from lib.cli import UserError
from lib.definitions import CARRIED, WRITTEN
from lib.massive import DEFINITION, is_massive, medians

LAYER, ONWARD = "layer", "onward"
ZERO, MEAN, MEDIAN, ORDINARY, RESAMPLED = "zero", "mean", "median", "ordinary", "resampled"
THERE, EVERYWHERE = "there", "everywhere"
NEURONS_OFF, MLP_OFF, PUT_BACK = "neurons off", "mlp off", "put back"
FIRST, LATER = "first", "later"
SITES_RULE = (
    f"sites: the pairs of a position ({FIRST}: 0; {LATER}: any other) and a dim that are massive in the output of the "
    "layer, of the model as it is, in some of windows 0, 2, 4, ... (estimation). All is measured on those of windows "
    "1, 3, 5, ... in which such a pair is massive. In each of them the same is changed: the dims of the first "
    "position there, massive in this window or not; those of later positions wherever they are massive. Means, "
    "ordinary values (of positions without anything massive) and values of other windows are those of the estimation "
    "windows in which such a pair is massive, each pair for itself"
)
NEURONS_RULE = (
    "neurons: the smallest number, largest contributions along the output's sign first, that give at least "
    f"{CARRIED:.0%} of what the down projection gives at the followed place (mean of the estimation windows in which "
    "it is massive at the layer); left out where it is not, and where the MLP adds less than "
    f"{WRITTEN:.0%} of the block output there"
)
QUESTIONS = {
    (NEURONS_OFF, THERE): "what if the neurons that write it had not done so there?",
    (NEURONS_OFF, EVERYWHERE): "what if the neurons that write it were not in the model?",
    (MLP_OFF, THERE): "what if that MLP had written nothing there?",
    (MLP_OFF, EVERYWHERE): "what if that MLP were not in the model?",
    PUT_BACK: "is it the value that is missed, or what else is written with it?",
    RESAMPLED: "does it matter from which window the values are?",
    MEAN: "is one constant for all windows enough?",
    ORDINARY: "zero's question, with what the dim has at ordinary positions",
    ZERO: "what does the model do with a vector it may never meet: the value gone, all written with it still there?",
    MEDIAN: "zero's question, with the size of an ordinary value",
}
FACTOR_QUESTION = "does the size matter?"


@dataclass(frozen=True)
class Sites:
    """What is changed in some windows, by SITES_RULE.

    index: (sites, 3) ints: window, position, dim. massive: (sites,) whether it is so in the output of `layer`. values:
    (sites, layers from `layer` on) signed block outputs there; ordinary: {dim: (layers,) mean of the positions
    without anything massive}.
    All of the model as it is.
    """

    layer: int
    index: np.ndarray
    massive: np.ndarray
    values: np.ndarray
    ordinary: dict

    @property
    def pairs(self):
        """[(FIRST or LATER, dim)] of each site."""
        return [_pair(position, dim) for _window, position, dim in self.index.tolist()]

    def by_pair(self):
        """{(FIRST or LATER, dim): indices of its sites}."""
        found = {}
        for i, pair in enumerate(self.pairs):
            found.setdefault(pair, []).append(i)
        return found

    def there(self, shape):
        """(windows, seq) bool: the positions that hold a site."""
        mask = np.zeros(shape, dtype=bool)
        mask[self.index[:, 0], self.index[:, 1]] = True
        return mask


@dataclass(frozen=True)
class Intervention:
    """A change for lib.sweep: the sites' `values`, (sites, layers from theirs on), put there in the output of their
    layer (`where` is LAYER) or of that and all later ones (ONWARD)."""

    set_to: str
    where: str
    question: str
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
class WriterOff:
    """A change for lib.sweep: `neurons` of one layer's MLP, or all that it writes (None), are off at the positions
    `there`, (windows, seq) bool, or at all (None)."""

    layer: int
    neurons: tuple | None
    there: np.ndarray | None

    @property
    def set_to(self):
        return MLP_OFF if self.neurons is None else NEURONS_OFF

    @property
    def where(self):
        return EVERYWHERE if self.there is None else THERE

    @property
    def question(self):
        return QUESTIONS[self.set_to, self.where]

    @property
    def name(self):
        return self.set_to.replace(" ", "_") + ("" if self.there is None else "_there")

    @property
    def what(self):
        return f"MLP {self.layer}" if self.neurons is None else "neurons"

    @property
    def label(self):
        number = "" if self.neurons is None else f" ({len(self.neurons)} of MLP {self.layer})"
        return f"{self.what} off {self.where}{number}"

    @property
    def first_layer(self):
        return self.layer

    def hooks(self, arch, rows):
        at = None if self.there is None else torch.from_numpy(self.there[rows])
        if self.neurons is not None:
            return hooks.neurons_off(arch, self.layer, self.neurons, at)
        return hooks.mlps_off(arch, [self.layer]) if at is None else hooks.mlp_off_at(arch, self.layer, at)


@dataclass(frozen=True)
class PutBack:
    """A change for lib.sweep: the writer is off, and the sites have a value all the same."""

    off: WriterOff
    held: Intervention
    set_to = PUT_BACK
    where = THERE
    question = QUESTIONS[PUT_BACK]
    name = "put_back"

    @property
    def label(self):
        return f"{self.off.what} off there, {self.held.set_to} put back"

    @property
    def first_layer(self):
        return self.off.layer

    @contextmanager
    def hooks(self, arch, rows):
        with self.off.hooks(arch, rows), self.held.hooks(arch, rows):
            yield


@dataclass(frozen=True)
class Interventions:
    """place: of lib.place, on all windows. sites: what is changed, by position and dim, and what takes its place.

    mlp: share of the block output at the place that the layer's MLP adds, the neurons that give it (rows of
    mlp.contributions), left_out: why there are none; None where no neurons are asked for.
    conditions: {"baseline" or name: label, perplexity, sink_rates by epsilon, values (signed, at the place, by layer)},
    and for a change question, set_to, where, loss_change and sink_rate_changes (paired, changed - baseline, of all
    heads), left (the share of the baseline's value at the place in the output of the layer: ratio of sums over the
    windows in which it is massive there; None if there is none) and comes_back (the same at the end of the plateau;
    None if that is not later, or if the layers up to it are held). recovered, of "put_back": by how much its loss is
    below that of the same writer off alone, paired. All of them on the measured windows.
    """

    place: dict
    layer: int
    epsilons: tuple
    sites: dict
    mlp: dict | None
    conditions: dict


def compare(lm, windows, place, layer, wanted, epsilons, options):
    """Each of `wanted` beside the model as it is; returns Interventions.

    wanted: pairs of what the sites of `layer` are set to (ZERO, MEAN, MEDIAN, ORDINARY, RESAMPLED, or a factor of what
    the model has) and LAYER or ONWARD; or of what is off (NEURONS_OFF, MLP_OFF) and THERE or EVERYWHERE; (PUT_BACK,
    THERE) is the mean at that layer with the neurons, or where there are none the MLP, off there.

    Raises UserError for a single window, epsilons beyond 0 to 1 and non-finite values.
    """
    if not all(0 <= epsilon <= 1 for epsilon in epsilons):
        raise UserError("--epsilons must be between 0 and 1")
    n = len(windows.ids)
    if n < 2:
        raise UserError(
            "--nsamples must be at least 2: every second window estimates the means, the others are measured"
        )
    massive = find_massive(lm, windows, layer, options.batch_size)
    pairs = {_pair(position, dim) for window, position, dim in massive.tolist() if window % 2 == 0}
    known = np.array([_pair(position, dim) in pairs for _window, position, dim in massive.tolist()], dtype=bool)
    spiking = np.isin(np.arange(n), massive[known, 0])
    odd = np.arange(n) % 2 == 1
    rows = np.flatnonzero(spiking & odd)
    changes, found, described = [], None, {"dims": [], "medians": None}
    if len(rows):
        before = np.flatnonzero(spiking & ~odd)
        estimation, sites = (
            find_sites(lm, windows, of, massive, pairs, layer, options.batch_size) for of in (before, rows)
        )
        sizes = place.of(before).medians[:, layer:].mean(0)
        if any(set_to == NEURONS_OFF for set_to, _where in wanted):
            found = writers(lm, windows, place, before, layer, options.batch_size)
        changes = _changes(wanted, sites, estimation, sizes, found, windows.ids[rows].shape, options.seed)
        described = {"dims": _dims(sites, estimation), "medians": sizes}
    there = place.of(rows if len(rows) else np.flatnonzero(odd))
    measured_windows = replace(windows, ids=windows.ids[rows if len(rows) else odd])
    measured = sweep.measure(lm, measured_windows, there, changes, options.batch_size)
    return Interventions(
        place=place.described(),
        layer=layer,
        epsilons=tuple(epsilons),
        sites={
            "rule": SITES_RULE,
            "definition": DEFINITION,
            "estimation_windows": int((spiking & ~odd).sum()),
            "windows": len(there.positions),
            "spiking": place.of(odd).draws.share(spiking[odd]),
            "left_alone": int((~known & odd[massive[:, 0]]).sum()),
            **described,
        },
        mlp=found,
        conditions=_conditions(measured, changes, there, layer, place.plateau[1], epsilons),
    )


def _pair(position, dim):
    return (LATER if position else FIRST), dim


def find_massive(lm, windows, layer, batch_size):
    """(n, 3) ints: window, position and dim of all that is massive in the output of `layer`, by massive.DEFINITION.

    Raises UserError for non-finite values.
    """
    found = []

    def see(_layer, hidden):
        magnitude = hidden.abs().float()
        hooks.require_finite(layer, magnitude)
        median = medians(magnitude.flatten(1)).to(hidden.device)
        index = is_massive(magnitude, median[:, None, None]).nonzero().cpu().numpy()
        found.append(index + np.array([rows.start, 0, 0]))

    with (
        ranks.progress(len(windows.ids), batch_size, "sites") as progress,
        hooks.watch_outputs(lm.arch, "block", see, [layer]),
        hooks.stop_after(lm.arch, layer),
    ):
        for rows, ids in windows.batches(batch_size):  # noqa: B007 (`see` reads rows)
            hooks.forward(lm, ids)
            progress.update(len(ids))
    return np.concatenate([np.zeros((0, 3), dtype=int), *ranks.gather(found)])


def find_sites(lm, windows, of, massive, pairs, layer, batch_size):
    """The Sites of `layer` in the windows `of` (indices; sites count windows within them).

    massive: of find_massive; pairs: {(FIRST or LATER, dim)} to change.
    """
    massive = {
        (window, position, dim)
        for window, original in enumerate(of.tolist())
        for position, dim in massive[massive[:, 0] == original, 1:].tolist()
    }
    first = {(window, 0, dim) for window in range(len(of)) for at, dim in pairs if at == FIRST}
    later = {site for site in massive if site[1] and (LATER, site[2]) in pairs}
    index = np.array(sorted(first | later))
    dims = sorted({dim for _at, dim in pairs})
    column = np.searchsorted(dims, index[:, 2])
    ordinary = np.ones(windows.ids[of].shape, dtype=bool)
    for window, position, _dim in massive:
        ordinary[window, position] = False
    parts = []
    for rows, ids in ranks.batches(windows.ids[of], batch_size):
        columns = _columns(lm, ids, layer, dims)
        here = (index[:, 0] >= rows.start) & (index[:, 0] < rows.stop)
        values = columns[index[here, 0] - rows.start, index[here, 1], column[here]]
        parts.append((values, columns[ordinary[rows]].sum(0)))
    values, sums = zip(*ranks.gather(parts), strict=True)
    means = sum(sums) / max(1, ordinary.sum())
    is_so = np.array([tuple(site) in massive for site in index.tolist()])
    return Sites(layer, index, is_so, np.concatenate(values), dict(zip(dims, means, strict=True)))


def _columns(lm, ids, layer, dims):
    """(batch, seq, dims, layers from `layer` on) float64 block outputs."""
    columns = []

    def see(_layer, hidden):
        columns.append(hidden[:, :, dims].double().cpu())

    with hooks.watch_outputs(lm.arch, "block", see, range(layer, lm.arch.n_layers)):
        hooks.forward(lm, ids)
    return torch.stack(columns, 3).numpy()


def writers(lm, windows, place, rows, layer, batch_size):
    """results.mlp: by NEURONS_RULE, from the windows `rows` (indices)."""
    found = {"rule": NEURONS_RULE, "share": None, "neurons": [], "left_out": None}
    of = place.of(rows)
    of_spiking = is_massive(of.values[:, layer], of.medians[:, layer])
    if not of_spiking.any():
        return found | {"left_out": f"the followed place is not massive in the output of layer {layer}"}
    there, ids = place.of(rows[of_spiking]), windows.ids[rows[of_spiking]]
    values = neurons.at_place(lm, replace(windows, ids=ids), there, layer, batch_size)
    added = lm.arch.write_scale * values.get("mlp_write", values[mlp.OUTPUT])[:, place.dim].numpy()
    found["share"] = share = there.draws.ratios(added, there.values[:, layer])
    if share["mean"] < WRITTEN:
        return found | {"left_out": f"MLP {layer} adds {share['mean']:.1%} of the value at the followed place"}
    output = values[mlp.OUTPUT][:, place.dim].mean().item()
    activation = values[mlp.neuron_output(lm.arch)].mean(0)
    contributions = mlp.contributions(lm.arch, layer, place.dim, activation, output)
    check = mlp.contribution_check(lm.arch, layer, place.dim, contributions, output)
    count = mlp.smallest_set(contributions, check, CARRIED)
    if count is None:
        return found | {"left_out": f"no set of neurons gives {CARRIED:.0%} of what MLP {layer} writes there"}
    return found | {"neurons": contributions[:count]}


def _changes(wanted, sites, estimation, sizes, found, shape, seed):
    """What lib.sweep is to apply. sizes: (layers,) medians of |block output|; shape: of the measured windows' ids."""
    there = sites.there(shape)
    writer = found and (tuple(row["neuron"] for row in found["neurons"]) or None)

    def held(set_to, where):
        if set_to == RESAMPLED:
            values = _resampled(sites, estimation, np.random.default_rng(seed))
        elif isinstance(set_to, str):
            constants = _constants(set_to, estimation, sizes)
            values = np.stack([constants[pair] for pair in sites.pairs])
        else:
            values = set_to * sites.values
        question = QUESTIONS.get(set_to, FACTOR_QUESTION)
        return Intervention(
            set_to if isinstance(set_to, str) else f"times {set_to:.10g}", where, question, sites, values
        )

    changes = []
    for set_to, where in dict.fromkeys(wanted):
        if set_to == PUT_BACK:
            changes.append(PutBack(WriterOff(sites.layer, writer, there), held(MEAN, LAYER)))
        elif set_to == MLP_OFF or (set_to == NEURONS_OFF and writer):
            of = writer if set_to == NEURONS_OFF else None
            changes.append(WriterOff(sites.layer, of, there if where == THERE else None))
        elif set_to != NEURONS_OFF:
            changes.append(held(set_to, where))
    return changes


def _means(sites):
    """{(FIRST or LATER, dim): (layers,) mean over its sites}."""
    return {pair: sites.values[of].mean(0) for pair, of in sites.by_pair().items()}


def _constants(set_to, estimation, sizes):
    """{(FIRST or LATER, dim): (layers,) what to set}."""
    means = _means(estimation)
    return {
        ZERO: {pair: np.zeros_like(mean) for pair, mean in means.items()},
        MEAN: means,
        MEDIAN: {pair: np.sign(mean) * sizes for pair, mean in means.items()},
        ORDINARY: {(at, dim): estimation.ordinary[dim] for at, dim in means},
    }[set_to]


def _resampled(sites, estimation, rng):
    """(sites, layers) values of a random estimation site of the same pair; the dims of one position take theirs from
    one window, where they have it in the same ones."""
    donors, drawn = estimation.by_pair(), {}
    chosen = []
    for (window, position, _dim), pair in zip(sites.index.tolist(), sites.pairs, strict=True):
        if (window, position) not in drawn:
            drawn[window, position] = rng.random()
        chosen.append(donors[pair][int(drawn[window, position] * len(donors[pair]))])
    return estimation.values[chosen]


def _dims(sites, estimation):
    """results.sites.dims, largest first: each pair's value (mean at the layer, measured windows), means and ordinary
    (what MEAN and ORDINARY put, by layer), and at how many measured sites it is changed, and massive."""
    means, values, of_pair = _means(estimation), _means(sites), sites.by_pair()
    estimated = estimation.by_pair()
    return [
        {
            "position": at,
            "dim": dim,
            "value": values[at, dim][0],
            "means": means[at, dim],
            "ordinary": estimation.ordinary[dim],
            "sites": len(of_pair[at, dim]),
            "massive": int(sites.massive[of_pair[at, dim]].sum()),
            "estimation_sites": len(estimated[at, dim]),
            "positions": dict(Counter(sites.index[of_pair[at, dim], 1].tolist()).most_common()),
        }
        for at, dim in sorted(values, key=lambda pair: -abs(values[pair][0]))
    ]


def _conditions(measured, changes, there, layer, end, epsilons):
    """results.conditions. there: the Place in the measured windows; end: the last layer of its plateau."""
    baseline, draws = measured[sweep.BASELINE], there.draws
    massive = is_massive(there.values[:, layer], there.medians[:, layer])
    conditions = {sweep.BASELINE: {"label": sweep.BASELINE, **_described(baseline, epsilons, draws)}}

    def kept(here, at):
        before, after = (of.values[massive, at] for of in (baseline, here))
        return draws.of(massive).ratios(np.sign(before) * after, np.abs(before))

    for change in changes:
        here = measured[change.name]
        rates = {str(e): draws.averages(here.sink_rates(e) - baseline.sink_rates(e)) for e in epsilons}
        free = massive.any() and change.where != ONWARD and end > layer
        conditions[change.name] = {
            "label": change.label,
            "question": change.question,
            "set_to": change.set_to,
            "where": change.where,
            **_described(here, epsilons, draws),
            "loss_change": draws.averages(here.losses - baseline.losses),
            "sink_rate_changes": rates,
            "left": kept(here, layer) if massive.any() else None,
            "comes_back": {"layer": end, "share": kept(here, end)} if free else None,
        }
        if change.set_to == PUT_BACK:
            without = measured[change.off.name].losses
            conditions[change.name]["recovered"] = draws.averages(without - here.losses)
    return conditions


def _described(measured, epsilons, draws):
    return {
        "perplexity": draws.perplexity(measured.losses),
        "sink_rates": {str(e): draws.averages(measured.sink_rates(e)) for e in epsilons},
        "values": draws.averages(measured.values),
    }
