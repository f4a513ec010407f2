"""Training rows: what a source row becomes, and which rows are malformed or empty.

A row is `{"conversations": [{"role": "user", …}, {"role": "assistant", …}]}`. GSM8K answers lose
their `<<…>>` calculator marks, and `#### N` becomes "The answer is N"; other answers stay as they stand.
"""

import re
from typing import Any, NamedTuple

from loco.contracts.datasets import Layout
from loco.datasets import rows
from loco.grading.answers import parse
from loco.grading.eval_items import EvalItem

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_HASHES = "####"
_CLOSING = r"\bthe answer is:?"
#: Characters at the end of a line in which a mark is looked for that ends there; longer than any.
_MARK = 40


class Malformed(ValueError):
    """The row has no question or answer, no number after `####`, or broken roles."""


class Empty(ValueError):
    """The row's question or answer is blank."""


class Row(NamedTuple):
    """A usable row."""

    #: Its number in the source, from 1.
    number: int
    #: All that the user says, for comparing rows.
    question: str
    conversations: list[dict[str, str]]
    #: What identifies it to the generator that made it, if one did.
    problem: str | None = None
    #: The question with its right answer and grader, where the source was opened for its questions.
    item: EvalItem | None = None
    #: The worse answer, where the row is one of a pair.
    rejected: dict[str, str] | None = None
    #: How the row itself says its answer is judged.
    grader: Any = None


def row_of(number: int, record: Any) -> Row:
    """The row a record of a file or data set means.

    An answer that ends in `#### N` or "The answer is N", N a number, is GSM8K's; any other one stays as it
    stands.

    Args:
        number: its number in the source, from 1.
        record: see `loco.datasets.rows` for what it may be.

    Raises:
        Malformed, Empty: see there.
    """
    return row_from(user_row(number, record))


def user_row(number: int, record: Any) -> rows.Row:
    """A user's row of a file or data set, with this module's errors.

    Raises:
        Malformed, Empty: see there.
    """
    try:
        return rows.row_of(number, record)
    except rows.BlankRow as error:
        raise Empty(str(error)) from error
    except rows.BadRow as error:
        raise Malformed(str(error)) from error


def row_from(given: rows.Row) -> Row:
    """A user's row as a training row."""
    turns = given.turns
    if given.layout is Layout.QUESTION_ANSWER and is_worked(given.answer):
        try:
            worked = training_answer(given.answer)
        except Malformed:
            if _parted(given.answer.strip(), _HASHES) is not None:
                raise
            worked = given.answer  # "The answer is Paris." is a text
        turns = [*turns[:-1], {"role": "assistant", "content": worked}]
    grader = given.problem.get("grader")
    return Row(given.line, given.question, turns, rejected=given.rejected, grader=grader)


def is_worked(answer: str) -> bool:
    """Whether an answer ends as those of GSM8K do: `#### N`, or "The answer is N"."""
    text = answer.strip()
    return any(_parted(text, mark) is not None for mark in (_HASHES, _CLOSING))


def worked_row(number: int, question: str, answer: str, problem: str | None = None) -> Row:
    """A row of a question and a worked answer that ends in a number."""
    return _pair(number, question, training_answer(answer), problem)


def bare_row(number: int, question: str, answer: str) -> Row:
    """A row whose answer comes without the way to it (and need not be a number)."""
    if not question.strip() or not answer.strip():
        raise Empty("blank question or answer")
    return _pair(number, question, f"The answer is {answer.strip()}", None)


def training_answer(answer: str) -> str:
    r"""An answer as it is trained on: reasoning, then "The answer is N".

    Args:
        answer: ends in `#### N` or "The answer is N", or is a bare number.

    Raises:
        Malformed: it ends on no number.
    """
    text = _CALCULATOR.sub("", answer).strip()
    reasoning, written = _parted(text, _HASHES) or _parted(text, _CLOSING) or ("", text)
    number = parse(written)
    if number is None:
        raise Malformed("no number at the end")
    closing = f"The answer is {number.text.replace(',', '')}"
    return f"{reasoning}\n{closing}" if reasoning else closing


def _parted(text: str, mark: str) -> tuple[str, str] | None:
    """What stands before and behind a mark in the last line, or at the end of the one before it.

    Line by line: a pattern that also takes the blanks around a mark would be tried at each of them.
    """
    last = text.rfind("\n") + 1
    before = text[:last].rstrip()
    found = re.search(rf"{mark}\Z", before[-_MARK:], re.I)
    if found is not None:
        return before[: len(before) - len(found[0])].rstrip(), text[last:]
    found = re.compile(mark, re.I).search(text, last)
    # "… and the answer is" says nothing; what stands before may
    if found is None or (mark == _CLOSING and found.end() == len(text) and text[-1] != ":"):
        return None
    return text[: found.start()].rstrip(), text[found.end() :]


def _pair(number: int, question: str, answer: str, problem: str | None) -> Row:
    question = question.strip()
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Row(number, question, turns, problem)
