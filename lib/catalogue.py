"""The experiments, in the order of a study: what study.py runs, what claims rest on, what README and tests list.

A verdict is never frozen into a run: whoever reads a result judges it by the rules of today, so that a threshold can
change without a model.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import msgspec

from lib.core.evidence import Conclusion
from lib.report import result_files
from lib.report.result_files import Result
from lib.report.upgrades import upgraded
from lib.report.views import View


@dataclass(frozen=True)
class Entry:
    """folder: below experiments/; its results.py has the class Results.

    command: the script, with the flags that choose this experiment of it. study: the further flags of each of
    study.py's runs, in which {born} is the layer of the ledger's birth and {read} that of the head that attends most to
    the first token; where a script's own windows take many minutes, a study measures fewer, so that all of it fits 40
    minutes on two cores for a model of SmolLM2-135M's size.
    judge: the function of the folder's judge.py, if it has one: Results -> Conclusion.
    seed: whether the seed study has it. course: whether it is of the checkpoints of a training, not of one model.
    needs: what a model must have, else it is left out: "experts" for Architecture.require_experts.
    """

    folder: str
    command: str
    study: tuple[str, ...] = ()
    judge: str | None = None
    seed: bool = False
    course: bool = False
    needs: str | None = None


EXPERIMENTS = {  # by the name that the JSON has
    "layerwise": Entry("layerwise", "main_llm.py --exp2", study=("--nsamples 16",), seed=True),
    "head_analysis": Entry("head_scores", "analyze_heads_simple.py", study=("--nsamples 16",), seed=True),
    "exp3": Entry("ledger", "exp3_lifecycle_ledger.py", study=("--nsamples 10",), judge="judge", seed=True),
    "sentence": Entry("sentence", "main_llm.py --exp1", study=("--layer_id {born}",), seed=True),
    "head_pruning": Entry(
        "head_pruning", "test_head_pruning_on_massive.py", study=("--nsamples 8",), judge="judge", seed=True
    ),
    "exp1": Entry("ablation", "exp1_feasibility_test.py", study=("--nsamples 10",), judge="judge", seed=True),
    "exp2a": Entry("ablation", "exp2a_mlp_feasibility_test.py", study=("--nsamples 10",), judge="judge", seed=True),
    "exp2c": Entry(
        "mlp_internal",
        "exp2c_mlp_internal_analysis.py",
        study=("--layer_id {born} --nsamples 10",),
        judge="judge",
        seed=True,
    ),
    "compare_3d": Entry(
        "before_after",
        "compare_3d_before_after_pruning.py",
        study=("--layer_id {born}", "--layer_id {read}"),
        seed=True,
    ),
    "exp2b": Entry("layer_sweep", "exp2b_mlp_layer_sweep.py", study=("",), judge="judge"),
    "exp4": Entry("neuron_sets", "exp4_neuron_sets.py", study=("--layer_id {born} --nsamples 16",), judge="judge"),
    "exp5": Entry("interventions", "exp5_interventions.py", study=("--layer_id {born} --nsamples 32",), judge="judge"),
    "exp6": Entry("census", "exp6_trigger_census.py", study=("--nsamples 10",), judge="judge"),
    "exp7": Entry("head_sweep", "exp7_head_sweep.py", study=("",), judge="judge"),
    "exp8": Entry("experts", "exp8_experts.py", study=("",), judge="judge", needs="experts"),
    "exp9": Entry("sinks", "exp9_sinks.py", study=("",), judge="judge"),
    "exp10": Entry("sink_knockout", "exp10_sink_knockout.py", study=("--nsamples 20",), judge="judge"),
    "exp11": Entry("sink_circuit", "exp11_sink_circuit.py", study=("",), judge="judge"),
    "exp12": Entry("weights_alone", "exp12_weights_alone.py", study=("",), judge="judge"),
    "exp13": Entry("quantisation", "exp13_quantisation.py", study=("--nsamples 16 --seqlen 48",), judge="judge"),
    "exp14": Entry("training_course", "exp14_training.py", judge="judge", course=True),
    "intervention": Entry("interventions", "main_llm.py --exp3", judge="judge_single"),
    "attention_logits": Entry("attention_logits", "main_llm.py --exp4"),
}


BENCHMARK = "benchmark"


def judge_of(experiment: str) -> Callable[[Any], Conclusion[Any]] | None:
    """The judge of an experiment's Results, or None where there is no verdict."""
    entry = EXPERIMENTS.get(experiment)
    return None if entry is None or entry.judge is None else getattr(_module(experiment, "judge"), entry.judge)


def views_of(experiment: str, result: Result[Any, Any]) -> list[View]:
    """What of a result can be turned or hovered, of experiments that have a views.py."""
    if importlib.util.find_spec(f"experiments.{EXPERIMENTS[experiment].folder}.views") is None:
        return []
    return _module(experiment, "views").views(result)


def _module(experiment: str, name: str) -> ModuleType:
    folder = "benchmarks" if experiment == BENCHMARK else f"experiments.{EXPERIMENTS[experiment].folder}"
    return importlib.import_module(f"{folder}.{name}")


def typed(experiment: str, results: Any) -> Any:
    """The experiment's or the benchmark's Results, of what its JSON holds; JSON types of what else is stored.

    Raises msgspec.ValidationError, which says where, if it is something else.
    """
    if experiment not in (*EXPERIMENTS, BENCHMARK):
        return results
    return msgspec.convert(results, _module(experiment, "results").Results, str_keys=True)


def judged(experiment: str, results: Any) -> dict[str, Any]:
    """Results, or what their JSON holds, as JSON types with their conclusion, if they have a judge."""
    stored, judge = result_files.plain(results), judge_of(experiment)
    if judge is None:
        return stored
    return stored | {"conclusion": result_files.plain(judge(typed(experiment, stored)))}


def concluded(payload: dict[str, Any]) -> Result[Any, Any]:
    """A result's JSON, typed, and judged by the rules of today; a stored conclusion is never read.

    Raises msgspec.ValidationError if `results` are not those of the experiment.
    """
    experiment = payload["experiment"]
    results = typed(experiment, upgraded(experiment, payload["schema_version"], payload["results"]))
    judge = judge_of(experiment)
    return Result(
        experiment=experiment,
        provenance=payload["provenance"],
        config=payload["config"],
        results=results,
        conclusion=None if judge is None else judge(results),
        files=payload["files"],
    )
