"""The gate's verdict in words that need no statistics: what was counted, how sure it is, what serves.

`loco demo`, `loco submit --wait` and `loco job` print it.
"""

from loco.contracts.evaluation import Baseline, GateResult, Role, Verdict
from loco.contracts.results import Comparison, EvalResult
from loco.contracts.versions import Promotion

#: Smaller chances are told as a bound.
_RAREST = 1_000_000
#: Gains per hundred that are nearer than this are told as none.
_NONE = 0.05


def in_words(result: EvalResult, outcome: Promotion) -> str:
    """The verdict on a job as one paragraph; empty where no gate decided.

    Args:
        result: what eval measured, and the gate's decision.
        outcome: what became of the job's version.
    """
    gate = result.gate
    if gate is None:
        return ""
    sentences = [f"Verdict: {gate.verdict.value}."]
    deciding = _deciding(result)
    if deciding is not None:
        unseen = result.contaminated.get(deciding.set) == 0
        sentences += [_counted(deciding, unseen=unseen), *_certainty(deciding)]
    sentences += _meaning(gate, deciding)
    sentences.append(_serving(gate, outcome))
    return " ".join(sentences)


def _deciding(result: EvalResult) -> Comparison | None:
    """The base against the adapter on the set that decides."""
    return next(
        (
            c
            for c in result.comparisons
            if c.role is Role.PRIMARY and c.against is Baseline.BASE and c.candidate.total
        ),
        None,
    )


def _counted(comparison: Comparison, *, unseen: bool) -> str:
    problems = "problems it had never seen" if unseen else f"problems of {comparison.set}"
    base, adapter = comparison.base, comparison.candidate
    return (
        f"The adapter solved {adapter.correct} of {adapter.total} {problems}, its base "
        f"{base.correct}: {_more(100 * comparison.gain)} in a hundred."
    )


def _certainty(comparison: Comparison) -> list[str]:
    """What other problems might have shown: the interval's meaning, and the p's."""
    told = []
    if comparison.low is not None and comparison.high is not None:
        low, high = _more(100 * comparison.low), _more(100 * comparison.high)
        told.append(
            "Other problems of this kind would give another figure. The true difference is "
            f"between {low} and {high} in a hundred (the method is right in 95 of 100 "
            "measurements)."
        )
    chance = _chance(comparison.p_value)
    told.append(
        "If adapter and base were equally good, chance alone would give a difference this large "
        f"{chance}."
    )
    return told


def _chance(p: float) -> str:
    """How often: `about once in 10,000`, `in 38 of 100 measurements`, `nearly always`."""
    if p >= 0.995:
        return "nearly always"
    if p >= 0.1:
        return f"in {100 * p:.0f} of 100 measurements"
    if p < 1 / _RAREST:
        return f"less than once in {_RAREST:,} measurements"
    return (
        f"about once in {float(f'{1 / p:.1g}' if p < 0.01 else f'{1 / p:.2g}'):,.0f} measurements"
    )


def _meaning(gate: GateResult, deciding: Comparison | None) -> list[str]:
    """What the verdict rests on, where the figures alone do not say it."""
    if gate.verdict is Verdict.REFUSED:
        return [f"Why the gate refused it: {' '.join(gate.reasons)}"]
    if gate.verdict is Verdict.BETTER:
        return []
    if deciding is None:
        return ["No primary problems were measured, so nothing is proven.", *gate.reasons]
    told = ["This does not prove that the adapter is better."]
    least = deciding.smallest_difference
    if least is not None and abs(deciding.gain) < least:
        told.append(
            f"{deciding.candidate.total} problems can only show a difference of "
            f"{100 * least:.0f} in a hundred or more."
        )
    return told


def _serving(gate: GateResult, outcome: Promotion) -> str:
    """What serves now, and why."""
    refused = gate.verdict is Verdict.REFUSED
    if outcome.promoted and refused:
        return f"Version {outcome.version} of {outcome.model} was promoted before and still serves."
    if outcome.promoted:
        return f"So {outcome.model} now serves it."
    present = (
        f"version {outcome.serving} keeps serving as {outcome.model}"
        if outcome.serving is not None
        else f"nothing serves as {outcome.model} yet"
    )
    if refused:
        return f"So it does not serve: {present}."
    # the gate would have let it; the outcome says what came between
    return f"It does not serve: {present}. {outcome.reason or ''}".strip()


def _more(hundredths: float) -> str:
    """A difference per hundred: `21 more`, `4.5 fewer`, `none more`."""
    if abs(hundredths) < _NONE:
        return "none more"
    figure = f"{abs(hundredths):.1f}".removesuffix(".0")
    return f"{figure} {'more' if hundredths > 0 else 'fewer'}"
