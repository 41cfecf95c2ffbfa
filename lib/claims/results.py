"""The results that claims are judged by, of one model."""

from lib import catalogue
from lib.core import evidence
from lib.core.evidence import Cell, Stored

SCRIPTS = {  # one sentence is no evidence
    name: entry.command for name, entry in catalogue.EXPERIMENTS.items() if entry.study and name != "sentence"
}


class CannotTellError(Exception):
    """The reason why a claim cannot be judged."""


def birth_layer(ledger: Stored) -> int:
    """The layer of the birth in experiment 3's results; the first of the plateau, where no layer's part gives birth."""
    birth = ledger["conclusion"]["values"]["birth"]
    return ledger["place"]["plateau"][0] if birth is None or birth["layer"] is None else birth["layer"]


class Results:
    """`results` of one model's JSON files, by experiment. Raises CannotTellError for what is missing.

    files: {experiment: [payload, ...]}, the one to prefer first.
    """

    def __init__(self, files: dict[str, list[Stored]]) -> None:
        self.files = files

    def __getitem__(self, experiment: str) -> Stored:
        return self.every(experiment)[0]

    def every(self, experiment: str) -> list[Stored]:
        if not self.files.get(experiment):
            raise CannotTellError(f"no result of {SCRIPTS[experiment]}")
        return [payload["results"] for payload in self.files[experiment]]

    def data(self, experiment: str) -> Stored:
        """The provenance of the windows of self[experiment]."""
        self.every(experiment)
        return self.files[experiment][0]["provenance"]["data"]

    def documents(self, experiment: str) -> float:
        """How many documents these windows are worth; windows, where the text is one document."""
        data = self.data(experiment)
        return data["windows"] if data["documents_drawn"] in (None, 1) else data["documents_effective"]

    @property
    def ledger(self) -> Stored:
        """Experiment 3's. Raises CannotTellError if nothing is massive at the place that it follows."""
        ledger = self["exp3"]
        if not ledger["place"]["massive"]:
            raise CannotTellError("nothing is massive in this model")
        return ledger

    @property
    def place(self) -> Stored:
        return self.ledger["place"]

    @property
    def birth_layer(self) -> int:
        return birth_layer(self.ledger)

    @property
    def erasers(self) -> list[Stored]:
        return self.ledger["conclusion"]["values"]["erasers"]

    def at_birth(self, experiment: str) -> Stored:
        """The result whose `layer` is that of the birth."""
        layer = self.birth_layer
        found = [results for results in self.every(experiment) if results["layer"] == layer]
        if not found:
            raise CannotTellError(f"no result of {SCRIPTS[experiment]} --layer_id {layer}, the layer of the birth")
        return found[0]

    def in_mlp(self, experiment: str) -> Stored:
        """As at_birth. Raises CannotTellError unless that layer's MLP gives birth."""
        found = self.at_birth(experiment)
        self.check_mlp_gives_birth()
        return found

    def check_mlp_gives_birth(self) -> None:
        conclusion = self.ledger["conclusion"]
        birth = conclusion["values"]["birth"]
        if birth is None or birth["component"] != "mlp":
            raise CannotTellError(f"no MLP is sure to give birth to it ({conclusion['verdict']})")

    def head_writes(self) -> dict[tuple[int, int], Cell]:
        """{(layer, head): what it adds at the place, in parts of the peak}, by the ledger."""
        return {
            (write["layer"], int(write["component"].split()[1])): write["share"]
            for write in self["exp3"]["writes"]
            if is_head(write["component"])
        }

    def verdict(self, experiment: str) -> Stored:
        """The conclusion of an experiment that judges massive activations. Raises CannotTellError if there are none."""
        return of_something(self[experiment]["conclusion"])


def is_head(component: str) -> bool:
    return component.startswith("head ")


def of_something(conclusion: Stored) -> Stored:
    if conclusion["verdict"] == evidence.NONE_FOUND:
        raise CannotTellError("nothing is massive in this model")
    return conclusion
