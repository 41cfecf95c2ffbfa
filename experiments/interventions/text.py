"""The TXT of interventions on massive activations: what each change costs, its sinks, what is left of the value."""

from typing import Any

from lib.report import tables

BY_HAND = ("zero", "median", "ordinary")


def _summary(payload: dict[str, Any], title: str) -> str:
    """What the model loses without it, what is changed, every change with its question and its cost, the sinks, what is
    left of the value, the conclusion by its printed rule."""
    r = payload["results"]
    sites, place, first, conclusion = r["sites"], r["place"], r["layer"], r["conclusion"]
    conditions = r["conditions"]
    words = conclusion["values"].get("costs", {})
    costs, sinks = [], []
    for name, condition in conditions.items():
        perplexity = tables.interval(
            {"mean": condition["perplexity"]["value"], "ci95": condition["perplexity"]["ci95"]}
        )
        loss, changes = condition.get("loss_change"), condition.get("sink_rate_changes")
        costs.append(
            [condition["label"], perplexity, tables.interval(loss, True) if loss else "-", _cost(words.get(name), loss)]
        )
        sinks.append([condition["label"]])
        for epsilon, rate in condition["sink_rates"].items():
            sinks[-1] += [tables.mean(rate), tables.interval(changes[epsilon], True) if changes else "-"]
    epsilons = [heading for e in r["epsilons"] for heading in (f"epsilon {e:g}", "change")]
    parts = [
        tables.header(payload, title),
        f"Followed: dim {place['dim']} at position {_counted(place['positions'])}, plateau layers "
        f"{place['plateau'][0]}-{place['plateau'][1]}",
        f"Rule: {place['rule']}",
        f"Changed: what is massive in the output of layer {first}; windows of the other half that have it: "
        f"{tables.interval(sites['spiking'])}; measured: {sites['windows']}; massive and left alone: "
        f"{sites['left_alone']}",
        f"Losses, sinks and values below are of these {sites['windows']} windows; the documents above, of all "
        f"{payload['provenance']['data']['windows']}",
        f"Rule: {sites['rule']}",
        f"Massive: {sites['definition']}",
        _sites_table(sites),
        *_writers(r["mlp"], first),
        _questions(conditions),
        "Loss: paired change in nats a token, with its 95 % interval",
        tables.table(["condition", "perplexity", "change of the loss", "cost"], costs),
        "Sink rate: share of all heads with more than epsilon of their attention on the first token, in windows of 64",
        "tokens; change: paired",
        tables.table(["condition", *epsilons], sinks),
        _left_table(r),
        _without_it(conclusion["values"].get("counterfactual"), conditions) + tables.conclusion_text(conclusion),
    ]
    return "\n".join(parts)


def _sites_table(sites: dict[str, Any]) -> str:
    rows = [
        [
            d["position"],
            d["dim"],
            _counted(d["positions"]),
            d["sites"],
            d["massive"],
            tables.number(d["value"], True),
            tables.number(d["means"][0], True),
            tables.number(d["ordinary"][0], True),
            d["estimation_sites"],
        ]
        for d in sites["dims"]
    ]
    if not rows:
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
        + f"Median set: {tables.number(sites['medians'][0])} at this layer, with the sign of the mean. From a layer\n"
        "on, each later layer has its own of all these.\n"
    )


def _writers(mlp: dict[str, Any] | None, layer: int) -> list[str]:
    """Which neurons are off, and why, if none are."""
    if mlp is None:
        return []
    listed = ", ".join(f"{n['neuron']} ({tables.number(n['contribution'], True)})" for n in mlp["neurons"][:8])
    more = f" and {len(mlp['neurons']) - 8} more" if len(mlp["neurons"]) > 8 else ""
    share = f"MLP {layer} adds {tables.interval(mlp['share'])} of the value. " if mlp["share"] else ""
    neurons = f"no neurons are off: {mlp['left_out']}" if mlp["left_out"] else f"Neurons that write it: {listed}{more}"
    return [f"{share}{neurons}", f"Rule: {mlp['rule']}\n"]


def _questions(conditions: dict[str, Any]) -> str:
    """Each change with the question that it answers, once for all places where it is made."""
    asked = {}
    for condition in conditions.values():
        if "question" in condition:
            held = condition["where"] in ("layer", "onward")
            asked[condition["set_to"] if held else condition["label"]] = condition["question"]
    if not asked:
        return ""
    by_hand = [change for change in asked if change in BY_HAND or change.startswith("times ")]
    caveat = (
        f"{', '.join(by_hand)}: vectors that the model may never meet, the value made by hand, all written with it "
        "still there\n"
    )
    return tables.table(["change", "question"], asked.items()) + (caveat if by_hand else "")


def _cost(word: str | None, loss: dict[str, Any] | None) -> str:
    """As judged; what is free and lowers the loss with all of its interval gains."""
    gains = word == "free" and loss is not None and loss["ci95"][1] < 0
    return "gains" if gains else word or "-"


def _left_table(r: dict[str, Any]) -> str:
    """The value at the followed place by layer, and what is left of it."""
    first, place = r["layer"], r["place"]
    last = len(place["values"]) - 1
    shown = [i for i in sorted({first, min(first + 1, last), place["plateau"][1], last}) if i >= first]
    rows = []
    for condition in r["conditions"].values():
        left, back = condition.get("left"), condition.get("comes_back")
        rows.append([condition["label"], *(tables.mean(condition["values"][layer], True) for layer in shown)])
        rows[-1] += [tables.interval(left) if left else "-", tables.interval(back["share"]) if back else "-"]
    heads = [*(f"layer {layer}" for layer in shown), f"left at layer {first}", f"left at layer {place['plateau'][1]}"]
    return (
        f"Value at dim {place['dim']}, signed, mean of the measured windows; left: the share of the baseline's\nvalue "
        f"in the output of layer {first}, and of the last layer of the plateau where no layer up to it is held; ratio "
        "of sums over\nthe windows in which it is massive\n" + tables.table(["condition", *heads], rows)
    )


def _without_it(counterfactual: dict[str, Any] | None, conditions: dict[str, Any]) -> str:
    """The headline: what the model loses without it."""
    if counterfactual is None:
        return ""
    label = conditions[counterfactual["condition"]]["label"]
    before = conditions["baseline"]["sink_rates"][str(counterfactual["epsilon"])]
    return (
        f"Without it ({label}) the loss changes by {tables.interval(counterfactual['loss_change'], True)} nats a "
        f"token: {counterfactual['cost']}.\nThe sink rate (epsilon {counterfactual['epsilon']:g}) changes by "
        f"{tables.interval(counterfactual['sink_rate_change'], True)}, from {tables.mean(before)}\n"
    )


def details(payload: dict[str, Any]) -> str:
    """Every layer's value at the followed place, in every condition."""
    r = payload["results"]
    conditions = r["conditions"].values()
    rows = [
        [layer, *(tables.mean(condition["values"][layer], True) for condition in conditions)]
        for layer in range(r["layer"], len(r["place"]["values"]))
    ]
    return f"Value at dim {r['place']['dim']}, signed, mean of the measured windows, by layer\n" + tables.table(
        ["layer", *(condition["label"] for condition in conditions)], rows
    )


def _counted(positions: dict[str, int], at_most: int = 5) -> str:
    """{"0": 14, "3": 1} -> `0 (14), 3 (1)`."""
    shown = ", ".join(f"{position} ({n})" for position, n in list(positions.items())[:at_most])
    return shown + (f" and {len(positions) - at_most} more" if len(positions) > at_most else "")


def summarise(payload: dict[str, Any]) -> str:
    layer = payload["results"]["layer"]
    return _summary(payload, f"Experiment 5: the model without the massive activations of layer {layer}")


def summarise_single(payload: dict[str, Any]) -> str:
    layer, set_to = payload["results"]["layer"], payload["config"]["reset_type"]
    return _summary(payload, f"Massive activations of layer {layer}: {set_to}")
