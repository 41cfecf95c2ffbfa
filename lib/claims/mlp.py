"""Claims about MLPs: which is the source, and what happens inside."""

from lib.claims.cells import HIGHEST, counted, together, up_to
from lib.claims.judging import Judged, claim
from lib.claims.results import SCRIPTS, CannotTellError, Results
from lib.core import evidence
from lib.core.definitions import COLLAPSES, COST, HARDLY, MANY, MOST, PERSISTS, REPAIRS, WRITES
from lib.core.evidence import Stored, Test, within


@claim(
    "7",
    "One MLP is the source (GPT-2: layer 2)",
    f"of all parts up to the peak's layer one alone writes more than {WRITES:.0%} of the peak at the place (experiment "
    "3, simultaneous intervals); it is an MLP, and the only one that is necessary "
    f"({COLLAPSES[0]} to {COLLAPSES[1]} retained with it off alone, at the end of the plateau); whether it suffices is "
    "row 7c",
)
def one_is_the_source(results: Results) -> Judged:
    born, values = results.birth_layer, results.verdict("exp2b")["values"]
    writes = [of for of in results["exp3"]["writes"] if (of["layer"] or 0) <= results.place["peak_layer"]]
    shares = together({_part(of): of["share"] for of in writes}, results.documents("exp3"))
    answers = {part: Test("", cell, "above", WRITES).answer for part, cell in shares.items()}
    sure, open_ = ({part for part in answers if answers[part] is answer} for answer in (True, None))
    necessary = {_mlp(layer) for kind, layer in values["necessary"] if kind == "mlp"}
    perhaps = {_mlp(layer) for word, kind, layer in values["cannot_tell"] if (word, kind) == ("necessary", "mlp")}
    both = sure & necessary
    either = (sure | open_) & (necessary | perhaps)
    tests = [
        *within("number of parts that write it", counted(sure, open_), (0.5, 1.5)),
        *within("number of necessary MLPs", counted(necessary, perhaps), (0.5, 1.5)),
        Test("number of necessary MLPs that write it", counted(both, either - both), "above", 0.5),
    ]
    listed = {"write it": _listed(sure), "perhaps": _listed(open_), "necessary": _listed(necessary)}
    listed["perhaps necessary"] = _listed(perhaps)
    listed[f"retained without MLP {born}"] = results["exp2b"]["kinds"]["mlp"][born]["alone"]["retained"]
    return tests, listed


def _part(write: Stored) -> str:
    return write["component"] if write["layer"] is None else f"{write['component']} of layer {write['layer']}"


def _mlp(layer: int) -> str:
    return _part({"component": "mlp", "layer": layer})


def _listed(parts: set[str]) -> str:
    return ", ".join(sorted(parts)) or "none"


@claim(
    "7c",
    "The MLP that is the source suffices on its own (GPT-2: layer 2)",
    f"the MLP of the birth is sufficient: {PERSISTS[0]} to {PERSISTS[1]} retained with all other MLPs, or all but MLP "
    "0, off (a trained model without MLP 0 is hardly that model)",
)
def one_suffices(results: Results) -> Judged:
    results.check_mlp_gives_birth()
    layer, values = results.birth_layer, results.verdict("exp2b")["values"]
    sure = ("mlp", layer) in map(tuple, values["sufficient"])
    open_ = ("sufficient", "mlp", layer) in map(tuple, values["cannot_tell"])
    row = results["exp2b"]["kinds"]["mlp"][layer]
    names = {"only": f"with MLP {layer} as the only one", "only_with_first": f"with MLP {layer} and MLP 0"}
    listed = {name: row[run]["retained"] for run, name in names.items() if run in row}
    of = {"mean": int(sure), "ci95": [int(sure), int(sure or open_)]}
    return [Test(f"whether MLP {layer} is sufficient (1) or not (0)", of, "above", 0.5)], listed


@claim(
    "7b",
    "What is removed is made good downstream: compensation",
    f"without the MLP that writes most before the end of the plateau, more than {REPAIRS:.0%} of its write is made "
    f"good at the place, at that end, or a massive activation appears elsewhere in more than {MOST:.0%} of the windows "
    "that had the spike; erasers, which write later, are not looked at",
)
def compensation(results: Results) -> Judged:
    results.verdict("exp2b")
    able = [row for row in results["exp2b"]["kinds"]["mlp"] if row["repair"]]
    if not able:
        raise CannotTellError(f"no MLP before the end of the plateau writes {WRITES:.0%} of the peak")
    row = max(able, key=lambda row: abs(row["write"]["mean"]))
    repair = row["repair"]
    ratio = together({"": repair["ratio"]}, results.documents("exp2b"))[""]
    removed = f"what MLP {row['layer']} writes removed"
    tests = [Test(f"self-repair ratio, {removed}", ratio, "above", REPAIRS)]
    values = {f"self-repair ratio, {removed}": ratio}
    if repair["elsewhere"]:
        share = repair["elsewhere"]["share"]
        tests.append(Test("windows in which something else becomes massive", share, "above", MOST))
        values["massive elsewhere"] = share
    return _one_is_enough(tests), values


def _one_is_enough(tests: list[Test]) -> list[Test]:
    """Those that decide."""
    for answer in (True, None):
        decisive = [test for test in tests if test.answer is answer]
        if decisive:
            return decisive
    return tests


@claim(
    "8",
    "The neurons with the largest weights to the dim contribute most",
    "the neurons of the smallest set that carries the value, in the MLP of the birth, are the ones with the largest "
    "|weight| to the dim, however many they are",
)
def heaviest_contribute_most(results: Results) -> Judged:
    sets, inside = results.in_mlp("exp4"), results.in_mlp("exp2c")
    chosen = {row["neuron"] for row in _confirmed(sets)}
    if sets["place"]["dim"] != inside["followed"]["dim"]:
        raise CannotTellError(f"experiment 2C follows dim {inside['followed']['dim']}, 4 dim {sets['place']['dim']}")
    heaviest = sorted(inside["contributions"], key=lambda row: -abs(row["weight"]))[: len(chosen)]
    others = [row["neuron"] for row in heaviest if row["neuron"] not in chosen]
    values = {
        "smallest set": " ".join(str(row["neuron"]) for row in sets["minimal_set"][:HIGHEST]),
        "largest weights": " ".join(str(row["neuron"]) for row in heaviest[:HIGHEST]),
    }
    return [Test("of the largest weights, outside the set", evidence.exact(len(others)), "below", 0.5)], values


def _confirmed(sets: Stored) -> list[Stored]:
    """The smallest set of experiment 4. Raises CannotTellError unless its runs confirm it."""
    verdict = sets["conclusion"]["verdict"]
    if verdict != f"{len(sets['minimal_set'])} of {sets['width']} neurons":
        why = sets["conclusion"]["values"]["why"]
        raise CannotTellError(f"{SCRIPTS['exp4']} says: {verdict}" + (f" ({why})" if why else ""))
    return sets["minimal_set"]


@claim(
    "8b",
    "Many moderate contributions add up to the massive value",
    f"more than {MANY:.0%} of the neurons of the MLP of the birth are in the smallest set that carries the value",
)
def many_add_up(results: Results) -> Judged:
    sets = results.in_mlp("exp4")
    n = len(_confirmed(sets))
    values = {
        "neurons": n,
        "of": sets["width"],
        "kept by them alone": sets["keep_only_share"],
        "left without them": sets["remove_share"],
    }
    return [Test("share of the neurons", evidence.exact(n / sets["width"]), "above", MANY)], values


REPLACED = ("identity", "relu")


@claim(
    "9",
    "The activation function has no part in the massive value (GPT-2: GELU, 0 %)",
    "with it replaced by the identity and by ReLU, the paired change of the MLP's output at the place is within "
    f"{HARDLY:.0%}",
)
def activation_has_no_part(results: Results) -> Judged:
    of = results.in_mlp("exp2c")["replaced"]
    changes = {of[name]["label"]: of[name]["mlp_output_change"] for name in REPLACED}
    tests = [test for name, cell in changes.items() for test in within(f"change by {name}", cell, up_to(HARDLY))]
    return tests, changes


@claim(
    "9b",
    "The activation function of that layer does not matter",
    f"with it replaced by the identity and by ReLU, the loss rises by less than {COST} nats a token (paired)",
)
def activation_does_not_matter(results: Results) -> Judged:
    of = results.in_mlp("exp2c")["replaced"]
    rises = {f"{of[name]['label']}, loss": of[name]["loss_change"] for name in REPLACED}
    return [Test(name, cell, "below", COST) for name, cell in rises.items()], rises


@claim(
    "10",
    "The maxima of an MLP's checkpoints follow one value through it (GPT-2: 19.88, 62.91, 62.91, 2,342)",
    "the maxima of all checkpoints from the residual stream to the MLP's output sit at the same token (of these "
    "windows: exact)",
)
def one_value_runs_through(results: Results) -> Judged:
    points = results.in_mlp("exp2c")["checkpoints"]
    at = [(point["at"]["sequence"], point["at"]["position"]) for point in points if point["name"] != "block_output"]
    test = Test("different tokens", evidence.exact(len(set(at))), "below", 1.5)
    return [test], {"different tokens": len(set(at)), "checkpoints": len(at)}


@claim(
    "10b",
    "The value explodes at the down projection, the neurons before it are moderate (GPT-2: 62.91 to 2,342)",
    f"at the place the largest activation of a neuron is below {MANY:.0%} of the MLP's output in the dim",
)
def explodes_at_the_end(results: Results) -> Judged:
    inside = results.in_mlp("exp2c")
    share, largest = inside["largest_activation"], max(inside["contributions"], key=lambda row: abs(row["activation"]))
    values = {
        "largest activation": largest["activation"],
        "of neuron": largest["neuron"],
        "output": inside["contribution_check"]["output"],
        "in parts of it": share,
    }
    return [Test("largest activation, in parts of the output", share, "below", MANY)], values
