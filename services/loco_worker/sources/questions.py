"""Questions whose right answer is known: what a source row is when a model is asked it.

Rows of GSM8K, rows of an eval set with a `grader`, generated problems, and chat rows whose last answer
ends on a number. Such a row also holds the source's own answer, where there is one to train on.
"""

import re
from typing import Any

from pydantic import ValidationError

from loco.contracts.grading import ChoiceGrader, JsonGrader, NumericGrader, WordsGrader
from loco.grading.answers import LONGEST_NUMBER, extract, parse, stated
from loco.grading.eval_items import EvalItem
from loco_worker.sources.rows import Empty, Malformed, Row, row_of, training_answer

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
    row = row_of(number, record)
    closing = row.conversations[-1]["content"]
    return with_item(row, _number_at_end(closing), str(record.get("kind") or ""), record.get("id"))


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
        raise Malformed(f"no right answer to grade by: {error}") from error


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
        raise Malformed("its last answer ends on no number")
    return number.text.replace(",", "")
