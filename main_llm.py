"""Massive activations of a language model: in one sentence (3D), over its layers, set to something else; attention.

    python main_llm.py --model gpt2 --exp1 --layer_id 2 --savedir results/llm/3d_feat_vis/
    python main_llm.py --model gpt2 --exp2 --savedir results/llm/layerwise/
    python main_llm.py --model gpt2 --exp3 --layer_id 2 --reset_type set_mean --savedir results/llm/intervention/
    python main_llm.py --model gpt2 --exp4 --layer_id 2 --savedir results/llm/attn/

--exp1 draws |activation| over tokens x dims of one block's output for --text.
--exp2 gives top-1, top-2, top-3 and median of |activation| of every block's output, over --nsamples windows,
what is massive by other definitions, too, and at which positions; --export mask.json writes that for other programs,
which need ten lines of NumPy to leave it out (they stand in lib/report/masks.py).
--exp3 sets the massive activations of one block's output to zero, or to the mean they have in every second window,
and gives the perplexity of the other windows before and after (exp5_interventions.py does it in more ways).
--exp4 gives one layer's attention logits, as its softmax takes them, for --text.
Several may be given. Layer i's value is the output of block i, before any final norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from experiments.attention_logits import text as logits_text
from experiments.interventions import text as interventions_text
from experiments.layerwise import text as layerwise_text
from experiments.sentence import text as sentence_text
from lib import catalogue
from lib.experiment import Drawings, Experiment, execute
from lib.report import masks, result_files
from lib.run import cli, processes

if TYPE_CHECKING:
    from experiments import attention_logits, interventions, layerwise, sentence
    from lib.core.data import Windows
    from lib.model.models import LanguageModel


@dataclass(frozen=True)
class Options(cli.Options):
    exp1: bool = cli.flag(False, "3D plot of one layer", action="store_true")
    exp2: bool = cli.flag(False, "statistics of all layers", action="store_true")
    exp3: bool = cli.flag(False, "massive activations of one layer set to something else", action="store_true")
    exp4: bool = cli.flag(False, "attention logits of one layer", action="store_true")
    layer_id: int = cli.flag(2, "layer of --exp1, --exp3 and --exp4, from 0")
    reset_type: str = cli.flag("set_zero", "what --exp3 sets", choices=["set_zero", "set_mean"])
    text: str = cli.flag("Summer is warm. Winter is cold.", "sentence of --exp1 and --exp4")
    export: Path | None = cli.flag(None, "file for the mask of --exp2", type=cli.path, metavar="MASK")
    beside_replot: ClassVar[frozenset[str]] = cli.Options.beside_replot | {"exp1", "exp2", "exp3", "exp4", "export"}

    def idle(self) -> dict[str, str]:
        idle = super().idle()
        if not (self.exp1 or self.exp3 or self.exp4):
            idle["layer_id"] = "it is of --exp1, --exp3 and --exp4"
        if not self.exp2:
            idle["export"] = "it is of --exp2"
        if not self.exp3:
            idle["reset_type"] = "it is of --exp3"
        if not (self.exp1 or self.exp4):
            idle["text"] = "it is of --exp1 and --exp4"
        if not (self.exp2 or self.exp3):
            idle |= dict.fromkeys(cli.WINDOWS, "--exp1 and --exp4 measure --text")
        return idle


def sentence_windows(options: Options, lm: LanguageModel) -> Windows:
    from lib.core import data

    return data.from_text(options.text, options, lm)


def run_sentence(lm: LanguageModel, windows: Windows, options: Options) -> sentence.results.Results:
    from experiments.sentence import measure

    return measure.run(lm, windows, options)


def run_layerwise(lm: LanguageModel, windows: Windows, options: Options) -> layerwise.results.Results:
    from experiments.layerwise import measure

    return measure.run(lm, windows, options)


def run_intervention(lm: LanguageModel, windows: Windows, options: Options) -> interventions.results.Results:
    from experiments.interventions import measure

    return measure.run_single(lm, windows, options)


def run_logits(lm: LanguageModel, windows: Windows, options: Options) -> attention_logits.results.Results:
    from experiments.attention_logits import measure

    return measure.run(lm, windows, options)


def sentence_figures() -> Drawings:
    from experiments.sentence import figures

    return {"{model_name}_layer{layer_id}_3d.png": figures.sentence}


def layerwise_figures() -> Drawings:
    from experiments.layerwise import figures

    return {"{model_name}.png": figures.layerwise}


def intervention_figures() -> Drawings:
    from experiments.interventions import figures

    return {"{model_name}_layer{layer_id}_{reset_type}.png": figures.interventions_over_layers}


def logits_figures() -> Drawings:
    from experiments.attention_logits import figures

    return {"{model_name}_layer{layer_id}_attention_logits.png": figures.attention_logits}


SENTENCE = Experiment(
    name="sentence",
    json="{model_name}_layer{layer_id}_3d.json",
    txt="{model_name}_layer{layer_id}_3d.txt",
    run=run_sentence,
    summary=sentence_text.summarise,
    figures=sentence_figures,
    windows=sentence_windows,
)
LAYERWISE = Experiment(
    name="layerwise",
    json="{model_name}_layerwise.json",
    txt="{model_name}_layerwise.txt",
    run=run_layerwise,
    summary=layerwise_text.summarise,
    figures=layerwise_figures,
)
INTERVENTION = Experiment(
    name="intervention",
    json="{model_name}_layer{layer_id}_{reset_type}.json",
    txt="{model_name}_layer{layer_id}_{reset_type}.txt",
    run=run_intervention,
    summary=interventions_text.summarise_single,
    details=interventions_text.details,
    figures=intervention_figures,
)
LOGITS = Experiment(
    name="attention_logits",
    json="{model_name}_layer{layer_id}_attention_logits.json",
    txt="{model_name}_layer{layer_id}_attention_logits.txt",
    run=run_logits,
    summary=logits_text.summarise,
    figures=logits_figures,
    windows=sentence_windows,
)
EXPERIMENTS = {"exp1": SENTENCE, "exp2": LAYERWISE, "exp3": INTERVENTION, "exp4": LOGITS}


def main() -> None:
    options = cli.parse(Options, __doc__)
    if options.export:
        result_files.check_writable(options.export.parent, [options.export.name])
        masks.require_free(options.export)
        if not options.replot and options.nsamples < 2:
            raise cli.UserError("--export needs --nsamples 2 or more: some windows check the rules that others propose")
    if options.replot:
        name = result_files.read_json(options.replot).get("experiment")
        asked = [experiment for flag, experiment in EXPERIMENTS.items() if getattr(options, flag)]
        asked = asked or list(EXPERIMENTS.values())
        experiments = [next((experiment for experiment in asked if experiment.name == name), asked[0])]
    else:
        experiments = chosen(options)
    if options.export and LAYERWISE not in experiments:
        raise cli.UserError(f"--export would do nothing: {options.replot} is no result of --exp2")
    for experiment in experiments:
        execute(experiment, options)
        if experiment is LAYERWISE and options.export and processes.rank() == 0:
            export_mask(options.export, options)


def export_mask(path: Path, options: Options) -> None:
    """Write the mask of the result that --exp2 has just written, or that was replotted."""
    stored = options.replot or options.output_dir / LAYERWISE.json.format(**result_files.config(options))
    masks.write(path, catalogue.concluded(result_files.load(stored, LAYERWISE.name)))
    print(path)


def chosen(options: Options) -> list[Experiment]:
    """The Experiments that the command line asks for. Raises UserError if there is none."""
    experiments = [experiment for flag, experiment in EXPERIMENTS.items() if getattr(options, flag)]
    if not experiments:
        raise cli.UserError(
            "choose --exp1 (3D plot of one layer), --exp2 (all layers), --exp3 (set massive activations), "
            "--exp4 (attention logits), or several"
        )
    return experiments


if __name__ == "__main__":
    cli.main(main)
