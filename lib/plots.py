"""Figures, each drawn from a result JSON's payload; no model is needed."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.colors import SymLogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from lib.definitions import COST
from lib.fonts import FAMILY, legible
from lib.judges.interventions import nearest_epsilon
from lib.report import cell, fraction, number, percent, result_file

DPI = 110
PALETTE = sns.color_palette("colorblind")
DIVERGING = "PuOr_r"
SEQUENTIAL = "viridis"
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
NAMED = {"marker": "o", "ms": 4, "mfc": "white"}
PLAIN = FuncFormatter(lambda x, _position: f"{x:,.10g}")

matplotlib.rcdefaults()  # figures are the same whatever matplotlibrc there is
sns.set_theme(style="ticks", palette=PALETTE, font=FAMILY)
for text in (str, np.str_, bytes, np.bytes_):  # no axis is of words: a text among the numbers is a mistake
    matplotlib.units.registry.pop(text, None)


def write(path, draw, payload):
    """Draw a result into a PNG file."""
    with result_file(path) as temporary:
        save(draw(legible(payload)), temporary)


def save(figure, path):
    """Write a PNG with a palette of 256 colours, a third of the usual size."""
    figure.set_dpi(DPI)
    figure.canvas.draw()
    pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba()))
    plt.close(figure)
    pixels.convert("RGB").quantize(256).save(path, optimize=True)


def _axes(rows=1, columns=1, size=(8, 5), **kwargs):
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **kwargs)


def _title(payload, text):
    return f"{text}\n{payload['config']['model_name']}, {_data(payload)}"


def _data(payload):
    data = payload["provenance"]["data"]
    windows = "window" if data["windows"] == 1 else "windows"
    return f"{data['windows']} {windows} of {data['seqlen']} tokens"


def _curve(ax, averages, style, label):
    """Means over layers with their 95 % band; style: 0, 1, 2 ... picks colour, marker and line."""
    color, marker, line = (of[style % len(of)] for of in (PALETTE, MARKERS, LINES))
    means = [a["mean"] for a in averages]
    ax.plot(means, label=label, color=color, marker=marker, markersize=4, ls=line)
    if averages[0]["ci95"] is not None:
        low, high = np.array([a["ci95"] for a in averages]).T
        ax.fill_between(np.arange(len(means)), low, high, color=color, alpha=0.25, linewidth=0)


def _layer_axis(ax, n):
    ax.set_xlabel("layer (block output, before the final norm)")
    ax.set_xlim(-0.5, n - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=15, integer=True))
    ax.grid(axis="y", alpha=0.4)


def layerwise(payload):
    """Top-1, top-2, top-3 and median of |activation| over layers, logarithmic."""
    layers = payload["results"]["layers"]
    figure, ax = _axes()
    for i, (key, label) in enumerate([("top1", "top 1"), ("top2", "top 2"), ("top3", "top 3"), ("median", "median")]):
        _curve(ax, [layer[key] for layer in layers], i, label)
    ax.set_yscale("log")
    ax.set_ylabel("|activation| (mean over windows, log scale)")
    _layer_axis(ax, len(layers))
    ax.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    ax.set_title(_title(payload, "Massive activations over layers"))
    return figure


def sentence(payload):
    """|activation| of one layer over tokens x dims, in 3D, with the largest dims on the axis."""
    results = payload["results"]
    figure = plt.figure(figsize=(8, 5.6))
    ax = figure.add_subplot(projection="3d", computed_zorder=False)
    values = np.abs(results["values"])
    _surface(ax, values, results["tokens"], _dims_to_label(results["massive"], values), values.max())
    ax.set_title(
        f"{payload['config']['model_name']}, output of layer {results['layer']}\n"
        f"median |activation| {number(results['median'])}, {len(results['massive'])} massive"
    )
    figure.subplots_adjust(left=0.0, right=0.92, bottom=0.05, top=0.9)
    return figure


def _dims_to_label(massive, values, at_most=3):
    """The massive dims; where nothing is massive, the two dims with the largest values."""
    dims = list(dict.fromkeys(entry["dim"] for entry in massive))[:at_most]
    return dims or np.argsort(values.max(0))[::-1][:2].tolist()


def _surface(ax, values, tokens, dims, top, label="|activation|"):
    n_tokens, n_dims = values.shape
    for row in reversed(range(n_tokens)):
        ax.plot(np.arange(n_dims), np.full(n_dims, row), values[row], color=PALETTE[0], linewidth=1.2)
    for dim in dims:
        row = int(values[:, dim].argmax())
        ax.text(dim, row, values[row, dim], f" {number(float(values[row, dim]))}", fontsize=9, color="black")
    ax.set_xticks(_spread(dims, n_dims), [str(d) for d in _spread(dims, n_dims)], fontsize=9)
    step = -(-n_tokens // 16)
    shown = [_short(token) for token in tokens[::step]]
    ax.set_yticks(np.arange(n_tokens)[::step], shown, fontsize=9, ha="left", va="center")
    ax.tick_params(axis="y", pad=-2)
    ax.tick_params(axis="z", pad=6, labelsize=9)
    ax.zaxis.set_major_formatter(PLAIN)
    ax.set_zlim(0, top * 1.05)
    ax.set_xlabel("dim", labelpad=8)
    ax.zaxis.set_rotate_label(False)
    ax.set_zlabel(label, rotation=90, labelpad=10)
    ax.set_box_aspect((1.6, 1.2, 1), zoom=1.12)
    ax.view_init(elev=22, azim=-60)


def _spread(dims, n_dims, gap=0.09):
    """Ticks: the given dims, and both ends of the axis where that leaves room."""
    kept = []
    for dim in [*dims, 0, n_dims - 1]:
        if all(abs(dim - other) > gap * n_dims for other in kept):
            kept.append(dim)
    return sorted(kept)


def head_scores(payload):
    """Heatmap layers x heads of the mean attention to the first token."""
    results = payload["results"]
    scores = np.array([[cell["mean"] for cell in row] for row in results["scores"]])
    n_layers, n_heads = scores.shape
    figure, ax = _axes(size=(max(5.0, 2.5 + 0.42 * n_heads), max(4.0, 1.6 + 0.27 * n_layers)))
    annotate = n_layers * n_heads <= 300
    sns.heatmap(
        scores,
        ax=ax,
        cmap=SEQUENTIAL,
        vmin=0,
        vmax=1,
        annot=annotate,
        fmt=".2f",
        annot_kws={"size": 7},
        cbar_kws={"label": "mean attention probability on the first token"},
    )
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    ax.tick_params(axis="y", rotation=0)
    ax.set_title(_title(payload, "Attention to the first token"), fontsize=11)
    return figure


def head_ranking(payload):
    """Every head's score by layer, and the highest heads with their intervals."""
    results = payload["results"]
    ranking = results["ranking"]
    n_layers = len(results["scores"])
    figure, (by_layer, by_rank) = _axes(1, 2, size=(12, 5), width_ratios=[1.2, 1])
    by_layer.scatter(
        [r["layer"] for r in ranking], [r["score"] for r in ranking], s=22, color=PALETTE[0], alpha=0.6, label="head"
    )
    layer_means = [np.mean([cell["mean"] for cell in row]) for row in results["scores"]]
    by_layer.plot(layer_means, color=PALETTE[1], marker="s", markersize=4, label="mean of the layer")
    by_layer.axhline(results["uniform"], color=PALETTE[7], ls="--", lw=1, label="uniform attention")
    by_layer.set_ylabel("mean attention probability on the first token")
    by_layer.set_ylim(0, 1)
    _layer_axis(by_layer, n_layers)
    by_layer.set_xlabel("layer")
    by_layer.legend(frameon=False, fontsize=9)
    top = ranking[:20][::-1]
    names = [f"layer {r['layer']}, head {r['head']}" for r in top]
    by_rank.barh(range(len(top)), [r["score"] for r in top], color=PALETTE[0])
    by_rank.set_yticks(range(len(top)), names)
    for row, r in enumerate(top):
        cell = results["scores"][r["layer"]][r["head"]]
        if cell["ci95"]:
            by_rank.plot(cell["ci95"], [row, row], color="black", lw=1.5)
    by_rank.set_xlim(0, 1)
    by_rank.set_xlabel("score (black: 95 % interval over windows)")
    by_rank.set_title(f"the {len(top)} highest heads", fontsize=11)
    by_rank.tick_params(axis="y", labelsize=8)
    figure.suptitle(_title(payload, "Heads ranked by attention to the first token"), fontsize=12)
    return figure


def top1_comparison(payload):
    """Top-1 of every layer in the baseline and in each condition, logarithmic, with intervals."""
    conditions = payload["results"]["conditions"]
    figure, ax = _axes()
    for i, condition in enumerate(conditions.values()):
        label = f"{condition['label']} (perplexity {number(condition['perplexity']['value'])})"
        _curve(ax, [layer["top1"] for layer in condition["layers"]], i, label)
    ax.set_yscale("log")
    ax.set_ylabel("top-1 |activation| (log scale, band: 95 % interval)")
    _layer_axis(ax, len(conditions["baseline"]["layers"]))
    ax.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    ax.set_title(
        _title(payload, "Largest activation of every layer (it may sit elsewhere after ablation)"), fontsize=11
    )
    return figure


def critical_dimensions(payload, at_most=4):
    """The followed dims, signed, at the same position in every condition, and where each is judged."""
    results = payload["results"]
    dims = results["dims"][:at_most]
    judged = {place["dim"]: place["layer"] for place in reversed(results["places"])}  # of each dim the largest place
    figure, axes = _axes(1, max(1, len(dims)), size=(max(7, 5.2 * len(dims)), 4.6), squeeze=False)
    for ax, dim in zip(axes[0], dims, strict=False):
        for i, condition in enumerate(results["conditions"].values()):
            _curve(ax, [layer["dims"][str(dim)] for layer in condition["layers"]], i, condition["label"])
        if dim in judged:
            ax.axvline(judged[dim], color="black", lw=0.8, ls=":")
        ax.set_title(
            f"dim {dim}" + (f", judged after layer {judged[dim]} (dotted)" if dim in judged else ""), fontsize=11
        )
        ax.set_ylabel("activation (signed)")
        ax.yaxis.set_major_formatter(PLAIN)
        _layer_axis(ax, len(results["conditions"]["baseline"]["layers"]))
    if dims:
        axes[0][0].legend(frameon=False, fontsize=9)
    else:
        axes[0][0].text(0.5, 0.5, "no massive activation in the baseline", ha="center")
        axes[0][0].set_axis_off()
    figure.suptitle(_title(payload, "Critical dims at the position where each peaks in the baseline"), fontsize=11)
    return figure


def percentage_heatmap(payload, name=None):
    """Change of every layer and statistic in per cent, each cell with both values."""
    results = payload["results"]
    name = name or next(iter(results["changes"]))
    before, after = results["conditions"]["baseline"]["layers"], results["conditions"][name]["layers"]
    keys = ["top1", "top2", "top3", "median", *map(str, results["dims"][:4])]
    labels = ["top 1", "top 2", "top 3", "median", *(f"dim {d}" for d in results["dims"][:4])]
    change, text = [], []
    for b, a in zip(before, after, strict=True):
        pairs = [(cell(b, key)["mean"], cell(a, key)["mean"]) for key in keys]
        change.append([100 * (y - x) / abs(x) if x else 0 for x, y in pairs])
        text.append([f"{percent(x, y)}\n{number(x)} \u2192 {number(y)}" for x, y in pairs])
    figure, ax = _axes(size=(2.2 + 1.5 * len(keys), 1.8 + 0.36 * len(before)))
    sns.heatmap(
        np.array(change),
        ax=ax,
        cmap=DIVERGING,
        vmin=-100,
        vmax=100,
        annot=np.array(text),
        fmt="",
        annot_kws={"size": 7},
        cbar_kws={"label": "change in per cent (colour ends at \u00b1100)", "extend": "both"},
        xticklabels=labels,
    )
    ax.set_ylabel("layer")
    ax.tick_params(axis="y", rotation=0)
    ax.set_title(_title(payload, f"Change with {results['conditions'][name]['label']}"), fontsize=11)
    return figure


def pruning_comparison(payload, name):
    """One set of heads off: top-1 of every layer, and its paired change beside the random draws."""
    results = payload["results"]
    conditions = results["conditions"]
    figure, (level, change) = _axes(1, 2, size=(12, 4.8))
    for i, condition in enumerate((conditions["baseline"], conditions[name])):
        _curve(level, [layer["top1"] for layer in condition["layers"]], i, condition["label"])
    level.set_yscale("log")
    level.set_ylabel("top-1 |activation| (log scale)")
    level.legend(frameon=False)
    for i, draw in enumerate(results["null"][name]["run_whole"]):
        means = [layer["top1"]["mean"] for layer in results["changes"][draw]]
        change.plot(means, color=PALETTE[7], lw=1, label="random heads of the same layers" if i == 0 else None)
    _curve(change, [layer["top1"] for layer in results["changes"][name]], 1, conditions[name]["label"])
    change.axhline(0, color="black", lw=0.8)
    change.set_ylabel("change of top-1 (paired, band: 95 % interval)")
    change.yaxis.set_major_formatter(PLAIN)
    change.legend(frameon=False)
    for ax in (level, change):
        _layer_axis(ax, len(results["changes"][name]))
        ax.set_xlabel("layer")
    heads = ", ".join(f"{layer}.{head}" for layer, head in results["sets"][name])
    figure.suptitle(_title(payload, f"{name.upper()} heads off (layer.head: {heads})"), fontsize=11)
    return figure


def pruning_summary(payload):
    """Both sets beside their null: change at the followed place, and perplexity."""
    results = payload["results"]
    figure, (place, loss) = _axes(1, 2, size=(11, 4.6))
    for row, name in enumerate(("top", "bottom")):
        null = results["null"][name]
        if null["of_set"] is not None:
            place.plot(null["of_set"], row, "o", color=PALETTE[1], ms=9)
            _draws(place, row, null["absolute_change"])
            says = "impossible by causality" if null["impossible"] else f"p = {number(null['p'])}"
            place.annotate(says, (1, row), xycoords=("axes fraction", "data"), xytext=(-6, 14),
                           textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
        loss.plot(results["conditions"][name]["perplexity"]["value"], row, "o", color=PALETTE[1], ms=9)
        _draws(loss, row, null["perplexity"])
    baseline = results["conditions"]["baseline"]["perplexity"]["value"]
    loss.axvline(baseline, color="black", lw=0.8, ls="--", label=f"baseline {number(baseline)}")
    end = results["place"]["plateau"][1]
    place.set_xlabel(f"|change| of dim {results['place']['dim']} after layer {end} / its size")
    place.margins(x=0.1)
    loss.set_xlabel("perplexity")
    for ax in (place, loss):
        ax.set_yticks([0, 1], ["TOP", "BOTTOM"])
        ax.set_ylim(1.5, -0.5)
        ax.grid(axis="x", alpha=0.4)
    place.plot([], [], "o", color=PALETTE[1], label="the set")
    place.plot([], [], "|", color=PALETTE[7], label="random heads of its layers (right: those run whole)")
    place.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    loss.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.suptitle(_title(payload, "Removing single heads, beside random heads of the same layers"), fontsize=11)
    return figure


def _draws(ax, row, values):
    ax.plot(values, np.full(len(values), row + 0.15), "|", color=PALETTE[7], ms=12)


def activation_flow(payload):
    """Maxima and medians of the checkpoints, and the followed dim through those of its width."""
    results = payload["results"]
    followed = results["followed"]
    figure, (maxima, place) = _axes(1, 2, size=(13, 4.8), width_ratios=[1.35, 1])
    rows = results["checkpoints"]
    y = np.arange(len(rows))
    maxima.barh(
        y - 0.2, [r["max"] for r in rows], height=0.38, color=PALETTE[0], label="maximum of |value|, all tokens"
    )
    maxima.barh(y + 0.2, [r["median"] for r in rows], height=0.38, color=PALETTE[1], label="median of |value|")
    for i, r in enumerate(rows):
        text = f" {number(r['max'])} (position {r['at']['position']}, index {r['at']['index']})"
        maxima.text(r["max"], i - 0.2, text, va="center", fontsize=8)
    maxima.set_xscale("log")
    maxima.set_xlim(right=max(r["max"] for r in rows) * 1e5)
    maxima.set_yticks(y, [f"{r['label']} ({r['width']})" for r in rows], fontsize=9)
    maxima.invert_yaxis()
    maxima.set_xlabel("|value| (log scale); each maximum may sit at another token")
    maxima.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=2)
    values = followed["values"]
    means = [v["value"]["mean"] for v in values]
    place.barh(range(len(values)), means, color=PALETTE[2])
    for i in range(len(values)):
        inside = abs(means[i]) > 0.6 * max(map(abs, means))
        place.text(
            0 if inside else max(means[i], 0), i, f" {number(means[i], True)}", va="center", fontsize=9,
            color="white" if inside else "black", ha="left" if means[i] >= 0 or not inside else "right",
        )  # fmt: skip
    place.axvline(0, color="black", lw=0.8)
    place.set_yticks(range(len(values)), [v["label"] for v in values], fontsize=9)
    place.invert_yaxis()
    place.xaxis.set_major_formatter(PLAIN)
    place.set_xlabel(f"dim {followed['dim']}, signed, where followed\n(mean of {followed['sequences']} windows)")
    figure.suptitle(_title(payload, f"Through the MLP of layer {results['layer']}"), fontsize=11)
    return figure


def dimension_analysis(payload, top=12):
    """The neurons that make the followed output, how fast they add up, and the largest weights for contrast."""
    results = payload["results"]
    contributions, output = results["contributions"], results["contribution_check"]["output"]
    figure, (bars, cumulative, weights) = _axes(1, 3, size=(14, 4.8))
    _neuron_bars(bars, contributions[:top], "contribution", PALETTE[2])
    bars.set_xlabel(f"activation \u00d7 weight to dim {results['followed']['dim']}")
    bars.set_title("largest contributions", fontsize=11)
    share = np.cumsum([c["contribution"] for c in contributions]) / (output or np.nan)
    cumulative.plot(np.arange(1, len(share) + 1), share, color=PALETTE[2], marker="o", ms=3)
    cumulative.axhline(1, color="black", lw=0.8, ls="--")
    cumulative.set_xscale("log")
    cumulative.set_xlim(0.8, 1.25 * len(share))
    cumulative.set_ylim(bottom=0)
    cumulative.set_xlabel("neurons, largest contribution first (log scale)")
    cumulative.set_ylabel("cumulative share of the output")
    cumulative.set_title(f"90 % of {number(output, True)}: {results['conclusion']['verdict']}", fontsize=11)
    _neuron_bars(weights, results["by_weight"], "weight", PALETTE[7])
    weights.set_yticks(
        range(len(results["by_weight"])),
        [f"{c['neuron']} (rank {c['rank_by_contribution']}, {fraction(c['share'])})" for c in results["by_weight"]],
        fontsize=9,
    )
    weights.set_xlabel("weight alone")
    weights.set_title("contrast: largest weights\n(rank and share by contribution)", fontsize=11)
    figure.suptitle(_title(payload, f"Neurons behind the largest output of MLP {results['layer']}"), fontsize=11)
    return figure


def _neuron_bars(ax, rows, key, color):
    ax.barh(range(len(rows)), [row[key] for row in rows], color=color)
    ax.set_yticks(range(len(rows)), [f"neuron {row['neuron']}" for row in rows], fontsize=9)
    ax.invert_yaxis()
    ax.axvline(0, color="black", lw=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.xaxis.set_major_formatter(PLAIN)


def activation_function_impact(payload):
    """The followed output and the perplexity with the activation function of this layer replaced."""
    results = payload["results"]
    replaced = list(results["replaced"].values())
    figure, (place, loss) = _axes(1, 2, size=(10, 4.4))
    labels = [f["label"] + (" (the model's)" if i == 0 else "") for i, f in enumerate(replaced)]
    for i, f in enumerate(replaced):
        place.bar(i, f["mlp_output"]["mean"], color=PALETTE[i])
        if f["mlp_output"]["ci95"]:
            place.plot([i, i], f["mlp_output"]["ci95"], color="black", lw=1.5)
        loss.bar(i, f["perplexity"]["value"], color=PALETTE[i])
        if f["perplexity"]["ci95"]:
            loss.plot([i, i], f["perplexity"]["ci95"], color="black", lw=1.5)
        for ax, value in ((place, f["mlp_output"]["mean"]), (loss, f["perplexity"]["value"])):
            ax.annotate(
                f" {number(value)}", (i, value), textcoords="offset points", xytext=(6, 3), fontsize=9, ha="left"
            )
    place.set_ylabel(f"MLP output in dim {results['followed']['dim']}, same places (black: 95 %)")
    place.axhline(0, color="black", lw=0.8)
    place.yaxis.set_major_formatter(PLAIN)
    loss.set_ylabel("perplexity (black: 95 %)")
    for ax in (place, loss):
        ax.set_xticks(range(len(labels)), labels)
    figure.suptitle(_title(payload, f"Another activation function in the MLP of layer {results['layer']}"), fontsize=11)
    return figure


def before_after(payload):
    """One layer in 3D before and after the head is removed, on one scale."""
    results = payload["results"]
    before, after = np.abs(results["before"]), np.abs(results["after"])
    top = max(before.max(), after.max())
    here = [entry for entry in results["massive"] if entry["layer"] == results["layer"]]
    dims = _dims_to_label(here, before)
    figure = plt.figure(figsize=(13, 5.4))
    for column, (values, label) in enumerate(
        [(before, "before"), (after, f"after removing head {results['head']} of layer {results['layer']}")], 1
    ):
        ax = figure.add_subplot(1, 2, column, projection="3d", computed_zorder=False)
        _surface(ax, values, results["tokens"], dims, top)
        ax.set_title(label, fontsize=11)
    figure.suptitle(f"{payload['config']['model_name']}, output of layer {results['layer']}")
    figure.subplots_adjust(left=0.0, right=0.95, bottom=0.07, top=0.9, wspace=0.06)
    return figure


def difference(payload, columns=12):
    """Signed change in the head's layer where it is largest, and how the change travels downstream."""
    results = payload["results"]
    delta = np.array(results["after"]) - np.array(results["before"])
    dims = np.sort(np.abs(delta).max(0).argsort()[::-1][:columns])
    limit = float(np.abs(delta).max()) or 1.0
    figure, (local, downstream) = _axes(1, 2, size=(13, 4.8))
    sns.heatmap(
        delta[:, dims],
        ax=local,
        cmap=DIVERGING,
        norm=SymLogNorm(limit / 100, vmin=-limit, vmax=limit),
        xticklabels=dims,
        yticklabels=False,
        cbar_kws={
            "label": "after \u2212 before (symmetric log scale)",
            "ticks": [sign * limit / step for sign, step in ((-1, 1), (-1, 10), (0, 1), (1, 10), (1, 1))],
            "format": FuncFormatter(lambda x, _position: number(x, signed=True)),
        },
    )
    _token_ticks(local.yaxis, results["tokens"])
    local.tick_params(axis="y", rotation=0, labelsize=8)
    local.set_xlabel(f"the {len(dims)} most changed dims of {delta.shape[1]}")
    local.set_title(f"change in the output of layer {results['layer']}", fontsize=11)
    rows = results["downstream"]
    for i, (label, values) in enumerate(
        [
            ("largest |activation| before", [abs(r["largest"]["before"]) for r in rows]),
            (
                "largest |change| anywhere",
                [abs(r["most_changed"]["after"] - r["most_changed"]["before"]) for r in rows],
            ),
            ("|change| at the largest activation", [abs(r["largest"]["after"] - r["largest"]["before"]) for r in rows]),
            ("median |activation| before", [r["median"] for r in rows]),
        ]
    ):
        values = np.where(np.array(values) > 0, values, np.nan)
        size = 8 if i == 1 else 4  # the largest change may lie under the change at the largest activation
        downstream.plot(values, label=label, color=PALETTE[i], marker=MARKERS[i], ms=size, ls=LINES[i])
    downstream.axvline(results["layer"], color="black", lw=0.8, ls="--")
    downstream.text(
        results["layer"], 1.0, " head removed here", transform=downstream.get_xaxis_transform(), va="top", fontsize=8
    )
    downstream.set_yscale("log")
    downstream.set_ylabel("log scale; no point: no change")
    _layer_axis(downstream, len(rows))
    downstream.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    title = f"{payload['config']['model_name']}: head {results['head']} of layer {results['layer']} removed"
    figure.suptitle(title, fontsize=11)
    return figure


SWEEP_RUNS = {
    "alone": "this one off",
    "only": "all others off",
    "only_with_first": "all others but MLP 0 off",
    "from_front": "off up to this one",
    "from_back": "off from this one on",
}


def layer_sweep(payload):
    """Share of the value that is left in each run of every layer, MLPs above, attention below; verdicts on top."""
    results = payload["results"]
    kinds, values = results["kinds"], results["conclusion"]["values"]
    words = ("necessary", "sufficient", "redundant")
    n = len(kinds["mlp"])
    runs = {kind: [run for run in SWEEP_RUNS if any(run in row for row in rows)] for kind, rows in kinds.items()}
    figure, axes = _axes(
        len(kinds), 1, size=(max(7, 3 + 0.42 * n), 6.8), height_ratios=[len(of) for of in runs.values()]
    )
    for ax, (kind, rows) in zip(axes, kinds.items(), strict=True):
        share = np.array(
            [[row[run]["retained"]["mean"] if run in row else np.nan for row in rows] for run in runs[kind]]
        )
        sns.heatmap(
            share,
            ax=ax,
            cmap=SEQUENTIAL,
            vmin=0,
            vmax=1,
            annot=share.round(1) + 0.0 if n <= 40 else False,  # no -0.0
            fmt=".1f",
            annot_kws={"size": 7},
            linewidths=0.5,
            yticklabels=[SWEEP_RUNS[run] for run in runs[kind]],
            cbar_kws={"label": "share of the value left\n(colour ends at 0 and 1)", "extend": "both"},
        )
        ax.tick_params(axis="y", rotation=0)
        ax.set_xlabel(f"layer of the {'MLP' if kind == 'mlp' else 'attention block'}")
        for layer in range(n):
            letters = [w[0].upper() for w in words if [kind, layer] in values[w]]
            letters += [f"{w[0].upper()}?" for w in words[:2] if [w, kind, layer] in values["cannot_tell"]]
            at = {"ha": "center", "va": "bottom", "fontsize": 9, "weight": "bold", "linespacing": 0.9}
            ax.text(layer + 0.5, -0.08, "\n".join(letters), **at)
    place, windows = results["place"], results["windows"]
    figure.suptitle(
        _title(payload, f"Dim {place['dim']} at the end of its plateau (layer {place['plateau'][1]})")
        + f", of which {windows['spiking']['mean']:.0%} have the spike"
        + "\nN necessary, S sufficient, R redundant; ?: the interval holds the threshold",
        fontsize=11,
    )
    return figure


def layer_sweep_cost(payload):
    """Perplexity and sink rate in each run of every layer."""
    results = payload["results"]
    figure, axes = _axes(2, 2, size=(12, 7.4), sharex=True)
    for column, (kind, rows) in zip(axes.T, results["kinds"].items(), strict=True):
        for i, (run, label) in enumerate(SWEEP_RUNS.items()):
            of = [row for row in rows if run in row]
            x = [row["layer"] for row in of]
            style = {"color": PALETTE[i], "marker": MARKERS[i], "ms": 4, "ls": LINES[i % len(LINES)], "label": label}
            column[0].plot(x, [row[run]["perplexity"]["value"] for row in of], **style)
            column[1].plot(x, [row[run]["sink_rate"]["mean"] for row in of], **style)
        baseline = results["baseline"]
        column[0].axhline(baseline["perplexity"]["value"], color="black", lw=0.8, label="baseline")
        column[1].axhline(baseline["sink_rate"]["mean"], color="black", lw=0.8)
        column[0].set_title("MLPs" if kind == "mlp" else "attention blocks", fontsize=11)
        column[0].set_yscale("log")
        column[0].set_ylabel("perplexity (log scale)")
        column[1].set_ylabel("sink rate")
        column[1].set_ylim(-0.02, 1.02)
        for ax in column:
            _layer_axis(ax, len(rows))
            ax.set_xlabel("layer")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=6, loc="outside lower center")
    title = _title(payload, "What the ablations cost")
    figure.suptitle(f"{title}, {results['windows']['whole']} of them run whole", fontsize=11)
    return figure


def ledger(payload):
    """What attention and MLP of each layer write into the place, signed, under the block output that they add up to."""
    results = payload["results"]
    layers, values = results["layers"], results["conclusion"]["values"]
    before = sum(write["value"] for write in results["writes"] if write["layer"] is None)
    attention = [layer["heads"]["mean"] + (layer["attention_bias"] or {"mean": 0})["mean"] for layer in layers]
    mlp = [layer["mlp"]["mean"] for layer in layers]
    start = -1.5  # where the embedding stands
    figure, ax = _axes(size=(max(8, 3 + 0.25 * len(layers)), 5.4))
    ax.use_sticky_edges = False
    if values["plateau"]:
        first, last = values["plateau"]
        ax.axvspan(first - 0.5, last + 0.5, color=PALETTE[7], alpha=0.15, lw=0, label="plateau")
    ax.bar(start, before, color=PALETTE[4], label="embedding")
    ax.bar(range(len(layers)), attention, color=PALETTE[1], label="attention (heads and bias)")
    on_top = np.where(np.sign(attention) == np.sign(mlp), attention, 0)
    ax.bar(range(len(layers)), mlp, bottom=on_top, color=PALETTE[0], label="MLP")
    _curve(ax, results["residual"], 2, "block output (band: 95 % interval)")
    for role, marker, writes in (("birth", "*", [values["birth"]]), ("eraser", "v", values["erasers"])):
        writes = [write for write in writes if write]
        if writes:
            named = [f"{write['name']} ({number(write['value'], True)})" for write in writes[:4]]
            label = f"{role}: {', '.join(named)}" + (f" and {len(writes) - 4} more" if writes[4:] else "")
            layer = [start if write["layer"] is None else write["layer"] for write in writes]
            height = [write["value"] for write in writes]
            ax.scatter(layer, height, marker=marker, s=90, color=PALETTE[3], edgecolor="white", zorder=4, label=label)
    ax.axhline(0, color="black", lw=0.8)
    _layer_axis(ax, len(layers))
    ticks = range(0, len(layers), 1 + len(layers) // 16)
    ax.set_xticks([start, *ticks], ["emb.", *ticks])
    ax.set_xlim(start - 0.6, len(layers) - 0.4)
    ax.set_ylabel(f"dim {results['place']['dim']} at the place, signed")
    ax.yaxis.set_major_formatter(PLAIN)
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    ax.set_title(
        _title(payload, f"Who writes into dim {results['place']['dim']} ({results['condition']['label']})"), fontsize=11
    )
    return figure


def ledger_writes(payload, annotated=0.01):
    """Heatmap layers x (heads, attention bias, MLP) of the signed writes, with numbers from 1 % of the peak on."""
    results = payload["results"]
    writes = [write for write in results["writes"] if write["layer"] is not None]
    components = list(dict.fromkeys(write["component"] for write in writes))
    values = np.zeros((len(results["layers"]), len(components)))
    for write in writes:
        values[write["layer"], components.index(write["component"])] = write["value"]
    limit = float(np.abs(values).max()) or 1.0
    least = annotated * abs(results["conclusion"]["values"]["peak"]["value"])
    figure, ax = _axes(size=(max(6.0, 2.8 + 0.55 * len(components)), max(4.0, 1.8 + 0.27 * len(values))))
    sns.heatmap(
        values,
        ax=ax,
        cmap=DIVERGING,
        norm=SymLogNorm(limit / 1000, vmin=-limit, vmax=limit),
        annot=np.array([[number(v, True) if abs(v) >= least else "" for v in row] for row in values]),
        fmt="",
        annot_kws={"size": 7},
        xticklabels=[name.removeprefix("head ").replace("attention ", "") for name in components],
        cbar_kws={
            "label": f"write into dim {results['place']['dim']} (symmetric log scale)",
            "ticks": [
                sign * limit / step for sign, step in ((-1, 1), (-1, 10), (-1, 100), (0, 1), (1, 100), (1, 10), (1, 1))
            ],
            "format": FuncFormatter(lambda x, _position: number(x, signed=True)),
        },
    )
    for column in (index for index, name in enumerate(components) if not name.startswith("head")):
        ax.axvline(column, color="black", lw=1)
    ax.set_xlabel("head, attention bias, MLP")
    ax.set_ylabel("layer")
    ax.tick_params(axis="y", rotation=0)
    ax.set_title(
        _title(payload, f"Writes into dim {results['place']['dim']} ({results['condition']['label']})"), fontsize=11
    )
    return figure


def vocabulary_census(payload, named=12):
    """Histogram of every token as the first one; the fewer of those that spike and those that do not are named."""
    results = payload["results"]
    census, spike = results["census"], results["spike"]
    values = np.array([v for v in census["values"] if v is not None])
    few = "failing" if census["n_failing"] <= census["n_spiking"] else "spiking"
    color = PALETTE[3] if few == "failing" else PALETTE[2]
    figure, ax = _axes(size=(10.5, 4.8))
    ax.hist(values, bins=100, color=PALETTE[0])
    ax.set_yscale("log")
    ax.axvline(spike["sign"] * spike["threshold"], color="black", ls="--", lw=1, label="threshold of a spike")
    if census[few]:
        words = "do not spike" if few == "failing" else "spike"
        shown = [token["value"] for token in census[few]]
        label = f"{census[f'n_{few}']:,} tokens that {words}"
        ax.plot(shown, np.full(len(shown), 0.75), "v", color=color, ms=6, label=label)
        names = [f"'{_short(t['token'])}'  {number(t['value'], True)}" for t in census[few][:named]]
        more = census[f"n_{few}"] - len(names)
        names += [f"and {more:,} more"] if more else []
        ax.text(1.02, 1, "\n".join([label, "", *names]), transform=ax.transAxes, va="top", fontsize=9)
    ax.set_ylim(bottom=0.5)
    ax.xaxis.set_major_formatter(PLAIN)
    ax.set_xlabel(f"dim {results['place']['dim']} after layer {results['layer']}, signed, of one token alone")
    ax.set_ylabel("tokens of the vocabulary (log scale)")
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    ax.set_title(f"Each of {census['tokens']:,} tokens as the first one\n{payload['config']['model_name']}")
    return figure


def triggers(payload):
    """The followed value of tokens behind text, behind themselves, behind BOS, and with position embeddings swapped."""
    results = payload["results"]
    figure, axes = _axes(2, 2, size=(12, 8.4), sharey=True)
    (moved, repeated), (bos, swapped) = axes
    rows = results["elsewhere"]
    ticks = [r["position"] for r in rows]
    _summaries(moved, ticks, [("behind p tokens of text", [r["moved"] for r in rows])])
    shares = {name: of["cell"] for name, of in results["conclusion"]["values"]["measured"].items()}

    def title(ax, text, *names):
        parts = [f"{shares[name]['mean']:.1%} spike" for name in names if shares[name]]
        ax.set_title(f"{text}: {', '.join(parts)}" if parts else text, fontsize=11)

    title(moved, "behind text", "moved")
    _summaries(repeated, ticks, [("behind itself", [r["repeated"] for r in rows])])
    title(repeated, "behind itself, p times", "repeated")
    of = results["bos"]
    if of and of["behind"]:
        lone = {"value": {"mean": of["value"], "ci95": None}}
        names = ["token alone, at 0", "BOS alone, at 0", "token behind BOS, at 1"]
        _summaries(bos, names, [("value", [of["first"], lone, of["behind"]])], line="")
    else:
        text = "no other token to put behind BOS" if of else "no BOS token"
        bos.text(0.5, 0.5, text, transform=bos.transAxes, ha="center")
        bos.set_xticks([])
    title(bos, "behind BOS", "behind_bos")
    if "there" in rows[0]:
        there, alone = ([r[key] for r in rows] for key in ("there", "at_0"))
        _summaries(swapped, ticks, [("behind text at p, embedding of 0", there), ("alone at 0, embedding of p", alone)])
        swapped.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    else:
        text = "positions act in attention:\nnothing to swap"
        swapped.text(0.5, 0.5, text, transform=swapped.transAxes, ha="center")
        swapped.set_xticks([])
    title(swapped, "position embeddings of 0 and p swapped", "there", "at_0")
    for ax in axes.flat:
        if ax in (moved, repeated) or (ax is swapped and "there" in rows[0]):
            ax.set_xlabel("p")
        threshold = results["spike"]["sign"] * results["spike"]["threshold"]
        ordinary = ax.axhline(results["ordinary"]["value"]["mean"], color="black", lw=1)
        spike = ax.axhline(threshold, color="black", lw=1, ls="--")
        ax.yaxis.set_major_formatter(PLAIN)
    lines = {"windows as they are": ordinary, "threshold of a spike": spike}
    figure.legend(lines.values(), lines, frameon=False, fontsize=9, ncols=2, loc="outside lower center")
    for ax in axes[:, 0]:
        ax.set_ylabel(f"dim {results['place']['dim']} after layer {results['layer']}, signed\n(mean, 95 % interval)")
    tried = results["tried"]
    cause = f"Cause of the spike: {results['conclusion']['verdict']}\n{tried['tokens']} {tried['of']}"
    figure.suptitle(_title(payload, cause), fontsize=11)
    return figure


def _summaries(ax, ticks, series, line=None):
    """Means with their intervals over categories; series: [(label, [{"value": average}])]."""
    for i, (label, rows) in enumerate(series):
        x = np.arange(len(rows)) + 0.12 * (i - (len(series) - 1) / 2)
        values = [row["value"] for row in rows]
        means = [v["mean"] for v in values]
        ax.plot(x, means, color=PALETTE[i], marker=MARKERS[i], ms=6, ls=LINES[i] if line is None else line, label=label)
        for at, value in zip(x, values, strict=True):
            if value["ci95"]:
                ax.plot([at, at], value["ci95"], color=PALETTE[i], lw=3, alpha=0.5)
    ax.set_xticks(range(len(ticks)), ticks)
    ax.margins(x=0.08)


def neuron_sets(payload):
    """How fast the neurons add up, and the place with the smallest set alone and removed, beside random sets."""
    results = payload["results"]
    size, dim, wanted = len(results["minimal_set"]), results["place"]["dim"], results["conclusion"]["values"]["share"]
    figure, (curve, place) = _axes(1, 2, size=(13, 4.8), width_ratios=[1, 1.25])
    share = np.array(results["cumulative"], dtype=float)
    curve.plot(np.arange(1, len(share) + 1), share, color=PALETTE[2], marker="o", ms=3, label="cumulative share")
    curve.axhline(wanted, color="black", lw=0.8, ls="--", label=f"{wanted:.0%} of the output")
    if size:
        curve.axvline(size, color=PALETTE[1], lw=1.5, ls=":", label=f"smallest set: {size} of {results['width']}")
    curve.set_xscale("log")
    curve.set_xlim(0.8, 1.25 * len(share))
    curve.xaxis.set_major_formatter(PLAIN)
    curve.set_ylim(bottom=min(0, np.nanmin(share, initial=0)))
    curve.set_xlabel("neurons, largest contribution first (log scale)")
    curve.set_ylabel("share of the down projection's output")
    curve.legend(frameon=False, fontsize=9, loc="lower right")
    curve.set_title(f"activation \u00d7 weight to dim {dim}", fontsize=11)

    labels = []
    for row, (name, run) in enumerate(results["runs"].items()):
        value, at = run["value"], max(0, 2 * row - 1)
        labels.append((at, run["label"]))
        place.barh(at, value["mean"], height=0.6, color=PALETTE[7] if name == "baseline" else PALETTE[row - 1])
        if value["ci95"]:
            place.plot(value["ci95"], [at, at], color="black", lw=1.5)
        text = number(value["mean"], True) + (f" ({100 * run['share']['mean']:.1f} %)" if run["share"] else "")
        _beside(place, max(0, value["mean"], *(value["ci95"] or [])), at, text)
        draws = [draw[name]["value"]["mean"] for draw in results["null"]["draws"]] if name != "baseline" else []
        if draws:
            labels.append((at + 1, f"{run['label'].replace('the set', 'random')} ({len(draws)} next in activity)"))
            place.plot(draws, np.full(len(draws), at + 1), "x", color="black", ms=6)
            _beside(place, max(0, *draws), at + 1, f"{number(min(draws), True)} to {number(max(draws), True)}")
    place.axvline(0, color="black", lw=0.8)
    place.set_yticks(*zip(*labels, strict=True), fontsize=9)
    place.invert_yaxis()
    low, high = place.get_xlim()
    place.set_xlim(right=high + 0.4 * (high - low))  # room for the numbers
    place.xaxis.set_major_locator(MaxNLocator(nbins=6))
    place.xaxis.set_major_formatter(PLAIN)
    place.set_xlabel(f"output of layer {results['layer']} in dim {dim}, signed (black line: 95 % interval)")
    place.set_title("the same places in each run (share of the baseline's value)", fontsize=11)
    title = f"MLP {results['layer']}, dim {dim}: {results['conclusion']['verdict']}"
    figure.suptitle(_title(payload, title), fontsize=11)
    return figure


def _beside(ax, x, y, text):
    ax.annotate(text, (x, y), (7, 0), textcoords="offset points", va="center", fontsize=9)


def neurons_read(payload, at_most=3):
    """The input dims that add up to the pre-activations of the first neurons of the smallest set."""
    results = payload["results"]
    rows = results["reads"]["neurons"][:at_most]
    roles = list(rows[0]["projections"]) if rows else ["up"]
    size = (5.6 * len(roles) + 0.8, 1.2 + 2.7 * max(1, len(rows)))
    figure, axes = _axes(max(1, len(rows)), len(roles), size=size, squeeze=False)
    for line, neuron in zip(axes, rows, strict=False):
        for ax, (role, of) in zip(line, neuron["projections"].items(), strict=True):
            inputs = of["inputs"]
            ax.barh(range(len(inputs)), [i["contribution"] for i in inputs], color=PALETTE[roles.index(role)])
            labels = [f"dim {i['dim']} = {number(i['residual'], True)}" for i in inputs]
            ax.set_yticks(range(len(inputs)), labels, fontsize=8)
            ax.invert_yaxis()
            ax.axvline(0, color="black", lw=0.8)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
            ax.xaxis.set_major_formatter(PLAIN)
            half = f"half of it in {of['dims_to_half'] or '-'} of {results['reads']['dims']} dims"
            value = number(of["pre_activation"], True)
            ax.set_title(f"neuron {neuron['neuron']}, {role}: {value}, {half}", fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("normed value \u00d7 weight")
    if not rows:
        axes[0][0].text(0.5, 0.5, "no set of neurons", ha="center")
        axes[0][0].set_axis_off()
    norm = results["reads"]["norm"] or "no norm"
    title = f"What the first neurons of MLP {results['layer']} read (dim = value before {norm})"
    figure.suptitle(_title(payload, title), fontsize=11)
    return figure


def interventions(payload):
    """Loss and sink rate without the value (its writer off) and with it set to something else, beside the baseline."""
    results = payload["results"]
    conditions = results["conditions"]
    epsilon = nearest_epsilon(results)
    rows, drawn = _intervention_rows(conditions)
    figure, (loss, sinks) = _axes(1, 2, size=(13, 2.6 + 0.42 * max(2, len(rows))), sharey=True)
    labels = ("writer off", f"set at layer {results['layer']} alone", f"set at layer {results['layer']} and all later")
    for ax, of, signed in (
        (loss, lambda c: c["loss_change"], True),
        (sinks, lambda c: c["sink_rates"][epsilon], False),
    ):
        for style, label in enumerate(labels):
            color = PALETTE[(2, 0, 1)[style]]
            for row, condition in drawn[style]:
                average = of(condition)
                value, ci95 = average["mean"], average["ci95"]
                if ci95:
                    ax.plot(ci95, [row, row], color=color, lw=2)
                ax.plot(value, row, "Dos"[style], color=color, ms=6, label=label)
                label = None
                right = (max(value, ci95[1]) if ci95 else value, row)
                text = number(value, signed)
                ax.annotate(text, right, textcoords="offset points", xytext=(7, 0), va="center", fontsize=8)
        ax.grid(axis="x", alpha=0.4)
    loss.axvline(0, color="black", lw=0.8, ls="--", label="baseline")
    loss.axvline(COST, color="black", lw=0.8, ls=":", label=f"costs: above {COST:g}")
    loss.set_xscale("symlog", linthresh=0.1)
    loss.xaxis.set_major_formatter(PLAIN)
    low, high = loss.get_xlim()
    loss.set_xlim(low, max(1, 6 * high))  # room for the numbers
    loss.set_xlabel("change of the loss, nats a token (linear up to 0.1, then log)")
    baseline = conditions["baseline"]["sink_rates"][epsilon]
    sinks.axvline(baseline["mean"], color="black", lw=0.8, ls="--")
    if baseline["ci95"]:
        sinks.axvspan(*baseline["ci95"], color="black", alpha=0.08, lw=0)
    sinks.set_xlim(-0.03, 1.2)
    sinks.set_xlabel(f"sink rate at epsilon {epsilon} (baseline {number(baseline['mean'])})")
    loss.set_yticks(range(len(rows)), rows, fontsize=9)
    loss.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    figure.legend(*loss.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=5)
    for ax in (loss, sinks):
        if not rows:
            ax.text(0.5, 0.6, "no massive activation to change", ha="center", transform=ax.transAxes)
    verdict = results["conclusion"]["verdict"]
    title = f"Without the massive activations of layer {results['layer']}: {verdict} (line, band: 95 % interval)"
    figure.suptitle(_measured_title(payload, title), fontsize=11)
    return figure


def _intervention_rows(conditions):
    """(labels of the rows, [[(row, condition)] of what is off, set at the layer alone, set onward])."""
    off, alone, onward = (
        [c for c in conditions.values() if "set_to" in c and _kind(c) == kind] for kind in ("off", "layer", "onward")
    )
    values = list(dict.fromkeys(c["set_to"] for c in (*alone, *onward)))
    at = {value: len(off) + i for i, value in enumerate(values)}
    drawn = [
        [*enumerate(off)],
        [(at[c["set_to"]] - 0.17, c) for c in alone],
        [(at[c["set_to"]] + 0.17, c) for c in onward],
    ]
    return [*(c["label"] for c in off), *values], drawn


def _kind(condition):
    """off, layer or onward."""
    return condition["where"] if condition["where"] in ("layer", "onward") else "off"


def interventions_over_layers(payload):
    """The signed value at the followed place, by layer, in the baseline and in each intervention."""
    results = payload["results"]
    conditions, place = results["conditions"], results["place"]
    changed = [c for c in conditions.values() if "set_to" in c]
    kinds = [kind for kind in ("off", "layer", "onward") if any(_kind(c) == kind for c in changed)]
    figure, axes = _axes(1, max(1, len(kinds)), size=(6.2 * max(1, len(kinds)), 5.4), squeeze=False, sharey=True)
    for ax, kind in zip(axes[0], kinds or [None], strict=True):
        for i, condition in enumerate([conditions["baseline"], *(c for c in changed if _kind(c) == kind)]):
            name = condition["label"] if kind == "off" else condition.get("set_to", "baseline")
            _curve(ax, condition["values"], i, f"{name} (perplexity {number(condition['perplexity']['value'])})")
        ax.axvline(results["layer"], color="black", lw=0.8, ls="--")
        ax.axhline(0, color="black", lw=0.8)
        ax.yaxis.set_major_formatter(PLAIN)
        _layer_axis(ax, len(place["values"]))
        titles = {
            "off": "what writes it at layer {} off",
            "layer": "set at layer {} alone",
            "onward": "set from layer {} on",
            None: "nothing massive at layer {}",
        }
        ax.set_title(titles[kind].format(results["layer"]) + " (dashed line)", fontsize=11)
        columns = 1 if kind == "off" else 2
        ax.legend(frameon=False, fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    axes[0][0].set_ylabel(f"dim {place['dim']}, signed (band: 95 % interval)")
    figure.suptitle(_measured_title(payload, "The value at the followed place: does it come back?"), fontsize=11)
    return figure


def _measured_title(payload, text):
    n, seqlen = payload["results"]["sites"]["windows"], payload["provenance"]["data"]["seqlen"]
    return f"{text}\n{payload['config']['model_name']}, {n} measured window{'s' * (n > 1)} of {seqlen} tokens"


def attention_logits(payload, columns=4):
    """Logits of one layer, queries x keys: the mean over heads with the tokens, and every head in small."""
    results = payload["results"]
    heads = np.array([_triangle(head) for head in results["logits"]])
    rows = -(-len(heads) // columns)
    figure = plt.figure(figsize=(13, max(5.0, 1.7 * rows + 0.8)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    ax = left.subplots()
    average = _triangle(results["mean"])
    annotate = {"annot": True, "fmt": ".1f", "annot_kws": {"size": 7}} if len(average) <= 16 else {}
    limit = np.nanmax(np.abs(average)) or 1.0
    sns.heatmap(
        average,
        ax=ax,
        cmap=DIVERGING,
        vmin=-limit,
        vmax=limit,
        xticklabels=False,
        yticklabels=False,
        cbar_kws={"label": "attention logit", "shrink": 0.7},
        square=True,
        **annotate,
    )
    for axis in (ax.xaxis, ax.yaxis):
        _token_ticks(axis, results["tokens"])
    ax.tick_params(axis="x", rotation=90, labelsize=8)
    ax.tick_params(axis="y", rotation=0, labelsize=8)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.set_title(f"mean over {len(heads)} heads", fontsize=11)
    limit = np.nanmax(np.abs(heads)) or 1.0
    small = right.subplots(rows, columns, squeeze=False)
    for head, of in enumerate(small.flat):
        of.set_axis_off()
        if head < len(heads):
            image = of.imshow(heads[head], cmap=DIVERGING, vmin=-limit, vmax=limit)
            of.set_title(f"head {head}", fontsize=9)
    right.colorbar(image, ax=small, label="attention logit, one scale for all heads", shrink=0.7)
    figure.suptitle(
        f"{payload['config']['model_name']}, layer {results['layer']}: attention logits before softmax "
        "(blank: not visible)",
        fontsize=11,
    )
    return figure


def _triangle(rows):
    """(seq, seq) array of lists of 1, 2, 3 ... numbers; nan elsewhere."""
    square = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        square[i, : len(row)] = row  # None becomes nan
    return square


def head_sweep_place(payload):
    """Heatmaps layers x heads: change of the value at the place, heads zero and at their mean."""
    results = payload["results"]
    keys = [key for key in results["shown"] if key in ("birth", "end", "last")]
    place = results["place"]
    figure, axes = _head_panels(results, len(keys) * 2)
    _head_changes(figure, axes, results, keys, "change of the value,\nnegative: smaller spike", place["sign"])
    through = results["through_scores"] and "through attention scores: impossible, position 0 sees only itself"
    title = f"Single heads removed: dim {place['dim']} at its place" + (f"\n{through}" if through else "")
    figure.suptitle(_title(payload, title), fontsize=11)
    return figure


def head_sweep_model(payload):
    """Heatmaps layers x heads: change of the sink rate and of the loss, heads zero."""
    results = payload["results"]
    figure, axes = _head_panels(results, 2)
    _head_changes(figure, axes[:1], results, ["sink_rate"], "change of the sink rate")
    _head_changes(figure, axes[1:], results, ["loss"], "change of the loss (nats a token)")
    title = f"Single heads removed: sink rate and loss {_in_windows(results['baseline']['loss'])}"
    figure.suptitle(_title(payload, title), fontsize=11)
    return figure


def _in_windows(average):
    """The title has the number of all windows."""
    return f"in {average['n']} of the windows"


def _head_panels(results, n):
    n_layers, n_heads = (max(head[key] for head in results["heads"]) + 1 for key in ("layer", "head"))
    size = (2.2 + n * max(1.9, 0.24 * n_heads), 2.6 + 0.17 * n_layers)
    figure, axes = _axes(1, n, size=size, sharey=True)
    named = Line2D([], [], color="black", ls="", **NAMED, label="named by the rule")
    figure.legend(
        handles=[
            Patch(facecolor="0.9", edgecolor="0.5", hatch="////", label="impossible by causality, not run"),
            named,
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    axes[0].set_ylabel("layer of the head")
    return figure, axes


def _head_changes(figure, axes, results, keys, label, sign=1):
    """One panel a key and a kind of removal in which it is measured, on one symmetric scale; `sign` multiplies."""
    shape = [max(head[key] for head in results["heads"]) + 1 for key in ("layer", "head")]
    panels = [(key, kind) for key in keys for kind in ("zero", "mean") if key in results["heads"][0][kind]]
    values = np.full((len(panels), *shape), np.nan)
    for i, (key, kind) in enumerate(panels):
        for head in results["heads"]:
            if head[kind][key]:
                values[i, head["layer"], head["head"]] = sign * head[kind][key]["mean"]
    limit = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    norm = SymLogNorm(limit / 1000, vmin=-limit, vmax=limit)
    for ax, (key, kind), of in zip(axes, panels, values, strict=True):
        ax.patch.set(facecolor="0.9", edgecolor="0.5", hatch="////")
        image = ax.imshow(of, cmap=DIVERGING, norm=norm, aspect="auto", interpolation="nearest")
        for layer, head in _heads_named(results["conclusion"]["values"], key, kind):
            ax.plot(head, layer, color="black", **NAMED)
        effect = results["effects"][key]["label"].split(" (")[0]
        ax.set_title(f"{effect},\n{'zero' if kind == 'zero' else 'its mean'}", fontsize=9)
        ax.set_xlabel("head")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=15, integer=True))
    ticks = [side * limit / step for side, step in ((-1, 1), (-1, 10), (-1, 100), (0, 1), (1, 100), (1, 10), (1, 1))]
    signed = FuncFormatter(lambda x, _position: number(x, signed=True))
    bar = figure.colorbar(image, ax=list(axes), ticks=ticks, format=signed, label=f"{label}\n(symmetric log scale)")
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8)


def _heads_named(values, key, kind):
    """[(layer, head)] that the verdict names for this effect; of the loss with the head at zero only."""
    if (key, kind) == ("loss", "zero"):
        return values["costs"] + values["gains"]
    return [(layer, head) for layer, head, _does, of in values["moves"][kind] if of == key]


def head_sweep_cumulative(payload):
    """Heads removed together in three orders: value at the place, sink rate, perplexity."""
    results = payload["results"]
    cumulative, baseline = results["cumulative"], results["baseline"]
    draws = [of["steps"] for name, of in cumulative.items() if name.startswith("random")]
    removed = [step["removed"] for step in cumulative["score"]["steps"]]
    figure, axes = _axes(1, 3, size=(14, 4.8))
    place = f"dim {results['place']['dim']}: {results['effects']['end']['label']}"
    for ax, key, label in zip(
        axes, ("end", "sink_rate", "perplexity"), (place, "sink rate", "perplexity (log scale)"), strict=True
    ):
        mean = "value" if key == "perplexity" else "mean"
        for i, (order, name) in enumerate((("score", "by attention score"), ("write", "by |direct write|"))):
            steps = [step[key] for step in cumulative[order]["steps"]]
            ax.plot(removed, [s[mean] for s in steps], label=name, color=PALETTE[i], marker=MARKERS[i], ls=LINES[i])
            if steps[0]["ci95"]:
                low, high = np.array([s["ci95"] for s in steps]).T
                ax.fill_between(removed, low, high, color=PALETTE[i], alpha=0.2, linewidth=0)
        for i, steps in enumerate(draws):
            values = [step[key][mean] for step in steps]
            ax.plot(removed, values, color=PALETTE[7], lw=1, label="random, layers as by score" if i == 0 else None)
        ax.axhline(baseline[key][mean], color="black", lw=0.8, ls="--", label="all heads on")
        ax.set_xscale("log", base=2)
        ax.set_xticks(removed, [n if n == removed[-1] or 1.4 * n < removed[-1] else "" for n in removed])
        ax.minorticks_off()
        ax.set_xlabel("heads removed (log scale)")
        ax.set_ylabel(label)
        ax.set_title(_in_windows(baseline[key]), fontsize=9)
        ax.grid(axis="y", alpha=0.4)
    axes[2].set_yscale("log")
    for ax in (axes[0], axes[2]):
        ax.yaxis.set_major_formatter(PLAIN)
    axes[1].set_ylim(-0.03, 1.03)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(_title(payload, "Heads removed together (bands: 95 % intervals)"), fontsize=11)
    return figure


def controls(payload):
    """Share of the planted models, by kind and by what is diagnosed, in which the diagnosis is the truth."""
    results = payload["results"]
    right, total = {}, {}
    for model in results["models"]:
        kind = f"{model['truth']['architecture']}  {model['truth']['kind']}"
        total[kind] = total.get(kind, 0) + 1
        row = right.setdefault(kind, np.zeros(len(results["fields"]), dtype=int))
        row += [name not in model["misses"] for name in results["fields"]]
    share = np.array([right[kind] / total[kind] for kind in total])
    text = np.array([[f"{n}/{total[kind]}" for n in right[kind]] for kind in total])
    figure, ax = _axes(size=(3.5 + 0.5 * len(results["fields"]), 2.4 + 0.26 * len(total)))
    sns.heatmap(
        share,
        ax=ax,
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


def benchmark(payload):
    """Time and peak memory of every entry of a benchmark, one row each; colours are tools."""
    results, config = payload["results"], payload["config"]
    rows = [row for row in results["entries"] if not row["error"]]
    tools = list(dict.fromkeys(row["tool"] for row in rows))
    colors = [PALETTE[tools.index(row["tool"])] for row in rows]
    labels = [f"{row['label']}\n{row['tool']}: {row['gives']}" for row in rows]
    at = np.arange(len(rows))
    figure, axes = _axes(1, 2, size=(12, 1.8 + 0.48 * len(rows)), sharey=True)
    ratios = np.array([[row["ratio"][k] if row["ratio"] else np.nan for k in ("median", "min", "max")] for row in rows])
    axes[0].barh(at, ratios[:, 0], color=colors)
    axes[0].hlines(at, ratios[:, 1], ratios[:, 2], color="black", lw=1)
    axes[0].axvline(1, color="black", lw=0.8, ls="--")
    axes[0].set_xlabel("time / bare forward's (line: min to max)")
    axes[1].barh(at, [row["peak_mib"] for row in rows], color=colors)
    axes[1].set_xlabel("peak memory of the process (MiB)")
    times = [f"{ratio:.3g} x" if np.isfinite(ratio) else "not timed" for ratio in ratios[:, 0]]
    texts = (times, [f"{row['peak_mib']:,.0f}" for row in rows])
    on_white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    style = {"textcoords": "offset points", "va": "center", "fontsize": 9, "bbox": on_white}
    for ax, values, ends in zip(axes, texts, (ratios[:, 2], [row["peak_mib"] for row in rows]), strict=True):
        for y, text, x in zip(at, values, np.nan_to_num(ends), strict=True):
            ax.annotate(text, (x, y), xytext=(4, 0), **style)
        ax.set_xlim(0, 1.2 * np.nanmax(ends))
    axes[0].set_yticks(at, labels, fontsize=9)
    axes[0].invert_yaxis()
    axes[0].margins(y=0.02)
    title = _title(payload, f"The cost of measuring ({config['rounds']} rounds, {config['threads']} threads)")
    figure.suptitle(title, fontsize=11)
    return figure


def _token_ticks(axis, tokens, at_most=32):
    """Every token of a heatmap's axis, or every second, third ... where they are many."""
    step = -(-len(tokens) // at_most)
    axis.set_ticks(np.arange(len(tokens))[::step] + 0.5, [_short(token) for token in tokens[::step]])


def _short(token, longest=20):
    return token if len(token) <= longest else f"{token[: longest // 2]}\u2026{token[-longest // 2 :]}"
