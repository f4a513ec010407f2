"""Questions whose right answer is known: what a source row is when a model is asked it.

Rows of GSM8K, rows of an eval set with a `grader`, generated problems, and chat rows whose last answer
ends on a number. Such a row also holds the source's own answer, where there is one to train on.
"""

import re
from typing import Any

from pydantic import ValidationError

from loco.contracts.datasets import Layout
from loco.contracts.grading import ChoiceGrader, JsonGrader, NumericGrader, WordsGrader
from loco.datasets import rows
from loco.grading.answers import LONGEST_NUMBER, extract, parse, stated
from loco.grading.eval_items import EvalItem
from loco_worker.sources.rows import Empty, Malformed, Row, row_from, training_answer, user_row

#: A number at the very end of a text: the answer of a chat turn that names none as such.
_LAST_NUMBER = re.compile(r"[-+]?[$€£¥]?\d[\d,]*(?:\.\d+)?(?:/\d+)?\s?%?\Z")
_AFTER = re.compile(r"[.!*\s]")


def question_of(number: int, record: Any) -> Row:
    """The question that a record of a file or data set poses, as a row with its `item`.

    Args:
        number: its number in the source, from 1.
        record: `{"question", "answer"}` as in GSM8K, the same with `grader`, or chat turns.

    Raises:
        Malformed, Empty: see there; malformed too is what has no right answer to grade by.
    """
    if isinstance(record, dict) and record.get("grader") is not None:
        return _graded_row(number, record)
    return question_from(user_row(number, record))


def question_from(given: rows.Row) -> Row:
    """The question that a user's row poses.

    A text that ends on no number is the right answer itself where it stands beside a question; a chat's
    last turn is a talk, of which only a number can be graded.

    Raises:
        Malformed: it has no right answer to grade by.
    """
    problem = given.problem
    if problem.get("grader") is not None:
        value = {**problem, "question": given.question, "answer": given.answer}
        return _graded_row(given.line, value)
    row = row_from(given)
    closing = row.conversations[-1]["content"]
    try:
        right = _number_at_end(closing)
    except Malformed:
        if given.layout is Layout.CHAT:
            raise
        right = closing
    return with_item(row, right, str(problem.get("kind") or ""), problem.get("id"))


def with_item(row: Row, answer: str, kind: str = "", name: Any = None) -> Row:
    """The row with the item that its answers are graded by.

    Args:
        row: of a question and an answer.
        answer: the right one.
        kind: of the problem.
        name: its ID; none: its number.

    Raises:
        Malformed: such an answer can't be graded.
    """
    value = {"id": str(name or row.number), "question": row.question, "answer": answer}
    return row._replace(item=_item({**value, "kind": kind}))


def own_answer(item: EvalItem) -> str | None:
    """An item's answer as a row's; None where its grader holds what is right, not an answer."""
    match item.grader:
        case None | NumericGrader() | WordsGrader() | ChoiceGrader():
            text = item.answer.strip()
            return training_answer(text) if parse(text) is not None else f"The answer is {text}"
        case JsonGrader() if item.answer:
            return item.answer
        case _:
            return None


def _graded_row(number: int, record: dict[str, Any]) -> Row:
    if isinstance(record.get("question"), str) and not record["question"].strip():
        raise Empty("blank question")
    item = _item({"id": str(number), **record})
    question = item.question.strip()
    turns = [{"role": "system", "content": item.system}] if item.system else []
    turns.append({"role": "user", "content": question})
    turns.append({"role": "assistant", "content": own_answer(item) or ""})
    return Row(number, question, turns, item=item)


def _item(value: dict[str, Any]) -> EvalItem:
    try:
        return EvalItem.model_validate(value)
    except ValidationError as error:
        raise Malformed(f"no right answer to grade with: {error}") from error


def _number_at_end(text: str) -> str:
    if stated(text) is not None and (found := extract(text)) is not None:
        return found.text.replace(",", "")
    end = len(text)
    while end and _AFTER.match(text, end - 1):
        end -= 1
    # a number longer than this part is too long to be read, from wherever it begins
    match = _LAST_NUMBER.search(text[max(0, end - 2 * LONGEST_NUMBER) : end])
    number = parse(match[0]) if match else None
    if number is None:
        raise Malformed("its last answer does not end with a number")
    return number.text.replace(",", "")
