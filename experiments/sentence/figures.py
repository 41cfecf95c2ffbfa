"""The activations of one layer in one text, in 3D."""

import numpy as np
from matplotlib.figure import Figure

from experiments.sentence.results import Stored
from lib.report.figures import dims_to_label, draw_surface, make_figure
from lib.report.tables import number


def sentence(result: Stored) -> Figure:
    """|activation| of one layer over tokens x dims, in 3D, with the largest dims on the axis."""
    results = result.results
    figure = make_figure((8, 5.6))
    ax = figure.add_subplot(projection="3d", computed_zorder=False)
    values = np.abs(results.values)
    draw_surface(ax, values, results.tokens, dims_to_label(results.massive, values), values.max())
    ax.set_title(
        f"{result.config['model_name']}, output of layer {results.layer}\n"
        f"median |activation| {number(results.median)}, {len(results.massive)} massive"
    )
    return figure
