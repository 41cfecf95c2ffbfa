"""Who writes the value: the neurons of the layer's MLP whose removal is the counterfactual."""

from dataclasses import replace

import numpy as np

from experiments.interventions.results import Writers
from lib.core import mlp, neurons
from lib.core.data import Windows
from lib.core.definitions import CARRIED, WRITTEN
from lib.core.massive import is_massive
from lib.core.place import Place
from lib.core.results import smallest_set
from lib.model.models import LanguageModel

NEURONS_RULE = (
    "neurons: the smallest number, largest contributions along the output's sign first, that give at least "
    f"{CARRIED:.0%} of what the down projection gives at the followed place (mean of the estimation windows in which "
    "it is massive at the layer); left out where it is not, and where the MLP adds less than "
    f"{WRITTEN:.0%} of the block output there"
)


def find_writers(
    lm: LanguageModel, windows: Windows, place: Place, rows: np.ndarray, layer: int, batch_size: int
) -> Writers:
    """By NEURONS_RULE, from the windows `rows` (indices)."""
    inner = lm.arch.layers[layer].inner
    if inner is not None:
        return Writers(NEURONS_RULE, None, [], f"the neurons of MLP {layer} cannot be told apart: {inner}")
    here = place.of(rows)
    rows = rows[is_massive(here.values[:, layer], here.medians[:, layer])]
    if not len(rows):
        left_out = f"the followed place is not massive in the output of layer {layer}"
        return Writers(NEURONS_RULE, None, [], left_out)
    there, ids = place.of(rows), windows.ids[rows]
    values = neurons.checkpoints_at_place(lm, replace(windows, ids=ids), there, layer, batch_size)
    added = lm.arch.scale(layer, "mlp_write") * values.get("mlp_write", values[mlp.OUTPUT])[:, place.dim].numpy()
    share = there.draws.ratios(added, there.values[:, layer])
    if share.mean < WRITTEN:
        left_out = f"MLP {layer} adds {share.mean:.1%} of the value at the followed place"
        return Writers(NEURONS_RULE, share, [], left_out)
    contributions, check = mlp.at_place(lm.arch, layer, place.dim, values)
    count = smallest_set(contributions, check, CARRIED)
    if count is None:
        left_out = f"no set of neurons gives {CARRIED:.0%} of what MLP {layer} writes there"
        return Writers(NEURONS_RULE, share, [], left_out)
    return Writers(NEURONS_RULE, share, contributions[:count], None)
