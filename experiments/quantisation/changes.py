"""The model with quantised activations, and what is done about its massive places."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.quantisation.results import AS_IT_IS, CLAMPED, KEPT, PREFIX, Scheme, name_of
from experiments.quantisation.schemes import TINY, quantised
from experiments.quantisation.sites import Site, watched
from experiments.quantisation.survey import Calibrated, at
from lib.core.on_device import OnDevice
from lib.model.arch import Architecture


@dataclass(frozen=True, eq=False)
class Known:
    """A site with what is known of it. massive: (n, 3) ints, its massive places in the measured windows; constants:
    (n,) what MEAN sets there, NaN where it sets nothing."""

    number: int
    site: Site
    calibrated: Calibrated
    massive: np.ndarray
    constants: np.ndarray


@dataclass(frozen=True, eq=False)
class Quantised:
    """A change for lib.core.versions. kept: gets of each site (name, number), (windows, 2) of `errors`."""

    where: str
    scheme: Scheme
    remedy: str
    sites: Sequence[Known]
    kept: OnDevice

    @property
    def name(self) -> str:
        return name_of(self.where, self.scheme, self.remedy)

    @property
    def first_layer(self) -> int:
        return self.sites[0].site.layer

    def hooks(self, arch: Architecture, rows: slice) -> AbstractContextManager[None]:
        return self.hooks_beside(arch, [], rows)

    def hooks_beside(
        self, arch: Architecture, others: "Sequence[Quantised]", rows: slice
    ) -> AbstractContextManager[None]:
        together = [self, *others]
        known_by = [{known.number: known for known in one.sites} for one in together]
        sites = {known.number: known.site for one in together for known in one.sites}

        def see(number: int, value: Tensor) -> Tensor:
            before = value.reshape(len(together) * (rows.stop - rows.start), -1, value.shape[-1])
            before = before.to(torch.promote_types(value.dtype, torch.float32))
            after = [
                one._seen(own, known[number], rows) if number in known else own
                for one, known, own in zip(together, known_by, before.chunk(len(together)), strict=True)
            ]
            return torch.cat(after).to(value.dtype).view(value.shape)

        return watched(arch, sorted(sites.items()), see)

    def _seen(self, before: Tensor, known: Known, rows: slice) -> Tensor:
        after = self._remedied(before, known, rows)
        self.kept.keep((self.name, known.number), errors(before, after, at(known.massive, rows, before.device)))
        return after

    def _remedied(self, value: Tensor, known: Known, rows: slice) -> Tensor:
        """(windows, seq, width) quantised, but for what the remedy keeps; that has no part in a scale."""
        of = known.calibrated
        if self.remedy == AS_IT_IS:
            return quantised(value, self.scheme, of.largest)
        if self.remedy == PREFIX:
            return torch.cat([value[:, :1], quantised(value[:, 1:], self.scheme, of.later)], dim=1)
        if self.remedy == CLAMPED:
            limited = value if of.limit is None else value.clamp(-of.limit, of.limit)
            return quantised(limited, self.scheme, of.rest)
        apart = known.massive if self.remedy == KEPT else known.massive[~np.isnan(known.constants)]
        index = at(apart, rows, value.device)
        rest = value.index_put(index, value.new_zeros(()))
        instead = value[index] if self.remedy == KEPT else self._means(known, rows).to(value)
        return quantised(rest, self.scheme, of.rest).index_put(index, instead)

    def _means(self, known: Known, rows: slice) -> Tensor:
        """What MEAN sets in the windows `rows`."""
        here = (known.massive[:, 0] >= rows.start) & (known.massive[:, 0] < rows.stop) & ~np.isnan(known.constants)
        return torch.from_numpy(known.constants[here])


def errors(before: Tensor, after: Tensor, massive: tuple[Tensor, ...]) -> Tensor:
    """(windows, 2) squared error of (windows, seq, width) values, relative to their squares: of all, and of those at no
    massive place."""
    sums = []
    for value in (after - before, before):
        at_places = value.new_zeros(len(value)).index_add(0, massive[0], value[massive].square())
        rest = value.index_put(massive, value.new_zeros(())).flatten(1).square().sum(1)
        sums.append(torch.stack([rest + at_places, rest], dim=1))
    return sums[0] / sums[1].clamp(min=TINY)
