"""What one checkpoint shows: its largest values, its sinks, and who writes what is largest."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.training_course.results import Followed, Layer, Results, Step
from lib.core import attribution
from lib.core.ablation import Condition
from lib.core.data import Windows
from lib.core.definitions import WRITES
from lib.core.massive import DEFINITION
from lib.core.measurements import Measurements
from lib.core.place import RULE, find
from lib.core.results import LedgerWrite
from lib.core.stats import SHARE, SIZE
from lib.model.models import LanguageModel
from lib.model.series import Checkpoint
from lib.run import processes

LISTED = 0.01  # of the value at its peak: from here on a write is stored


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    """Of one model, as the only step. Costs four passes."""
    seen = Measurements(lm)
    with processes.progress(len(windows.ids), options.batch_size, "layers and heads") as progress:
        for _rows, ids in windows.batches(options.batch_size):
            seen.run(lm, ids, lambda _layer, _hidden: None)
            progress.update(len(ids))
    seen.gather()
    draws = windows.draws(options.seed)
    layers = [Layer(layer.top1, layer.median, layer.ratio) for layer in seen.layers.layers(draws)]
    step = Step(
        step=0,
        name=None,
        source=None,
        loss=draws.averages(seen.losses.array, within=SIZE),
        massive=draws.share(seen.layers.massive_positions.array > 0),
        sink_rate=draws.averages(seen.heads.sink_rates(), within=SHARE),
        layers=layers,
        scores=[row[np.isfinite(row)].tolist() for row in seen.heads.scores.mean(0)],
        followed=_followed(lm, windows, options),
    )
    return Results(DEFINITION, RULE, [step])


def _followed(lm: LanguageModel, windows: Windows, options: Any) -> Followed:
    place = find(lm, windows, options.batch_size, seed=options.seed)
    ledger = attribution.measure(lm, windows, place, Condition("ledger", "nothing off", (), ()), options.batch_size)
    described = place.described()
    there = place.spiking if place.massive else np.ones(len(place.values), dtype=bool)
    return Followed(
        dim=place.dim,
        position=next(iter(described.positions)),
        token=place.token,
        massive=place.massive,
        peak_layer=place.peak,
        value=place.draws.of(there).averages(place.values[there, place.peak]),
        writers=[write for write in ledger.listed() if write.order <= place.peak and _counts(write)],
    )


def _counts(write: LedgerWrite) -> bool:
    limits = write.share.together
    return write.share.mean >= LISTED or (limits is not None and limits[1] >= WRITES)


def join(series: Sequence[tuple[Checkpoint, dict[str, Any], Results]]) -> Results:
    """One Results of those of each checkpoint, with what was loaded for it, by step."""
    steps = [
        replace(results.steps[0], step=checkpoint.step, name=checkpoint.name, source=source)
        for checkpoint, source, results in series
    ]
    return replace(series[0][2], steps=steps)
