"""Truth and diagnosis of planted models."""

import numpy as np
from matplotlib.figure import Figure

from lib.core.evidence import Stored
from lib.report.figures import SEQUENTIAL, draw_heatmap, make_axes


def controls(payload: Stored) -> Figure:
    """Share of the planted models, by kind and by what is diagnosed, in which the diagnosis is the truth; blank where
    there is nothing to diagnose."""
    results = payload["results"]
    right: dict[str, np.ndarray] = {}  # nan: nothing to diagnose
    total: dict[str, int] = {}
    for model in results["models"]:
        kind = f"{model['truth']['architecture']}  {model['truth']['kind']}"
        total[kind] = total.get(kind, 0) + 1
        asked = [0 if name in model["visible"] else np.nan for name in results["fields"]]
        row = right.setdefault(kind, np.array(asked))
        row += [name not in model["misses"] for name in results["fields"]]
    share = np.array([right[kind] / total[kind] for kind in total])
    text = np.array([["" if np.isnan(n) else f"{n:.0f}/{total[kind]}" for n in right[kind]] for kind in total])
    figure, ax = make_axes(size=(3.5 + 0.5 * len(results["fields"]), 2.4 + 0.26 * len(total)))
    draw_heatmap(
        ax,
        share,
        cmap=SEQUENTIAL,
        vmin=0,
        vmax=1,
        annot=text,
        fmt="",
        linewidths=1,
        annot_kws={"fontsize": 8},
        cbar_kws={"label": "share of models diagnosed right"},
        xticklabels=[name.replace("_", " ") for name in results["fields"]],
        yticklabels=list(total),
    )
    ax.tick_params(axis="y", rotation=0)
    ax.set_xticks(ax.get_xticks(), ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_title(f"Planted models: {results['conclusion']['verdict']}", fontsize=11)
    return figure
