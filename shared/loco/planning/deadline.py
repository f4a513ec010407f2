"""Until when a plan may be worked on: who asks for one says it, every estimate looks at it.

A thread cannot be stopped from outside; one that plans ends by itself.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from loco.contracts.errors import Busy

_ends: ContextVar[float] = ContextVar("_ends", default=float("inf"))


@contextmanager
def until(moment: float) -> Iterator[None]:
    """Has what is planned inside end at a moment of `time.monotonic()`."""
    before = _ends.set(moment)
    try:
        yield
    finally:
        _ends.reset(before)


def check_time() -> None:
    """Raises Busy when the moment has passed."""
    if time.monotonic() > _ends.get():
        raise out_of_time()


def out_of_time() -> Busy:
    """The error of a plan that was not made in time."""
    return Busy(
        "The plan was not made in time.",
        hint="Other plans may be running: try again. If it happens again, set "
        "train.micro_batch, so there are fewer alternatives to compare.",
    )
