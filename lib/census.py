"""What triggers a spike: every token as the first one; windows with the token moved, repeated or behind BOS, or with
position embeddings swapped."""

from dataclasses import dataclass

import numpy as np
import torch

from lib import hooks, ranks
from lib.definitions import ABSOLUTE, RELATIVE
from lib.massive import is_massive
from lib.models import LanguageModel
from lib.stats import independent
from lib.tokens import text_of

TOKENS_AT_ONCE = 512
LISTED = 200
NAMED = 20
QUANTILES = (0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1)
HIGH, LOW = 0.9, 0.1
SPIKES = (
    f"a value spikes if it has the place's sign and |value| > {ABSOLUTE:,.0f} and > {RELATIVE:,.0f} x the median of "
    "|block output| of this layer, a mean over the ordinary windows (one token alone has no median to speak of)"
)
RULE = (
    "c: share of the vocabulary that spikes as the first token, m: share of the moved tokens that spike where they "
    "are put, o: share of the windows whose own token spikes as the first token; "
    f"position: c >= {HIGH} and m <= {LOW}; token: c <= {LOW} and m >= {HIGH}; "
    f"position and token: c <= {LOW}, m <= {LOW} and o >= {HIGH}; everywhere: c and m >= {HIGH}; neither alone: all "
    "else; none found: the place spikes in no window"
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
    def threshold(self):
        return max(ABSOLUTE, RELATIVE * self.median)

    def values(self, ids, batch_size, label):
        """(n, seq) signed values for (n, seq) token ids; no block after `layer` runs.

        Raises UserError for non-finite values.
        """
        parts = []

        def see(layer, hidden):
            parts.append(hidden[:, :, self.dim].double().cpu())
            hooks.require_finite(layer, parts[-1])

        with ranks.progress(len(ids), batch_size, label, unit="sequence", leave=False) as progress:
            for _rows, batch in ranks.batches(ids, batch_size):
                with (
                    hooks.watch_outputs(self.lm.arch, "block", see, [self.layer]),
                    hooks.stop_after(self.lm.arch, self.layer),
                ):
                    hooks.forward(self.lm, batch)
                progress.update(len(batch))
        return torch.cat(ranks.gather(parts)).numpy()

    def spikes(self, values):
        return is_massive(values, self.median) & (np.sign(values) == self.sign)

    def summary(self, values, draws):
        """Averages of (n,) values and the share of them that spike."""
        return {"value": draws.averages(values), "spikes": float(self.spikes(values).mean())}


def every_token(probe):
    """(embedding rows,) value of each token as the first one; nan for rows that the tokenizer does not have.

    One-token sequences are exact: by causality nothing after the first token can change it.
    """
    values = np.full(probe.lm.model.config.vocab_size, np.nan)
    ids = np.array(sorted(i for i in set(probe.lm.tokenizer.get_vocab().values()) if i < len(values)))
    values[ids] = probe.values(torch.from_numpy(ids)[:, None], TOKENS_AT_ONCE, "census")[:, 0]
    return values


def distribution(probe, values):
    """results.census of a report. mean, std and quantiles are of the whole vocabulary, so no interval is needed.

    failing: the tokens that do not spike, smallest first; spiking: those that do, largest first; LISTED at most.
    values: by token id, to 5 significant digits; null for embedding rows without a token.
    """
    ids = np.flatnonzero(~np.isnan(values))
    ids = ids[np.abs(values[ids]).argsort(kind="stable")]
    known, spikes = values[ids], probe.spikes(values[ids])

    def listed(chosen):
        tokenizer = probe.lm.tokenizer
        return [{"id": i, "token": text_of(tokenizer, i), "value": values[i]} for i in chosen[:LISTED].tolist()]

    return {
        "tokens": len(ids),
        "left_out": len(values) - len(ids),
        "mean": known.mean(),
        "std": known.std(),
        "quantiles": dict(zip(QUANTILES, np.quantile(known, QUANTILES), strict=True)),
        "n_spiking": int(spikes.sum()),
        "n_failing": int((~spikes).sum()),
        "below_1000": int((np.abs(known) < 1000).sum()),
        "failing": listed(ids[~spikes]),
        "spiking": listed(ids[spikes][::-1]),
        "values": [_short(value) for value in values.tolist()],
    }


def _short(value):
    """5 significant digits."""
    return None if np.isnan(value) else round(value) if abs(value) >= 1e4 else float(f"{value:.5g}")


def moved(probe, ids, positions, batch_size, draws):
    """The token at `positions` (one a window) swapped with the one at 1, 2, 4, ...: values where it now is and where
    it was. A window in which both are the same token is left out there."""
    every, at = torch.arange(len(ids)), torch.from_numpy(positions)
    tokens, rows = ids[every, at], []
    for position in _powers(ids.shape[1])[1:]:
        differ = ids[:, position] != tokens
        if not differ.any():
            continue
        changed = ids.clone()
        changed[every, at] = ids[:, position]
        changed[:, position] = tokens
        length = max(position, int(at[differ].max())) + 1
        values = probe.values(changed[differ, :length], batch_size, f"moved to {position}")
        rows.append(
            {
                "position": position,
                "new": probe.summary(values[:, position], draws.of(differ.numpy())),
                "old": probe.summary(values[np.arange(len(values)), at[differ].numpy()], draws.of(differ.numpy())),
            }
        )
    return rows


def repeated(probe, ids, positions, batch_size):
    """Windows of one token alone, for each of the different tokens at `positions`; averages are over these tokens.

    Where positions act in attention only, such a window is the same at each position: all see what the first sees.
    later_share: of the positions after the first, those that spike.
    """
    tokens = ids[torch.arange(len(ids)), torch.from_numpy(positions)].unique()
    draws = independent(len(tokens))
    values = probe.values(tokens[:, None].repeat(1, ids.shape[1]), batch_size, "repeated")
    return {
        "tokens": len(tokens),
        "length": ids.shape[1],
        "later_share": draws.averages(probe.spikes(values[:, 1:]).mean(1)),
        "positions": [{"position": p, **probe.summary(values[:, p], draws)} for p in _powers(ids.shape[1])],
    }


def _powers(length):
    """[0, 1, 2, 4, ...] below `length`."""
    return [0, *(2**k for k in range((length - 1).bit_length()))]


def behind_bos(probe, ids, n_bos, batch_size, draws):
    """The text of each window without and with BOS before it; None where the tokenizer has no BOS token. n_bos: with
    how many tokens the windows begin that are not of the text.

    By causality no more than the first two tokens are needed.
    """
    bos = probe.lm.tokenizer.bos_token_id
    if bos is None:
        return None
    first = ids[:, n_bos : n_bos + 1]
    without = probe.values(first, batch_size, "BOS off")
    both = probe.values(torch.cat([torch.full_like(first, bos), first], dim=1), batch_size, "BOS on")
    return {
        "id": bos,
        "token": text_of(probe.lm.tokenizer, bos),
        "off_first": probe.summary(without[:, 0], draws),
        "on_bos": probe.summary(both[:, 0], draws),
        "on_former_first": probe.summary(both[:, 1], draws),
    }


def swapped(probe, ids, batch_size, draws):
    """The position embeddings of 0 and of others swapped; None where positions act in attention.

    follows: share of the windows that spike at the other position and not at 0.
    """
    if probe.lm.arch.position_embedding is None:
        return None
    rows = []
    for position in sorted({p for p in (1, 5, ids.shape[1] // 2) if p < ids.shape[1]}):
        with hooks.position_embeddings_swapped(probe.lm.arch, 0, position):
            values = probe.values(ids[:, : position + 1], batch_size, f"embeddings of 0 and {position}")
        spikes = probe.spikes(values)
        rows.append(
            {
                "position": position,
                "there": probe.summary(values[:, position], draws),
                "at_0": probe.summary(values[:, 0], draws),
                "follows": float((spikes[:, position] & ~spikes[:, 0]).mean()),
            }
        )
    return rows


def conclude(found, own_share, census, moved, repeated, swapped):
    """results.conclusion, by RULE. found: whether the place spikes in any window.

    follows_embedding: mean of swapped's `follows`, where the verdict is position and there is something to swap.
    """
    c = census["n_spiking"] / census["tokens"]
    tried = [row["new"]["value"]["n"] for row in moved]
    m = float(np.average([row["new"]["spikes"] for row in moved], weights=tried)) if moved else np.nan
    if not found:
        verdict = "none found"
    elif c >= HIGH and m <= LOW:
        verdict = "position"
    elif c <= LOW and m >= HIGH:
        verdict = "token"
    elif c <= LOW and m <= LOW and own_share >= HIGH:
        verdict = "position and token"
    elif c >= HIGH and m >= HIGH:
        verdict = "everywhere"
    else:
        verdict = "neither alone"
    follows = None
    if verdict == "position" and swapped is not None:
        follows = float(np.mean([row["follows"] for row in swapped]))
    return {
        "verdict": verdict,
        "rule": RULE,
        "values": {
            "first_token_share": c,
            "moved_share": m,
            "own_share": own_share,
            "repeated_share": repeated["later_share"]["mean"],
            "follows_embedding": follows,
            "tokens": [t["token"] for t in census["spiking"]] if census["n_spiking"] <= NAMED else None,
        },
    }
