"""How sure a measured accuracy and a measured difference are."""

import math

#: Standard normal quantile of a two-sided 95 % interval.
Z_95 = 1.959963984540054


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
    tail = sum(math.comb(pairs, k) for k in range(min(won, lost) + 1))
    p: float = min(1.0, 2 * tail / 2**pairs)
    return p
