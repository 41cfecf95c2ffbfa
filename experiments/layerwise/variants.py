"""What else could be called massive: Sun et al.'s test with another measure of what is ordinary, or asking for more."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from experiments.layerwise.results import DEVIATION, FEW_DIMS, LASTING_DIMS, SUN, TOKEN, FoundBy, Where
from lib.core.definitions import LASTING, MOST_DIMS, RELATIVE
from lib.core.massive import LayerStatistics, is_massive, largest_of, medians, rows_of
from lib.core.on_device import Taken
from lib.core.results import MassiveActivation
from lib.model.arch import Architecture
from lib.run import processes


class Variants(LayerStatistics):
    """LayerStatistics that find, in the same pass, what passes the test with each of MEASURES in place of the median.

    places: {definition: {place: windows in which it passes}}.
    """

    MEASURES = TOKEN, DEVIATION

    def __init__(self, arch: Architecture, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(arch, tokenizer)
        self.places: dict[str, Counter[Where]] = {name: Counter() for name in self.MEASURES}

    def further(self, magnitude: torch.Tensor, peaks: torch.Tensor, median: torch.Tensor) -> dict[str, torch.Tensor]:
        """Over the median by RELATIVE deviations: over RELATIVE x (deviation + median / RELATIVE)."""
        of_token = medians(magnitude.flatten(0, 1)).view(peaks.shape)
        deviation = medians((magnitude - median[:, None, None]).abs_().flatten(1), reorder=True)
        of_layer = (deviation + median / RELATIVE)[:, None]
        lowest = torch.minimum(of_token, of_layer)
        candidates = peaks.where(is_massive(peaks, lowest), 0)
        rows, positions = rows_of(magnitude, candidates, self.at_most)
        rows = rows.where(is_massive(rows, lowest.gather(1, positions)[:, :, None]), 0)
        largest, places = largest_of(rows, positions, self.at_most)
        at = places // magnitude.shape[2]
        return {
            "further places": places,
            TOKEN: is_massive(largest, of_token.gather(1, at)),
            DEVIATION: is_massive(largest, of_layer),
            "further largest": largest,
        }

    def is_full(self, taken: Taken, layers: tuple[int, ...]) -> bool:
        return super().is_full(taken, layers) or bool((taken["further largest", layers][..., -1] > 0).any())

    def end_batch(self, ids: torch.Tensor, taken: Taken) -> None:
        for layers in self.seen:
            places = taken["further places", layers]
            for name in self.MEASURES:
                passing = taken[name, layers]
                for i, sequence in np.argwhere(passing.any(2)).tolist():
                    found = places[i, sequence, passing[i, sequence]].tolist()
                    at = (divmod(place, self.arch.hidden_size) for place in found)
                    self.places[name].update(Where(layers[i], position, dim) for position, dim in at)
        super().end_batch(ids, taken)

    def gather(self) -> None:
        super().gather()
        self.places = processes.merged(self.places)

    def compared(self) -> list[FoundBy]:
        """Every definition of DEFINITIONS beside that of Sun et al., the first; after `gather`."""
        return compared(self.massive(), self.places, self.arch.n_layers)


def compared(
    massive: list[MassiveActivation], further: Mapping[str, Collection[Where]], n_layers: int
) -> list[FoundBy]:
    """massive: what passes Sun et al.'s test; further: what passes others."""
    found = {SUN: {Where(entry.layer, entry.position, entry.dim) for entry in massive}}
    found |= {name: set(places) for name, places in further.items()}
    found |= {FEW_DIMS: _of_few_dims(massive), LASTING_DIMS: _of_lasting_dims(found[SUN], n_layers)}
    return [_beside(name, places, found[SUN]) for name, places in found.items()]


def _of_few_dims(massive: Iterable[MassiveActivation]) -> set[Where]:
    """Those of the MOST_DIMS dims of each layer that are the largest anywhere in it."""
    largest: dict[int, dict[int, float]] = {}
    for entry in massive:
        dims = largest.setdefault(entry.layer, {})
        dims[entry.dim] = max(abs(entry.value), dims.get(entry.dim, 0))
    kept = {layer: sorted(dims, key=dims.__getitem__, reverse=True)[:MOST_DIMS] for layer, dims in largest.items()}
    return {Where(e.layer, e.position, e.dim) for e in massive if e.dim in kept[e.layer]}


def _of_lasting_dims(places: set[Where], n_layers: int) -> set[Where]:
    """Those of the dims that are there in at least LASTING of the layers."""
    layers = Counter(dim for _layer, dim in {(place.layer, place.dim) for place in places})
    return {place for place in places if layers[place.dim] >= LASTING * n_layers}


def _beside(name: str, places: set[Where], of_sun: set[Where]) -> FoundBy:
    either = len(places | of_sun)
    return FoundBy(
        name=name,
        places=len(places),
        layers=sorted({place.layer for place in places}),
        dims=sorted({place.dim for place in places}),
        shared=len(places & of_sun),
        jaccard=len(places & of_sun) / either if either else None,
        more=sorted(places - of_sun),
        fewer=sorted(of_sun - places),
    )
