"""The gate: whether a measured candidate is promoted, with a verdict and the reasons in words.

A pure function of what was measured. It answers; the ledger acts on the answer when eval commits.
"""

from collections.abc import Iterable, Mapping, Sequence

from loco.contracts.evaluation import Baseline, GateResult, GateSpec, Role, Verdict
from loco.contracts.figures import share
from loco.contracts.results import Comparison, Score
from loco.contracts.serving import Check
from loco.grading import own_answers
from loco.grading.significance import mcnemar_exact

#: Part of a model's answers that may be cut at num_predict before its score is looked at twice: so many
#: points a limit can make or hide.
MOST_UNFINISHED = 0.02
#: What stands in for the checks of a register that made none.
NO_PROOF = Check(
    name="proof",
    passed=False,
    expected="the checks that register makes of a candidate",
    seen="none: an earlier release registered it without checks",
    fix="Run stages export,register,eval again.",
)

#: Accuracies are quotients of small integers: what is nearer than this is equal.
_EQUAL = 1e-9
#: Those a candidate must not be worse than. `instructed` and `exported` are told, not judged.
_JUDGES = (Baseline.BASE, Baseline.PROMOTED)


def decide(
    gate: GateSpec,
    comparisons: Sequence[Comparison],
    checks: Sequence[Check],
    promoted_version: int | None,
    *,
    contaminated: Mapping[str, int] | None = None,
    not_compared: str | None = None,
    own: bool | None = None,
    adapter: str = "ADAPTER",
) -> GateResult:
    """What becomes of a candidate.

    A failed deployment check, or none at all, refuses under every policy: what is not what was
    exported must not serve. `not_worse` refuses besides what is significantly worse than the base
    or the promoted version on the primary set (exact McNemar p below `max_p`), or worse on a guard
    by more than its allowance; and, while something serves, what was not compared with it on
    `min_problems` primary problems. `better` also refuses what is not significantly better than
    the base. `always` promotes whatever was measured, `never` leaves it to people.

    Args:
        gate: the recipe's rule.
        comparisons: one for each set and baseline.
        checks: what register proved of the candidate.
        promoted_version: the version that served while eval measured; none: nothing did.
        contaminated: set to its problems that overlap a training row.
        not_compared: why the promoted version could not be measured; none: nobody asked for it.
        own: whether it was trained on the base's own answers; none: that is not known.
        adapter: its name, for the commands of the advice.

    Returns:
        The verdict: `better` (needs `min_problems` primary problems), `unproven` or `refused`.
    """
    failed = failed_checks(checks)
    harm = [c for c in comparisons if _is_harm(c, gate.max_p)]
    primary = [c for c in comparisons if c.role is Role.PRIMARY and c.candidate.total]
    judged = [c for c in primary if c.against in _JUDGES]
    unknown = _unknown(gate, primary, promoted_version, not_compared, adapter)
    doubts = _doubts(gate, primary, contaminated or {}) + [reason for reason, _ in unknown]
    proof = [in_words(c) for c in judged]
    other_source = [] if failed else list(_other_source(gate, primary, own))
    told = [_harm_in_words(c) for c in harm]
    advice: list[str] = []
    refused = True
    by_hand = False
    if failed:
        reasons = [*map(_failure_in_words, failed), *told]
        advice = _fixes(failed)
    elif gate.policy == "never":
        by_hand = not harm
        reasons = ["Policy never: only people promote, by hand.", *(told or [*proof, *doubts])]
        advice = ["Promote a version by hand with `loco promote`. `loco versions` lists them."]
    elif gate.policy == "always":
        refused = False
        overruled = [f"Promoted anyway (policy always): {reason}" for reason in told]
        reasons = overruled or [*proof, *doubts]
    elif harm:
        reasons = told
        advice = _advice(harm, comparisons, human=not own and not other_source)
    elif unknown:
        reasons = [*(reason for reason, _ in unknown), *doubts, *proof]
        advice = [what for _, what in unknown]
    elif gate.policy == "better" and doubts:
        reasons = ["Policy better: it was not shown to be better than the base.", *doubts, *proof]
        advice = _advice(harm, comparisons, human=not own and not other_source)
    else:
        refused = False
        reasons = [*proof, *doubts]
    better = not harm and not doubts
    proven = Verdict.BETTER if better else Verdict.UNPROVEN
    return GateResult(
        verdict=Verdict.REFUSED if refused else proven,
        policy=gate.policy,
        reasons=tuple(dict.fromkeys(reasons)),
        advice=tuple(dict.fromkeys((*other_source, *advice))),
        by_hand=by_hand,
        compared_version=promoted_version,
        problems=max((c.candidate.total for c in judged), default=0),
    )


def failed_checks(checks: Sequence[Check]) -> list[Check]:
    """The checks of register that did not hold; none made is one that did not."""
    return [check for check in checks if not check.passed] if checks else [NO_PROOF]


def refusal(checks: Sequence[Check]) -> GateResult | None:
    """The refusal of what register did not prove, before anything is measured; None: it did."""
    failed = failed_checks(checks)
    if not failed:
        return None
    return GateResult(
        verdict=Verdict.REFUSED,
        policy="any",
        reasons=tuple(map(_failure_in_words, failed)),
        advice=tuple(dict.fromkeys(_fixes(failed))),
    )


def in_words(comparison: Comparison) -> str:
    """A comparison as one sentence with its figures, interval and p."""
    gain = comparison.gain
    how = "the same" if abs(gain) < _EQUAL else f"{_points(gain)} points"
    interval = ""
    if comparison.low is not None and comparison.high is not None:
        interval = f"95 % interval {_points(comparison.low)} to {_points(comparison.high)}, "
    return (
        f"{comparison.set}: {share(comparison.candidate.accuracy)} of {comparison.candidate.total} "
        f"problems against {share(comparison.base.accuracy)} of {_NAMES[comparison.against]}, "
        f"{how} ({interval}p {_p(comparison.p_value)})."
    )


_NAMES = {
    Baseline.BASE: "the base",
    Baseline.INSTRUCTED: "the base with the instruction",
    Baseline.EXPORTED: "the exported base",
    Baseline.PROMOTED: "the promoted version",
}


def _is_harm(comparison: Comparison, max_p: float) -> bool:
    """Whether a comparison alone refuses the candidate under `not_worse`."""
    if comparison.against not in _JUDGES or comparison.candidate.total == 0:
        return False
    if comparison.role is Role.PRIMARY:
        return comparison.gain < -_EQUAL and comparison.p_value < max_p
    if comparison.role is Role.GUARD:
        return -comparison.gain > (comparison.allowance or 0.0) + _EQUAL
    return False


def _harm_in_words(comparison: Comparison) -> str:
    if comparison.role is Role.GUARD:
        allowed = 100 * (comparison.allowance or 0.0)
        return f"Worse on a guard that may lose {allowed:.1f} points: {in_words(comparison)}"
    return f"Significantly worse: {in_words(comparison)}"


def _failure_in_words(check: Check) -> str:
    return f"Deployment check {check.name} failed: expected {check.expected}, found {check.seen}."


def _fixes(failed: Iterable[Check]) -> list[str]:
    return [c.fix or f"Run stages export, register again ({c.name})." for c in failed]


def _unknown(
    gate: GateSpec,
    primary: Sequence[Comparison],
    promoted_version: int | None,
    not_compared: str | None,
    adapter: str,
) -> list[tuple[str, str]]:
    """Why it is not known whether a candidate is worse than what serves, and what to do then.

    Empty: it is known, or nothing serves.
    """
    if promoted_version is None:
        return []
    serves = f"version {promoted_version}, which serves now"
    if not primary:
        return [
            (
                f"No primary set was measured (eval.sets), so it was not compared with {serves}.",
                "Name a set with problems in eval.sets, with the role primary.",
            )
        ]
    totals = [c.candidate.total for c in primary if c.against is Baseline.PROMOTED]
    if not totals and not_compared is not None:
        return [
            (
                f"It was not compared with {serves}: {not_compared}.",
                f"`loco setup {adapter}` creates version {promoted_version} in Ollama again. "
                "Then `loco eval` measures this one again.",
            )
        ]
    if not totals:
        return [
            (
                f"It was not compared with {serves}, because eval.baselines has no `promoted`.",
                "Add `promoted` to eval.baselines.",
            )
        ]
    if max(totals) < gate.min_problems:
        return [
            (
                f"It was compared with {serves} on only {max(totals)} problems. To replace a "
                f"version it needs at least {gate.min_problems} (eval.gate.min_problems).",
                f"Measure on {gate.min_problems} primary problems or more (eval.sets.NAME.count, "
                "without eval.limit).",
            )
        ]
    return []


def _doubts(
    gate: GateSpec, primary: Sequence[Comparison], contaminated: Mapping[str, int]
) -> list[str]:
    """Why a candidate is not shown to be better than the base; empty: it is."""
    against_base = [c for c in primary if c.against is Baseline.BASE]
    if not against_base:
        if any(c.against in _JUDGES for c in primary):
            return ["The base was not measured on the primary set (eval.baselines)."]
        return ["No primary set was measured (eval.sets), so nothing is proven."]
    doubts = []
    for comparison in against_base:
        known = contaminated.get(comparison.set, 0)
        if known:
            doubts.append(
                f"{comparison.set}: {known} of its problems overlap rows it was trained on, so its "
                "score there proves nothing."
            )
        doubt = _doubt(gate, comparison)
        if doubt:
            doubts.append(doubt)
    return doubts


def _doubt(gate: GateSpec, comparison: Comparison) -> str | None:
    """Why a comparison with the base shows no gain; None: it does."""
    total = comparison.candidate.total
    if total < gate.min_problems:
        return (
            f"{comparison.set} has {total} problems. Fewer than {gate.min_problems} prove "
            "nothing (eval.gate.min_problems)."
        )
    if comparison.gain <= _EQUAL or comparison.p_value >= gate.max_p:
        least = comparison.smallest_difference
        can = (
            f"; {total} problems can only show a difference of {100 * least:.0f} points or more"
            if least is not None
            else ""
        )
        return (
            f"{comparison.set}: not significantly better than the base (p "
            f"{_p(comparison.p_value)}, it must be less than {gate.max_p:g}){can}."
        )
    if is_cut_often(comparison.base):
        p = p_without_cut(comparison)
        if comparison.won - comparison.won_on_cut <= comparison.lost or p >= gate.max_p:
            return (
                f"{comparison.set}: in {comparison.won_on_cut} of {comparison.won} problems "
                "won, the base's answer was cut at eval.num_predict. Without them it is not "
                f"significantly better (p {_p(p)}). Raise eval.num_predict."
            )
    return None


def is_cut_often(score: Score) -> bool:
    """Whether so many answers were cut at num_predict that a difference may be their doing."""
    return score.unfinished > MOST_UNFINISHED * score.total


def p_without_cut(comparison: Comparison) -> float:
    """The exact McNemar p when problems won on a cut answer of the base count as ties."""
    return mcnemar_exact(comparison.won - comparison.won_on_cut, comparison.lost)


def _other_source(gate: GateSpec, primary: Iterable[Comparison], own: bool | None) -> Iterable[str]:
    """Whose answers to train on instead, where there is no gain and the base's score speaks for others."""
    if own is None:
        return
    for c in primary:
        gained = c.gain > _EQUAL and c.p_value < gate.max_p
        if c.against is Baseline.BASE and not gained:
            told = own_answers.advice(own=own, solved=c.base.accuracy, what=c.set)
            if told is not None:
                yield told


def _advice(
    harm: Iterable[Comparison], comparisons: Sequence[Comparison], *, human: bool
) -> list[str]:
    """What to try, the likeliest first; `human`: the rows may be people's answers, and no more is known."""
    roles = {comparison.role for comparison in harm}
    advice = []
    if Role.PRIMARY in roles and human:
        advice.append(
            "Train on the base model's own, verified answers instead of human ones. Human "
            "answers often make a capable base worse."
        )
    if roles:
        advice.append("Lower train.learning_rate or train.epochs.")
    if Role.GUARD in roles:
        advice.append("Add general rows to the training data, so that the model forgets less.")
    if not roles:
        advice.append("Train on more rows, or measure on more problems (eval.sets.NAME.count).")
    if any(c.lost for c in comparisons):
        advice.append("Read report.md of stage eval. It lists the problems that were lost.")
    return advice


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f}"


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"
