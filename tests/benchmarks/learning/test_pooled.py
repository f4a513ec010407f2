"""The study's pooled test against all sign patterns, and against McNemar where it is the same thing."""

import sys
from itertools import product
from pathlib import Path
from random import Random

import pytest

from loco.grading.significance import difference_interval, mcnemar_exact

sys.path.append(str(Path(__file__).parent))

from pooled import pooled, sign_flip


def test_sign_flip_counts_every_pattern() -> None:
    rng = Random(3)
    for _ in range(20):
        differences = [rng.randint(-3, 3) for _ in range(10)]
        sums = [
            abs(sum(s * abs(d) for s, d in zip(signs, differences, strict=True)))
            for signs in product((1, -1), repeat=10)
        ]
        expected = sum(s >= abs(sum(differences)) for s in sums) / len(sums)
        assert sign_flip(differences) == pytest.approx(expected)


def test_one_seed_each_is_mcnemar() -> None:
    rng = Random(5)
    first = {str(n): rng.random() < 0.57 for n in range(1319)}
    second = {
        n: solved if rng.random() < 0.7 else rng.random() < 0.7 for n, solved in first.items()
    }
    won = sum(second[n] and not first[n] for n in first)
    lost = sum(first[n] and not second[n] for n in first)
    found = pooled({0: first}, {0: second})
    assert found.difference == pytest.approx((won - lost) / 1319)
    assert found.p == pytest.approx(mcnemar_exact(won, lost), rel=1e-6)
    assert found.naive == mcnemar_exact(won, lost)
    low, high = difference_interval(won, lost, 1319)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.002)


def test_the_same_answers_thrice_prove_no_more_than_once() -> None:
    rng = Random(7)
    first = {str(n): rng.random() < 0.5 for n in range(300)}
    second = {n: solved or rng.random() < 0.1 for n, solved in first.items()}
    once = pooled({0: first}, {0: second})
    thrice = pooled(dict.fromkeys(range(3), first), dict.fromkeys(range(3), second))
    assert thrice.p == pytest.approx(once.p)
    assert thrice.naive is not None
    assert thrice.naive < once.p


def test_without_common_problems_nothing_is_claimed() -> None:
    with pytest.raises(ValueError, match="no problem"):
        pooled({0: {"a": True}}, {0: {"b": True}})
    assert pooled({0: {"a": True}}, {0: {"a": True}}).p == 1


def test_naive_pairs_what_has_the_same_seed() -> None:
    rng = Random(11)
    made = {seed: {str(n): rng.random() < 0.5 for n in range(200)} for seed in range(3)}
    backwards = {seed: made[seed] for seed in (2, 1, 0)}
    assert pooled(made, backwards).naive == 1.0


def test_naive_is_left_out_where_the_seeds_are_others() -> None:
    solved = {"a": True, "b": False}
    assert pooled({0: solved, 1: solved}, {0: solved, 2: solved}).naive is None
    assert pooled({0: solved, 1: solved}, {0: solved}).naive is None
    assert pooled({0: solved}, {1: solved, 2: solved}).naive == 1.0
