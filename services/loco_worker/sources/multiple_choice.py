"""Rows of a question with a right answer and distractors, as SciQ has them, as questions with options.

{"question": …, "correct_answer": …, "distractor1": …, "distractor2": …, "distractor3": …}
"""

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

RIGHT = "correct_answer"
WRONG = tuple(f"distractor{number}" for number in range(1, 10))
#: Columns that such a row is read from.
COLUMNS = {RIGHT, *WRONG}
_LABELS = "ABCDEFGHIJ"


def has_choices(columns: Iterable[str]) -> bool:
    """Whether rows of these columns are questions with distractors."""
    return {"question", RIGHT, WRONG[0]} <= set(columns)


def with_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as a question that lists its options, with the grader of a choice.

    The order follows from the question, so a row is the same in every job; where the right one stands is
    even over many rows. A row that cannot be asked so (a blank, an option twice) stays as it is, and
    counts as malformed for want of an answer.
    """
    question, right = record.get("question"), record.get(RIGHT)
    options = [right, *(record[name] for name in WRONG if record.get(name))]
    texts = [option.strip() for option in options if isinstance(option, str)]
    differ = len({text.casefold() for text in texts}) == len(options)
    if not isinstance(question, str) or not question.strip() or not differ or "" in texts:
        return {"question": question}
    shuffled = list(texts)
    Random(f"options {question}").shuffle(shuffled)  # noqa: S311 (not for secrets)
    labelled = dict(zip(_LABELS, shuffled, strict=False))
    listed = "\n".join(f"{label}) {text}" for label, text in labelled.items())
    return {
        "question": f"{question.strip()}\n{listed}",
        "answer": texts[0],
        "kind": "choice",
        "grader": {"kind": "choice", "options": labelled},
    }
