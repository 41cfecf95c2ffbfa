"""The READMEs' blocks, `<!-- NAME -->` ... `<!-- /NAME -->`, made of what lies in results/, in English and Chinese.

`python -m tests.readme` (`make readme`) writes all of them anew, each by the function of its name in BLOCKS, from
results as the rules of today judge them. Such a function gets `say`, which gives a word in the README's language.
"""

import functools
import json
import re
import unicodedata
from collections import Counter

import atlas
from experiments.quantisation.results import AS_IT_IS, DYNAMIC, INT8, KEPT, PREFIX, PROJECTIONS, Scheme
from lib import catalogue
from lib.atlas.agreement import KINDS, NOBODY
from lib.atlas.text import SIGNS, listed
from lib.claims.every import CLAIMS
from lib.core.definitions import WRITTEN
from lib.core.evidence import Cell, Test, note_of
from lib.page import words
from lib.page.words import BRACKETS
from lib.report.result_files import read_json
from lib.report.tables import fraction, interval, mean, number, told
from lib.run import cli
from lib.run.checkout import ROOT

RESULTS = ROOT / "results"
MODEL = RESULTS / "smollm2-135m"
FILES = {
    "layerwise": "main_llm/smollm2-135m_layerwise.json",
    "head_analysis": "analyze_heads_simple/smollm2-135m_head_analysis.json",
    "head_pruning": "test_head_pruning_on_massive/pruning_results.json",
    "exp1": "exp1_feasibility_test/comparison/exp1_results.json",
    "exp2a": "exp2a_mlp_feasibility_test/comparison/exp2a_results.json",
    "exp2b": "exp2b_mlp_layer_sweep/exp2b_results.json",
    "exp2c": "exp2c_mlp_internal_analysis/exp2c_detailed_results.json",
    "exp3": "exp3_lifecycle_ledger/exp3_results.json",
    "exp4": "exp4_neuron_sets/exp4_results.json",
    "exp5": "exp5_interventions/exp5_results.json",
    "exp6": "exp6_trigger_census/exp6_results.json",
    "exp7": "exp7_head_sweep/exp7_results.json",
    "exp9": "exp9_sinks/exp9_results.json",
    "exp10": "exp10_sink_knockout/exp10_results.json",
    "exp11": "exp11_sink_circuit/exp11_results.json",
    "exp12": "exp12_weights_alone/exp12_results.json",
    "exp13": "exp13_quantisation/exp13_results.json",
}
COMPARED = "compare_3d_before_after_pruning/layer*_comparison.json"
DTYPES = "float32", "bfloat16", "float16"
SHOWN = 4  # rows of a list that may be long
WIDTH = 120
BLOCK = re.compile(r"(?P<begin><!-- (?P<name>\w+) -->\n).*?(?P<end><!-- /(?P=name) -->)", re.DOTALL)

CHINESE = read_json(ROOT / "tests" / "readme_chinese.json")


@functools.cache
def result(name, path=None):
    """The lib.report.result_files.Result of an experiment, judged anew."""
    return catalogue.concluded(read_json(path or MODEL / FILES[name]))


def results(name):
    return result(name).results


@functools.cache
def models_side_by_side():
    """The lib.atlas.results.Results of what lies in results/."""
    found, _pages = atlas.collect([RESULTS])
    if not found.models:
        raise cli.UserError(f"no results below {RESULTS}")
    return found


def english(word):
    return word


def chinese(word):
    """Of the README's own words, or of a verdict."""
    known = words.CHINESE.verdicts | CHINESE
    if word not in known:
        raise cli.UserError(f"no Chinese for '{word}' in tests/readme_chinese.json")
    return known[word]


ARCHITECTURES = ROOT / "ARCHITECTURES.md"
READMES = {ROOT / "README.md": english, ROOT / "README_CN.md": chinese}
READMES_WORDS = {english: words.ENGLISH, chinese: words.CHINESE}
TEXTS = {claim.row: claim.text for claim in CLAIMS}  # what stands in a result loses its middle where it is long


def verdict(name, say):
    conclusion = result(name).conclusion
    return shown(conclusion.verdict, say) + READMES_WORDS[say].noted(note_of(conclusion))


def shown(word, say):
    """A verdict as it stands in the results; in Chinese its meaning beside it, where it is a fixed word."""
    meaning = READMES_WORDS[say].meaning(word)
    return f"`{word}`" if meaning is None else f"`{word}`{say('({meaning})').format(meaning=meaning)}"


def wrapped(text, indent=""):
    """In lines of at most WIDTH columns, broken at spaces and behind Chinese punctuation."""
    lines = [""]
    for piece in re.findall(r".+?(?:(?<!\*) |(?<=[\uff0c\uff1b\uff1a\u3002])|$)", text):
        if columns((lines[-1] + piece).rstrip()) > WIDTH:
            lines.append(indent)
        lines[-1] += piece
    return "".join(f"{line.rstrip()}\n" for line in lines)


def columns(text):
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def table(*rows):
    """Markdown; the heading first."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def record(*cells):
    """A table of one row, of (heading, cell)."""
    return table(*zip(*cells, strict=True))


def judged(name, say, *cells):
    return record((say("verdict"), verdict(name, say)), *cells)


def perplexity(run):
    return number(run.perplexity.value)


def arrow(before, after):
    return f"{before} → {after}"


def finding(say):
    """What each model answers that was studied as it is, a column a model: its mechanism and its verdicts, as the atlas
    has them."""
    models = [row for row in models_side_by_side().models if "exp3" in row.verdicts]
    asks = READMES_WORDS[say].experiments
    answers = {
        "layerwise": _where,
        "exp3": _writers,
        "exp4": lambda row, say: shown(row.verdicts.get("exp4") or row.verdicts.get("exp2c", "-"), say),
        "exp1": lambda row, say: _left(row, "exp1", row.mechanism.left_without_heads, say),
        "exp2a": lambda row, say: _left(row, "exp2a", row.mechanism.left_without_mlps, say),
        "exp5": _needed,
    }
    answers |= {
        name: functools.partial(_verdict_of, name) for name in ("exp6", "exp9", "exp10", "exp11", "exp12", "exp13")
    }
    rows = [[asks[name].asks, *(answer(row, say) for row in models), name] for name, answer in answers.items()]
    return table([say("question"), *(row.model for row in models), say("by")], *rows)


def _verdict_of(name, row, say):
    if name not in row.verdicts:
        return "-"
    return shown(row.verdicts[name], say) + READMES_WORDS[say].noted(row.notes.get(name))


def _where(row, say):
    m = row.mechanism
    if not m.found:
        return "-" if m.found is None else say("none found")
    first, last = m.plateau
    peak, ratio = number(m.peak.mean, True), f"{m.ratio:,.0f}"
    return say("; ").join(
        [
            say("dim {dim}, position {position}").format(dim=m.dim, position=m.position),
            say("{value}, massive with half of it or more in layers {first} to {last}").format(
                value=peak, first=first, last=last
            ),
            say("up to {ratio} x the median of a layer").format(ratio=ratio),
        ]
    )


def _writers(row, say):
    erasers, share = row.mechanism.erasers, row.mechanism.share
    part = ""
    if share and not Test("share of the birth", share, "above", WRITTEN).answer:
        part = say("{share} of the peak").format(share=fraction(share.mean))
    taken = say("taken away by {erasers}").format(erasers=listed(erasers)) if erasers else ""
    return say("; ").join(filter(None, [_verdict_of("exp3", row, say), part, taken]))


def _left(row, name, cell, say):
    said = _verdict_of(name, row, say)
    return said if cell is None else say("{verdict}, {left} of it left").format(verdict=said, left=told(cell))


def _needed(row, say):
    said, cost, back = _verdict_of("exp5", row, say), row.mechanism.cost, row.mechanism.put_back
    needed = say("{verdict}; without what writes it {loss} nats a token, with its mean put back {back}")
    return said if cost is None else needed.format(verdict=said, loss=interval(cost, True), back=interval(back, True))


def scripts(say):
    """What each experiment shows and cannot show, in the words of its page."""
    rows = [
        [f"`{catalogue.EXPERIMENTS[name].command}`", said.shows, said.cannot_show]
        for name, said in READMES_WORDS[say].experiments.items()
    ]
    return table([say("script"), say("shows"), say("cannot show")], *rows)


def writers(writes, say):
    return say("; ").join(f"{write.name} ({number(write.value, True)})" for write in writes[:SHOWN]) or say("none")


def layerwise(say):
    """The first layer with something massive, the largest, the last of at least half of it, the last."""
    layers = results("layerwise").layers
    top = [layer.top1.mean for layer in layers]
    kept = [i for i, value in enumerate(top) if value >= max(top) / 2]
    layers_shown = {
        *(entry.layer for entry in results("layerwise").massive[:1]),
        top.index(max(top)),
        kept[-1],
        len(top) - 1,
    }
    rows = []
    for i in sorted(layers_shown):
        layer, place = layers[i], layers[i].at[0]
        numbers = {"dim": place.dim, "position": place.position, "n": place.sequences, "of": layer.top1.n}
        where = say("dim {dim}, position {position}, {n} of {of} windows").format(**numbers)
        ratio = f"{layer.ratio.mean:,.0f}"
        rows.append([i, interval(layer.top1), mean(layer.median), ratio, where])
    return table([say(word) for word in ("layer", "top-1", "median", "top-1 / median", "where")], *rows)


def head_analysis(say):
    r = results("head_analysis")
    ends = []
    for which, rank in (("highest, head {name}", 0), ("lowest, head {name}", -1)):
        layer, head = r.ranking[rank].layer, r.ranking[rank].head
        ends.append((say(which).format(name=f"{layer}.{head}"), interval(r.scores[layer][head])))
    evenly = (say("if spread evenly"), number(r.uniform))
    return record(*ends, evenly, (say("sink rate"), interval(r.sink_rate)))


def head_pruning(say):
    r, judged_sets = results("head_pruning"), result("head_pruning").conclusion.values
    rows = [[say("none"), "", "", "", perplexity(r.conditions["baseline"])]]
    for name in ("top", "bottom"):
        values, null = judged_sets.named(name), r.null.named(name)
        heads = " ".join(map(str, r.sets.named(name)))
        others = say("{n} of {of}").format(n=null.at_least_as_large, of=null.possible)
        change = interval(values.absolute_change)
        row = [f"{name.upper()}: {heads}", shown(values.verdict, say), change, others]
        rows.append([*row, perplexity(r.conditions[name])])
    heads = ("heads off", "verdict", "change of the value", "other sets as large", "perplexity")
    return table([say(word) for word in heads], *rows)


def ablations(say):
    rows = []
    for name, condition in (("exp1", "all_heads_off"), ("exp2a", "all_mlps_off")):
        r, values = results(name), result(name).conclusion.values
        before, after = r.conditions["baseline"], r.conditions[condition]
        exact = values.first_tokens
        rows.append([name, verdict(name, say), interval(values.retained), number(exact and exact.retained)])
        rows[-1] += [arrow(perplexity(before), perplexity(after)), arrow(mean(before.sink_rate), mean(after.sink_rate))]
    left = say("left, layer {layer}").format(layer=r.places[0].layer)
    every = say("left, all {n} first tokens").format(n=f"{exact.tokens:,}" if exact else "-")
    return table(["", say("verdict"), left, every, say("perplexity"), say("sink rate")], *rows)


def exp2b(say):
    """The layers that the verdict names."""
    values = result("exp2b").conclusion.values
    named = [*values.necessary, *values.sufficient, *values.repaired, *(part.part for part in values.cannot_tell)]
    rows = []
    for kind, layer in list(dict.fromkeys(named))[:SHOWN]:
        row = results("exp2b").kinds[kind][layer]
        with_first = row.only_with_first and row.only_with_first.retained
        cells = [row.write, row.alone.retained, with_first, row.repair and row.repair.ratio]
        rows.append([f"{kind} {layer}", *(interval(cell) if cell else "-" for cell in cells)])
    heads = ("part", "it writes", "left without it", "left with it and MLP 0 alone", "self-repair")
    said = wrapped(f"**{say('verdict')}** {verdict('exp2b', say)}")
    return f"{said}\n{table([say(word) for word in heads], *rows)}"


def exp2c(say):
    r = results("exp2c")
    cells = []
    for row in r.contributions[: min(2, len(result("exp2c").conclusion.values.neurons))]:
        product = f"{number(row.activation)} x {number(row.weight)} = {number(row.contribution)}"
        cells.append((say("neuron {n}").format(n=row.neuron), f"{product}, {fraction(row.share)}"))
    actual, run = (r.replaced[name] for name in ("actual", "identity"))
    name = say("perplexity, {actual} → {other}").format(actual=actual.label, other=run.label)
    return judged("exp2c", say, *cells, (name, arrow(perplexity(actual), perplexity(run))))


def compare_3d(say):
    paths = sorted(MODEL.glob("compare_3d_before_after_pruning/layer*_comparison.json"))
    if not paths:
        raise cli.UserError(f"no results of compare_3d_before_after_pruning.py below {MODEL}")
    rows = []
    for path in paths:
        r = result("compare_3d", path).results
        largest = r.downstream[r.layer].largest
        head = say("layer {layer}, head {head}").format(layer=r.layer, head=r.head)
        costs = arrow(number(r.perplexity.before), number(r.perplexity.after))
        rows.append([head, arrow(number(largest.before), number(largest.after)), costs])
    figure = paths[0].with_name(f"layer{result('compare_3d', paths[0]).results.layer}_3d_comparison.png")
    heading = [say("head off"), say("largest value, its layer"), say("perplexity")]
    return f"![{say('before and after')}]({figure.relative_to(ROOT)})\n\n{table(heading, *rows)}"


def exp3(say):
    values = result("exp3").conclusion.values
    first, last = values.plateau
    return judged(
        "exp3",
        say,
        (say("birth"), writers([values.birth] if values.birth else [], say)),
        (say("plateau"), say("layers {first} to {last}").format(first=first, last=last)),
        (say("erasers"), writers(values.erasers, say)),
        (say("relative error of the sum"), f"{results('exp3').check.relative_error:.0e}"),
    )


def exp4(say):
    r = results("exp4")
    draws = r.null.draws
    alone, without = ([getattr(draw, run).share.mean for draw in draws] for run in ("keep_only", "remove_only"))
    random = f"{number(max(alone))}; {number(min(without))}" if draws else "-"
    return judged(
        "exp4",
        say,
        (say("kept by them alone"), interval(r.keep_only_share)),
        (say("left without them"), interval(r.remove_share)),
        (say("{n} random sets: most kept; least left").format(n=len(draws)), random),
    )


def exp5(say):
    changes = results("exp5").changes
    names = {
        "neurons_off_there": "its neurons off there",
        "put_back": "the same, mean put back",
        "mean_onward": "held at its mean",
        "zero_onward": "held at zero",
    }
    epsilon = result("exp5").conclusion.values.counterfactual.epsilon
    rows = [
        [say(label), interval(change.loss_change, True), interval(change.sink_rate_changes[epsilon], True)]
        for label, change in ((label, changes[name]) for name, label in names.items() if name in changes)
    ]
    return table([verdict("exp5", say), say("loss, nats a token"), say("sink rate")], *rows)


def exp6(say):
    census, shares = results("exp6").census, results("exp6").shares
    first = say("spike as first, of {n}").format(n=f"{census.tokens:,}")
    where = {"behind text": shares.moved, "behind itself": shares.repeated, "behind BOS": shares.behind_bos}
    cells = [(say(label), interval(share)) for label, share in where.items() if share]
    return judged("exp6", say, (first, f"{census.n_spiking / census.tokens:.2%}"), *cells)


def exp7(say):
    def largest(cells):
        (layer, head), cell = max(cells.items(), key=lambda item: abs(item[1].mean))
        return f"{layer}.{head}: {interval(Cell(cell.mean, cell.together), True)}"

    heads = {(row.layer, row.head): row.zero for row in results("exp7").heads}
    value = {name: zero.end.relative for name, zero in heads.items() if zero.end}
    loss = {name: zero.loss for name, zero in heads.items()}
    correlation = result("exp7").conclusion.values.correlations.score_loss
    return judged(
        "exp7",
        say,
        (say("largest change of the value"), largest(value)),
        (say("of the loss"), largest(loss)),
        (say("attention and loss, rank correlation"), f"{correlation.rho:+.2f}"),
    )


def sinks(say):
    """What experiments 9 to 13 rest their verdicts on."""
    by_key, judged_sinks = results("exp9"), result("exp9").conclusion.values
    rates = {name: interval(of.sink_rate[0]) for name, of in by_key.inputs.items()}
    at_first = "; ".join(f"{say(name)} {rate}" for name, rate in rates.items())
    kinds = {"n": judged_sinks.kinds["no-op"], "of": len(judged_sinks.sinks)}
    knockout, circuit = results("exp10").conditions, results("exp11")
    masked, taken = (interval(knockout[name].loss_change, True) for name in ("sink_all", "value_zero_all"))
    edits = [edit for edit in circuit.edits.values() if edit.there and edit.control is not None]
    forecast, compared = result("exp12").conclusion.values.forecast, results("exp12").measured.compared
    numbers = {
        "exp9": f"{say('sink rate at key 0')}: {at_first}; {say('no-op in {n} of {of} heads').format(**kinds)}",
        "exp10": f"{say('its key masked')} {masked}; {say('its value zero')} {taken} {say('nats a token')}",
        "exp11": f"{say('attention')} {interval(circuit.baseline.attention)}; "
        + "; ".join(f"{say(edit.label)} {interval(edit.attention)}" for edit in edits),
        "exp12": f"{forecast.what}, dim {forecast.dim}; {say('its neurons found')} {fraction(compared.overlap)}; "
        f"{say('cosine')} {interval(compared.cosine)}",
        "exp13": _spike_costs(say),
    }
    rows = [[name, verdict(name, say), said] for name, said in numbers.items()]
    return table([say("script"), say("verdict"), say("numbers")], *rows)


def _spike_costs(say):
    """In int8, one scale a tensor, of what projections read."""
    r, scheme = results("exp13"), Scheme(INT8, DYNAMIC)
    changes = (
        f"{say(label)} {interval(r.of(PROJECTIONS, scheme, remedy).loss_change, True)}"
        for label, remedy in (("as it is", AS_IT_IS), ("massive kept", KEPT), ("first token kept", PREFIX))
    )
    return f"{say('int8 per tensor')}: {'; '.join(changes)} {say('nats a token')}"


def training(say):
    """Of each small model that `make train-small` trains, from its first step to its last."""
    rows = []
    for path in sorted(RESULTS.glob("*/exp14_training/exp14_results.json")):
        of_model = result("exp14", path)
        steps, values = of_model.results.steps, of_model.conclusion.values
        last = max(layer.ratio.mean for layer in steps[-1].layers if layer.ratio)
        grown = arrow(number(steps[-1].step), number(last))
        rows.append([of_model.config["model_name"], values.sinks.verdict, interval(steps[-1].sink_rate)])
        rows[-1] += [values.massive.verdict, grown, values.writer]
    heads = ("model", "sinks", "sink rate, end", "massive", "last step → top-1 / median", "writes most, end")
    return table([say(word) for word in heads], *rows)


def claims(say):
    """Claims that a model can tell of, with what each says, those that all say the same to first; the seed study's
    figures, which stand in brackets, are left out."""
    atlas_of = models_side_by_side()
    rows, untold = [], []
    for kind, claim in sorted(
        ((KINDS.index(claim.together.kind), claim) for claim in atlas_of.claims), key=lambda pair: pair[0]
    ):
        if claim.together.kind == NOBODY:
            untold.append(f"*{claim.row}*")
            continue
        text = BRACKETS.sub("", TEXTS[claim.row])
        said = READMES_WORDS[say].claims.get(text, text)
        signs = [say(SIGNS[row.claims[claim.row].verdict]) for row in atlas_of.models]
        rows.append([f"*{claim.row}* {said}", *signs, say(KINDS[kind])])
    head = [say("claim"), *(row.model for row in atlas_of.models), say("together")]
    nobody = say("{kind} ({n}): {claims}.").format(kind=say(NOBODY), n=len(untold), claims=say("; ").join(untold))
    return table(head, *rows) + (f"\n{wrapped(nobody)}" if untold else "")


def dtypes(say):
    """What each dtype gives as the largest value, in the last layer, and as the ledger's largest write."""

    def stored(experiment, file):
        return [result(experiment, RESULTS / "dtypes" / dtype / file).results for dtype in DTYPES]

    layers = [results.layers for results in stored("layerwise", "smollm2-135m_layerwise.json")]
    top = [layer.top1.mean for layer in layers[0]]
    rows = []
    for i in sorted({top.index(max(top)), len(top) - 1}):
        said = say("layer {i}: {name}").format(i=i, name=say("top-1"))
        rows.append((said, [of_dtype[i].top1.mean for of_dtype in layers]))
    ledgers = stored("exp3", "exp3_results.json")
    birth = max(ledgers[0].writes, key=lambda write: abs(write.value)).name
    same = [next(write.value for write in ledger.writes if write.name == birth) for ledger in ledgers]
    rows.append((say("write of {name}").format(name=birth), same))
    shown = []
    for label, (first, *others) in rows:
        cells = [cell for value in others for cell in (number(value), f"{value / first - 1:+.2%}")]
        shown.append([label, number(first), *cells])
    heads = ["", DTYPES[0], *(head for dtype in DTYPES[1:] for head in (dtype, say("change")))]
    return table(heads, *shown)


def bench(say):
    """How many targets each benchmark meets, and what layerwise + heads costs in each regime."""
    files = sorted((RESULTS / "bench").glob("*_bench.json"))
    rows, regimes = [], []
    for path in files:
        stored = result("bench", path)
        costs = {}
        for regime in stored.results.regimes:
            ratio = next(row.ratio for row in regime.entries if row.name == "layers_heads")
            costs[str(regime)] = "-" if ratio is None else f"{ratio.median:.2f}"
        name, device = path.name.partition("_")[0], stored.provenance["device"]
        link = f"[{name}]({path.with_suffix('.txt').relative_to(ROOT)})"
        verdicts = Counter(target.verdict for target in stored.results.targets)
        numbers = {"met": verdicts["met"], "unsure": verdicts["cannot tell"], "of": verdicts.total()}
        count = say("{met} of {of}; cannot tell {unsure}").format(**numbers)
        where = say("two CPU cores") if device == "cpu" else device
        rows.append([link, where, count, *costs.values()])
        regimes = [*costs]
    return table([say("model"), say("device"), say("targets met"), *regimes], *rows)


MEASURED = {
    ("all", "all"): "heads and neurons of every layer",
    ("all", "some"): "heads of every layer, neurons of some",
    ("all", "none"): "heads of every layer, no single neurons",
    ("some", "all"): "heads where there is attention, neurons of every layer",
    ("some", "some"): "heads where there is attention, neurons of some layers",
    ("some", "none"): "heads where there is attention, no single neurons",
    ("none", "all"): "no heads, neurons of every layer",
    ("none", "some"): "no heads, neurons of some layers",
    ("none", "none"): "block outputs, mixers and MLPs as a whole",
}
REFUSED = {
    "post-norm": "refused: the residual stream itself is normalised",
    "not its input plus": "refused: a block's output is not its input plus what its modules give",
    "sees ahead": "refused: they see ahead",
    "": "refused: no list of blocks over the tokens",
}


def by_what_is_measured():
    """{what is measured of them, or why they are refused: the types}, of all that transformers builds."""
    groups = {text: {} for text in (*MEASURED.values(), *REFUSED.values())}
    for model_type, found in json.loads((ROOT / "tests" / "every_type.json").read_text(encoding="utf-8")).items():
        if isinstance(found, str):
            groups[next(text for reason, text in REFUSED.items() if reason in found)][model_type] = found
        else:
            groups[MEASURED[tuple(found)]][model_type] = None
    return {text: of_text for text, of_text in groups.items() if of_text}


def families(say):
    """How many types are measured whole, in part, and refused."""
    found = by_what_is_measured()
    whole, refused = len(found[MEASURED["all", "all"]]), sum(len(found.get(text, ())) for text in REFUSED.values())
    part = sum(map(len, found.values())) - whole - refused
    said = say("heads and neurons of every layer: {whole}; in part: {part}; refused, with the reason: {refused}")
    return wrapped(said.format(whole=whole, part=part, refused=refused))


def architectures():
    """ARCHITECTURES.md: every type, what is measured of it, what is not and why."""
    parts = [
        "# Types of decoders\n\n",
        wrapped(
            "Of each type that `AutoModelForCausalLM` of transformers builds, on a tiny model with random weights: "
            "what is found in it, and verified. Made by `python -m tests.every_type --write` and `make readme`."
        ),
    ]
    for text, of_text in by_what_is_measured().items():
        parts.append(f"\n## {text[0].upper()}{text[1:]} ({len(of_text)})\n")
        reasons = {}
        for model_type, reason in of_text.items():
            reasons.setdefault(reason, []).append(model_type)
        for reason, types in reasons.items():
            parts.append(wrapped(f"- {reason}: {', '.join(types)}" if reason else ", ".join(types), "  "))
    return "".join(parts)


BLOCKS = {
    "finding": finding,
    "scripts": scripts,
    "layerwise": layerwise,
    "head_analysis": head_analysis,
    "head_pruning": head_pruning,
    "ablations": ablations,
    "exp2b": exp2b,
    "exp2c": exp2c,
    "compare_3d": compare_3d,
    "exp3": exp3,
    "exp4": exp4,
    "exp5": exp5,
    "exp6": exp6,
    "exp7": exp7,
    "sinks": sinks,
    "training": training,
    "claims": claims,
    "dtypes": dtypes,
    "bench": bench,
    "families": families,
}


def block(name, say):
    try:
        return BLOCKS[name](say)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise cli.UserError(f"README, block {name}: its results are not as expected ({what})") from error


def rendered(readme):
    """The README's text with every block made anew."""
    text, say = readme.read_text(encoding="utf-8"), READMES[readme]
    return BLOCK.sub(lambda found: f"{found['begin']}{block(found['name'], say)}{found['end']}", text)


def main():
    texts = {readme: rendered(readme) for readme in READMES} | {ARCHITECTURES: architectures()}
    for readme, text in texts.items():
        readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cli.main(main)
