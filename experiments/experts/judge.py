"""Experiment 8: which experts of its mixtures make the massive activation."""

from experiments.experts.results import MeasuredExpert, Results, Values, Verdict, Word, given
from lib.core.definitions import CANDIDATE, COLLAPSES, PERSISTS, SUPER
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Average, Test, conclusion
from lib.core.results import Expert

GONE, STAYS = COLLAPSES[1], PERSISTS[0]
RULE = (
    "retained = sum of the values at the place, at the end of the plateau, over the sum of the baseline's, each along "
    "the baseline's sign in its window, over the windows that have the spike; the spike is gone below "
    f"{GONE} and stays above {STAYS}. Candidates: experts that write at least {CANDIDATE:.0%} of the peak into the "
    f"place, or whose largest output exceeds the {SUPER[0]}th percentile of all experts'; backups: those that write so "
    "much where the candidates are off. With all of them off: the spike stays: 'not the experts'; it neither stays nor "
    "is gone: 'in part the experts'; it is gone: 'one expert' (or 'the shared expert'), if it is gone without that one "
    "alone and without no other, random ones included; 'several experts together', if it is gone without each of "
    "several; where it is gone without none: 'several experts, others in other windows', if without the one that each "
    "window needs most it is gone, 'several experts, each is enough', if it stays with each of several as the only "
    f"candidate that is on, else 'several experts together'. {NONE_FOUND!r}: the baseline has no massive activation. "
    "Named are those without which it is gone; if there are none, those of which each is enough, or those without "
    f"which less than {STAYS} is left or which alone keep more than {GONE}. The others' routing weights as they were. "
    "A threshold must lie outside the interval, which is simultaneous over all experts that are off; "
    f"{CANNOT_TELL!r}: it does not. Super: a largest output above that percentile and above {SUPER[1]} of the largest "
    "of all (arXiv 2507.23279)"
)


def judge(results: Results) -> Verdict:
    together = given(results.together)
    retained = together.retained if together else None
    values = Values([], [], [], [], [row.name for row in results.experts if row.super], retained)
    if not results.place.massive:
        return conclusion(NONE_FOUND, RULE, values)
    if retained is None:
        return conclusion("not the experts", RULE, values)  # nothing was worth a run
    stays = Test("retained without all candidates", retained, "above", STAYS)
    gone = Test("retained without all candidates", retained, "below", GONE)
    if stays.answer:
        return conclusion("not the experts", RULE, values, [stays])
    if not gone.answer:
        told = stays.answer is False and gone.answer is False
        return conclusion("in part the experts" if told else CANNOT_TELL, RULE, values, [stays, gone])
    return _made_by_experts(results, values, gone)


def _made_by_experts(results: Results, values: Values, together: Test) -> Verdict:
    """The verdict where the spike is gone without all candidates."""
    tried = [*results.candidates, *results.random]
    needed = {row.name: _test(row, "off", "below", GONE) for row in tried}
    alone = [row for row in results.candidates if given(row.alone)]
    enough = {row.name: _test(row, "alone", "above", STAYS) for row in alone}
    less = {row.name: _test(row, "off", "below", STAYS) for row in tried}
    values.necessary.extend(_with(needed, True))
    values.enough.extend(_with(enough, True))
    values.cannot_tell.extend(name for name in needed if name in _with(needed, None) or name in _with(enough, None))
    n_open = len(_with(needed, None))
    shown = [together, *_shown(needed)]
    verdict: Word | None
    if len(values.necessary) > 1 or n_open:
        verdict = "several experts together" if len(values.necessary) > 1 else None
        named = values.necessary
    elif values.necessary:
        (one,) = named = values.necessary
        verdict = "the shared expert" if one.expert is None else "one expert"
    else:
        most_needed = given(results.most_needed)
        by_window = (
            Test("retained without each window's most needed", most_needed, "below", GONE) if most_needed else None
        )
        shown += [*([by_window] if by_window else []), *_shown(enough)]
        n_enough = len(values.enough)
        if by_window and by_window.answer is not False:
            verdict = "several experts, others in other windows" if by_window.answer else None
            named = _with(less, True)
        elif n_enough > 1:
            verdict, named = "several experts, each is enough", values.enough
        else:
            verdict = None if n_enough + len(_with(enough, None)) > 1 else "several experts together"
            helps = _with({row.name: _test(row, "alone", "above", GONE) for row in alone}, True)
            named = [name for name in less if name in helps or less[name].answer]
    if verdict is not None:
        values.experts.extend(named)
    return conclusion(verdict or CANNOT_TELL, RULE, values, shown)


def _test(row: MeasuredExpert, run: str, wanted: str, threshold: float) -> Test:
    retained: Average = getattr(row, run).retained
    what = f"retained without {row.name}" if run == "off" else f"retained with {row.name} as the only candidate on"
    return Test(what, retained, wanted, threshold, "family95")


def _with(tests: dict[Expert, Test], answer: bool | None) -> list[Expert]:
    return [name for name, test in tests.items() if test.answer is answer]


def _shown(tests: dict[Expert, Test]) -> list[Test]:
    """Those that are true or open, and of the others the nearest to its threshold."""
    false = [test for test in tests.values() if test.answer is False]
    nearest = sorted(false, key=lambda test: abs(test.distance or 0))[:1]
    return [test for test in tests.values() if test.answer is not False] + nearest
