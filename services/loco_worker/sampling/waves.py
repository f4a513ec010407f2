"""How many questions a wave asks, and when no more are asked: what the answers so far decide.

Within a wave nothing is decided, so it does not matter in which order answers come.
"""

from math import ceil

from loco.contracts.sources import FRUITLESS

#: A wave asks at most so many questions for one missing row, however little came so far.
STEEPEST = 4


def wave_size(missing: int, got: int, asked: int) -> int:
    """The questions of the next wave: as many as the yield so far says are missing.

    Args:
        missing: rows, validation rows or pairs that are still wanted.
        got: those there are.
        asked: questions they came from; 0: none was asked yet.
    """
    if missing <= 0:
        return 0
    if not asked:
        return missing
    if not got:
        # twice as many in all: few waves until it is given up
        return min(max(missing, asked), FRUITLESS - asked if asked < FRUITLESS else FRUITLESS)
    return min(ceil(missing * asked / got), STEEPEST * missing)


def fruitless(asked: int, last: int) -> bool:
    """Whether the newest questions brought nothing of what is missing.

    Args:
        asked: questions so far.
        last: the place of the newest that brought some, from 1; 0: none did.
    """
    return asked - last >= FRUITLESS
