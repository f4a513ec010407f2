"""Rows as a base model will see them: what `loco check` asks the training environment."""

from typing import Annotated, Any

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.bounds import LARGEST_CONTEXT, LONGEST_NAME

#: Rows that are tokenized at once, and characters of one.
MOST_ROWS = 500
LONGEST_ROW = 400_000
#: Turns of a row: where a template forgets, a row is tokenized once for each answer.
MOST_TURNS = 50
#: Rows whose tokens are shown.
SHOWN = 10
#: Characters that are shown of a row, and bytes of the program's whole answer.
MOST_SHOWN = 65_536
LARGEST_ANSWER = 8 * 2**20
#: Exit code of the program where rows take more memory than it may have.
TOO_MUCH = 71


class LookRow(Contract):
    """A training row."""

    line: int = Field(ge=1, le=10**9, description="Line in its file.")
    conversations: list[
        dict[Annotated[str, Field(max_length=40)], Annotated[str, Field(max_length=LONGEST_ROW)]]
    ] = Field(min_length=1, max_length=MOST_TURNS, description="Its turns.")


class LookRequest(Contract):
    """The body of `POST /looks`."""

    base_model: str = Field(max_length=LONGEST_NAME, description="Name in the catalog.")
    max_length: int = Field(
        ge=16, le=LARGEST_CONTEXT, description="Longest row in tokens. Longer rows are cut."
    )
    rows: tuple[LookRow, ...] = Field(
        min_length=1, max_length=MOST_ROWS, description="The rows. The first ten are shown in full."
    )


class LookPiece(Contract):
    """A run of tokens that are all trained on, or all not."""

    text: str = Field(description="The tokens as text.")
    trained: bool = Field(description="Whether training learns from them (the loss counts them).")


class LookedAt(Contract):
    """What happens to a row."""

    line: int = Field(description="Line in its file.")
    tokens: int = Field(0, description="Tokens of the row before it is cut.")
    trained: int = Field(
        0, description="Trained tokens (the loss counts them), after the row is cut."
    )
    cut: bool = Field(False, description="The answer is cut at max_length, so it has no end.")
    dropped: bool = Field(
        False, description="The answer begins after max_length, so the row is left out."
    )
    problem: str | None = Field(None, description="Why training cannot use it at all.")
    pieces: tuple[LookPiece, ...] = Field(
        (),
        description="The row as the model sees it. Only for the first rows, up to 65,536 characters.",
    )


class Look(Contract):
    """Rows as training will use them."""

    base_model: str = Field(
        description="The base model whose tokenizer and chat template were used."
    )
    rows: tuple[LookedAt, ...] = Field(description="One for each row, in order.")


def asked_of(base_model: dict[str, Any], models_dir: str, request: LookRequest) -> dict[str, Any]:
    """What the program reads on standard input."""
    return {**request.model_dump(mode="json"), "base": base_model, "models_dir": models_dir}
