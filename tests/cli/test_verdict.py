"""The verdict as somebody without statistics reads it."""

from typing import Any

import pytest

from loco.cli.verdict import in_words
from loco.contracts.evaluation import GateResult, Verdict
from loco.contracts.results import Comparison, EvalResult, Score
from loco.contracts.versions import Promotion

MODEL = "locollm-math-tiny"


def score(correct: int) -> Score:
    return Score(
        model="m",
        correct=correct,
        total=100,
        accuracy=correct / 100,
        low=0,
        high=1,
        unfinished=0,
        seconds=1,
    )


def evaluated(
    verdict: Verdict, base: int, adapter: int, *, reasons: tuple[str, ...] = (), **more: Any
) -> EvalResult:
    told = {"p_value": 1e-4, "low": 0.11, "high": 0.31, "role": "primary", **more}
    contaminated = told.pop("contaminated", {"held_out": 0})
    comparison = Comparison.model_validate(
        {
            "set": "held_out",
            "base": score(base),
            "candidate": score(adapter),
            "gain": (adapter - base) / 100,
            "won": 25,
            "lost": 4,
            **told,
        }
    )
    return EvalResult(
        seconds=1,
        files={},
        base_model="b",
        candidate="c",
        comparisons=(comparison,),
        contaminated=contaminated,
        gate=GateResult(verdict=verdict, policy="not_worse", reasons=reasons),
    )


def became(**fields: Any) -> Promotion:
    return Promotion(**{"version": 2, "model": MODEL, "promoted": True, "serving": 2, **fields})


def test_better() -> None:
    assert in_words(evaluated(Verdict.BETTER, 29, 50), became()) == (
        "Verdict: better. The adapter solved 50 of 100 problems it had never seen, its base 29: "
        "21 more in a hundred. Other problems of this kind would give another figure. The true "
        "difference is between 11 more and 31 more in a hundred (the method is right in 95 of 100 "
        "measurements). If adapter and base were equally good, chance alone would give a "
        "difference this large about once in 10,000 measurements. So "
        "locollm-math-tiny now serves it."
    )


def test_unproven() -> None:
    result = evaluated(
        Verdict.UNPROVEN, 40, 44, p_value=0.5, low=-0.055, high=0.13, smallest_difference=0.06
    )
    words = in_words(result, became())
    assert words.startswith("Verdict: unproven. The adapter solved 44 of 100")
    assert "between 5.5 fewer and 13 more in a hundred" in words
    assert "difference this large in 50 of 100 measurements." in words
    assert "This does not prove that the adapter is better. 100 problems can only show" in words
    assert words.endswith(
        "a difference of 6 in a hundred or more. So locollm-math-tiny now serves it."
    )


def test_unproven_and_not_promoted_says_what_came_between() -> None:
    outcome = became(promoted=False, serving=1, reason="version 1 was promoted meanwhile")
    words = in_words(evaluated(Verdict.UNPROVEN, 40, 44), outcome)
    assert words.endswith(
        f"It does not serve: version 1 keeps serving as {MODEL}. version 1 was promoted meanwhile"
    )


def test_refused() -> None:
    result = evaluated(
        Verdict.REFUSED,
        50,
        29,
        low=-0.31,
        high=-0.11,
        reasons=("Significantly worse: held_out.",),
    )
    words = in_words(result, became(promoted=False, serving=1))
    assert words.startswith("Verdict: refused. The adapter solved 29 of 100 problems it had never")
    assert "21 fewer in a hundred" in words
    assert "between 31 fewer and 11 fewer" in words
    assert words.endswith(
        "Why the gate refused it: Significantly worse: held_out. So it does not serve: version 1 keeps "
        f"serving as {MODEL}."
    )
    words = in_words(result, became(promoted=False, serving=None))
    assert words.endswith(f"So it does not serve: nothing serves as {MODEL} yet.")


def test_refused_although_it_serves() -> None:
    words = in_words(evaluated(Verdict.REFUSED, 50, 29), became())
    assert "now serves" not in words
    assert words.endswith(f"Version 2 of {MODEL} was promoted before and still serves.")


def test_problems_that_were_trained_on_are_not_called_unseen() -> None:
    for contaminated in ({"held_out": 3}, {}):
        words = in_words(evaluated(Verdict.BETTER, 29, 50, contaminated=contaminated), became())
        assert "never seen" not in words
        assert "50 of 100 problems of held_out" in words


def test_without_a_deciding_set_nothing_is_claimed() -> None:
    result = evaluated(Verdict.UNPROVEN, 29, 50, role="shown", reasons=("No primary set.",))
    assert in_words(result, became()) == (
        "Verdict: unproven. No primary problems were measured, so nothing is proven. No primary "
        "set. So locollm-math-tiny now serves it."
    )
    assert in_words(result.model_copy(update={"gate": None}), became()) == ""


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (1.0, "nearly always"),
        (0.38, "in 38 of 100 measurements"),
        (0.03, "about once in 33 measurements"),
        (0.00104, "about once in 1,000 measurements"),
        (2e-22, "less than once in 1,000,000 measurements"),
    ],
)
def test_chances(p: float, words: str) -> None:
    assert f"a difference this large {words}." in in_words(
        evaluated(Verdict.BETTER, 29, 50, p_value=p), became()
    )
