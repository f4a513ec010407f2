"""Test cases of a programming problem, as an eval set or a training row holds them."""

import ast
import keyword
from typing import Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from loco.contracts.base import Contract


class CodeCase(Contract):
    """One call of the function, and what it must return."""

    args: tuple[JsonValue, ...] = Field((), description="Positional arguments.")
    kwargs: dict[str, JsonValue] = Field({}, description="Keyword arguments.")
    expected: JsonValue = Field(
        description="What the call must return. A tuple equals a list, a set a list in any order; "
        "floats may differ by 1e-9 of their size."
    )


class CodeTests(Contract):
    """How the code in an answer is tested: by calls of a function, by asserts, or both."""

    language: Literal["python"] = Field("python", description="Language of the code.")
    entry: str | None = Field(None, description="Name of the function that `cases` call.")
    cases: tuple[CodeCase, ...] = Field((), description="Calls of `entry`.", max_length=1000)
    asserts: tuple[str, ...] = Field(
        (),
        description="Python tests. Each ends with an assert; statements may come before it. The "
        "answer's code cannot cheat a test of the form `EXPRESSION == LITERAL`.",
        max_length=1000,
    )
    seconds: float = Field(5, gt=0, le=10, description="Time limit for all tests of an answer.")
    memory_mb: int = Field(
        256, ge=64, le=4096, description="Memory limit of the interpreter (address space), MiB."
    )

    @field_validator("entry")
    @classmethod
    def _names_a_function(cls, value: str | None) -> str | None:
        if value is not None and (not value.isidentifier() or keyword.iskeyword(value)):
            raise ValueError("must be the name of a function, such as `solve`")
        return value

    @field_validator("asserts")
    @classmethod
    def _tests_something(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, text in enumerate(value, start=1):
            try:
                statements = ast.parse(text).body
            except (SyntaxError, ValueError) as error:
                raise ValueError(f"assert {number} is not Python: {error}") from error
            if not statements or not isinstance(statements[-1], ast.Assert):
                raise ValueError(f"assert {number} must end with an assert: `assert solve(2) == 4`")
            if not any(isinstance(node, ast.Name) for node in ast.walk(statements[-1].test)):
                raise ValueError(f"assert {number} does not test the answer's code")
        return value

    @model_validator(mode="after")
    def _has_tests(self) -> Self:
        if not self.cases and not self.asserts:
            raise ValueError("needs `cases` or `asserts`: without a test no code is wrong")
        if self.cases and self.entry is None:
            raise ValueError("`cases` need `entry`, the name of the function to call")
        return self
