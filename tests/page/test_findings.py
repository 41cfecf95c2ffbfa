"""The sentences that matter most: each way in which a result may come out is said as it is."""

import pytest

from experiments.ablation.results import Verdict as AblationVerdict
from experiments.interventions.results import MLP_OFF, PUT_BACK, SAME
from experiments.interventions.results import Results as Interventions
from experiments.interventions.results import Verdict as InterventionsVerdict
from experiments.layerwise.results import Results as Layerwise
from experiments.ledger.results import Results as Ledger
from experiments.ledger.results import Verdict as LedgerVerdict
from lib import catalogue
from lib.page import findings
from lib.page.words import ENGLISH
from lib.report.result_files import Result
from tests.partial import partial

WRITE = {"layer": 3, "kind": "mlp", "head": None, "name": "mlp 3", "value": 5000.0}
SHARE = {"mean": 0.976, "ci95": [0.97, 0.98], "family95": [0.96, 0.99]}
ERASER = {"layer": 8, "kind": "head", "head": 2, "name": "head 8.2", "value": -4000.0}
PLACE = {"dim": 7, "positions": {"0": 8}, "massive": True, "plateau": [3, 7]}
VALUES = {
    "birth": WRITE,
    "generators": [WRITE],
    "erasers": [ERASER],
    "plateau": [3, 7],
    "peak": {"layer": 4, "value": -5123.4},
}
CI = {"mean": 0.5, "ci95": [0.4, 0.6]}


def sentences(results):
    return findings.sentences(results, ENGLISH)


def result(experiment, results=None, conclusion=None):
    return Result(experiment, {}, {}, results, conclusion, {})


def ledger(verdict="mlp 3", place=None, share=SHARE, **values):
    conclusion = partial(LedgerVerdict, {"verdict": verdict, "values": VALUES | values})
    results = {"place": PLACE | (place or {}), "writes": [WRITE | {"share": share}]}
    return result("exp3", partial(Ledger, results), conclusion)


def layerwise(dim=7):
    at = [{"position": 0, "dim": dim}]
    layers = [{"ratio": {"mean": 1000.0 * layer}, "at": at} for layer in range(9)]
    return result("layerwise", partial(Layerwise, {"layers": layers}))


def ablated(experiment, verdict, exact=None):
    values = None if verdict == "none found" else {"retained": CI, "first_tokens": exact and {"retained": exact}}
    return result(experiment, None, partial(AblationVerdict, {"verdict": verdict, "values": values}))


def test_where_it_is_and_who_writes_it():
    assert sentences([layerwise(), ledger()]) == [
        "Massive activations are largest in dim 7, at position 0: -5,123 in layer 4, and up to 8,000 x a layer's "
        "median; it is massive, with half of it or more, from layer 3 to 7.",
        "mlp 3 (+5,000) writes it, 97.6% of the peak; head 8.2 (-4,000) takes it away.",
    ]


@pytest.mark.parametrize("family95", [[0.12, 0.16], [0.45, 0.55]])
def test_the_largest_part_is_not_it(family95):
    """Where a birth is not sure to write half of the peak, though it writes more than any other."""
    said = sentences([ledger(share={"mean": 0.143, "ci95": family95, "family95": family95})])[1]
    assert said.startswith("mlp 3 (+5,000) writes the largest part of it, 14.3% of the peak; ")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (ledger(place={"positions": {"3": 2, "5": 6}}), "at several positions, most often 5: "),
        (ledger(plateau=[4, 4]), "it is massive, with half of it or more, in no other layer."),
        (ledger("cannot tell", birth=None), "Who writes it cannot be told; head 8.2"),
        (
            ledger("cannot tell: mlp 3 or head 8.2", birth=None, generators=[WRITE, ERASER]),
            "mlp 3 (+5,000) and head 8.2 ",
        ),
        (ledger("no single component", birth=None, generators=[]), "No single component writes it; head 8.2"),
        (ledger(erasers=[]), "of the peak; no component is sure to take it away."),
        (ledger(erasers=[ERASER, WRITE]), "; head 8.2 (-4,000) and mlp 3 (+5,000) take it away."),
        (ledger(erasers=[ERASER, WRITE, ERASER, WRITE]), "head 8.2 (-4,000), mlp 3 (+5,000) and head 8.2 (-4,000) "),
    ],
)
def test_of_the_ledger(found, said):
    assert said in " ".join(sentences([found]))


def test_the_ratio_is_of_the_followed_dim():
    assert " x " not in sentences([ledger(), layerwise(dim=9)])[0]


def test_nothing_massive():
    said = sentences([layerwise(), ledger("none found", place={"massive": False}, birth=None, plateau=None)])
    assert said == ["Nothing is massive here: the dim with the largest value, 7, reaches -5,123."]


def test_what_is_left_without_parts():
    assert sentences([ablated("exp1", "persists"), ablated("exp2a", "collapses", 0.01)]) == [
        "Without any attention head the massive activation persists, 0.5000 [0.4000, 0.6000] of it left; without any "
        "MLP it collapses, 0.0100 of it left."
    ]
    [unknown] = sentences([ablated("exp2a", "cannot tell")])
    assert unknown.startswith("What becomes of the massive activation without any MLP cannot be told")
    assert sentences([ablated("exp1", "none found")]) == []


def test_need_is_of_the_layer_of_the_birth():
    def needed(layer, verdict="not needed", left=None, writers=(), why=None, conditions=()):
        values = {"counterfactual": {"loss_change": CI, "left": left}, "why": why}
        conclusion = partial(InterventionsVerdict, {"verdict": verdict, "values": values})
        neurons = [{"layer": writer, "neuron": 0} for writer in writers]
        given = {"layer": layer, "mlp": {"neurons": neurons}, "conditions": dict(conditions)}
        return result("exp5", partial(Interventions, given), conclusion)

    assert sentences([ledger(), needed(5, "needed"), needed(3)])[-1] == (
        "Whether the model needs it: not needed. Without what mlp 3 writes there the loss changes by +0.5000 [+0.4000, "
        "+0.6000] nats a token."
    )
    assert "writes there (0.8200 of it is left) the loss" in sentences([ledger(), needed(3, left={"mean": 0.82})])[-1]
    assert "Without what 3 of the neurons of mlp 1-3 write" in sentences([ledger(), needed(3, writers=(1, 2, 3))])[-1]
    assert "not needed, which it is beforehand, as all windows begin" in sentences([ledger(), needed(3, why=SAME)])[-1]
    shared = {"label": "", "question": "", "where": "", "perplexity": {}, "sink_rates": {}, "values": []}
    shared |= {"sink_rate_changes": {}, "loss_change": CI | {"mean": 0.45}}
    conditions = {"off": shared | {"set_to": MLP_OFF, "loss_change": CI}, "back": shared | {"set_to": PUT_BACK}}
    said = sentences([ledger(), needed(3, conditions=conditions)])[-1]
    assert said.endswith("+0.6000] nats a token, with its mean put back by +0.4500 [+0.4000, +0.6000].")
    assert len(sentences([ledger(), needed(5)])) == 2


def test_words_are_of_experiments():
    assert set(ENGLISH.experiments) <= set(catalogue.EXPERIMENTS)
