"""Experiment 6: what triggers the spike, the position, the token, or that there is nothing else to see?

    python exp6_trigger_census.py --model gpt2 --savedir results/exp6_trigger_census/

"The first token is special" confounds position, content, BOS and the lack of context. The place is followed by the
shared rule (--dim and --position choose another) at the first layer of its plateau (or --layer_id); no later block
runs. Every entry of the vocabulary is then the first token once, which one-token forwards measure exactly. Tokens that
spike so are put elsewhere: behind text, behind themselves, behind BOS, and with the position embeddings swapped, where
there are any. The verdict is the simplest cause whose predictions hold for all of these.
"""

from dataclasses import dataclass

from lib import cli, plots, report
from lib.experiment import Experiment, execute


@dataclass(frozen=True)
class Options(cli.PlaceOptions):
    nsamples: int = cli.flag(32, "number of token windows")
    layer_id: int | None = cli.flag(None, "layer of the spike, from 0 (default: the first of the place's plateau)")


@dataclass(frozen=True)
class TriggerCensus:
    """spike: what counts as one. ordinary: the place in the windows as they are; spiking: how many of them spike.
    census: every token as the first one. tried: the tokens of what follows. elsewhere: values and the share that
    spikes, by position; bos: behind BOS, null without a BOS token. shares: of all positions; null where not measured;
    own, first: of the spiking windows, those whose token spikes as the first one, those whose place is at 0.
    """

    place: dict
    layer: int
    spike: dict
    ordinary: dict
    spiking: int
    census: dict
    tried: dict
    elsewhere: list
    bos: dict | None
    shares: dict


def run(lm, windows, options):
    import numpy as np

    from lib import census, place

    if options.layer_id is not None:
        lm.arch.check_layer(options.layer_id)
    at = place.find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    layer = at.plateau[0] if options.layer_id is None else options.layer_id
    probe = census.Probe(lm, layer, at.dim, at.sign, float(at.medians[:, layer].mean()))
    spikes = probe.spikes(at.values[:, layer])

    values = census.every_token(probe)
    tokens, tried = census.to_try(probe, values, at.tokens[spikes] if spikes.any() else at.tokens, options.seed)
    how = tokens, tried["enumerated"], options.batch_size
    elsewhere, shares = census.elsewhere(probe, windows.ids, windows.bos, *how, options.seed)
    bos, behind_bos = census.behind_bos(probe, values, *how)
    draws, rows = at.draws.of(spikes), np.flatnonzero(spikes)
    own, first = probe.spikes(values[at.tokens[rows]]), at.positions[rows] == 0
    return TriggerCensus(
        place=at.described(),
        layer=layer,
        spike={"rule": census.SPIKES, "threshold": probe.threshold, "median": probe.median, "sign": probe.sign},
        ordinary={"value": at.draws.averages(at.values[:, layer]), "spikes": at.draws.share(spikes)},
        spiking=len(rows),
        census=census.distribution(probe, values),
        tried=tried,
        elsewhere=elsewhere,
        bos=bos,
        shares=shares
        | {"behind_bos": behind_bos}
        | {name: draws.share(of) if len(rows) else None for name, of in (("own", own), ("first", first))},
    )


def summarise(payload):
    r = payload["results"]
    place, census, tried, conclusion = r["place"], r["census"], r["tried"], r["conclusion"]
    quantiles = [[f"{100 * float(q):g} %", report.number(value, True)] for q, value in census["quantiles"].items()]
    return "\n".join(
        [
            report.header(payload, f"Experiment 6: what triggers the spike? Output of layer {r['layer']}"),
            report.place_text(place),
            f"In the windows as they are: {report.interval(r['ordinary']['value'], True)}; "
            f"{report.interval(r['ordinary']['spikes'])} of the windows spike",
            f"Threshold {report.number(r['spike']['threshold'])}: {r['spike']['rule']}",
            "",
            f"Census: each of {census['tokens']:,} tokens as the first one ({census['left_out']:,} embedding rows "
            "without a token left out)",
            f"{report.number(census['mean'], True)} +- {report.number(census['std'])} (standard deviation); "
            f"{census['n_spiking']:,} spike, {census['n_failing']:,} do not; {census['below_1000']:,} below 1,000",
            report.table(["quantile", "value"], quantiles),
            _tokens(census),
            f"Elsewhere: {tried['tokens']} of {tried['possible']:,} {tried['of']}, in {tried['pairs']} pairs of a "
            "token and a position p",
            _elsewhere(r["elsewhere"]),
            *_bos(r["bos"]),
            "What a cause predicts (all: nearly all spike; none: hardly any; part: not nearly all; few: not most; "
            "most: of the windows), and what does not fit (x) or cannot be told (?)",
            _causes(conclusion["values"]["causes"], conclusion["values"]["measured"]),
            *(f"{of['label']}: {of['tells']}" for of in conclusion["values"]["measured"].values()),
            "",
            report.conclusion_text(conclusion),
            *_named(conclusion["values"]["tokens"]),
        ]
    )


def _tokens(census, at_most=20):
    """The fewer of those that spike and those that do not."""
    few = "failing" if census["n_failing"] <= census["n_spiking"] else "spiking"
    tokens, n = census[few], census[f"n_{few}"]
    which = "that do not spike, smallest first" if few == "failing" else "that spike, largest first"
    if not tokens:
        return f"First tokens {which}: none\n"
    rows = [[t["id"], repr(t["token"]), report.number(t["value"], True)] for t in tokens[:at_most]]
    return f"First tokens {which}: {len(rows)} of {n:,}\n" + report.table(["id", "token", "value"], rows)


def _elsewhere(rows):
    learned = ["embedding of 0 at p", "alone, embedding of p"] if "there" in rows[0] else []
    names = ["moved", "repeated", *(["there", "at_0"] if learned else [])]
    heads = ["p", "tokens", *(x for of in ["behind p of text", "behind itself", *learned] for x in (of, "spike"))]
    cells = [[x for name in names for x in _cells(row[name])] for row in rows]
    table = report.table(heads, [[row["position"], row["tokens"], *of] for row, of in zip(rows, cells, strict=True)])
    return table if learned else table + "Position embeddings: positions act in attention, there is nothing to swap\n"


def _cells(summary):
    return [report.interval(summary["value"], True), f"{summary['spikes']:.1%}"]


def _bos(bos):
    if bos is None:
        return ["BOS: this tokenizer has no BOS token", ""]
    first = f"BOS, {bos['token']!r}, as the first token: {report.number(bos['value'], True)}"
    rows = [[f"{bos['tokens']} of them behind BOS", *_cells(bos["behind"])]] if bos["behind"] else []
    return [first, report.table(["", "value", "spike"], [["the tokens alone", *_cells(bos["first"])], *rows])]


def _causes(causes, measured):
    """The predictions of every cause, one row a manipulation."""
    mark = {True: "", False: " x", None: " ?"}
    rows = [
        [
            of["label"],
            report.interval(of["cell"]) if of["cell"] else "not measured",
            *(
                f"{told['word']}{mark[told['answer']]}" if told else ""
                for told in (cause["predictions"].get(name) for cause in causes.values())
            ),
        ]
        for name, of in measured.items()
    ]
    fits = [{True: "yes", False: "no", None: "?"}[cause["fits"]] for cause in causes.values()]
    numbered = [str(i) for i in range(1, len(causes) + 1)]
    legend = "".join(f"{i}: {cause}\n" for i, cause in zip(numbered, causes, strict=True))
    return legend + report.table(["tried", "measured", *numbered], [*rows, ["fits", "", *fits]])


def _named(tokens):
    return [] if tokens is None else [f"tokens that spike: {', '.join(map(repr, tokens))}", ""]


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
