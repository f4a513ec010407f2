"""Data sets that users uploaded: what is known of one, and of a row that cannot be used."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.bounds import LONGEST_NAME

ID_PATTERN = "^ds-[0-9a-f]{16}$"
#: Of its name: what is no path, and no option of a command.
NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
SHA256_PATTERN = "^[0-9a-f]{64}$"
#: Bytes of a file, far above what any setting allows.
LARGEST_FILE = 2**50


class Format(StrEnum):
    """What kind of file the rows are in."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"

    @property
    def unit(self) -> str:
        """How a row's place is named."""
        return "row" if self is Format.PARQUET else "line"


class Layout(StrEnum):
    """How the rows of a data set are laid out."""

    CHAT = "chat"
    QUESTION_ANSWER = "question-answer"
    ALPACA = "alpaca"
    PAIRS = "pairs"


ColumnMapping = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=40)],
        Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)],
    ],
    Field(max_length=20),
]


class RowProblem(Contract):
    """A row that cannot be used."""

    line: int = Field(description="Line in the file, or row number in a Parquet file, from 1.")
    what: str = Field(description="What is wrong with it.")
    fix: str = Field(description="What to do about it.")


class ShownRow(Contract):
    """A row as training uses it. Long texts are cut."""

    line: int = Field(description="Line in the file, or row number in a Parquet file, from 1.")
    messages: tuple[dict[str, str], ...] = Field(
        description="The turns of the chat. Of a pair: with the chosen answer."
    )
    rejected: dict[str, str] | None = Field(None, description="The worse answer of a pair.")


class DataSet(Contract):
    """A data set, or an upload that has not ended yet."""

    id: str = Field(description="ID of the data set in requests.", examples=["ds-0123456789abcdef"])
    object: Literal["dataset"] = Field("dataset", description="Always `dataset`.")
    name: str = Field(
        description="Name of the data set. In requests it means the newest upload of that name."
    )
    owner: str = Field(description="Owner of the data set.")
    created_at: datetime = Field(description="When the upload started.")
    status: Literal["uploading", "ready"] = Field(description="Whether it can be used.")
    bytes: int = Field(description="Size in bytes. While it uploads: the bytes received so far.")
    length: int | None = Field(None, description="Bytes it will have in the end. Null: not known.")
    sha256: str | None = Field(None, description="SHA-256 of the file, once it is ready.")
    format: Format | None = Field(None, description="What kind of file it is.")
    layout: Layout | None = Field(None, description="How its rows are laid out.")
    rows: int = Field(0, description="Rows that can be used.")
    bad_rows: int = Field(0, description="Rows that cannot be used and are left out.")
    mapping: ColumnMapping = Field({}, description="Which column each field comes from.")
    problems: tuple[RowProblem, ...] = Field((), description="The first bad rows.")


class DataSetDetail(DataSet):
    """A data set with its first rows."""

    first: tuple[ShownRow, ...] = Field((), description="The first rows that can be used.")


class Inspected(Contract):
    """What an inspection of a whole file found."""

    sha256: str = Field(pattern=SHA256_PATTERN, description="SHA-256 of the file.")
    format: Format = Field(description="What kind of file it is.")
    layout: Layout = Field(description="How its rows are laid out.")
    rows: int = Field(description="Rows that can be used.")
    bad_rows: int = Field(description="Rows that cannot be used.")
    problems: tuple[RowProblem, ...] = Field(description="The first bad rows.")
    first: tuple[ShownRow, ...] = Field(description="The first rows that can be used.")

    def fields(self) -> dict[str, Any]:
        """What becomes part of the data set's record."""
        return {name: getattr(self, name) for name in type(self).model_fields}
