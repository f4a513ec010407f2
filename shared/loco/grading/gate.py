"""The gate: whether a measured candidate is promoted, with a verdict and the reasons in words.

A pure function of what was measured. It answers; the ledger acts on the answer when eval commits.
"""

from collections.abc import Iterable, Sequence

from loco.contracts.evaluation import Baseline, GateResult, GateSpec, Role, Verdict
from loco.contracts.figures import share
from loco.contracts.results import Comparison
from loco.contracts.serving import Check

#: Accuracies are quotients of small integers: what is nearer than this is equal.
_EQUAL = 1e-9
#: Those a candidate must not be worse than. `instructed` and `exported` are told, not judged.
_JUDGES = (Baseline.BASE, Baseline.PROMOTED)


def decide(
    gate: GateSpec,
    comparisons: Sequence[Comparison],
    checks: Sequence[Check],
    promoted_version: int | None,
) -> GateResult:
    """What becomes of a candidate.

    A failed deployment check refuses under every policy: what is not what was exported must not
    serve. `not_worse` refuses besides what is significantly worse than the base or the promoted
    version on the primary set (exact McNemar p below `max_p`), or worse on a guard by more than
    its allowance. `better` also refuses what is not significantly better than the base. `always`
    promotes whatever was measured, `never` leaves it to people.

    Args:
        gate: the recipe's rule.
        comparisons: one for each set and baseline.
        checks: what register proved of the candidate; none: nothing was checked.
        promoted_version: the version that served while eval measured; none: nothing did.

    Returns:
        The verdict: `better` (needs `min_problems` primary problems), `unproven` or `refused`.
    """
    failed = [check for check in checks if not check.passed]
    harm = [c for c in comparisons if _is_harm(c, gate.max_p)]
    doubts = _doubts(gate, comparisons, promoted_version)
    proof = [
        in_words(c)
        for c in comparisons
        if c.role is Role.PRIMARY and c.against in _JUDGES and c.candidate.total
    ]
    broken = [
        f"Deployment check {c.name} failed: expected {c.expected}, saw {c.seen}." for c in failed
    ]
    told = [_harm_in_words(c) for c in harm]
    advice: list[str] = []
    refused = True
    by_hand = False
    if failed:
        reasons = [*broken, *told]
        advice = [c.fix or f"Run stages export, register again ({c.name})." for c in failed]
    elif gate.policy == "never":
        by_hand = not harm
        reasons = ["Policy never: promote by hand.", *(told or [*proof, *doubts])]
        advice = ["`loco promote` promotes a version by hand; `loco versions` lists them."]
    elif gate.policy == "always":
        refused = False
        overruled = [f"Promoted all the same (policy always): {reason}" for reason in told]
        reasons = overruled or [*proof, *doubts]
    elif harm:
        reasons = told
        advice = _advice(harm, comparisons)
    elif gate.policy == "better" and doubts:
        reasons = ["Policy better: it is not shown to be better than the base.", *doubts, *proof]
        advice = _advice(harm, comparisons)
    else:
        refused = False
        reasons = [*proof, *doubts]
    better = not harm and not doubts
    proven = Verdict.BETTER if better else Verdict.UNPROVEN
    return GateResult(
        verdict=Verdict.REFUSED if refused else proven,
        policy=gate.policy,
        reasons=tuple(dict.fromkeys(reasons)),
        advice=tuple(dict.fromkeys(advice)),
        by_hand=by_hand,
        compared_version=promoted_version,
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


def _doubts(
    gate: GateSpec, comparisons: Sequence[Comparison], promoted_version: int | None
) -> list[str]:
    """Why a candidate is not shown to be better than the base; empty: it is."""
    primary = [c for c in comparisons if c.role is Role.PRIMARY and c.candidate.total]
    against_base = [c for c in primary if c.against is Baseline.BASE]
    if not against_base:
        if any(c.against in _JUDGES for c in primary):
            return ["The base was not measured on the primary set (eval.baselines)."]
        return ["No primary set was measured (eval.sets), so nothing is proven."]
    doubts = []
    for comparison in against_base:
        total = comparison.candidate.total
        if total < gate.min_problems:
            doubts.append(
                f"{comparison.set} has {total} problems; fewer than {gate.min_problems} prove "
                "nothing (eval.gate.min_problems)."
            )
        elif comparison.gain <= _EQUAL or comparison.p_value >= gate.max_p:
            least = comparison.smallest_difference
            can = (
                f"; {total} problems can only show a difference of {100 * least:.0f} points or more"
                if least is not None
                else ""
            )
            doubts.append(
                f"{comparison.set}: not significantly better than the base "
                f"(p {_p(comparison.p_value)}, asked for less than {gate.max_p:g}){can}."
            )
    if promoted_version is not None and not any(c.against is Baseline.PROMOTED for c in primary):
        doubts.append(
            f"It was not compared with version {promoted_version}, which serves now "
            "(eval.baselines: promoted)."
        )
    return doubts


def _advice(harm: Iterable[Comparison], comparisons: Sequence[Comparison]) -> list[str]:
    """What to try, the likeliest first."""
    roles = {comparison.role for comparison in harm}
    advice = []
    if Role.PRIMARY in roles:
        advice.append(
            "Train on answers in the base model's own words (its own, verified ones) instead of "
            "human ones: those often make a capable base worse."
        )
    if roles:
        advice.append("Take a lower train.learning_rate or fewer train.epochs.")
    if Role.GUARD in roles:
        advice.append("Mix general rows into the training data, so that less is forgotten.")
    if not roles:
        advice.append("Train on more rows, or measure on more problems (eval.sets.NAME.count).")
    if any(c.lost for c in comparisons):
        advice.append("Read report.md of stage eval: it lists the problems that were lost.")
    return advice


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f}"


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"
