"""Pairs of a right and a wrong answer to the same question, for train's second part.

`{"prompt": [turns], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}`, TRL's
conversational preference format.
"""

from collections.abc import Sequence
from typing import Any

from loco_worker.sampling.texts import closed, prompt
from loco_worker.sampling.tries import Asked


def pairs_of(
    questions: Sequence[Asked], wanted: int, per_question: int, instruction: str | None
) -> list[dict[str, Any]]:
    """One pair of each question first, then a second of other answers, and so on.

    Args:
        questions: in order.
        wanted: pairs at most.
        per_question: pairs a question at most.
        instruction: system prompt of the rows; none: none.
    """
    pairs: list[dict[str, Any]] = []
    if not wanted:
        return pairs
    answers = [(q, q.rights(), q.wrongs()) for q in questions if q.mixed]
    for n in range(per_question):
        for asked, rights, wrongs in answers:
            if len(pairs) == wanted:
                return pairs
            if n < min(len(rights), len(wrongs)):
                pairs.append(
                    {
                        "prompt": prompt(asked.row, instruction),
                        "chosen": [_answer(closed(asked.item, rights[n].text))],
                        "rejected": [_answer(wrongs[n].text)],
                    }
                )
    return pairs


def pair_count(asked: Asked, per_question: int) -> int:
    """The pairs that a question gives."""
    return min(len(asked.rights()), len(asked.wrongs()), per_question)


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
