"""One model's score, and a baseline against the candidate on the same problems."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from loco.contracts.evaluation import Baseline, EvalSet, Role
from loco.contracts.results import Comparison, Score
from loco.grading.eval_items import EvalItem
from loco.grading.significance import (
    difference_interval,
    mcnemar_exact,
    smallest_difference,
    wilson_interval,
)
from loco.grading.verdict import Graded
from loco.serving.host import Answer
from loco_worker.measuring.asking import Answered


class Verdict(NamedTuple):
    """One contestant's answer to one problem."""

    set: str
    item: EvalItem
    #: `candidate`, or the name of a baseline.
    role: str
    model: str
    system: str | None
    answer: Answer
    graded: Graded
    cached: bool

    @classmethod
    def of(cls, answered: Answered, graded: Graded) -> "Verdict":
        """An answer with its grade."""
        question, answer, cached = answered
        who = question.contestant
        return cls(
            question.set,
            question.item,
            who.role,
            who.model,
            question.system,
            answer,
            graded,
            cached,
        )

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.graded.correct

    @property
    def finished(self) -> bool:
        """Whether the answer ended by itself."""
        return self.answer.done_reason == "stop"


def compare(
    name: str,
    entry: EvalSet,
    against: Baseline,
    base: Sequence[Verdict],
    candidate: Sequence[Verdict],
    *,
    max_p: float = 0.05,
) -> Comparison:
    """A baseline against the candidate on one set.

    Args:
        name: of the set.
        entry: its spec.
        against: which baseline.
        base: the baseline's answers.
        candidate: the candidate's, to the same problems in the same order.
        max_p: largest p of a significant difference.
    """
    pairs = list(zip(base, candidate, strict=True))
    assert all(b.item.id == c.item.id for b, c in pairs)
    won_from = [b for b, c in pairs if c.correct and not b.correct]
    won = len(won_from)
    lost = sum(b.correct and not c.correct for b, c in pairs)
    before, after = score(base), score(candidate)
    low, high = difference_interval(won, lost, len(pairs))
    return Comparison(
        set=name,
        role=entry.role,
        against=against,
        base=before,
        candidate=after,
        gain=(won - lost) / len(pairs),
        low=low,
        high=high,
        won=won,
        won_on_cut=sum(not b.finished for b in won_from),
        lost=lost,
        p_value=mcnemar_exact(won, lost),
        smallest_difference=smallest_difference(len(pairs), max_p=max_p),
        allowance=entry.allowance if entry.role is Role.GUARD else None,
    )


def score(verdicts: Sequence[Verdict]) -> Score:
    """A contestant's score on one set; at least one verdict."""
    correct, total = sum(v.correct for v in verdicts), len(verdicts)
    low, high = wilson_interval(correct, total)
    seconds = sorted(v.answer.computed or v.answer.seconds for v in verdicts)
    return Score(
        model=verdicts[0].model,
        correct=correct,
        total=total,
        accuracy=correct / total,
        low=low,
        high=high,
        unfinished=sum(not v.finished for v in verdicts),
        seconds=round(sum(seconds), 3),
        tokens=sum(v.answer.tokens for v in verdicts),
        latency_p50=_percentile(seconds, 50),
        latency_p95=_percentile(seconds, 95),
        cached=sum(v.cached for v in verdicts),
    )


def _percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that so many percent do not exceed."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
