"""Small models with a planted mechanism: what a diagnosis must find in them is known."""

import numpy as np
import torch

from lib.core.data import Windows
from lib.planted import courses, forecasts, kinds, mixtures, rounding, sinks
from lib.planted.blank import BOS, BOS_TEXT, SEQLEN, VOCABULARY, token_text
from lib.planted.builder import Builder
from lib.planted.truth import Fields, Planted, Truth

LATER = forecasts.KINDS | rounding.KINDS | courses.KINDS
KINDS = {  # of each architecture
    "gpt2": kinds.KINDS | sinks.KINDS | sinks.WITH_POSITIONS | sinks.WITH_QUERY_BIAS | sinks.ALL_LOOK | LATER,
    "llama": kinds.KINDS | sinks.KINDS | sinks.ALL_LOOK | LATER,
    "mixtral": mixtures.KINDS,
    "qwen3_moe": mixtures.KINDS,
    "qwen2_moe": mixtures.WITH_SHARED,
    "qwen2": sinks.KINDS | sinks.WITH_QUERY_BIAS | sinks.ALL_LOOK,
}
N_WINDOWS = 8
TOKENS = 12
ANYWHERE, HALF, SEVERAL_TOKENS = ("content", "half"), ("half",), ("noisy",)
TIMES_WINDOWS = {"half": 3, "informed": 6}  # where only some of the windows tell something


def build(architecture: str, kind: str, seed: int) -> Planted:
    """The Planted model of an architecture and one of its KINDS; the seed decides everything else.

    In GPT-2 the first position's embedding triggers, whatever the token; in others, which have no position embeddings,
    it is the BOS token, which begins every window and stands nowhere else (TOKENS of them in SEVERAL_TOKENS). The kinds
    of ANYWHERE are triggered by another token, anywhere.
    """
    rng = np.random.default_rng([seed, list(KINDS).index(architecture), list(KINDS[architecture]).index(kind)])
    tokens: tuple[int, ...] = () if architecture == "gpt2" else (BOS,)
    if kind in ANYWHERE:
        tokens = (int(rng.integers(BOS + 1, VOCABULARY)),)
    elif tokens and kind in SEVERAL_TOKENS:
        tokens = tuple(sorted(rng.choice(np.arange(BOS + 1, VOCABULARY), size=TOKENS, replace=False).tolist()))
    builder = Builder(architecture, rng, *tokens)
    found = KINDS[architecture][kind](builder)
    windows = draw_windows(builder, kind)
    if "attention" in found:
        return Planted(builder.lm, windows, Truth(architecture, kind, seed, **found))
    trigger, where = "none", np.zeros(windows.ids.shape, dtype=bool)
    if found["generator"] != "none":
        where = np.isin(windows.ids.numpy(), builder.tokens)
        trigger = "position 0"
        if kind in ANYWHERE:
            trigger = f"token {token_text(tokens[0])}"
        elif builder.tokens == (BOS,):
            trigger += f", always {BOS_TEXT}"
        where[:, 0] |= not builder.tokens
        if "later" in found:
            trigger += f" and token {found['later']['token']}"
            where |= windows.ids.numpy() == builder.second_token
    tokens = builder.tokens
    if builder.tokens and builder.second_token is not None and "later" in found:
        tokens += (builder.second_token,)
    part = {"layer": found.get("layer"), "kind": "attention" if found["generator"] == "head" else "mlp"}
    alone = {} if found["generator"] == "none" else {"{kind} {layer}".format(**part): 0.0}
    defaults: Fields = {"retained": alone, "repair": alone, "most": found.get("neurons", ())}
    readers: tuple[tuple[int, int], ...] = found.get("readers", ())
    found |= {"readers": tuple(sorted(readers)), "sinks": tuple(sorted(found.get("sinks", readers)))}
    truth = Truth(
        architecture,
        kind,
        seed,
        trigger=trigger,
        positions=tuple(np.flatnonzero(where.any(0)).tolist()),
        share=float(where.any(1).mean()),
        tokens=() if found["generator"] == "none" else tuple(map(token_text, tokens)),
        **defaults | found,
    )
    return Planted(builder.lm, windows, truth, courses.checkpoints(builder.lm, truth))


def draw_windows(b: Builder, kind: str = "mlp") -> Windows:
    """Random tokens, with those that trigger something: each window begins with one of them, or has it (half of the
    windows, in HALF) and a second token of the kind "several" at two random places; what is `placed` stands there."""
    n = TIMES_WINDOWS.get(kind, 1) * N_WINDOWS
    ordinary = np.array([t for t in range(VOCABULARY) if t not in {BOS, *b.tokens, b.second_token}])
    ids = b.rng.choice(ordinary, size=(n, SEQLEN))
    if b.informed:  # half of the windows, which have another half of the vocabulary
        for rows, first, half in zip(np.split(b.rng.permutation(n), 2), *b.informed, strict=True):
            ids[rows] = b.rng.choice(np.intersect1d(ordinary, half), size=(len(rows), SEQLEN))
            ids[rows, 0] = ids[rows, 0] if first is None else first
    elif b.tokens and kind not in ANYWHERE:
        ids[:, 0] = np.resize(b.tokens, n)
    elif b.tokens:
        for row in b.rng.permutation(n)[: n // 2] if kind in HALF else range(n):
            ids[row, b.rng.choice(SEQLEN, size=2, replace=False)] = b.tokens[0]
    for position, token in b.placed.items():
        ids[:, position] = token
    if kind == "several":
        for row in range(n):
            ids[row, b.rng.choice(np.arange(1, SEQLEN), size=2, replace=False)] = b.second_token
    bos = int(b.tokens == (BOS,))
    counts = np.bincount(ids[:, bos:].flatten(), minlength=VOCABULARY)
    return Windows(torch.from_numpy(ids), n, bos, "random tokens", counts=counts)
