"""How many rows are kept out of training to measure with, and which."""

import hashlib
from collections.abc import Sequence

from loco.datasets.overlap import normalise

#: Problems that a split aims at, at least: fewer show next to nothing.
WANTED = 20
#: Of the rows that stay to learn from, a problem may take the place of half.
_LARGEST_PART = 1 / 3


def problems_of(rows: int, *, share: float, most: int) -> int:
    """How many of so many rows become problems.

    The share asked for, but 20 where there are rows enough, never more than a third nor than `most`.

    Args:
        rows: that can be used, each once.
        share: of them that is asked for.
        most: problems.
    """
    return min(most, max(round(rows * share), WANTED), int(rows * _LARGEST_PART))


def in_order(questions: Sequence[str], seed: int) -> list[int]:
    """The places of the questions in the order in which they become problems; the same for the same seed.

    Each question's place in it is its own, by a digest of its words. So whoever adds rows keeps most of the
    problems, and no earlier version has learned many of the new ones: those are new rows.
    """
    keys = [_key(question, seed) for question in questions]
    return sorted(range(len(questions)), key=lambda place: (keys[place], place))


def chosen(questions: Sequence[str], count: int, seed: int) -> list[int]:
    """The places of the questions that become problems, ascending."""
    return sorted(in_order(questions, seed)[:count])


def _key(question: str, seed: int) -> bytes:
    words = normalise(question) or question
    return hashlib.sha256(f"split {seed} {words}".encode(errors="backslashreplace")).digest()
