"""Claims about MLPs: which is the source, and what happens inside."""

from operator import itemgetter

from msgspec import UNSET

from experiments.mlp_internal.results import Replaced
from experiments.mlp_internal.results import Results as MlpInternal
from experiments.neuron_sets.results import Stored as NeuronSets
from lib.claims.cells import HIGHEST, counted, together, up_to
from lib.claims.judging import Judged, claim
from lib.claims.measured import SCRIPTS, CannotTellError, Measured, documents, of_something
from lib.core import evidence
from lib.core.definitions import COLLAPSES, COST, HARDLY, MANY, MOST, PERSISTS, REPAIRS, WRITES
from lib.core.evidence import Cell, Test, within
from lib.core.results import LedgerWrite, Neuron


@claim(
    "7",
    "One MLP is the source (GPT-2: layer 2)",
    f"of all parts up to the peak's layer one alone writes more than {WRITES:.0%} of the peak at the place (experiment "
    "3, simultaneous intervals); it is an MLP, and the only one that is necessary "
    f"({COLLAPSES[0]} to {COLLAPSES[1]} retained with it off alone, at the end of the plateau); whether it suffices is "
    "row 7c",
)
def one_is_the_source(measured: Measured) -> Judged:
    born, values = measured.birth_layer, of_something(measured.layer_sweep.conclusion)
    writes = [write for write in measured.ledger.results.writes if write.order <= measured.place.peak_layer]
    shares = together({_part(write): write.share for write in writes}, documents(measured.ledger))
    answers = {part: Test("", cell, "above", WRITES).answer for part, cell in shares.items()}
    sure, open_ = ({part for part in answers if answers[part] is answer} for answer in (True, None))
    necessary = {_mlp(part.layer) for part in values.necessary if part.kind == "mlp"}
    perhaps = {_mlp(part.layer) for part in values.cannot_tell if (part.word, part.kind) == ("necessary", "mlp")}
    both = sure & necessary
    either = (sure | open_) & (necessary | perhaps)
    tests = [
        *within("number of parts that write it", counted(sure, open_), (0.5, 1.5)),
        *within("number of necessary MLPs", counted(necessary, perhaps), (0.5, 1.5)),
        Test("number of necessary MLPs that write it", counted(both, either - both), "above", 0.5),
    ]
    listed = {
        "write it": _listed(sure),
        "perhaps": _listed(open_),
        "necessary": _listed(necessary),
        "perhaps necessary": _listed(perhaps),
    }
    retained = measured.layer_sweep.results.kinds["mlp"][born].alone.retained
    return tests, listed | {f"retained without MLP {born}": retained}


def _part(write: LedgerWrite) -> str:
    return write.component if write.layer is None else f"{write.component} of layer {write.layer}"


def _mlp(layer: int) -> str:
    return f"mlp of layer {layer}"


def _listed(parts: set[str]) -> str:
    return ", ".join(sorted(parts)) or "none"


@claim(
    "7c",
    "The MLP that is the source suffices on its own (GPT-2: layer 2)",
    f"the MLP of the birth is sufficient: {PERSISTS[0]} to {PERSISTS[1]} retained with all other MLPs, or all but MLP "
    "0, off (a trained model without MLP 0 is hardly that model)",
)
def one_suffices(measured: Measured) -> Judged:
    measured.check_mlp_gives_birth()
    layer, values = measured.birth_layer, of_something(measured.layer_sweep.conclusion)
    sure = ("mlp", layer) in values.sufficient
    open_ = ("sufficient", "mlp", layer) in values.cannot_tell
    row = measured.layer_sweep.results.kinds["mlp"][layer]
    runs = {f"with MLP {layer} as the only one": row.only, f"with MLP {layer} and MLP 0": row.only_with_first}
    listed = {name: run.retained for name, run in runs.items() if run}
    answer = Cell(int(sure), (int(sure), int(sure or open_)))
    return [Test(f"whether MLP {layer} is sufficient (1) or not (0)", answer, "above", 0.5)], listed


@claim(
    "7b",
    "What is removed is made good downstream: compensation",
    f"without the MLP that writes most of the value before the end of the plateau, more than {REPAIRS:.0%} of its "
    "write is made good at the place, at that end, or a massive activation appears elsewhere in more than "
    f"{MOST:.0%} of the windows that had the spike; erasers are not looked at",
)
def compensation(measured: Measured) -> Judged:
    of_something(measured.layer_sweep.conclusion)
    results = measured.layer_sweep.results
    writes = [(row.write.mean * results.place.sign, row) for row in results.kinds["mlp"]]
    able = [(write, row, row.repair) for write, row in writes if row.repair and write > 0]
    if not able:
        raise CannotTellError(f"no MLP before the end of the plateau writes {WRITES:.0%} of the peak")
    _write, row, repair = max(able, key=itemgetter(0))
    ratio = together({"": repair.ratio}, documents(measured.layer_sweep))[""]
    removed = f"what MLP {row.layer} writes removed"
    tests = [Test(f"self-repair ratio, {removed}", ratio, "above", REPAIRS)]
    values = {f"self-repair ratio, {removed}": ratio}
    if repair.elsewhere:
        share = repair.elsewhere.share
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
def heaviest_contribute_most(measured: Measured) -> Judged:
    smallest, inside = _confirmed(measured.neuron_sets), _followed(measured)
    chosen = {row.name for row in smallest}
    heaviest = sorted(inside.contributions, key=lambda row: -abs(row.weight))[: len(chosen)]
    others = [row.name for row in heaviest if row.name not in chosen]
    values = {
        "smallest set": " ".join(str(row.name) for row in smallest[:HIGHEST]),
        "largest weights": " ".join(str(row.name) for row in heaviest[:HIGHEST]),
    }
    return [Test("of the largest weights, outside the set", evidence.exact(len(others)), "below", 0.5)], values


def _followed(measured: Measured) -> MlpInternal:
    """Experiment 2C, which follows an MLP's largest output. Raises CannotTellError if that is not what it writes into
    the place: behind a norm another dim may be the largest."""
    inside, dim = measured.mlp_internal.results, measured.place.dim
    if inside.followed.dim != dim:
        raise CannotTellError(f"experiment 2C follows dim {inside.followed.dim}, 3 dim {dim}")
    return inside


def _confirmed(sets: NeuronSets) -> list[Neuron]:
    """The smallest set of experiment 4. Raises CannotTellError unless its runs confirm it."""
    values = sets.conclusion.values
    if not values.confirmed:
        why = f" ({values.why})" if values.why else ""
        raise CannotTellError(f"{SCRIPTS['exp4']} says: {sets.conclusion.verdict}{why}")
    return sets.results.minimal_set


@claim(
    "8b",
    "Many moderate contributions add up to the massive value",
    f"more than {MANY:.0%} of the neurons of the MLP of the birth are in the smallest set that carries the value",
)
def many_add_up(measured: Measured) -> Judged:
    sets = measured.neuron_sets.results
    n = len(_confirmed(measured.neuron_sets))
    values = {
        "neurons": n,
        "of": sets.width,
        "kept by them alone": sets.keep_only_share,
        "left without them": sets.remove_share,
    }
    return [Test("share of the neurons", evidence.exact(n / sets.width), "above", MANY)], values


def _replaced(inside: MlpInternal) -> list[Replaced]:
    """Runs with another activation function. Raises CannotTellError if there are none."""
    runs = [run for name, run in inside.replaced.items() if name != "actual"]
    if not runs:
        raise CannotTellError("the activation function of these experts cannot be replaced")
    return runs


@claim(
    "9",
    "The activation function has no part in the massive value (GPT-2: GELU, 0 %)",
    "with it replaced by the identity and by ReLU, the paired change of the MLP's output at the place is within "
    f"{HARDLY:.0%}",
)
def activation_has_no_part(measured: Measured) -> Judged:
    changes = {run.label: run.mlp_output_change for run in _replaced(_followed(measured)) if run.mlp_output_change}
    if not changes:
        raise CannotTellError("the MLP writes nothing there")
    tests = [test for name, cell in changes.items() for test in within(f"change by {name}", cell, up_to(HARDLY))]
    return tests, changes


@claim(
    "9b",
    "The activation function of that layer does not matter",
    f"with it replaced by the identity and by ReLU, the loss rises by less than {COST} nats a token (paired)",
)
def activation_does_not_matter(measured: Measured) -> Judged:
    rises = {f"{run.label}, loss": run.loss_change for run in _replaced(measured.mlp_internal.results)}
    return [Test(name, cell, "below", COST) for name, cell in rises.items()], rises


@claim(
    "10",
    "The maxima of an MLP's checkpoints follow one value through it (GPT-2: 19.88, 62.91, 62.91, 2,342)",
    "the maxima of all checkpoints from the residual stream to the MLP's output sit at the same token (of these "
    "windows: exact)",
)
def one_value_runs_through(measured: Measured) -> Judged:
    points = measured.mlp_internal.results.checkpoints
    maxima = [point.at for point in points if point.name not in ("routing", "block_output")]
    different = len({(largest.sequence, largest.position) for largest in maxima})
    test = Test("different tokens", evidence.exact(different), "below", 1.5)
    return [test], {"different tokens": different, "checkpoints": len(maxima)}


@claim(
    "10b",
    "The value explodes at the down projection, the neurons before it are moderate (GPT-2: 62.91 to 2,342)",
    f"at the place the largest activation of a neuron is below {MANY:.0%} of the MLP's output in the dim",
)
def explodes_at_the_end(measured: Measured) -> Judged:
    inside = _followed(measured)
    share, largest = inside.largest_activation, max(inside.contributions, key=lambda row: abs(row.activation))
    if share is None:
        raise CannotTellError("the MLP writes nothing there")
    values = {
        "largest activation": largest.activation,
        "of neuron": largest.neuron if largest.expert is UNSET else str(largest.name),
        "output": inside.contribution_check.output,
        "in parts of it": share,
    }
    return [Test("largest activation, in parts of the output", share, "below", MANY)], values
