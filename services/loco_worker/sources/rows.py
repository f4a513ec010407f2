"""Training rows: what a source row becomes, and which rows are malformed or empty.

A row is `{"conversations": [{"role": "user", …}, {"role": "assistant", …}]}`. GSM8K answers lose
their `<<…>>` calculator marks, and `#### N` becomes "The answer is N".
"""

import re
from typing import Any, NamedTuple

from loco.grading.answers import parse
from loco.grading.eval_items import EvalItem

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_HASHES = "####"
_CLOSING = r"\bthe answer is:?"
#: Characters at the end of a line in which a mark is looked for that ends there; longer than any.
_MARK = 40
#: ShareGPT's names of the roles.
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}


class Malformed(ValueError):
    """The row has no question or answer, no number to end on, or broken roles."""


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


def row_of(number: int, record: Any) -> Row:
    """The row a record of a file or data set means.

    Args:
        number: its number in the source, from 1.
        record: `{"question", "answer"}`, or chat turns under `conversations` or `messages`.

    Raises:
        Malformed, Empty: see there.
    """
    if not isinstance(record, dict):
        raise Malformed("not a JSON object")
    for field in ("conversations", "messages"):
        if field in record:
            return _chat_row(number, record[field])
    question, answer = record.get("question"), record.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise Malformed("no question or no answer")
    if not question.strip() or not answer.strip():
        raise Empty("blank question or answer")
    return worked_row(number, question, answer)


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
        raise Malformed("no number to end on")
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


def _chat_row(number: int, turns: Any) -> Row:
    """Chat turns, kept as they are; an optional system turn, then user and assistant in turn."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Malformed("turns are not a list of objects")
    kept: list[dict[str, str]] = []
    for turn in turns:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role == "system" and not kept:
            role = "system"
        elif isinstance(role, str) and role in _ROLES:
            role = _ROLES[role]
        else:
            raise Malformed(f"role {role!r:.80}")
        if not isinstance(content, str):
            raise Malformed("content is not text")
        kept.append({"role": role, "content": content})
        if role == "assistant" and (thoughts := turn.get("reasoning_content")) is not None:
            if not isinstance(thoughts, str):
                raise Malformed("reasoning_content is not text")
            kept[-1]["reasoning_content"] = thoughts
    talk = kept[1:] if kept and kept[0]["role"] == "system" else kept
    expected = ["user", "assistant"] * (len(talk) // 2)
    if not talk or [turn["role"] for turn in talk] != expected:
        raise Malformed("user and assistant do not take turns")
    if not all(turn["content"].strip() for turn in talk):
        raise Empty("blank turn")
    question = "\n".join(turn["content"] for turn in talk if turn["role"] == "user")
    return Row(number, question, kept)
