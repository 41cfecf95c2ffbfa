"""What was measured of one model, which claims are judged by."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from experiments.ablation.results import Stored as Ablation
from experiments.before_after.results import Stored as BeforeAfter
from experiments.census.results import Stored as Census
from experiments.head_pruning.results import Stored as HeadPruning
from experiments.head_scores.results import Stored as HeadScores
from experiments.head_sweep.results import Stored as HeadSweep
from experiments.interventions.results import Stored as Interventions
from experiments.layer_sweep.results import Stored as LayerSweep
from experiments.layerwise.results import Stored as Layerwise
from experiments.ledger.results import Stored as Ledger
from experiments.mlp_internal.results import Stored as MlpInternal
from experiments.neuron_sets.results import Stored as NeuronSets
from experiments.quantisation.results import Stored as Quantisation
from experiments.sink_circuit.results import Stored as SinkCircuit
from experiments.sink_knockout.results import Stored as SinkKnockout
from experiments.sinks.results import Stored as Sinks
from experiments.training_course.results import Stored as TrainingCourse
from experiments.weights_alone.results import Stored as WeightsAlone
from lib import catalogue
from lib.core import evidence
from lib.core.evidence import Cell, Conclusion
from lib.core.results import FollowedPlace, Head
from lib.report.result_files import Result

SCRIPTS = {  # one sentence is no evidence, and no claim is of what only some models have
    name: entry.command
    for name, entry in catalogue.EXPERIMENTS.items()
    if (entry.study or entry.course) and name != "sentence" and not entry.needs
}
Values = TypeVar("Values")


class CannotTellError(Exception):
    """The reason why a claim cannot be judged."""


def birth_layer(ledger: Ledger) -> int:
    """The layer of the birth; the first of the plateau, where no layer's part gives birth."""
    birth = ledger.conclusion.values.birth
    return ledger.results.place.plateau[0] if birth is None or birth.layer is None else birth.layer


def documents(result: Result[Any, Any]) -> float:
    """How many documents its windows are worth; windows, where the text is one document."""
    data = result.provenance["data"]
    return data["windows"] if data["documents_drawn"] in (None, 1) else data["documents_effective"]


def head_shares(ledger: Ledger) -> dict[Head, Cell]:
    """What each head adds at the place, in parts of the peak."""
    return {write.of_head: write.share for write in ledger.results.writes if write.of_head is not None}


def of_something(conclusion: Conclusion[Values | None]) -> Values:
    """The values of a verdict on massive activations. Raises CannotTellError if there are none."""
    if conclusion.verdict == evidence.NONE_FOUND or conclusion.values is None:
        raise CannotTellError("nothing is massive in this model")
    return conclusion.values


class Measured:
    """The results of each experiment, the one to prefer first. Raises CannotTellError for what is missing."""

    def __init__(self, files: Mapping[str, Sequence[Result[Any, Any]]]) -> None:
        self.files = files

    def every(self, experiment: str) -> Sequence[Any]:
        if not self.files.get(experiment):
            raise CannotTellError(f"no result of {SCRIPTS[experiment]}")
        return self.files[experiment]

    @property
    def layerwise(self) -> Layerwise:
        return self.every("layerwise")[0]

    @property
    def head_scores(self) -> HeadScores:
        return self.every("head_analysis")[0]

    @property
    def head_pruning(self) -> HeadPruning:
        return self.every("head_pruning")[0]

    @property
    def without_heads(self) -> Ablation:
        return self.every("exp1")[0]

    @property
    def without_mlps(self) -> Ablation:
        return self.every("exp2a")[0]

    @property
    def layer_sweep(self) -> LayerSweep:
        return self.every("exp2b")[0]

    @property
    def census(self) -> Census:
        return self.every("exp6")[0]

    @property
    def head_sweep(self) -> HeadSweep:
        """Raises CannotTellError if nothing is massive at the place that it follows."""
        sweep: HeadSweep = self.every("exp7")[0]
        if not sweep.results.place.massive:
            raise CannotTellError("nothing is massive in this model")
        return sweep

    @property
    def sinks(self) -> Sinks:
        return self.every("exp9")[0]

    @property
    def sink_knockout(self) -> SinkKnockout:
        return self.every("exp10")[0]

    @property
    def sink_circuit(self) -> SinkCircuit:
        return self.every("exp11")[0]

    @property
    def weights_alone(self) -> WeightsAlone:
        return self.every("exp12")[0]

    @property
    def quantisation(self) -> Quantisation:
        return self.every("exp13")[0]

    @property
    def training_course(self) -> TrainingCourse:
        return self.every("exp14")[0]

    @property
    def before_after(self) -> Sequence[BeforeAfter]:
        return self.every("compare_3d")

    @property
    def ledger(self) -> Ledger:
        """Raises CannotTellError if nothing is massive at the place that it follows."""
        ledger: Ledger = self.every("exp3")[0]
        if not ledger.results.place.massive:
            raise CannotTellError("nothing is massive in this model")
        return ledger

    @property
    def place(self) -> FollowedPlace:
        return self.ledger.results.place

    @property
    def birth_layer(self) -> int:
        return birth_layer(self.ledger)

    @property
    def interventions(self) -> Interventions:
        return self._at_birth("exp5")

    @property
    def mlp_internal(self) -> MlpInternal:
        """Raises CannotTellError unless the MLP of its layer gives birth."""
        return self._in_mlp("exp2c")

    @property
    def neuron_sets(self) -> NeuronSets:
        """Raises CannotTellError unless the MLP of its layer gives birth."""
        return self._in_mlp("exp4")

    def _at_birth(self, experiment: str) -> Any:
        """The result whose layer is that of the birth."""
        layer = self.birth_layer
        there = [result for result in self.every(experiment) if result.results.layer == layer]
        if not there:
            raise CannotTellError(f"no result of {SCRIPTS[experiment]} --layer_id {layer}, the layer of the birth")
        return there[0]

    def _in_mlp(self, experiment: str) -> Any:
        result = self._at_birth(experiment)
        self.check_mlp_gives_birth()
        return result

    def check_mlp_gives_birth(self) -> None:
        conclusion = self.ledger.conclusion
        if conclusion.values.birth is None or conclusion.values.birth.kind != "mlp":
            raise CannotTellError(f"no MLP is sure to give birth to it ({conclusion.verdict})")
