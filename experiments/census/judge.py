"""Experiment 6: the simplest cause of the spike whose predictions hold in every manipulation."""

from experiments.census.results import Cause, Measured, Prediction, Results, Share, Values, Verdict
from lib.core.definitions import HARDLY_ANY, MOST, NEARLY_ALL
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Test, conclusion, every, reasons

NAMED = 20
NONE_OF_THESE = "none of these"
POSITION, ALONE, CERTAIN = "the first position", "no other context", "certain tokens"
CAUSES = {  # what a spike needs; simplest first
    "everywhere": (),
    "token": (CERTAIN,),
    "position": (POSITION,),
    "no other context": (ALONE,),
    "position and token": (POSITION, CERTAIN),
    "no other context, certain tokens": (ALONE, CERTAIN),
    "position and no other context": (POSITION, ALONE),
    "position and no other context, certain tokens": (POSITION, ALONE, CERTAIN),
}
CENSUS = "first_token_share"
MANIPULATIONS = {  # key of results.shares: (label, what of POSITION and ALONE it leaves, what it tells apart)
    CENSUS: (
        "census",
        None,
        "any token from certain tokens, exactly; not position from context, as the first token has no other",
    ),
    "moved": (
        "behind text",
        (),
        "what needs the first position or no other context from what does not; not which of the two, as both are gone",
    ),
    "repeated": (
        "behind itself",
        (ALONE,),
        "position from context: attention returns the token's own value, at another position. Where positions act in "
        "attention only it is certain beforehand: such a window is the same at each position, and no position alone "
        "can be the cause",
    ),
    "behind_bos": (
        "behind BOS",
        (),
        "position from what does not need it. It refutes no other context only if nearly all spike: BOS may be less of "
        "a context than text is, and how much less is what it shows",
    ),
    "there": (
        "embedding of 0 at p",
        (POSITION,),
        "position, as the embedding carries it, from context; only where embeddings are learned",
    ),
    "at_0": ("alone, embedding of p", (ALONE,), "the same from the other side"),
    "own": (
        "own token",
        None,
        "whether the census is of what happens in the windows: most of the tokens at their places spike as the first "
        "one, too; where the place is at 0 this is certain",
    ),
    "first": ("place at 0", None, "whether the windows' spikes are where position or context can be the cause"),
}
RULE = (
    "a cause is what a spike needs: the first position, no other context (attention has only that token to see: it is "
    "the first one, or stands behind itself), certain tokens, or several of these. It predicts that nearly all (>= "
    f"{NEARLY_ALL:.0%}) of the tokens that spike as the first one spike where all it needs is left, and hardly any (<= "
    f"{HARDLY_ANY:.0%}) elsewhere; that nearly all of the vocabulary spikes as the first token, or, of "
    f"certain tokens, less; that most (> {MOST:.0%}) of the windows' own tokens spike as the first one; and that most "
    "of their places are at 0 if it needs position or no other context. One threshold is of one case alone: if a cause "
    "is no other context and not the position, behind BOS not hardly any, but only not most (> "
    f"{MOST:.0%}) may spike, as one token may be less of a context than text is; the verdict then says how many do. "
    "Verdict: the first cause, simplest first, that "
    f"no measured share refutes with all of its interval; {CANNOT_TELL!r} if an interval leaves that open; "
    f"{NONE_OF_THESE!r} if all are refuted; {NONE_FOUND!r}: the place spikes in no window. Intervals: the census is "
    "exact, and so is what depends on the token alone where all that spike are tried, and what is certain beforehand "
    "(behind itself, where positions act in attention only); otherwise of so many draws of a "
    "token and of a piece of these windows; own token and place at 0 of documents"
)


def judge(results: Results) -> Verdict:
    cells, census, shares = _cells(results), results.census, results.shares
    tests = {cause: _tests(needs, cells) for cause, needs in CAUSES.items()}
    fits = {cause: every(test for _word, test in predicted.values()) for cause, predicted in tests.items()}
    possible = next((cause for cause in CAUSES if fits[cause] is not False), None)
    if not results.spiking:
        verdict, shown = NONE_FOUND, []
    elif possible is None:
        verdict = NONE_OF_THESE
        shown = [
            next(test for _word, test in predicted.values() if test.answer is False) for predicted in tests.values()
        ]
    else:
        verdict = possible if fits[possible] else CANNOT_TELL
        shown = [test for _word, test in tests[possible].values()]
    values = Values(
        first_token_share=census.n_spiking / census.tokens,
        moved=shares.moved,
        repeated=_repeated(results),
        own=shares.own,
        follows=shares.follows,
        tokens=[token.token for token in census.spiking] if census.n_spiking <= NAMED else None,
        simplest_possible=possible,
        note=_behind_bos(shares.behind_bos, tests[verdict]) if verdict in tests else None,
        why=reasons(shown) or None,
        measured={name: Measured(label, cells[name], tells) for name, (label, _leaves, tells) in MANIPULATIONS.items()},
        causes={
            cause: Cause(fits[cause], {name: Prediction(word, test.answer) for name, (word, test) in predicted.items()})
            for cause, predicted in tests.items()
        },
    )
    return conclusion(verdict, RULE, values, [test for i, test in enumerate(shown) if test not in shown[:i]])


def _cells(results: Results) -> dict[str, Share | None]:
    """{manipulation: share}."""
    census = Share.exact(results.census.n_spiking / results.census.tokens)
    repeated = None if results.not_alone else _repeated(results)  # no evidence, where it has other context
    return vars(results.shares) | {CENSUS: census, "repeated": repeated}


def _repeated(results: Results) -> Share:
    """Behind itself, exact where no draw of tokens could change it."""
    shares = results.shares
    same = float(results.census.n_spiking > 0)  # those tried spike as the first token, or no token does
    certain = not results.not_alone and shares.there is None and shares.repeated.mean == same
    return Share.exact(same) if certain else shares.repeated


def _behind_bos(cell: Share | None, tests: dict[str, tuple[str, Test]]) -> str | None:
    """The exception that a verdict makes of BOS, if it needs it."""
    if cell is None or tests.get("behind_bos", ("",))[0] != "few":
        return None
    hardly_any = Test("behind BOS: share", cell, "below", HARDLY_ANY).answer
    return None if hardly_any else f"behind BOS, {cell.mean:.1%} still spike"


def _tests(needs: tuple[str, ...], cells: dict[str, Share | None]) -> dict[str, tuple[str, Test]]:
    """{manipulation: (predicted, in a word, Test)} of a cause, of what is measured."""
    wanted = {CENSUS: ("part", "below", NEARLY_ALL) if CERTAIN in needs else ("all", "above", NEARLY_ALL)}
    for name, (_label, leaves, _tells) in MANIPULATIONS.items():
        if leaves is not None:
            spikes = all(need in leaves for need in needs if need != CERTAIN)
            wanted[name] = ("all", "above", NEARLY_ALL) if spikes else ("none", "below", HARDLY_ANY)
    if ALONE in needs and POSITION not in needs:
        wanted["behind_bos"] = ("few", "below", MOST)
    wanted["own"] = ("most", "above", MOST)
    if POSITION in needs or ALONE in needs:
        wanted["first"] = ("most", "above", MOST)
    return {
        name: (word, Test(f"{MANIPULATIONS[name][0]}: share", cell, side, threshold))
        for name, (word, side, threshold) in wanted.items()
        if (cell := cells[name]) is not None
    }
