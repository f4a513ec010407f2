"""Recipes that travel: what a laptop sends of an adapter, and what a server keeps of it."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.bounds import LONGEST_NAME

#: Characters of a recipe; the file may have as many bytes.
LONGEST_RECIPE = 256 * 1024
#: Data files beside a recipe.
MOST_FILES = 20
#: A plain name: no folder, nothing hidden, no option of a command.
FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
FileName = Annotated[str, Field(pattern=FILE_PATTERN)]


class RecipePut(Contract):
    """The body of `PUT /adapters/{name}`."""

    recipe: str = Field(max_length=LONGEST_RECIPE, description="The text of adapter.yaml.")
    files: dict[FileName, Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]] = Field(
        {},
        max_length=MOST_FILES,
        description="Data files that the recipe names (source jsonl), each with the ID or name "
        "of a data set with its content. Files left out stay as they are.",
        examples=[{"rows.jsonl": "ds-0123456789abcdef"}],
    )


class RecipeVersion(Contract):
    """A recipe as it was uploaded."""

    version: int = Field(ge=1, description="Number of the recipe, from 1.")
    created_at: datetime = Field(description="When it was uploaded.")
    by: str = Field(description="Name of the key that uploaded it.")
    sha256: str = Field(description="SHA-256 of its text.")
    files: dict[str, str] = Field({}, description="Data files uploaded with it, by SHA-256.")
    recipe: str = Field(description="Its text.")


class RecipeFile(Contract):
    """A data file that a recipe names."""

    bytes: int = Field(description="Its size.")


class RecipeText(Contract):
    """A recipe as it is now, with the files it names."""

    name: str = Field(description="Name of the adapter.")
    version: int | None = Field(
        None, description="Number of the newest uploaded recipe. Null: none was uploaded."
    )
    etag: str = Field(
        description="Changes with recipe and files. Send it as `If-Match` with the next PUT."
    )
    recipe: str = Field(description="The text of adapter.yaml.")
    files: dict[str, RecipeFile] = Field(
        {}, description="Data files beside it that it names, for GET /adapters/{name}/files/{file}."
    )
