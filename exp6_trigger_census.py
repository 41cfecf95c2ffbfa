"""Experiment 6: is it the position or the token that triggers the spike? A census of the vocabulary.

    python exp6_trigger_census.py --model gpt2 --savedir results/exp6_trigger_census/

"The first token is special" confounds position, content and BOS. The place is followed by the shared rule (--dim and
--position choose another) at the first layer of its plateau (or --layer_id); no later block runs. Every entry of the
vocabulary is then the first token once, which one-token forwards measure exactly. In windows where the place spikes,
its token is moved along, repeated, put behind BOS, and the position embeddings are swapped, where there are any.
"""

from dataclasses import dataclass

from lib import cli, plots, report
from lib.experiment import Experiment, execute


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(8, "number of token windows")
    layer_id: int | None = cli.flag(None, "layer of the spike, from 0 (default: the first of the place's plateau)")


@dataclass(frozen=True)
class TriggerCensus:
    """spike: what counts as one. ordinary: the place in the windows as they are; windows: how many spike there and
    take part below (all, if none does). census: every token as the first one. moved, repeated, bos, swapped: values
    and the share that spikes; bos is null without a BOS token, swapped where positions act in attention.
    """

    place: dict
    layer: int
    spike: dict
    ordinary: dict
    windows: int
    census: dict
    moved: list
    repeated: dict
    bos: dict | None
    swapped: list | None
    conclusion: dict


def run(lm, windows, options):
    import numpy as np
    import torch

    from lib import census, place

    if options.layer_id is not None:
        lm.arch.check_layer(options.layer_id)
    at = place.find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    layer = at.plateau[0] if options.layer_id is None else options.layer_id
    probe = census.Probe(lm, layer, at.dim, at.sign, float(at.medians[:, layer].mean()))
    spikes = probe.spikes(at.values[:, layer])
    rows = np.flatnonzero(spikes if spikes.any() else ~spikes)
    ids, positions = windows.ids[torch.from_numpy(rows)], at.positions[rows]
    draws = at.draws.of(rows)
    how = options.batch_size, draws

    values = census.every_token(probe)
    of_vocabulary = census.distribution(probe, values)
    moved = census.moved(probe, ids, positions, *how)
    repeated = census.repeated(probe, ids, positions, options.batch_size)
    swapped = census.swapped(probe, ids, *how)
    own = values[ids[torch.arange(len(ids)), torch.from_numpy(positions)].numpy()]
    own_share = float(probe.spikes(own).mean())
    return TriggerCensus(
        place=at.described(),
        layer=layer,
        spike={"rule": census.SPIKES, "threshold": probe.threshold, "median": probe.median, "sign": probe.sign},
        ordinary=probe.summary(at.values[:, layer], at.draws),
        windows=len(rows),
        census=of_vocabulary,
        moved=moved,
        repeated=repeated,
        bos=census.behind_bos(probe, ids, windows.bos, *how),
        swapped=swapped,
        conclusion=census.conclude(spikes.any(), own_share, of_vocabulary, moved, repeated, swapped),
    )


def summarise(payload):
    r = payload["results"]
    place, census, repeated = r["place"], r["census"], r["repeated"]
    values = r["conclusion"]["values"]
    positions = ", ".join(f"{n} at {position}" for position, n in place["positions"].items())
    quantiles = [[f"{100 * float(q):g} %", report.number(value, True)] for q, value in census["quantiles"].items()]
    moved = [[m["position"], m["new"]["value"]["n"], *_cells(m["new"]), *_cells(m["old"])] for m in r["moved"]]
    return "\n".join(
        [
            report.header(payload, f"Experiment 6: position or token? Output of layer {r['layer']}"),
            f"Followed: dim {place['dim']} (windows: {positions}; most frequent token {place['token']!r})",
            f"In the windows as they are: {report.interval(r['ordinary']['value'], True)}; "
            f"{r['ordinary']['spikes']:.1%} of the windows spike",
            f"Threshold {report.number(r['spike']['threshold'])}: {r['spike']['rule']}",
            place["rule"],
            "",
            f"Census: each of {census['tokens']:,} tokens as the first one ({census['left_out']:,} embedding rows "
            "without a token left out)",
            f"{report.number(census['mean'], True)} +- {report.number(census['std'])} (standard deviation); "
            f"{census['n_spiking']:,} spike, {census['n_failing']:,} do not; {census['below_1000']:,} below 1,000",
            report.table(["quantile", "value"], quantiles),
            _tokens(census),
            f"The following are of {r['windows']} windows: those that spike, or all if none does",
            "",
            "Moved: the token swapped with the one at another position; values where it now is, and where it was",
            report.table(["position", "windows", "where it is", "spike", "where it was", "spike"], moved),
            f"Repeated: {repeated['tokens']} different tokens of these windows, each {repeated['length']} times; "
            f"{repeated['later_share']['mean']:.1%} of the positions after the first spike",
            report.table(["position", "value", "spike"], [[p["position"], *_cells(p)] for p in repeated["positions"]]),
            *_bos(r["bos"]),
            *_swapped(r["swapped"]),
            f"Conclusion: {r['conclusion']['verdict']}",
            f"Rule: {r['conclusion']['rule']}",
            f"c {report.number(values['first_token_share'])}, m {report.number(values['moved_share'])}, "
            f"o {report.number(values['own_share'])}; {_embedding(values['follows_embedding'])}in windows of one token "
            f"{values['repeated_share']:.1%} of the later positions spike",
            *([] if values["tokens"] is None else [f"tokens that spike: {', '.join(map(repr, values['tokens']))}"]),
            "",
        ]
    )


def _cells(summary):
    return [report.interval(summary["value"], True), f"{summary['spikes']:.1%}"]


def _tokens(census, at_most=20):
    """The fewer of those that spike and those that do not."""
    few = "failing" if census["n_failing"] <= census["n_spiking"] else "spiking"
    tokens, n = census[few], census[f"n_{few}"]
    which = "that do not spike, smallest first" if few == "failing" else "that spike, largest first"
    if not tokens:
        return f"First tokens {which}: none\n"
    rows = [[t["id"], repr(t["token"]), report.number(t["value"], True)] for t in tokens[:at_most]]
    return f"First tokens {which}: {len(rows)} of {n:,}\n" + report.table(["id", "token", "value"], rows)


def _bos(bos):
    if bos is None:
        return ["BOS: this tokenizer has no BOS token", ""]
    rows = [
        ["without BOS", 0, "first of the text", *_cells(bos["off_first"])],
        ["with BOS", 0, repr(bos["token"]), *_cells(bos["on_bos"])],
        ["with BOS", 1, "first of the text", *_cells(bos["on_former_first"])],
    ]
    return ["BOS before the text", report.table(["", "position", "token", "value", "spike"], rows)]


def _swapped(swapped):
    if swapped is None:
        return ["Position embeddings: positions act in attention, there is nothing to swap", ""]
    rows = [[s["position"], *_cells(s["there"]), *_cells(s["at_0"]), f"{s['follows']:.1%}"] for s in swapped]
    heads = ["p", "value at p", "spike", "value at 0", "spike", "at p and not at 0"]
    return ["Position embeddings of 0 and p swapped", report.table(heads, rows)]


def _embedding(follows):
    return "" if follows is None else f"it follows the embedding of position 0 in a share of {report.number(follows)}; "


EXPERIMENT = Experiment(
    name="exp6",
    json="exp6_results.json",
    txt="EXPERIMENT_6_SUMMARY.txt",
    run=run,
    summary=summarise,
    figures={"exp6_vocabulary.png": plots.vocabulary_census, "exp6_triggers.png": plots.triggers},
)

if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
