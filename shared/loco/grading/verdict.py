"""What every grader returns."""

from typing import NamedTuple


class Graded(NamedTuple):
    """Whether an answer is right, what was read from it, and why it is wrong."""

    correct: bool
    #: What the answer gives as its result, as the grader read it; None when it gives none.
    extracted: str | None
    #: One line for people, of a wrong answer; None of a right one.
    why: str | None
