"""What an ablation does at position 0, exactly: a value there depends on the first token alone, so that one-token
forwards of all tokens of the text say what windows only sample."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch

from lib.core import remembered
from lib.core.changes import Everywhere
from lib.core.data import Windows
from lib.core.definitions import BOUNDS, FATES
from lib.core.massive import is_massive
from lib.core.on_device import OnDevice, by_layer
from lib.core.place import Place
from lib.core.results import FirstTokens
from lib.model import hooks
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.run import processes

AT_ONCE = 1024  # sequences of one token: as many tokens as a full pass has on a CPU


def at_plateau(
    lm: LanguageModel, windows: Windows, place: Place, conditions: Iterable[Everywhere]
) -> dict[str, FirstTokens] | None:
    """`measure` at the end of the place's plateau; None unless the place is position 0 of every window."""
    if place.positions.any() or not place.massive:
        return None
    medians = {"baseline": place.medians.mean(0)}
    return measure(lm, windows, place.dim, place.plateau[1], conditions, medians)


def measure(
    lm: LanguageModel,
    windows: Windows,
    dim: int,
    layer: int,
    conditions: Iterable[Everywhere],
    medians: Mapping[str, Sequence[float] | np.ndarray],
) -> dict[str, FirstTokens] | None:
    """Compare one dim after one layer in each of `conditions` with the baseline, over the first tokens that have the
    spike: where its value is massive in some layer up to this one.

    A window begins at a random place of the text, so each token counts as often as the text has it (windows.counts);
    where all windows begin with the same token that is not of the text (BOS), it alone is measured.

    medians: {name: (layers,) medians of |block output|, means over windows}, of "baseline" and of those conditions
    whose `still_massive` is wanted (a token alone has no median to speak of).

    Returns {name: exact numbers}; None where the text is not known or no token has the spike. Raises UserError for
    non-finite values.
    """
    if windows.bos:
        tokens, counts = windows.ids[0, :1].numpy(), np.ones(1)
    elif windows.counts is not None:
        tokens = np.flatnonzero(windows.counts)
        counts = windows.counts[tokens].astype(np.float64)
    else:
        return None
    ids = torch.from_numpy(tokens)[:, None]
    before = _values(lm, ids, dim, layer, None)
    spiking = is_massive(before, np.array(medians["baseline"][: layer + 1])).any(1)
    if not spiking.any():
        return None
    weights = counts[spiking] / counts[spiking].sum()
    value = before[spiking, layer]
    found = {}
    for condition in conditions:
        ablated = _values(lm, ids[spiking], dim, layer, condition)[:, layer]
        size, left = weights @ np.abs(value), np.sign(value) * ablated
        fates = np.bincount(np.digitize(left / np.abs(value), BOUNDS), weights, len(FATES))
        still = None
        if condition.name in medians:
            still = weights @ is_massive(ablated, medians[condition.name][layer])
        found[condition.name] = FirstTokens(
            dim=dim,
            layer=layer,
            tokens=len(tokens),
            share=counts[spiking].sum() / counts.sum(),
            value=weights @ value,
            ablated=weights @ ablated,
            retained=weights @ left / size,
            absolute_change=weights @ np.abs(ablated - value) / size,
            still_massive=still,
            shares=dict(zip(FATES, fates, strict=True)),
        )
    return found


def _values(lm: LanguageModel, ids: torch.Tensor, dim: int, layer: int, condition: Everywhere | None) -> np.ndarray:
    """(n, layers up to `layer`) values of (n, 1) token ids, in a condition or as the model is."""
    key = "first tokens", ids.numpy().tobytes(), dim, layer, condition
    return remembered.once(lm, key, lambda: _measured(lm, ids, dim, layer, condition))


def _measured(lm: LanguageModel, ids: torch.Tensor, dim: int, layer: int, condition: Everywhere | None) -> np.ndarray:
    parts: list[np.ndarray] = []
    with (
        condition.hooks(lm.arch) if condition else nullcontext(),
        processes.progress(len(ids), AT_ONCE, "first tokens", unit="token", leave=False) as progress,
    ):
        for _rows, batch in processes.batches(ids, AT_ONCE):
            kept = OnDevice()

            def see(block: int, hidden: torch.Tensor, kept: OnDevice = kept) -> None:
                kept.keep(("largest", block), hidden.abs().amax())
                kept.keep(("value", block), hidden[:, 0, dim])

            with (
                hooks.watch_outputs(lm.arch, "block", see, range(layer + 1)),
                hooks.stop_after(lm.arch, layer),
            ):
                hooks.forward(lm, batch)
            taken = kept.take()
            for block in range(layer + 1):
                require_finite(block, taken["largest", block])
            parts.append(by_layer(taken, "value", range(layer + 1)))
            progress.update(len(batch))
    return np.concatenate(processes.gather(parts))
