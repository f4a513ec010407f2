"""How many rows are kept out of training to measure with, and which."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

#: Problems that a split aims at, at least: fewer show next to nothing.
WANTED = 20
#: Of the rows that stay to learn from, a problem may take the place of half.
_LARGEST_PART = 1 / 3

_T = TypeVar("_T")


def problems_of(rows: int, *, share: float, most: int) -> int:
    """How many of so many rows become problems.

    The share asked for, but 20 where there are rows enough, never more than a third nor than `most`.

    Args:
        rows: that can be used, each once.
        share: of them that is asked for.
        most: problems.
    """
    return min(most, max(round(rows * share), WANTED), int(rows * _LARGEST_PART))


def chosen(rows: Sequence[_T], count: int, seed: int) -> list[int]:
    """The places of the rows that become problems, ascending; the same for the same seed."""
    rng = Random(f"split {seed}")  # noqa: S311 (not for secrets)
    return sorted(rng.sample(range(len(rows)), count))
