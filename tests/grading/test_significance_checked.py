"""Our statistics against those of scipy and statsmodels, over many seeded cases."""

import math
import random
import time
import tracemalloc
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from loco.grading.significance import (
    bootstrap_difference,
    difference_interval,
    mcnemar_exact,
    power,
    problems_needed,
    smallest_difference,
    wilson_interval,
)


def comparisons(number: int, most: int, seed: int = 1) -> list[tuple[int, int, int]]:
    """Won, lost and total, the ends (none, all) among them."""
    draw = random.Random(seed)
    found = [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 20), (20, 0, 20), (0, 20, 20), (10, 10, 20)]
    while len(found) < number:
        total = draw.randint(1, most)
        won = draw.randint(0, total)
        found.append((won, draw.randint(0, total - won), total))
    return found


def pairs_of(won: int, lost: int, total: int) -> list[tuple[bool, bool]]:
    tied = total - won - lost
    both = tied // 2
    return (
        [(False, True)] * won
        + [(True, False)] * lost
        + [(True, True)] * both
        + [(False, False)] * (tied - both)
    )


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_is_that_of_statsmodels(confidence: float) -> None:
    z = float(stats.norm.ppf((1 + confidence) / 2))
    draw = random.Random(2)
    cases = [(0, 1), (1, 1), (0, 20), (20, 20), (10, 20)]
    cases += [(draw.randint(0, n), n) for n in (draw.randint(1, 5000) for _ in range(500))]
    for correct, total in cases:
        theirs = proportion_confint(correct, total, alpha=1 - confidence, method="wilson")
        assert wilson_interval(correct, total, z) == pytest.approx(theirs, abs=1e-12)


def test_mcnemar_is_that_of_statsmodels_and_the_binomial_test_of_scipy() -> None:
    for won, lost, total in comparisons(120, 600):
        table = [[total - won - lost, won], [lost, 0]]
        ours = mcnemar_exact(won, lost)
        if won + lost:
            assert ours == pytest.approx(stats.binomtest(won, won + lost).pvalue, rel=1e-9)
            if won != lost:  # where they are equal statsmodels doubles the middle, up to 1.2
                assert ours == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)
        assert 0 <= ours <= 1
        assert ours == mcnemar_exact(lost, won)


def test_the_bootstrap_is_that_of_scipy_but_for_its_drawing() -> None:
    """One step of 1/n at each end is the granularity; 10,000 resamples add noise below two more."""
    generator = np.random.default_rng(3)
    for won, lost, total in comparisons(20, 300):
        ours = difference_interval(won, lost, total)
        if not won + lost or total in (won, lost):  # scipy warns of a sample without variance
            assert ours == ((won - lost) / total,) * 2
            continue
        first, second = np.array(pairs_of(won, lost, total)).T.astype(float)
        theirs = stats.bootstrap(
            (second, first),
            lambda a, b, axis: (a - b).mean(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=10_000,
            batch=1000,
            method="percentile",
            rng=generator,
        ).confidence_interval
        noise = 1.5 / total + 0.06 * math.sqrt((won + lost) / total / total)
        assert ours == pytest.approx((theirs.low, theirs.high), abs=noise)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_the_bootstrap_distribution_is_the_multinomial_of_scipy(level: float) -> None:
    """Exactly, by summing scipy's multinomial over all counts, for small samples."""
    for won, lost, total in comparisons(40, 14, seed=4):
        shares = [won / total, lost / total, 1 - (won + lost) / total]
        chances = np.zeros(2 * total + 1)
        for w in range(total + 1):
            for k in range(total - w + 1):
                chances[w - k + total] += stats.multinomial.pmf(
                    [w, k, total - w - k], total, shares
                )
        tail = (1 - level) / 2
        low = int(np.argmax(np.cumsum(chances) >= tail - 1e-12)) - total
        high = total - int(np.argmax(np.cumsum(chances[::-1]) >= tail - 1e-12))
        assert difference_interval(won, lost, total, level=level) == (low / total, high / total)


def test_the_interval_holds_the_difference_and_turns_with_its_models() -> None:
    for won, lost, total in comparisons(200, 300, seed=5):
        low, high = difference_interval(won, lost, total)
        assert -1 <= low <= (won - lost) / total <= high <= 1
        assert difference_interval(lost, won, total) == (-high, -low)
        wider = difference_interval(won, lost, total, level=0.99)
        assert wider[0] <= low <= high <= wider[1]


def test_pairs_and_counts_say_the_same_in_any_order() -> None:
    pairs = pairs_of(135, 101, 1319)
    random.Random(6).shuffle(pairs)
    assert bootstrap_difference(pairs) == difference_interval(135, 101, 1319)
    assert bootstrap_difference([]) == (-1, 1)
    assert bootstrap_difference([(False, True)]) == (1, 1)


def exact_interval(won: int, lost: int, total: int) -> tuple[float, float]:
    """In whole numbers: of the `total ** total` resamples, how many have each difference."""
    ways = np.array([1], dtype=object)
    weights = np.array([lost, total - won - lost, won], dtype=object)
    for bit in bin(total)[2:]:
        ways = np.convolve(ways, ways)
        ways = np.convolve(ways, weights) if bit == "1" else ways
    outside = Fraction(1, 40) * sum(ways)

    def first(counts: Any) -> int:
        return next(i for i, seen in enumerate(accumulate(counts)) if seen >= outside)

    return (first(ways) - total) / total, (total - first(ways[::-1])) / total


@pytest.mark.parametrize(
    ("won", "lost", "total"),
    [(50, 30, 200), (3, 0, 200), (0, 1, 200), (180, 8, 200), (100, 100, 200), (199, 1, 200)],
)
def test_the_bootstrap_is_exact_in_floating_point(won: int, lost: int, total: int) -> None:
    assert difference_interval(won, lost, total) == exact_interval(won, lost, total)


def test_50_000_problems_take_no_more_memory_than_few() -> None:
    tracemalloc.start()
    difference_interval(6000, 4000, 50_000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1_000_000


@pytest.mark.parametrize(("won", "lost"), [(6000, 4000), (45_000, 100), (25_000, 25_000)])
def test_50_000_problems_take_little_time(won: int, lost: int) -> None:
    total = 50_000
    started = time.process_time()
    low, high = difference_interval(won, lost, total)
    p = mcnemar_exact(won, lost)
    assert time.process_time() - started < 3
    gain = (won - lost) / total
    half = stats.norm.ppf(0.975) * math.sqrt(((won + lost) / total - gain**2) / total)
    assert (low, high) == pytest.approx((gain - half, gain + half), abs=3e-5)
    assert p == pytest.approx(stats.binomtest(won, won + lost).pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("won", "lost", "total", "level"), [(2, 1, 2, 0.95), (-1, 0, 2, 0.95), (1, 0, 2, 1.0)]
)
def test_impossible_comparisons_are_refused(won: int, lost: int, total: int, level: float) -> None:
    with pytest.raises(ValueError, match="impossible comparison"):
        difference_interval(won, lost, total, level=level)


def test_20_problems_can_only_show_a_difference_of_30_points() -> None:
    assert smallest_difference(20) == 0.3
    assert mcnemar_exact(6, 0) == 0.03125
    assert mcnemar_exact(5, 0) > 0.05


@pytest.mark.parametrize(
    ("total", "max_p", "won"), [(100, 0.05, 6), (200, 0.01, 8), (1319, 0.05, 6), (6, 0.05, 6)]
)
def test_the_smallest_difference_is_the_first_that_scipy_calls_significant(
    total: int, max_p: float, won: int
) -> None:
    assert smallest_difference(total, max_p=max_p) == won / total
    assert stats.binomtest(won, won).pvalue <= max_p < stats.binomtest(won - 1, won - 1).pvalue


def test_five_problems_can_show_nothing() -> None:
    assert smallest_difference(5) is None
    assert smallest_difference(0) is None


@pytest.mark.slow
def test_power_is_the_sum_over_all_outcomes_by_scipy() -> None:
    draw = random.Random(7)
    cases = [(0, 0.1, 0.2), (5, 0.5, 1.0), (20, 0.3, 0.3), (20, 1.0, 1.0), (30, 1e-6, 0.5)]
    for _ in range(5):
        discordant = draw.uniform(0.05, 1)
        cases.append((draw.randint(1, 40), draw.uniform(0.01, 1) * discordant, discordant))
    for total, difference, discordant in cases:
        wins = (1 + difference / discordant) / 2
        theirs = sum(
            stats.binom.pmf(m, total, discordant) * stats.binom.pmf(w, m, wins)
            for m in range(total + 1)
            for w in range(m // 2 + 1, m + 1)
            if stats.binomtest(w, m).pvalue <= 0.05
        )
        assert power(total, difference, discordant) == pytest.approx(theirs, abs=1e-9)


def test_power_is_what_a_simulation_finds() -> None:
    generator = np.random.default_rng(8)
    difference, discordant, total = 0.05, 0.2, 600
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    drawn = generator.multinomial(total, shares, size=4000)
    share = np.mean([w > k and mcnemar_exact(int(w), int(k)) <= 0.05 for w, k, _ in drawn])
    assert power(total, difference, discordant) == pytest.approx(share, abs=0.025)


@pytest.mark.parametrize(
    ("difference", "discordant"), [(0.3, 0.3), (0.1, 0.25), (0.05, 0.2), (0.02, 0.07)]
)
def test_the_problems_needed_show_it_four_times_in_five(
    difference: float, discordant: float
) -> None:
    needed = problems_needed(difference, discordant)
    assert power(needed, difference, discordant) >= 0.8 > power(needed - 1, difference, discordant)
    # the normal approximation of R. J. Connor, Biometrics 43 (1987), which the exact test exceeds
    root = math.sqrt(discordant - difference**2)
    normal = ((1.959964 * math.sqrt(discordant) + 0.841621 * root) / difference) ** 2
    assert 0.95 * normal <= needed <= 1.15 * normal + 10


def test_a_difference_needs_as_many_discordant_problems() -> None:
    for difference, discordant in [(0.2, 0.1), (0.0, 0.1), (0.1, 1.1)]:
        with pytest.raises(ValueError, match="discordant"):
            power(100, difference, discordant)
