"""The TXT of interventions on massive activations: what each change costs, its sinks, what is left of the value."""

from collections.abc import Collection

from experiments.interventions.results import (
    MEDIAN,
    ORDINARY,
    ZERO,
    Change,
    ChangedSites,
    Counterfactual,
    Results,
    SingleStored,
    Stored,
    Writers,
)
from lib.core.evidence import Average, Cell
from lib.report import tables

BY_HAND = (ZERO, MEDIAN, ORDINARY)


def summarise(result: Stored) -> str:
    values = result.conclusion.values
    title = f"Experiment 5: the model without the massive activations of layer {result.results.layer}"
    if values is None:
        return _summary(result, title)
    return _summary(result, title, _without_it(values.counterfactual, result.results), values.why)


def summarise_single(result: SingleStored) -> str:
    title = f"Massive activations of layer {result.results.layer}: {result.config['reset_type']}"
    return _summary(result, title)


def _summary(result: Stored | SingleStored, title: str, headline: str = "", why: str | None = None) -> str:
    """What the model loses without it, what is changed, every change with its question and its cost, the sinks, what is
    left of the value, the conclusion by its printed rule."""
    results, conclusion = result.results, result.conclusion
    sites, place, layer = results.sites, results.place, results.layer
    words = {} if conclusion.values is None else conclusion.values.costs
    costs, sinks = [], []
    for name, condition in results.conditions.items():
        perplexity = tables.interval(Cell(condition.perplexity.value, condition.perplexity.ci95))
        loss, changes = condition.loss_change, condition.sink_rate_changes
        costs.append([condition.label, perplexity, tables.interval(loss, True), _cost(words.get(name), loss)])
        sinks.append([condition.label])
        for epsilon, rate in condition.sink_rates.items():
            sinks[-1] += [tables.mean(rate), tables.interval(changes[epsilon], True) if changes else "-"]
    epsilons = [heading for epsilon in results.epsilons for heading in (f"epsilon {epsilon:g}", "change")]
    parts = [
        tables.header(result, title),
        f"Followed: dim {place.dim} at position {_counted(place.positions)}, {tables.plateau_text(place)}",
        f"Rule: {place.rule}",
        f"Changed: {_changed(result)} in the output of layer {layer}; windows of the other half that have it: "
        f"{tables.interval(sites.spiking)}; measured: {sites.windows}; massive and left alone: "
        f"{sites.left_alone}",
        f"Losses, sinks and values below are of these {sites.windows} windows; the documents above, of all "
        f"{result.provenance['data']['windows']}",
        f"Rule: {sites.rule}",
        f"Massive: {sites.definition}",
        _sites_table(sites),
        *_writers(results.mlp),
        _questions(results.changes.values()),
        "Loss: paired change in nats a token, with its 95 % interval",
        tables.table(["condition", "perplexity", "change of the loss", "cost"], costs),
        "Sink rate: share of all heads with more than epsilon of their attention on the first token, in windows of "
        f"{tables.sink_window(result)}\ntokens; change: paired",
        tables.table(["condition", *epsilons], sinks),
        _left_table(results),
        headline + tables.conclusion_text(conclusion, why),
    ]
    return "\n".join(parts)


def _changed(result: Stored | SingleStored) -> str:
    mask = result.results.sites.mask_sha256
    if isinstance(mask, str):
        return f"what {result.config['mask']} (sha256 {mask[:12]}) names"
    return "what is massive"


def _sites_table(sites: ChangedSites) -> str:
    rows = [
        [
            pair.position,
            pair.dim,
            _counted(pair.positions),
            pair.sites,
            pair.massive,
            tables.number(pair.value, True),
            tables.number(pair.means[0], True),
            tables.number(pair.ordinary[0], True),
            pair.estimation_sites,
        ]
        for pair in sites.dims
    ]
    if sites.medians is None:
        return "none found\n"
    heads = [
        "position",
        "dim",
        "at (windows)",
        "sites",
        "massive",
        "value",
        "mean set",
        "ordinary set",
        "estimated from",
    ]
    return (
        tables.table(heads, rows)
        + f"Median set: {tables.number(sites.medians[0])} at this layer, with the sign of the mean. From a layer\n"
        "on, each later layer has its own of all these.\n"
    )


def _writers(mlp: Writers | None) -> list[str]:
    """Which neurons are off, and why, if none are."""
    if mlp is None:
        return []
    listed = ", ".join(
        f"MLP {row.layer}, neuron {row.name} ({tables.number(row.contribution, True)})" for row in mlp.neurons[:8]
    )
    more = f" and {len(mlp.neurons) - 8} more" if len(mlp.neurons) > 8 else ""
    share = f"The MLPs of the rule write {tables.interval(mlp.share)} of the value. " if mlp.share else ""
    neurons = f"no neurons are off: {mlp.left_out}" if mlp.left_out else f"Neurons that write it: {listed}{more}"
    return [f"{share}{neurons}", f"Rule: {mlp.rule}\n"]


def _questions(changes: Collection[Change]) -> str:
    """Each change with the question that it answers, once for all places where it is made."""
    asked = {change.set_to if change.held else change.label: change.question for change in changes}
    if not asked:
        return ""
    by_hand = {change.set_to: None for change in changes if change.set_to in BY_HAND or change.factor is not None}
    caveat = (
        f"{', '.join(by_hand)}: vectors that the model may never meet, the value made by hand, all written with it "
        "still there\n"
    )
    return tables.table(["change", "question"], asked.items()) + (caveat if by_hand else "")


def _cost(word: str | None, loss: Average | None) -> str:
    """As judged; what is free and lowers the loss with all of its interval gains."""
    gains = word == "free" and loss is not None and loss.ci95 is not None and loss.ci95[1] < 0
    return "gains" if gains else word or "-"


def _left_table(results: Results) -> str:
    """The value at the followed place by layer, and what is left of it."""
    first, place = results.layer, results.place
    last = len(place.values) - 1
    shown = [i for i in sorted({first, min(first + 1, last), place.plateau[1], last}) if i >= first]
    rows = []
    for condition in results.conditions.values():
        left, back = condition.left, condition.comes_back
        rows.append([condition.label, *(tables.mean(condition.values[layer], True) for layer in shown)])
        rows[-1] += [tables.interval(left), tables.interval(back.share) if back else "-"]
    heads = [*(f"layer {layer}" for layer in shown), f"left at layer {first}", f"left at layer {place.plateau[1]}"]
    return (
        f"Value at dim {place.dim}, signed, mean of the measured windows; left: the share of the baseline's\nvalue "
        f"in the output of layer {first}, and of the last layer of the plateau where no layer up to it is held; ratio "
        "of sums over\nthe windows in which it is massive\n" + tables.table(["condition", *heads], rows)
    )


def _without_it(counterfactual: Counterfactual, results: Results) -> str:
    """The headline: what the model loses without it."""
    label = results.conditions[counterfactual.condition].label
    before = results.baseline.sink_rates[counterfactual.epsilon]
    return (
        f"Without it ({label}) the loss changes by {tables.interval(counterfactual.loss_change, True)} nats a "
        f"token: {counterfactual.cost}.\nThe sink rate (epsilon {counterfactual.epsilon:g}) changes by "
        f"{tables.interval(counterfactual.sink_rate_change, True)}, from {tables.mean(before)}\n"
    )


def details(result: Stored | SingleStored) -> str:
    """Every layer's value at the followed place, in every condition."""
    results = result.results
    conditions = results.conditions.values()
    rows = [
        [layer, *(tables.mean(condition.values[layer], True) for condition in conditions)]
        for layer in range(results.layer, len(results.place.values))
    ]
    return f"Value at dim {results.place.dim}, signed, mean of the measured windows, by layer\n" + tables.table(
        ["layer", *(condition.label for condition in conditions)], rows
    )


def _counted(positions: dict[int, int], at_most: int = 5) -> str:
    """{0: 14, 3: 1} -> `0 (14), 3 (1)`."""
    shown = ", ".join(f"{position} ({n})" for position, n in list(positions.items())[:at_most])
    return shown + (f" and {len(positions) - at_most} more" if len(positions) > at_most else "")
