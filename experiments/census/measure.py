"""What triggers a spike: every token as the first one; then tokens elsewhere, behind text, behind themselves and behind
BOS, and with position embeddings swapped."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from experiments.census.results import (
    Bos,
    Census,
    Elsewhere,
    Ordinary,
    Outcome,
    Results,
    Share,
    Shares,
    Spike,
    TokenValue,
    Tried,
)
from lib.core import sinks
from lib.core.data import Windows
from lib.core.definitions import ABSOLUTE, RELATIVE
from lib.core.massive import is_massive
from lib.core.place import find
from lib.core.stats import Draws, independent
from lib.model import edits, hooks
from lib.model.finite import require_finite
from lib.model.models import LanguageModel
from lib.model.tokens import known_ids, text_of
from lib.run import processes

TOKENS_AT_ONCE = 512
LISTED = 200
QUANTILES = (0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1)
TRIED = 256  # pairs of a token and a position
SPIKES = (
    f"a value spikes if it has the place's sign and |value| > {ABSOLUTE:,.0f} and > {RELATIVE:,.0f} x the median of "
    "|block output| of this layer, a mean over the ordinary windows (one token alone has no median to speak of)"
)


@dataclass(frozen=True)
class Probe:
    """One dim of one layer's output, and what counts as a spike in it (SPIKES)."""

    lm: LanguageModel
    layer: int
    dim: int
    sign: int
    median: float

    @property
    def threshold(self) -> float:
        return max(ABSOLUTE, RELATIVE * self.median)

    def values(self, ids: torch.Tensor, batch_size: int, label: str) -> np.ndarray:
        """(n, seq) signed values for (n, seq) token ids; no block after `layer` runs.

        Raises UserError for non-finite values.
        """
        parts = []

        def see(layer, hidden):
            parts.append(hidden[:, :, self.dim].cpu().double())
            require_finite(layer, parts[-1])

        with processes.progress(len(ids), batch_size, label, unit="sequence", leave=False) as progress:
            for _rows, batch in processes.batches(ids, batch_size):
                with (
                    hooks.watch_outputs(self.lm.arch, "block", see, [self.layer]),
                    hooks.stop_after(self.lm.arch, self.layer),
                ):
                    hooks.forward(self.lm, batch)
                progress.update(len(batch))
        return torch.cat(processes.gather(parts)).numpy()

    def spikes(self, values: np.ndarray) -> np.ndarray:
        return is_massive(values, self.median) & (np.sign(values) == self.sign)

    def outcome(self, values: np.ndarray) -> Outcome:
        """Of (n,) values of as many tokens, drawn one by one."""
        return Outcome(independent(len(values)).averages(values), float(self.spikes(values).mean()))


def every_token(probe: Probe) -> np.ndarray:
    """(embedding rows,) value of each token as the first one; nan for rows that the tokenizer does not have.

    One-token sequences are exact: by causality nothing after the first token can change it.
    """
    values = np.full(probe.lm.n_embeddings, np.nan)
    ids = known_ids(probe.lm.tokenizer, len(values))
    values[ids] = probe.values(torch.from_numpy(ids)[:, None], TOKENS_AT_ONCE, "census")[:, 0]
    return values


def distribution(probe: Probe, values: np.ndarray) -> Census:
    """values: of every_token."""
    ids = np.flatnonzero(~np.isnan(values))
    ids = ids[np.abs(values[ids]).argsort(kind="stable")]
    known, spikes = values[ids], probe.spikes(values[ids])

    def listed(chosen: np.ndarray) -> list[TokenValue]:
        tokenizer = probe.lm.tokenizer
        return [TokenValue(i, text_of(tokenizer, i), float(values[i])) for i in chosen[:LISTED].tolist()]

    return Census(
        tokens=len(ids),
        left_out=len(values) - len(ids),
        mean=float(known.mean()),
        std=float(known.std()),
        quantiles=dict(zip(QUANTILES, np.quantile(known, QUANTILES).tolist(), strict=True)),
        n_spiking=int(spikes.sum()),
        n_failing=int((~spikes).sum()),
        below_1000=int((np.abs(known) < 1000).sum()),
        failing=listed(ids[~spikes]),
        spiking=listed(ids[spikes][::-1]),
        values=[_short(value) for value in values.tolist()],
    )


def _short(value: float) -> float | None:
    """5 significant digits."""
    return None if np.isnan(value) else round(value) if abs(value) >= 1e4 else float(f"{value:.5g}")


def to_try(probe: Probe, values: np.ndarray, at_place: np.ndarray, seed: int) -> tuple[np.ndarray, Tried]:
    """(tokens to try elsewhere, results.tried): those that spike as the first one, by `values` of every_token; where
    none does, those of (n,) `at_place`. At most TRIED of them, drawn at random."""
    spiking = np.flatnonzero(probe.spikes(values))
    every = spiking if len(spiking) else np.unique(at_place)
    tokens = every if len(every) <= TRIED else np.random.default_rng(seed).choice(every, TRIED, replace=False)
    return tokens, Tried(
        of="tokens that spike as the first one" if len(spiking) else "tokens at the place",
        possible=len(every),
        tokens=len(tokens),
        enumerated=len(tokens) == len(every),
        pairs=TRIED,
    )


def elsewhere(
    probe: Probe, ids: torch.Tensor, n_bos: int, tokens: np.ndarray, enumerated: bool, batch_size: int, seed: int
) -> tuple[list[Elsewhere], Shares]:
    """(results.elsewhere, results.shares as far as told here): TRIED pairs of a token and a position p = 1, 2, 4, ...

    moved: behind p tokens of text, a random piece of the windows `ids` without the first `n_bos` tokens. repeated:
    behind itself p times. there, at_0: the position embeddings of 0 and p swapped, the token behind text at p, and
    alone at 0; None where positions act in attention. follows: there and not at 0. The pairs are as the text and the
    tokens are drawn; of what depends on the token alone a share is exact where all tokens are tried (`enumerated`).
    """
    text, rng, pair = ids[:, n_bos:], np.random.default_rng(seed), np.arange(TRIED)
    positions = _powers(min(text.shape[1] + 1, ids.shape[1]))
    turn, which = divmod(pair, len(tokens))
    position = np.array(positions)[(turn + which) % len(positions)]  # each token in its turn at each position
    learned = probe.lm.arch.position_embedding is not None
    values = {name: np.zeros(TRIED) for name in ("moved", "repeated", *(("there", "at_0") if learned else ()))}
    for p in positions:
        here = position == p
        these = torch.from_numpy(tokens[which[here]])[:, None]
        window, start = (torch.from_numpy(rng.integers(n, size=(len(these), 1))) for n in (len(text), _starts(text, p)))
        moved = torch.cat([text[window, start + torch.arange(p)], these], dim=1)
        repeated = these.repeat(1, p + 1)
        values["moved"][here] = probe.values(moved, batch_size, f"moved to {p}")[:, p]
        values["repeated"][here] = probe.values(repeated, batch_size, f"repeated to {p}")[:, p]
        if learned:
            with edits.position_embeddings_swapped(probe.lm.arch, 0, p):
                values["there"][here] = probe.values(moved, batch_size, f"embedding of 0 at {p}")[:, p]
                values["at_0"][here] = probe.values(repeated, batch_size, f"embedding of {p} at 0")[:, 0]
    rows = [
        Elsewhere(
            position=p,
            tokens=int((position == p).sum()),
            **{name: probe.outcome(every[position == p]) for name, every in values.items()},
        )
        for p in positions
    ]
    spikes = {name: probe.spikes(every) for name, every in values.items()}
    if learned:
        spikes["follows"] = spikes["there"] & ~spikes["at_0"]
    shares = {
        name: _share(hits, None if enumerated and name in ("repeated", "at_0") else independent(TRIED))
        for name, hits in spikes.items()
    }
    return rows, Shares(**shares)


def _share(hits: np.ndarray, draws: Draws | None) -> Share:
    """Of (n,) truth values; draws: None if they are all there are."""
    if draws is None:
        return Share.exact(float(hits.mean()))
    share = draws.share(hits)
    return Share(share.mean, share.ci95, share.n)


def _powers(length: int) -> list[int]:
    """[1, 2, 4, ...] below `length`."""
    return [2**k for k in range((length - 1).bit_length())]


def _starts(text: torch.Tensor, p: int) -> int:
    """How many pieces of p tokens a window has."""
    return text.shape[1] - p + 1


def behind_bos(
    probe: Probe, values: np.ndarray, tokens: np.ndarray, enumerated: bool, batch_size: int
) -> tuple[Bos | None, Share | None]:
    """(results.bos, share of the tokens that spike at position 1, behind BOS); None where the tokenizer has no BOS
    token or, of the share, where no other is to be tried. values: of every_token."""
    bos = probe.lm.tokenizer.bos_token_id
    if bos is None:
        return None, None
    others, behind, share = torch.from_numpy(tokens[tokens != bos])[:, None], None, None
    if len(others):
        got = probe.values(torch.cat([torch.full_like(others, bos), others], dim=1), batch_size, "behind BOS")[:, 1]
        behind = probe.outcome(got)
        share = _share(probe.spikes(got), None if enumerated else independent(len(others)))
    of_bos = Bos(
        id=bos,
        token=text_of(probe.lm.tokenizer, bos),
        value=float(values[bos]),
        spikes=bool(probe.spikes(values[bos])),
        tokens=len(others),
        first=probe.outcome(values[tokens]),
        behind=behind,
    )
    return of_bos, share


def not_alone(lm: LanguageModel, ids: torch.Tensor, layer: int) -> str | None:
    """results.not_alone, of the output of `layer`."""
    layers = enumerate(lm.arch.layers[: layer + 1])
    mixed = [str(i) for i, parts in layers if parts.others or (parts.attention_write and not parts.n_heads)]
    if mixed:
        return f"more than attention may mix tokens in layers {', '.join(mixed)}"
    return None if sinks.sees_only_itself(lm, ids) else "heads attend to a learned sink, too"


def run(lm: LanguageModel, windows: Windows, options: Any) -> Results:
    if options.layer_id is not None:
        lm.arch.check_layer(options.layer_id)
    place = find(lm, windows, options.batch_size, options.dim, options.position, options.seed)
    layer = place.plateau[0] if options.layer_id is None else options.layer_id
    probe = Probe(lm, layer, place.dim, place.sign, float(place.medians[:, layer].mean()))
    spikes = probe.spikes(place.values[:, layer])

    values = every_token(probe)
    tokens, tried = to_try(probe, values, place.tokens[spikes] if spikes.any() else place.tokens, options.seed)
    how = tokens, tried.enumerated, options.batch_size
    moved, shares = elsewhere(probe, windows.ids, windows.bos, *how, options.seed)
    bos, share = behind_bos(probe, values, *how)
    draws, rows = place.draws.of(spikes), np.flatnonzero(spikes)
    shares = replace(shares, behind_bos=share)
    if len(rows):
        own, first = probe.spikes(values[place.tokens[rows]]), place.positions[rows] == 0
        shares = replace(shares, own=_share(own, draws), first=_share(first, draws))
    return Results(
        place=place.described(),
        layer=layer,
        spike=Spike(SPIKES, probe.threshold, probe.median, probe.sign),
        ordinary=Ordinary(place.draws.averages(place.values[:, layer]), place.draws.share(spikes)),
        spiking=len(rows),
        census=distribution(probe, values),
        tried=tried,
        elsewhere=moved,
        bos=bos,
        shares=shares,
        not_alone=not_alone(lm, windows.ids, layer),
    )
