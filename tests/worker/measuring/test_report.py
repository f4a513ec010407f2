"""What is compared, and what the report says of it."""

from typing import Any

import pytest

from loco.contracts.evaluation import Baseline, EvalSet, Role
from loco.contracts.results import Comparison
from loco.grading.eval_items import EvalItem
from loco.grading.verdict import Graded
from loco.serving.host import Answer
from loco_worker.measuring.comparing import Verdict, compare, score
from loco_worker.measuring.report import in_words, left_of_gain, report, warnings

HELD_OUT = EvalSet.model_validate(
    {"source": {"kind": "arithmetic"}, "count": 10, "role": "primary"}
)


def verdicts(
    role: str, right: set[int], total: int = 10, text: str = "The answer is 1", **more: Any
) -> list[Verdict]:
    answer = Answer(text, "", "stop", 30, 9, 8.0, 0.5)._replace(**more)
    return [
        Verdict(
            "held_out",
            EvalItem(id=f"p{n}", question=f"How much is {n}?", answer="1"),
            role,
            f"model-{role}",
            None,
            answer,
            Graded(n in right, "1", None),
            cached=False,
        )
        for n in range(total)
    ]


def compared(
    base: set[int], candidate: set[int], against: Baseline = Baseline.BASE, total: int = 10
) -> Comparison:
    return compare(
        "held_out",
        HELD_OUT,
        against,
        verdicts(against, base, total),
        verdicts("candidate", candidate, total),
    )


def test_comparisons_pair_the_same_problem() -> None:
    made = compared({0, 1}, {1, 2, 3, 4, 5, 6, 7, 8})
    assert (made.base.correct, made.candidate.correct) == (2, 8)
    assert made.gain == pytest.approx(0.6)
    assert (made.won, made.lost) == (7, 1)
    assert made.p_value == pytest.approx(2 * (1 + 8) / 256)
    assert made.role is Role.PRIMARY
    assert made.allowance is None, "only a guard has one"
    assert made.low is not None
    assert made.high is not None
    assert 0 < made.low < made.gain < made.high <= 1


def test_a_score_tells_tokens_latency_and_what_was_cut() -> None:
    given = verdicts("base", set())
    given = [
        v._replace(
            answer=v.answer._replace(computed=n / 10, done_reason="stop" if n else "length"),
            cached=n < 4,
        )
        for n, v in enumerate(given)
    ]
    told = score(given)
    assert (told.tokens, told.unfinished, told.cached) == (300, 1, 4)
    # the first has no account of the server: its wall-clock seconds count
    assert (told.latency_p50, told.latency_p95) == (0.5, 8.0)
    assert told.seconds == pytest.approx(4.5 + 8.0)


def test_twenty_problems_can_only_show_thirty_points() -> None:
    made = compared({0, 1}, {0, 1, 2, 3}, total=20)
    assert made.smallest_difference == pytest.approx(0.3)
    assert "20 problems can only show 30 points or more" in in_words(made)
    text = report("m:1", [made], [], left_out={}, warned=(), gate=None)
    assert "20 problems can only show a difference of 30 points or more" in text


def test_what_a_prompt_gives_for_free_is_told_apart() -> None:
    base = compared({0, 1}, {1, 2, 3, 4, 5, 6, 7, 8})
    told = compared({0, 1, 2, 3, 4}, {1, 2, 3, 4, 5, 6, 7, 8}, Baseline.INSTRUCTED)
    [sentence] = left_of_gain([base, told])
    assert "the base by +30.0 points, the adapter by +60.0 points; +30.0 points are" in sentence
    assert left_of_gain([base]) == []


def test_a_limit_that_fakes_a_gain_is_warned_of() -> None:
    base = verdicts("base", {1}, done_reason="length")
    made = compare("held_out", HELD_OUT, Baseline.BASE, base, verdicts("candidate", {1, 2}))
    [warning] = warnings([made], {"held_out": 0}, trained_on_known=True, num_predict=128)
    assert "10 of 10 answers of the base model model-base" in warning
    assert "num_predict = 128" in warning
    assert warnings([compared({1}, {2})], {}, trained_on_known=True, num_predict=128) == ()


@pytest.mark.parametrize("cut", [2, 3])
@pytest.mark.parametrize("who", ["base", "candidate"])
def test_over_one_answer_in_fifty_cut_is_warned_of_whoevers_it_is(who: str, cut: int) -> None:
    """3 of 100 of the base's went unnoticed before, and any number of the candidate's."""
    sides = {role: verdicts(role, {1}, total=100) for role in ("base", "candidate")}
    sides[who][:cut] = verdicts(who, {1}, total=cut, done_reason="length")
    made = [
        compare("held_out", HELD_OUT, against, sides["base"], sides["candidate"])
        for against in (Baseline.BASE, Baseline.INSTRUCTED)
    ]
    told = warnings(made, {"held_out": 0}, trained_on_known=True, num_predict=128)
    if cut == 2:
        assert told == ()
        return
    names = ["the new model"]  # once, although it is in both comparisons
    if who == "base":
        names = ["the base model", "the base model with the recipe's instruction"]
    for name, warning in zip(names, told, strict=True):
        assert warning.startswith(
            f"3 of 100 answers of {name} model-{who} to held_out were cut at "
        )
        assert "eval.num_predict = 128" in warning
        assert "Raise eval.num_predict" in warning


def test_how_much_of_a_gain_the_limit_may_have_made_is_said() -> None:
    whole, cut = verdicts("base", {9}), verdicts("base", {9}, done_reason="length")
    base = [*cut[:4], *whole[4:]]
    made = compare(
        "held_out", HELD_OUT, Baseline.BASE, base, verdicts("candidate", set(range(2, 9)))
    )
    assert (made.won, made.won_on_cut, made.lost) == (7, 2, 1)
    [warning] = warnings([made], {"held_out": 0}, trained_on_known=True, num_predict=128)
    assert (
        "2 of 7 problems won are among these. If they count as ties, 5 are won and 1 lost, p = 0.22"
        in (warning)
    )
    made = compare("held_out", HELD_OUT, Baseline.BASE, base, verdicts("candidate", {8}))
    [warning] = warnings([made], {"held_out": 0}, trained_on_known=True, num_predict=128)
    assert "None of the problems won is among these." in warning


def test_a_stricter_p_needs_a_larger_difference() -> None:
    pair = verdicts("base", set(), total=20), verdicts("candidate", set(), total=20)
    made = compare("held_out", HELD_OUT, Baseline.BASE, *pair, max_p=0.01)
    assert made.smallest_difference == pytest.approx(0.4)


def test_contamination_is_loud_and_ignorance_is_said() -> None:
    made = compared({1}, {2})
    [warning] = warnings([made], {"held_out": 3}, trained_on_known=True, num_predict=128)
    assert warning.startswith("CONTAMINATED: 3 problems of held_out")
    [unknown] = warnings([made], {}, trained_on_known=False, num_predict=128)
    assert "is not known" in unknown


def test_won_and_lost_problems_stand_side_by_side() -> None:
    base = verdicts("base", {0, 1}, text="I | guess\n*5*")
    candidate = verdicts("candidate", {1, 2}, text="It is 1")
    made = compare("held_out", HELD_OUT, Baseline.BASE, base, candidate)
    text = report(
        "locollm-math:j1",
        [made],
        [*base, *candidate],
        left_out={Baseline.PROMOTED: "no other version serves yet"},
        warned=("Mind this.",),
        gate=None,
    )
    won = text[text.index("## Won on held_out: 1") : text.index("## Lost on held_out: 1")]
    assert "### p2\n" in won
    assert r"| I \| guess<br>\*5\* | It is 1 |" in won
    assert "model-base: wrong, read as 1 | model-candidate: right, read as 1" in won
    assert "### p0\n" in text[text.index("## Lost") :]
    assert "Not compared with the version that serves now: no other version serves yet." in text
    assert "> **Warning.** Mind this." in text
    assert "| held_out | the base model | 30 | 0 of 10 | 0.50 | 0.50 | 0 |" in text


def test_answers_are_shown_and_never_rendered() -> None:
    nasty = "<script>alert(1)</script> [x](javascript:alert(1)) ![](http://x) `a` &lt;"
    base = verdicts("base", set(), text=nasty)
    made = compare("held_out", HELD_OUT, Baseline.BASE, base, verdicts("candidate", {1}))
    text = report(
        "m:1", [made], [*base, *verdicts("candidate", {1})], left_out={}, warned=(), gate=None
    )
    shown = next(line for line in text.splitlines() if "alert" in line)
    assert "<script" not in shown
    assert "](" not in shown.replace(r"\](", "")
    assert "&amp;lt;" in shown
