import pytest

from loco.grading.significance import mcnemar_exact, wilson_interval


def test_wilson_interval_of_a_known_case() -> None:
    # R: binom::binom.wilson(10, 20)
    low, high = wilson_interval(10, 20)
    assert low == pytest.approx(0.2992980, abs=1e-6)
    assert high == pytest.approx(0.7007020, abs=1e-6)


@pytest.mark.parametrize(("correct", "total"), [(0, 20), (20, 20), (0, 1), (0, 0), (7, 100)])
def test_wilson_interval_stays_within_0_and_1_around_the_share(correct: int, total: int) -> None:
    low, high = wilson_interval(correct, total)
    assert 0 <= low < high <= 1
    if total:
        assert low <= correct / total <= high


def test_no_and_all_successes_reach_the_ends() -> None:
    assert wilson_interval(0, 20)[0] == 0
    assert wilson_interval(20, 20)[1] == 1


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (10, 2, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_mcnemar_is_the_two_sided_binomial_test(won: int, lost: int, p: float) -> None:
    assert mcnemar_exact(won, lost) == pytest.approx(p)
