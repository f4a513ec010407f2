"""How sure a measured accuracy and a measured difference are."""

import math
from collections.abc import Iterable, Iterator
from itertools import count

#: Standard normal quantile of a two-sided 95 % interval.
Z_95 = 1.959963984540054
#: Shares whose logarithms are as close as this are one: far above rounding, far below 1/n.
_TIE = 1e-9
#: Sums beyond this are scaled down; a term is at most some 1e12 times the one before.
_LARGE = 1e250


def wilson_interval(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a proportion.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22 (1927), 209-212. Unlike the normal approximation it
    stays within 0 and 1 and is usable for the 20 problems of a benchmark.

    Args:
        correct: successes, 0 to `total`.
        total: trials; 0 gives the interval of knowing nothing, (0, 1).
        z: standard normal quantile of the confidence level.

    Returns:
        Lower and upper end.
    """
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    shrink = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # at the ends the formula is exactly 0 or 1; only rounding makes it differ
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high


def mcnemar_exact(won: int, lost: int) -> float:
    """The exact two-sided McNemar p of a paired comparison.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), 153-157; the exact form is the binomial test of the
    discordant pairs against 1/2. Problems that both models solve, or neither, say nothing.

    Args:
        won: problems only the second model solved.
        lost: problems only the first model solved.

    Returns:
        Probability, from equal models, of a split at least as uneven; 1.0 without any such pair.
    """
    pairs = won + lost
    tail, ways = 0, 1
    for k in range(min(won, lost) + 1):
        tail += ways
        ways = ways * (pairs - k) // (k + 1)  # leaves no rest: pairs over k + 1
    p: float = min(1.0, 2 * tail / 2**pairs)
    return p


def bootstrap_difference(
    pairs: Iterable[tuple[bool, bool]], *, level: float = 0.95
) -> tuple[float, float]:
    """The paired bootstrap interval of a difference of two accuracies on the same problems.

    Args:
        pairs: for each problem, whether the first and whether the second model solved it.
        level: confidence level, between 0 and 1.

    Returns:
        Lower and upper end of accuracy of the second less that of the first, as
        `difference_interval` has it.
    """
    outcomes = [bool(second) - bool(first) for first, second in pairs]
    return difference_interval(outcomes.count(1), outcomes.count(-1), len(outcomes), level=level)


def difference_interval(
    won: int, lost: int, total: int, *, level: float = 0.95
) -> tuple[float, float]:
    """The paired bootstrap interval (percentile) of a difference, from its counts.

    Problems are drawn again with replacement. As a problem is won, lost or tied, the counts of a
    resample are multinomial, and the distribution of their difference is known exactly: the ideal
    bootstrap of B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), section
    6.2 and, of the percentile interval, 13.3. So there is nothing to draw and no seed. Without a won
    or lost problem it has no width: such a sample says nothing about how often models differ.

    Args:
        won: problems only the second model solved.
        lost: problems only the first model solved.
        total: problems, at least `won + lost`; 0 gives (-1, 1). 50,000 take a tenth of a second.
        level: confidence level, between 0 and 1.

    Returns:
        Lower and upper end, shares of `total` from -1 to 1.

    Raises:
        ValueError: the counts or the level are impossible.
    """
    if min(won, lost) < 0 or won + lost > total or not 0 < level < 1:
        raise ValueError(f"impossible comparison: {won} won, {lost} lost of {total}, level {level}")
    if total == 0:
        return -1.0, 1.0
    outside = (1 - level) / 2
    low = _quantile(won, lost, total, outside)
    high = -_quantile(lost, won, total, outside)
    return low / total, high / total


def _quantile(won: int, lost: int, total: int, outside: float) -> int:
    """The least difference that so large a share of resamples does not exceed.

    The shares are the coefficients of ((lost + tied x + won x²) / total)^total, in order of the
    difference from -total to total.
    """
    tied = total - won - lost
    shares = enumerate(_shares_from_below((lost, tied, won), total), start=-total)
    for difference, log_share in shares:
        if log_share >= math.log(outside) - _TIE:
            return difference
    # it lies above 0: counted from the other end, where the terms only grow
    shares = enumerate(_shares_from_below((won, tied, lost), total), start=-total)
    inside = math.log1p(-outside) + _TIE
    return next((-below for below, log_share in shares if log_share > inside), 1)


def _shares_from_below(weights: tuple[int, int, int], total: int) -> Iterator[float]:
    """Logarithms of the shares of resamples up to each difference, from -total to 0.

    By the recurrence that the derivative of a power gives (D. E. Knuth, "The Art of Computer
    Programming" 2, 4.7, eq. 9), which in this half adds positive terms only, so that rounding stays
    as small as it begins. Time in proportion to `total`, and no more memory for more problems.
    """
    shift = next(i for i, weight in enumerate(weights) if weight)
    yield from (-math.inf for _ in range(min(shift * total, total + 1)))
    first, second, third = [*weights[shift:], 0, 0][:3]
    # the first term is too small for a float: all terms are held as multiples of one that grows
    before, term, terms, log_unit = 0.0, 1.0, 1.0, total * math.log(first / total)
    for k in range(1, total + 2 - shift * total):
        yield log_unit + math.log(terms)
        following = (total - k + 1) * second * term + (2 * total - k + 2) * third * before
        before, term = term, following / (k * first)
        terms += term
        if terms > _LARGE:
            before, term, terms = before / _LARGE, term / _LARGE, terms / _LARGE
            log_unit += math.log(_LARGE)


def smallest_difference(total: int, *, max_p: float = 0.05) -> float | None:
    """The smallest difference that so many problems can show at all.

    In the best case: no problem is lost, so the exact McNemar p of k won ones is 2 / 2^k. With 20
    problems 6 must be won (p = 0.031), 30 points. Each lost problem takes more than one won one;
    `problems_needed` says what it takes to show a difference with some certainty.

    Args:
        total: problems both models answered.
        max_p: largest two-sided p that counts as shown.

    Returns:
        A share of `total`, or None where even winning every problem would show nothing.
    """
    needed = next(k for k in count(1) if mcnemar_exact(k, 0) <= max_p)
    return needed / total if needed <= total else None


def power(total: int, difference: float, discordant: float, *, max_p: float = 0.05) -> float:
    """How likely `total` problems show a true difference by the exact McNemar test.

    The unconditional power: over how many pairs are discordant (binomial), the chance that the
    better model wins so many of them that p is at most `max_p` (S. W. Duffy, "Asymptotic and exact
    power for the McNemar test and its analogue with R controls per case", Biometrics 40 (1984),
    1005-1015).

    Args:
        total: problems both models answer.
        difference: true difference of the accuracies, above 0.
        discordant: share of problems that only one of the two solves, `difference` to 1. Two models
            that differ by an adapter of 200 rows: measured 0.16 to 0.31.
        max_p: largest two-sided p that counts as shown.

    Raises:
        ValueError: the shares are impossible.
    """
    if not 0 < difference <= discordant <= 1:
        raise ValueError(
            f"a difference of {difference} needs at least as many discordant problems, "
            f"and at most all (got {discordant})"
        )
    losing = (1 - difference / discordant) / 2
    # of m discordant pairs at most `lost` may be lost; both tails of lost <= `lost` follow from m to
    # m + 1: P(X <= l) of m + 1 trials is that of m, less q P(X = l)
    shown, lost, even, better = 0.0, -1, 0.0, 0.0
    for pairs in range(total + 1):
        if pairs and lost >= 0:
            even -= _binomial(lost, pairs - 1, 0.5) / 2
            better -= _binomial(lost, pairs - 1, losing) * losing
        if 2 * (lost + 1) < pairs and 2 * (even + _binomial(lost + 1, pairs, 0.5)) <= max_p:
            lost += 1
            even += _binomial(lost, pairs, 0.5)
            better += _binomial(lost, pairs, losing)
        shown += _binomial(pairs, total, discordant) * better
    return shown


def problems_needed(
    difference: float, discordant: float, *, max_p: float = 0.05, chance: float = 0.8
) -> int:
    """How many problems show a true difference with some certainty (`power`).

    The least number by bisection; as counts are whole, a few more may do a little worse.

    Args:
        difference: true difference of the accuracies, above 0.
        discordant: share of problems that only one of the two models solves.
        max_p: largest two-sided p that counts as shown.
        chance: how likely it must be shown, between 0 and 1.

    Raises:
        ValueError: the shares are impossible.
    """
    high = 1
    while power(high, difference, discordant, max_p=max_p) < chance:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if power(middle, difference, discordant, max_p=max_p) < chance:
            low = middle
        else:
            high = middle
    return high


def _binomial(successes: int, trials: int, share: float) -> float:
    if share in (0, 1):
        return float(successes == trials * share)
    log = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    return math.exp(log + successes * math.log(share) + (trials - successes) * math.log1p(-share))
