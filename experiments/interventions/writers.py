"""Who writes the value: the neurons of the MLPs up to the layer whose removal is the counterfactual."""

from dataclasses import replace

import numpy as np

from experiments.interventions.results import Writers, WritingNeuron
from lib.core import mlp, neurons
from lib.core.data import Windows
from lib.core.definitions import CARRIED, WRITTEN
from lib.core.massive import is_massive
from lib.core.place import Place
from lib.core.results import smallest_set
from lib.model.models import LanguageModel

NEURONS_RULE = (
    "neurons: the smallest number, largest writes along the value first, that give at least "
    f"{CARRIED:.0%} of what the MLPs up to the layer write at the followed place (means of the estimation windows in "
    "which it is massive at the layer; behind a norm, a neuron's part of the MLP's output is its part of the write); "
    f"left out where it is not massive, and where these MLPs write less than {WRITTEN:.0%} of the block output there"
)


def find_writers(
    lm: LanguageModel, windows: Windows, place: Place, rows: np.ndarray, layer: int, batch_size: int
) -> Writers:
    """By NEURONS_RULE, from the windows `rows` (indices). MLPs whose neurons cannot be told apart are not looked at."""
    arch, here = lm.arch, place.of(rows)
    rows = rows[is_massive(here.values[:, layer], here.medians[:, layer])]
    if not len(rows):
        left_out = f"the followed place is not massive in the output of layer {layer}"
        return Writers(NEURONS_RULE, None, [], left_out)
    unknown = {i: arch.layers[i].inner for i in arch.with_role("mlp_write") if i <= layer and arch.layers[i].inner}
    told = [i for i in arch.with_role("mlp_write") if i <= layer and i not in unknown]
    there, cut = place.of(rows), replace(windows, ids=windows.ids[rows])
    value = float(there.values[:, layer].mean())
    written, found = np.zeros(len(rows)), []
    for writer in told:
        values = neurons.checkpoints_at_place(lm, cut, there, writer, batch_size)
        added = arch.scale(writer, "mlp_write") * values.get("mlp_write", values[mlp.OUTPUT])[:, place.dim].numpy()
        contributions, check = mlp.at_place(arch, writer, place.dim, values)
        passed_on = added.mean() / check.output if check.output else 0.0
        written += added
        found += [
            WritingNeuron(**vars(row) | {"contribution": write, "share": write / value, "layer": writer})
            for row in contributions
            if (write := passed_on * row.contribution) * value > 0
        ]
    share = there.draws.ratios(written, there.values[:, layer])
    if share.mean < WRITTEN:
        untold = "".join(f"; the neurons of MLP {i} cannot be told apart: {why}" for i, why in unknown.items())
        return Writers(NEURONS_RULE, share, [], f"the MLPs up to it write {share.mean:.1%} of the value{untold}")
    ranked = sorted(found, key=lambda row: -abs(row.contribution))
    count = smallest_set(ranked, float(written.mean()), CARRIED)
    if count is None:
        left_out = f"no set of neurons gives {CARRIED:.0%} of what the MLPs up to it write there"
        return Writers(NEURONS_RULE, share, [], left_out)
    return Writers(NEURONS_RULE, share, ranked[:count], None)
