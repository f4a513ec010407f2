"""The gate's decisions: every policy against better, same, worse, too few, and failed checks."""

import itertools

import pytest

from loco.contracts.evaluation import Baseline, GateSpec, Role, Verdict
from loco.contracts.results import Comparison, Score
from loco.contracts.serving import Check
from loco.grading.gate import decide, refusal
from loco.grading.significance import mcnemar_exact, wilson_interval

GOOD = Check(name="rendered_prompt", passed=True, expected="the same", seen="the same")
BAD = Check(
    name="rendered_prompt", passed=False, expected="'a'", seen="'b'", fix="Run export again."
)


def score(correct: int, total: int) -> Score:
    low, high = wilson_interval(correct, total)
    return Score(
        model="m",
        correct=correct,
        total=total,
        accuracy=correct / total if total else 0.0,
        low=low,
        high=high,
        unfinished=0,
        seconds=1.0,
    )


def compared(
    base: int,
    won: int,
    lost: int,
    *,
    total: int = 200,
    role: Role = Role.PRIMARY,
    against: Baseline = Baseline.BASE,
    name: str = "held_out",
    allowance: float | None = None,
) -> Comparison:
    """The base solved `base`; the candidate won and lost some."""
    candidate = base + won - lost
    return Comparison(
        set=name,
        role=role,
        against=against,
        base=score(base, total),
        candidate=score(candidate, total),
        gain=(won - lost) / total if total else 0.0,
        low=-0.1,
        high=0.1,
        won=won,
        lost=lost,
        p_value=mcnemar_exact(won, lost),
        allowance=allowance,
        smallest_difference=0.08,
    )


BETTER = compared(100, won=40, lost=5)
SAME = compared(100, won=10, lost=9)
WORSE = compared(100, won=5, lost=40)
GUARD_OK = compared(50, won=0, lost=3, total=60, role=Role.GUARD, name="general", allowance=0.05)
GUARD_LOST = compared(50, won=0, lost=4, total=60, role=Role.GUARD, name="general", allowance=0.05)


def verdict(policy: str, *comparisons: Comparison, checks: tuple[Check, ...] = (GOOD,)) -> Verdict:
    return decide(GateSpec(policy=policy), comparisons, checks, None).verdict


@pytest.mark.parametrize(
    ("policy", "better", "same", "worse", "guard_lost", "check_failed", "nothing"),
    [
        ("not_worse", "better", "unproven", "refused", "refused", "refused", "unproven"),
        ("better", "better", "refused", "refused", "refused", "refused", "refused"),
        ("always", "better", "unproven", "unproven", "unproven", "refused", "unproven"),
        ("never", "refused", "refused", "refused", "refused", "refused", "refused"),
    ],
)
def test_what_each_policy_makes_of_it(
    policy, better, same, worse, guard_lost, check_failed, nothing
):
    assert verdict(policy, BETTER, GUARD_OK) == better
    assert verdict(policy, SAME) == same
    assert verdict(policy, WORSE) == worse
    assert verdict(policy, BETTER, GUARD_LOST) == guard_lost
    assert verdict(policy, BETTER, checks=(GOOD, BAD)) == check_failed
    assert verdict(policy) == nothing


def test_a_refusal_says_the_figures_and_what_to_try():
    result = decide(GateSpec(), [WORSE], [GOOD], 2)
    (reason,) = result.reasons
    assert reason == (
        "Significantly worse: held_out: 32.5 % of 200 problems against 50 % of the base, -17.5 "
        "points (95 % interval -10.0 to +10.0, p < 0.0001)."
    )
    assert result.compared_version == 2
    assert "human ones" in result.advice[0]
    assert any("learning_rate" in a for a in result.advice)
    assert any("report.md" in a for a in result.advice)


def test_a_failed_check_is_named_with_expected_seen_and_fix():
    result = decide(GateSpec(policy="always"), [BETTER], [BAD], None)
    assert result.verdict is Verdict.REFUSED
    assert result.reasons == ("Deployment check rendered_prompt failed: expected 'a', found 'b'.",)
    assert result.advice == ("Run export again.",)


def test_worse_than_the_promoted_version_is_refused_although_better_than_the_base():
    worse = compared(150, won=2, lost=20, against=Baseline.PROMOTED)
    result = decide(GateSpec(), [BETTER, worse], [GOOD], 3)
    assert result.verdict is Verdict.REFUSED
    assert "the promoted version" in result.reasons[0]
    same = compared(138, won=5, lost=3, against=Baseline.PROMOTED)
    assert decide(GateSpec(), [BETTER, same], [GOOD], 3).verdict is Verdict.BETTER


class TestWhileAVersionServes:
    """A name is moved away from it only by what was compared with it, on enough problems."""

    @pytest.mark.parametrize("policy", ["not_worse", "better"])
    def test_what_was_not_compared_with_it_is_refused(self, policy):
        result = decide(GateSpec(policy=policy), [BETTER], [GOOD], 3)
        assert result.verdict is Verdict.REFUSED
        assert not result.by_hand
        assert "not compared with version 3" in result.reasons[0]
        assert result.advice == ("Add `promoted` to eval.baselines.",)

    def test_what_could_not_be_compared_with_it_says_why_and_how_to_have_it_again(self):
        why = "locollm-math:old is no longer in Ollama"
        result = decide(GateSpec(), [BETTER], [GOOD], 3, not_compared=why, adapter="math")
        assert result.verdict is Verdict.REFUSED
        assert result.reasons[0] == f"It was not compared with version 3, which serves now: {why}."
        assert "`loco setup math` creates version 3 in Ollama again" in result.advice[0]

    def test_few_problems_take_no_place(self):
        few = [
            compared(10, won=20, lost=0, total=99, against=against)
            for against in (Baseline.BASE, Baseline.PROMOTED)
        ]
        result = decide(GateSpec(), few, [GOOD], 3)
        assert result.verdict is Verdict.REFUSED
        assert (
            "on only 99 problems. To replace a version it needs at least 100" in result.reasons[0]
        )
        assert "eval.sets.NAME.count" in result.advice[0]
        assert decide(GateSpec(min_problems=99), few, [GOOD], 3).verdict is Verdict.BETTER
        assert decide(GateSpec(), few, [GOOD], None).verdict is Verdict.UNPROVEN, "the first one"

    def test_without_a_primary_set_it_is_refused(self):
        result = decide(GateSpec(), [GUARD_OK], [GOOD], 3)
        assert result.verdict is Verdict.REFUSED
        assert "No primary set was measured" in result.reasons[0]

    def test_harm_comes_first_and_people_may_do_as_they_like(self):
        assert "Significantly worse" in decide(GateSpec(), [WORSE], [GOOD], 3).reasons[0]
        assert decide(GateSpec(policy="always"), [BETTER], [GOOD], 3).verdict is Verdict.UNPROVEN
        assert decide(GateSpec(policy="never"), [BETTER], [GOOD], 3).by_hand


@pytest.mark.parametrize("policy", ["not_worse", "better", "always", "never"])
def test_a_candidate_nothing_was_checked_of_is_refused(policy):
    result = decide(GateSpec(policy=policy), [BETTER], [], None)
    assert result.verdict is Verdict.REFUSED
    assert not result.by_hand
    assert "check proof failed" in result.reasons[0]
    assert "export,register,eval" in result.advice[0]


def test_what_register_did_not_prove_is_refused_before_it_is_measured():
    assert refusal([GOOD]) is None
    failed = refusal([GOOD, BAD])
    assert failed is not None
    assert (failed.verdict, failed.by_hand, failed.advice) == (
        *(Verdict.REFUSED, False),
        ("Run export again.",),
    )
    nothing = refusal([])
    assert nothing is not None
    assert "without checks" in nothing.reasons[0]


def test_a_verdict_says_on_how_many_primary_problems_it_stands():
    assert decide(GateSpec(), [BETTER, GUARD_OK], [GOOD], None).problems == 200
    assert decide(GateSpec(), [GUARD_OK], [GOOD], None).problems == 0


def test_contaminated_problems_prove_nothing():
    known = {"held_out": 1}
    result = decide(GateSpec(), [BETTER], [GOOD], None, contaminated=known)
    assert result.verdict is Verdict.UNPROVEN
    assert "1 of its problems overlap rows" in result.reasons[-1]
    strict = decide(GateSpec(policy="better"), [BETTER], [GOOD], None, contaminated=known)
    assert strict.verdict is Verdict.REFUSED
    elsewhere = {"held_out": 0, "general": 5}
    result = decide(GateSpec(), [BETTER, GUARD_OK], [GOOD], None, contaminated=elsewhere)
    assert result.verdict is Verdict.BETTER


@pytest.mark.parametrize(
    ("unfinished", "won_on_cut", "verdict"),
    [
        (4, 40, Verdict.BETTER),  # one in fifty: that is normal
        (5, 40, Verdict.UNPROVEN),  # 0 against 5 is left
        (5, 26, Verdict.UNPROVEN),  # 14 against 5, p = 0.064
        (5, 25, Verdict.BETTER),  # 15 against 5, p = 0.041
        (80, 0, Verdict.BETTER),
    ],
)
def test_a_gain_that_the_limit_of_tokens_may_have_made_is_doubted(unfinished, won_on_cut, verdict):
    base = BETTER.base.model_copy(update={"unfinished": unfinished})
    cut = BETTER.model_copy(update={"base": base, "won_on_cut": won_on_cut})
    result = decide(GateSpec(), [cut], [GOOD], None)
    assert result.verdict is verdict
    if verdict is Verdict.UNPROVEN:
        assert f"{won_on_cut} of 40 problems won" in result.reasons[-1]
        assert decide(GateSpec(policy="better"), [cut], [GOOD], None).verdict is Verdict.REFUSED


class TestWhoseAnswersToTrainOn:
    """Given answers spoil a base that solves much by itself; one that solves little needs them."""

    def test_a_capable_base_that_got_worse_on_given_answers_is_told_to_use_its_own(self):
        result = decide(GateSpec(), [compared(82, won=5, lost=40)], [GOOD], None, own=False)
        assert result.verdict is Verdict.REFUSED
        assert "kind self; profile `default`" in result.advice[0]
        assert "solves 41 % of held_out by itself" in result.advice[0]
        assert "human ones" not in " ".join(result.advice)

    def test_an_unproven_gain_is_told_as_well_and_promoted(self):
        result = decide(GateSpec(), [SAME], [GOOD], None, own=False)
        assert result.verdict is Verdict.UNPROVEN
        assert len(result.advice) == 1
        assert "its own verified answers" in result.advice[0].replace("the base's", "its")

    def test_a_weak_base_with_own_answers_is_told_to_take_gold_ones(self):
        few = compared(19, won=10, lost=9)
        result = decide(GateSpec(), [few], [GOOD], None, own=True)
        assert "solves only 9.5 % of held_out by itself" in result.advice[0]
        assert "profile `gold`" in result.advice[0]

    @pytest.mark.parametrize(
        ("own", "base"), [(True, 20), (True, 150), (False, 80), (False, 19), (None, 150)]
    )
    def test_where_the_share_speaks_for_the_source_nothing_is_said(self, own, base):
        assert decide(GateSpec(), [compared(base, 5, 5)], [GOOD], None, own=own).advice == ()

    @pytest.mark.parametrize("own", [True, False])
    def test_what_won_is_left_alone(self, own):
        for base in (10, 100):
            won = compared(base, won=40, lost=5)
            assert decide(GateSpec(), [won], [GOOD], None, own=own).advice == ()

    def test_own_answers_are_not_advised_to_who_has_them(self):
        advice = " ".join(decide(GateSpec(), [WORSE], [GOOD], None, own=True).advice)
        assert "human ones" not in advice
        assert "learning_rate" in advice
        weak = decide(GateSpec(), [compared(70, won=5, lost=40)], [GOOD], None, own=False)
        assert "human ones" in weak.advice[0], "35 %: too few to be sure, and still likely"

    def test_a_failed_check_says_nothing_of_the_rows(self):
        assert decide(GateSpec(), [SAME], [BAD], None, own=False).advice == ("Run export again.",)


@pytest.mark.parametrize("against", [Baseline.INSTRUCTED, Baseline.EXPORTED])
def test_baselines_that_do_not_gate_are_not_judged(against):
    worse = compared(180, won=1, lost=60, against=against)
    assert decide(GateSpec(), [BETTER, worse], [GOOD], None).verdict is Verdict.BETTER
    guard = compared(50, won=0, lost=30, total=60, role=Role.GUARD, allowance=0.05, against=against)
    assert decide(GateSpec(), [BETTER, guard], [GOOD], None).verdict is Verdict.BETTER


def test_sets_that_are_only_shown_decide_nothing():
    shown = compared(20, won=0, lost=20, total=20, role=Role.SHOWN, name="benchmark")
    assert verdict("not_worse", BETTER, shown) is Verdict.BETTER
    assert verdict("not_worse", shown) is Verdict.UNPROVEN


def test_few_problems_prove_no_gain_but_may_show_harm():
    few = compared(10, won=20, lost=0, total=99)
    result = decide(GateSpec(), [few], [GOOD], None)
    assert result.verdict is Verdict.UNPROVEN
    assert "99 problems. Fewer than 100" in result.reasons[-1]
    assert decide(GateSpec(policy="better"), [few], [GOOD], None).verdict is Verdict.REFUSED
    harmed = compared(19, won=0, lost=15, total=20)
    assert verdict("not_worse", harmed) is Verdict.REFUSED


def test_a_guard_may_lose_just_its_allowance():
    lost_5_of_100 = compared(60, won=0, lost=5, total=100, role=Role.GUARD, allowance=0.05)
    assert verdict("not_worse", BETTER, lost_5_of_100) is Verdict.BETTER
    lost_6_of_100 = compared(60, won=0, lost=6, total=100, role=Role.GUARD, allowance=0.05)
    assert verdict("not_worse", BETTER, lost_6_of_100) is Verdict.REFUSED
    strict = compared(60, won=0, lost=1, total=100, role=Role.GUARD, allowance=0.0)
    assert verdict("not_worse", BETTER, strict) is Verdict.REFUSED


def test_never_is_by_hand_unless_something_speaks_against_it():
    assert decide(GateSpec(policy="never"), [BETTER], [GOOD], None).by_hand
    assert decide(GateSpec(policy="never"), [SAME], [GOOD], None).by_hand
    assert not decide(GateSpec(policy="never"), [WORSE], [GOOD], None).by_hand
    assert not decide(GateSpec(policy="never"), [BETTER], [BAD], None).by_hand
    assert "by hand" in decide(GateSpec(policy="never"), [BETTER], [GOOD], None).reasons[0]


def test_an_empty_set_is_no_set():
    empty = compared(0, won=0, lost=0, total=0)
    result = decide(GateSpec(), [empty], [GOOD], None)
    assert result.verdict is Verdict.UNPROVEN
    assert "No primary set" in result.reasons[0]


def test_without_the_base_nothing_is_better():
    only = compared(100, won=40, lost=5, against=Baseline.PROMOTED)
    result = decide(GateSpec(), [only], [GOOD], 1)
    assert result.verdict is Verdict.UNPROVEN
    assert "base was not measured" in result.reasons[-1]


def test_whatever_was_measured_the_rule_holds():
    """Every split of 120 discordant or equal problems, every policy, with and without harm."""
    policies = ("not_worse", "better", "always", "never")
    for won, lost, policy, failed in itertools.product(
        range(0, 61, 4), range(0, 61, 4), policies, (False, True)
    ):
        comparison = compared(60, won=won, lost=min(lost, 60), total=120)
        result = decide(GateSpec(policy=policy), [comparison], [BAD if failed else GOOD], None)
        significant = comparison.p_value < 0.05
        better, worse = significant and won > lost, significant and won < lost
        if failed or policy == "never":
            wanted = Verdict.REFUSED
        elif policy == "always":
            wanted = Verdict.BETTER if better else Verdict.UNPROVEN
        elif worse or (policy == "better" and not better):
            wanted = Verdict.REFUSED
        else:
            wanted = Verdict.BETTER if better else Verdict.UNPROVEN
        assert result.verdict is wanted, (won, lost, policy, failed)
        assert result.reasons
        assert all(reason.endswith(".") for reason in result.reasons)
        assert bool(result.advice) == (wanted is Verdict.REFUSED)
