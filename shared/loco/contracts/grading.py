"""How an eval problem's answer is judged: the field `grader` of a line of an eval set.

`{"kind": "choice", "options": ["A", "B", "C", "D"]}`; docs/eval.md shows one of each kind. What they do
is in `loco.grading`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints, field_validator, model_validator

from loco.contracts.base import Contract
from loco.contracts.code_tests import CodeTests
from loco.contracts.patterns import LONGEST_PATTERN, compiled

GraderName = Literal["numeric", "words", "choice", "contains", "regex", "json", "code"]
Phrase = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"\S")]
JsonType = Literal["string", "integer", "number", "boolean", "null", "list", "object"]

#: Levels of lists and objects in an expected JSON value.
DEEPEST_JSON = 20


class NumericGrader(Contract):
    """The number the answer gives is the item's `answer`."""

    kind: Literal["numeric"] = Field(description="Compares numbers.")
    tolerance: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Largest difference that still counts as right. 0: equal except for rounding.",
    )


class WordsGrader(Contract):
    """The words the answer gives are the item's `answer`, but for case and punctuation."""

    kind: Literal["words"] = Field(description="Compares words.")
    also: tuple[Phrase, ...] = Field((), description="Other answers that are right.")


class ChoiceGrader(Contract):
    """The answer names one option, the item's `answer`."""

    kind: Literal["choice"] = Field(description="One of several options.")
    options: tuple[Phrase, ...] | dict[Phrase, Phrase] = Field(
        min_length=2,
        max_length=50,
        description="The options, like `[A, B, C]` or `[yes, no]`, or labels with texts, like "
        "`{A: Paris, B: Rome}`. An answer may then name label or text.",
    )

    @field_validator("options")
    @classmethod
    def _differ(cls, value: Any) -> Any:
        names = [*value, *(value.values() if isinstance(value, dict) else ())]
        folded = [name.strip().casefold() for name in names]
        twice = next((n for n in folded if folded.count(n) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} appears twice: options must differ by more than case")
        return value


class ContainsGrader(Contract):
    """The answer holds certain phrases, and not others."""

    kind: Literal["contains"] = Field(description="Looks for phrases.")
    all: tuple[Phrase, ...] = Field(
        (), max_length=50, description="The answer must contain all of these."
    )
    any: tuple[Phrase, ...] = Field(
        (), max_length=50, description="The answer must contain at least one of these."
    )
    none: tuple[Phrase, ...] = Field(
        (), max_length=50, description="The answer must contain none of these."
    )
    ignore_case: bool = Field(True, description="Whether upper and lower case count as the same.")
    whole_words: bool = Field(
        True,
        description="Match whole words only: `no` is not found in `know`. Set false for languages "
        "without spaces.",
    )

    @model_validator(mode="after")
    def _asks_something(self) -> "ContainsGrader":
        if not (self.all or self.any):
            raise ValueError("name at least one phrase in `all` or `any`")
        return self


class RegexGrader(Contract):
    """A pattern matches the answer."""

    kind: Literal["regex"] = Field(description="Matches an RE2 pattern.")
    pattern: str = Field(
        min_length=1,
        max_length=LONGEST_PATTERN,
        description="RE2 syntax: no lookaround, no backreferences.",
    )
    where: Literal["fullmatch", "search", "last_line"] = Field(
        "fullmatch",
        description="The whole answer without outer spaces, any part of it, or its whole last line.",
    )
    ignore_case: bool = Field(False, description="Whether upper and lower case count as the same.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        compiled(value)
        return value


class JsonGrader(Contract):
    """The answer is a JSON value, or contains one.

    It reads the whole answer, else the last code fence that is JSON, else the first list or object.
    """

    kind: Literal["json"] = Field(description="Compares JSON values.")
    expected: JsonValue = Field(
        None, description="The expected value. If left out, the item's `answer` is read as JSON."
    )
    subset: bool = Field(
        False, description="The answer may have more fields than expected, at every level."
    )
    any_order: bool = Field(False, description="Lists may be in any order.")
    ignore_case: bool = Field(
        False,
        description="Whether upper and lower case of text values count as the same (not of field names).",
    )
    types: dict[Phrase, JsonType] = Field(
        {}, description="Fields the answer must have, and their types, whatever their values."
    )
    only: bool = Field(False, description="The answer must be only JSON, without a code fence.")

    @field_validator("expected")
    @classmethod
    def _shallow(cls, value: JsonValue) -> JsonValue:
        if depth(value) > DEEPEST_JSON:
            raise ValueError(f"nested deeper than {DEEPEST_JSON} levels")
        return value


class CodeGrader(CodeTests):
    """The answer's code passes tests."""

    kind: Literal["code"] = Field(description="Runs the answer's code in a sandbox.")


Grader = Annotated[
    NumericGrader
    | WordsGrader
    | ChoiceGrader
    | ContainsGrader
    | RegexGrader
    | JsonGrader
    | CodeGrader,
    Field(discriminator="kind"),
]


def depth(value: JsonValue) -> int:
    """Levels of lists and objects in a value; stops counting at 1 beyond `DEEPEST_JSON`."""
    deepest = 0
    stack: list[tuple[JsonValue, int]] = [(value, 0)]
    while stack and deepest <= DEEPEST_JSON:
        current, level = stack.pop()
        if isinstance(current, dict | list):
            deepest = max(deepest, level + 1)
            inner = current.values() if isinstance(current, dict) else current
            stack += [(child, level + 1) for child in inner]
    return deepest
