"""Claims about layers: how large, where from, where to."""

from math import ceil

from lib.claims.cells import TOGETHER, all_of, all_within, in_parts_of, largest_of, peak_size, together, up_to
from lib.claims.judging import Judged, claim
from lib.claims.measured import CannotTellError, Measured, documents
from lib.core import evidence
from lib.core.definitions import DROPS, EARLY, NEARLY_ALL, RATIOS, RELATIVE
from lib.core.evidence import Cell, Test, within
from lib.core.stats import binomial_interval


@claim(
    "size",
    "The largest values are 300 to 3,000 times the median (GPT-2)",
    f"the ratio of top-1 to the median lies between {RATIOS[0]:,.0f} and {RATIOS[1]:,.0f} in every layer where a value "
    f"is massive, which means more than {RELATIVE:,.0f} times the median already: only the upper bound is evidence; "
    f"intervals {TOGETHER}",
)
def size(measured: Measured) -> Judged:
    layerwise = measured.layerwise.results
    massive = {entry.layer for entry in layerwise.massive}
    layers = {layer.layer: layer.ratio for layer in layerwise.layers if layer.layer in massive}
    told = {layer: ratio for layer, ratio in layers.items() if ratio is not None}
    if not layers:
        raise CannotTellError("nothing is massive in this model")
    if len(told) < len(layers):
        raise CannotTellError(f"in layer {min(layers.keys() - told.keys())} a median is 0: there is no ratio to it")
    ratios = together(told, documents(measured.layerwise))
    means = {layer: cell.mean for layer, cell in ratios.items()}
    lowest, highest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    values = {f"lowest ratio, layer {lowest}": ratios[lowest], f"highest, layer {highest}": ratios[highest]}
    return all_within("ratio, layer", ratios, RATIOS), values


@claim(
    "phases",
    "They emerge in an early layer, stay on a plateau, and drop in the last layer (GPT-2: layers 2, 5 to 10, 11)",
    f"the mean value at the followed place is above {DROPS} of the peak's in some layer of the first quarter, and "
    f"again half of the layers after the plateau's begin or later; after the last block it lies within {DROPS} of it",
)
def phases(measured: Measured) -> Judged:
    place = measured.place
    n, (first, end) = len(place.values), place.plateau
    peak = place.values[place.peak_layer].mean
    sizes = {layer: in_parts_of(peak, cell) for layer, cell in enumerate(place.values)}
    late = {layer: cell for layer, cell in sizes.items() if layer + 1 >= first + n / 2}
    tests = within("last layer, in parts of the peak", sizes[n - 1], up_to(DROPS))
    for when, part in (("early", {layer: sizes[layer] for layer in range(ceil(n * EARLY))}), ("late", late)):
        cells = together(part, documents(measured.ledger)) or {-1: evidence.exact(0.0)}
        tests.append(
            Test(f"largest of the {when} layers, in parts of the peak", cells[largest_of(cells)], "above", DROPS)
        )
    values = {
        "layers": n,
        "plateau from": first,
        "to": end,
        "peak": peak_size(place),
        "last layer": place.values[-1],
    }
    return tests, values


@claim(
    "11",
    "The last layer drops sharply (GPT-2: layer 11), in the block's output before the final norm",
    f"at the place, the last block's output is within {DROPS} of the one before it (paired)",
)
def last_layer_drops(measured: Measured) -> Judged:
    drop = measured.ledger.results.drop
    if drop is None:
        raise CannotTellError("there is nothing to drop")
    *_layers, before, last = measured.place.values
    names = ", ".join(write.name for write in measured.ledger.conclusion.values.erasers) or "none"
    values = {"one before": before, "last": last, "ratio": drop, "erasers": names}
    return within("last block's output over the one before", drop, up_to(DROPS)), values


@claim(
    "12",
    "The second largest value is one fixed place too (GPT-2: dim 138)",
    "in every layer of the plateau, top-2 sits at the same position and dim in more than "
    f"{NEARLY_ALL:.0%} of the windows (binomial intervals over documents, at Bonferroni's level for these layers)",
)
def second_is_one_place(measured: Measured) -> Judged:
    first, end = measured.place.plateau
    layers = measured.layerwise.results.layers[first : end + 1]
    second = {layer.layer: layer.at[1] for layer in layers}
    places = {(place.position, place.dim) for place in second.values()}
    windows, n = layers[0].top1.n, documents(measured.layerwise)
    shares = {layer: place.sequences / windows for layer, place in second.items()}
    cells = {layer: Cell(share, binomial_interval(share * n, n, len(second))) for layer, share in shares.items()}
    tests = [
        Test("different places", evidence.exact(len(places)), "below", 1.5),
        *all_of("share of windows, layer", cells, "above", NEARLY_ALL),
    ]
    reach = binomial_interval(n, n, len(second))[0]
    if evidence.every(tests) is None and reach <= NEARLY_ALL:
        raise CannotTellError(
            f"these documents cannot show {NEARLY_ALL}: were it so in all windows of all {len(second)} layers, the "
            f"interval of {n:g} documents would begin at {reach:.3f}"
        )
    lowest = min(shares, key=shares.__getitem__)
    named = ", ".join(f"dim {dim} at {position}" for position, dim in sorted(places))
    return tests, {"places": named, f"lowest share of windows (layer {lowest})": cells[lowest]}
