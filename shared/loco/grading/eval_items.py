"""Eval problems: one JSON object a line with `id`, `question`, `answer` and perhaps a `grader`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from loco.contracts.errors import DataError
from loco.contracts.grading import (
    ChoiceGrader,
    Grader,
    GraderName,
    JsonGrader,
    NumericGrader,
    WordsGrader,
)
from loco.datasets.values import value_of
from loco.grading.answers import parse, words_in
from loco.grading.choices import label_of, unclear
from loco.grading.json_answers import parsed

#: Graders that hold all they compare with, so that an item needs no `answer`.
_HOLDS_ALL = ("contains", "regex", "code")
#: One of each kind, for the hint of an error.
_EXAMPLES = {
    "numeric": '{"kind": "numeric", "tolerance": 0.5}',
    "words": '{"kind": "words", "also": ["The Netherlands"]}',
    "choice": '{"kind": "choice", "options": ["A", "B", "C"]}',
    "contains": '{"kind": "contains", "all": ["Paris"], "none": ["London"]}',
    "regex": '{"kind": "regex", "pattern": "[A-Z]+", "where": "fullmatch"}',
    "json": '{"kind": "json", "expected": {"name": "Ada"}, "subset": true}',
    "code": '{"kind": "code", "entry": "f", "cases": [{"args": [2], "expected": 4}]}',
}

#: What a worked answer of GSM8K has before its result, in its last line.
_HASHES = "####"


class EvalItem(BaseModel):
    """One problem. Fields beyond these are allowed and ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    #: The right answer; "" where the grader holds all that is compared.
    answer: str = ""
    kind: str = ""
    #: How the answer is judged; none: as a number when `answer` is one, else as words.
    grader: Grader | None = None
    #: System prompt of this problem; none: the model's own.
    system: str | None = Field(None, min_length=1)

    @field_validator("id", "answer", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        """Numbers may be written without quotes."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if is_number else value

    @field_validator("grader", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """A grader without options may be given by its name alone."""
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _answered(self) -> "EvalItem":
        """The answer is one that the grader can compare with."""
        grader = self.grader
        if not self.answer:
            if grader is not None and grader.kind in _HOLDS_ALL:
                return self
            if isinstance(grader, JsonGrader) and ("expected" in grader.model_fields_set):
                return self
            if isinstance(grader, JsonGrader) and grader.types:
                return self
            raise ValueError("answer: missing or empty")
        if isinstance(grader, NumericGrader) and parse(self.answer) is None:
            raise ValueError(
                f"answer: {self.answer!r:.80} is not a number, which grader numeric needs"
            )
        if isinstance(grader, ChoiceGrader) and (why := unclear(grader)) is not None:
            raise ValueError(f"grader.options: {why}. Use letters or words as options")
        if isinstance(grader, ChoiceGrader) and label_of(grader, self.answer) is None:
            raise ValueError(f"answer: {self.answer!r:.80} is not one of the grader's options")
        if isinstance(grader, JsonGrader) and parsed(self.answer) is None:
            raise ValueError(f"answer: {self.answer!r:.80} is not JSON, which grader json needs")
        if isinstance(grader, WordsGrader) or (grader is None and parse(self.answer) is None):
            self._check_words(grader.also if grader else ())
        return self

    def _check_words(self, also: Iterable[str]) -> None:
        """What holds no word would be found in every answer that holds none."""
        for field, expected in (("answer", self.answer), *(("grader.also", a) for a in also)):
            if not words_in(expected):
                raise ValueError(
                    f"{field}: {expected!r:.80} has no word to compare. Use grader contains or "
                    "regex for signs"
                )


def written(item: EvalItem) -> dict[str, Any]:
    """A problem as a line of an eval set that reads back as the same one.

    What was left out stays out: a default that is spelled out, like `"expected": null` of grader
    json, would be asked for.
    """
    return item.model_dump(exclude_unset=True)


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
        raise DataError(f"{name} has no problems.", hint="Write one JSON object per line.")
    return items


def _item(value: object, number: int, place: str) -> EvalItem:
    if isinstance(value, dict):
        value = {"id": str(number), **value}
        answer, graded = value.get("answer"), value.get("grader") is not None
        if isinstance(answer, str) and not graded:
            _, mark, result = answer.rstrip().rpartition("\n")[2].partition(_HASHES)
            if mark:
                value["answer"] = result.lstrip(" \t")
    try:
        return EvalItem.model_validate(value)
    except ValidationError as error:
        raise _fault(place, error) from error


def _fault(place: str, error: ValidationError) -> DataError:
    """A wrong line in words: where, which field, what, and how it should look."""
    first: Any = error.errors(include_url=False)[0]
    loc = [str(part) for part in first["loc"]]
    kind = loc[1] if loc[:1] == ["grader"] and len(loc) > 1 and loc[1] in _EXAMPLES else None
    if kind is not None:
        del loc[1]  # the member of the union: its name stands in `kind`
    field, said = ".".join(loc), first["msg"].removeprefix("Value error, ")
    hint = 'A line is {"id": "1", "question": "…", "answer": "42"}.'
    if loc[:1] == ["grader"]:
        hint = f'For example "grader": {_EXAMPLES[kind or "choice"]}; docs/eval.md shows all kinds.'
        if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
            field, said = "grader.kind", f"is one of {', '.join(get_args(GraderName))}"
            said += f", not {first['ctx']['tag']!r:.80}" if "tag" in first.get("ctx", {}) else ""
    return DataError(
        f"{place}: {field + ': ' if field else ''}{said}", param=field or None, hint=hint
    )


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
        return value_of(line)
    except ValueError as error:
        column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        why = f"not JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise DataError(
            f"{path.name}, line {number}{column}: {why}.",
            param=param,
            hint="Every line must be one JSON object. Fix or delete this line.",
        ) from error
