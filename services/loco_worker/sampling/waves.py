"""How many questions a wave asks, and when no more are asked: what the answers so far decide.

Within a wave nothing is decided, so it does not matter in which order answers come.
"""

from collections.abc import Sequence
from math import ceil

from loco_worker.sampling.tries import Asked

#: After so many questions in a row that brought nothing no more are asked.
FRUITLESS = 200
#: Of a generator at most so many times the wanted number are asked.
MOST = 10
#: A wave asks at most so many questions for one missing row, however little came so far.
STEEPEST = 4


def wave_size(missing: int, got: int, asked: int) -> int:
    """The questions of the next wave: as many as the yield so far says are missing.

    Args:
        missing: rows (or pairs) that are still wanted.
        got: those there are.
        asked: questions they came from; 0: none was asked yet.
    """
    if missing <= 0:
        return 0
    if not asked:
        return missing
    if not got:
        return min(missing, FRUITLESS - asked if asked < FRUITLESS else FRUITLESS)
    return min(ceil(missing * asked / got), STEEPEST * missing)


def given_up(asked: Sequence[Asked], wanted: int, *, generated: bool, mixed: bool) -> bool:
    """Whether asking further questions leads nowhere.

    Args:
        asked: the questions so far, in order.
        wanted: rows or pairs wanted in all.
        generated: there is no end to the questions.
        mixed: only questions with right and wrong answers bring something.
    """
    if generated and len(asked) >= MOST * wanted:
        return True
    newest = asked[-FRUITLESS:]
    brought = any(q.mixed if mixed else q.solved for q in newest)
    return len(newest) == FRUITLESS and not brought
