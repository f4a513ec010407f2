"""Several trainings against others on the same problems: tests that know that the seeds share them.

Problems are the sample: a problem's value is the mean over an arm's seeds, and what is tested is the mean
of the differences. Answers of two seeds to one problem are no two samples; a test that counts them so
(`naive`) has too small a p.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from typing import NamedTuple

import numpy as np

from loco.grading.significance import mcnemar_exact

#: By seed: whether each problem was solved, by its ID.
Solved = Mapping[int, Mapping[str, bool]]
_RESAMPLES = 20_000


class Pooled(NamedTuple):
    """One arm less another one."""

    #: Of the accuracies, from -1 to 1.
    difference: float
    #: 95 % bootstrap interval over the problems.
    low: float
    high: float
    #: Exact two-sided sign-flip p of the problems' differences.
    p: float
    #: McNemar p as if every seed's answers were further problems; only where both have the same seeds, or
    #: the first has one, which then stands against each of the second's.
    naive: float | None
    problems: int


def pooled(first: Solved, second: Solved, seed: int = 0) -> Pooled:
    """The second arm less the first one, on the problems that all seeds answered.

    Args:
        first, second: their seeds, at least one each.
        seed: of the bootstrap.
    """
    common = sorted(
        set.intersection(*({*solved} for solved in (*first.values(), *second.values())))
    )
    if not common:
        raise ValueError("no problem that all of them answered")
    counts = [
        len(first) * sum(solved[i] for solved in second.values())
        - len(second) * sum(solved[i] for solved in first.values())
        for i in common
    ]
    scale = len(first) * len(second)
    values = np.array(counts) / scale
    drawn = np.random.default_rng(seed).multinomial(
        len(common), _shares(counts), size=_RESAMPLES
    ) @ (np.unique(counts) / scale / len(common))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Pooled(
        float(values.mean()),
        float(low),
        float(high),
        sign_flip(counts),
        _naive(first, second, common),
        len(common),
    )


def sign_flip(differences: Sequence[int]) -> float:
    """The exact two-sided p of a sum of differences whose signs might as well be others.

    R. A. Fisher, "The Design of Experiments" (1935), section 21: if the two are alike, a difference is as
    likely positive as negative. The distribution of the sum over all signs is found by adding one
    difference after another.

    Args:
        differences: whole numbers, one a problem.
    """
    sizes = [abs(d) for d in differences if d]
    if not sizes:
        return 1.0
    unit = gcd(*sizes)
    sizes = [size // unit for size in sizes]
    most = sum(sizes)
    shares = np.zeros(2 * most + 1)  # of the sums -most … most
    shares[most] = 1.0
    for size in sizes:
        # no sum is beyond the differences added so far, so nothing rolls over the ends
        shares = (np.roll(shares, size) + np.roll(shares, -size)) / 2
    seen = abs(sum(differences)) // unit
    sums = np.abs(np.arange(-most, most + 1))
    return float(min(1.0, shares[sums >= seen].sum()))


def _naive(first: Solved, second: Solved, common: Sequence[str]) -> float | None:
    if len(first) == 1:
        first = dict.fromkeys(second, *first.values())
    if first.keys() != second.keys():
        return None
    pairs = [(first[seed][i], second[seed][i]) for seed in second for i in common]
    won = sum(b and not a for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    return mcnemar_exact(won, lost)


def _shares(counts: Sequence[int]) -> np.ndarray:
    """The share of problems of each value, in the order of the values."""
    _, times = np.unique(counts, return_counts=True)
    shares: np.ndarray = times / times.sum()
    return shares
