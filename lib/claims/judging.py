"""What a claim is, and how it is judged: by a rule over the results of one model on some texts, which are "here".

A claim holds here, or does not, by the tests of its rule, printed with the numbers; it cannot be told where a result is
missing, where an interval holds a threshold, or where causality made the outcome certain beforehand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lib.claims.measured import SCRIPTS, CannotTellError, Measured
from lib.core import evidence
from lib.core.evidence import Answer, Conclusion, StoredTest

Judged = tuple[Sequence[Answer], dict[str, Any]]  # the tests that decide, and {name: number} that they rest on

VERDICTS = HOLDS, FAILS, CANNOT_TELL = "holds here", "does not hold here", evidence.CANNOT_TELL


@dataclass(frozen=True)
class Claim:
    """row: of the claims list; rows that end in a letter split one of them. text: what is claimed, with the seed
    study's figure for GPT-2."""

    row: str
    text: str
    rule: str
    judge: Callable[[Measured], Judged]


def claim(row: str, text: str, rule: str) -> Callable[[Callable[[Measured], Judged]], Claim]:
    """Make the function below the judge of a claim, and its name that of the claim."""
    return lambda judge: Claim(row, text, rule, judge)


@dataclass(frozen=True)
class AnsweredTest(StoredTest):
    answer: bool | None


@dataclass(frozen=True)
class JudgedClaim:
    """values: {name: a number, a text or a Cell}, which it rests on. reason: why it cannot be told."""

    row: str
    claim: str
    rule: str
    verdict: str
    values: dict[str, Any]
    tests: list[AnsweredTest]
    reason: str | None

    @property
    def nearest(self) -> AnsweredTest | None:
        """The test on which the verdict hangs: the nearest to its threshold; where the claim does not hold, of those
        that say so the furthest, for all of them would have to turn. None without tests."""
        against = [test for test in self.tests if test.answer is False]
        if self.reason is None and against:
            return max(against, key=_distance)
        return min(self.tests, key=_distance, default=None)


def _distance(test: AnsweredTest) -> float:
    """In parts of the threshold, which makes those of several units comparable."""
    return abs(test.distance or 0) / (abs(test.threshold or 0) or 1)


def judge(claim: Claim, measured: Measured) -> JudgedClaim:
    tests: Sequence[Answer]
    try:
        tests, values = claim.judge(measured)
        verdict = {True: HOLDS, False: FAILS, None: CANNOT_TELL}[evidence.every(tests)]
        reason = evidence.reasons(tests) if verdict == CANNOT_TELL else None
    except CannotTellError as error:
        verdict, tests, values, reason = CANNOT_TELL, [], {}, str(error)
    answered = [AnsweredTest(**vars(test.listed()), answer=test.answer) for test in tests]
    return JudgedClaim(claim.row, claim.text, claim.rule, verdict, values, answered, reason)


@dataclass(frozen=True)
class Said:
    """Whether an experiment's own verdict is this one: an evidence.Answer, of which its own tests are the numbers."""

    experiment: str
    conclusion: Conclusion[Any]
    wanted: str
    why: str | None = None

    @property
    def answer(self) -> bool | None:
        verdict = self.conclusion.verdict
        return None if verdict == evidence.CANNOT_TELL else verdict == self.wanted

    @property
    def reason(self) -> str:
        open_ = [test.what for test in self.conclusion.tests if test.side not in ("above", "below")]
        why = self.why or ", ".join(open_) or "see there"
        return f"{SCRIPTS[self.experiment]} cannot tell: {why}"

    def listed(self) -> StoredTest:
        """distance: of its nearest threshold."""
        told = [test.distance for test in self.conclusion.tests if test.distance is not None]
        return StoredTest(
            what=f"the verdict of {SCRIPTS[self.experiment]}",
            mean=None,
            interval=None,
            wanted=self.wanted,
            threshold=None,
            side=self.conclusion.verdict,
            distance=min(told, key=abs, default=None),
        )
