"""Eval problems: one JSON object a line with `id`, `question` and `answer`."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from loco.contracts.errors import DataError

#: How a worked answer of GSM8K ends.
_HASHES = re.compile(r"####[ \t]*(?P<answer>[^\n]*?)\s*$")


class EvalItem(BaseModel):
    """One problem. Fields beyond these are allowed and ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    kind: str = ""

    @field_validator("id", "answer", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        """Numbers may be written without quotes."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if is_number else value


def load_eval_items(path: Path) -> list[EvalItem]:
    """The problems of a file.

    Raises:
        DataError: a line is wrong (named), an ID appears twice, or there are no problems.
    """
    lines = enumerate(read_lines(path), start=1)
    values = (
        (n, parse_line(path, n, line, param="eval.sets")) for n, line in lines if line.strip()
    )
    return eval_items(values, path.name)


def eval_items(values: Iterable[tuple[int, object]], name: str) -> list[EvalItem]:
    """The problems that numbered records mean: eval problems, or rows of GSM8K.

    A row without `id` has its number as one, and of an answer that ends `#### N` the N is expected.

    Args:
        values: line or row number, from 1, and what stands there.
        name: of the file or data set, for errors.

    Raises:
        DataError: a record is wrong (its line is named), an ID appears twice, or there are none.
    """
    items: list[EvalItem] = []
    seen: set[str] = set()
    for number, value in values:
        item = _item(value, number, f"{name}, line {number}")
        if item.id in seen:
            raise DataError(f"{name}, line {number}: id {item.id!r} appears twice.")
        seen.add(item.id)
        items.append(item)
    if not items:
        raise DataError(f"{name} holds no problems.", hint="Write one JSON object a line.")
    return items


def _item(value: object, number: int, place: str) -> EvalItem:
    if isinstance(value, dict):
        value = {"id": str(number), **value}
        answer = value.get("answer")
        if isinstance(answer, str) and (closing := _HASHES.search(answer)):
            value["answer"] = closing["answer"]
    try:
        return EvalItem.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{place}: {field + ': ' if field else ''}{first['msg']}",
            hint='A line is {"id": "1", "question": "…", "answer": "42"}.',
        ) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file (only newlines end a line, as JSONL has it).

    Raises:
        DataError: the file is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path.name}, line {line}: not UTF-8 text.", hint="Save the file as UTF-8."
        ) from error


def parse_line(path: Path, number: int, line: str, *, param: str = "prepare.source.path") -> object:
    """The JSON value of a line.

    Raises:
        DataError: it isn't JSON; names file, line and column.
    """
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise DataError(
            f"{path.name}, line {number}{column}: not JSON: {why}.",
            param=param,
            hint="Every line must be one JSON object; mend or remove this line.",
        ) from error
