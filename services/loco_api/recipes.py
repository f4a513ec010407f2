"""Recipes over HTTP: an adapter put from a laptop, its recipe and data files read back."""

from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from starlette.responses import FileResponse

from loco.contracts.datasets import Format
from loco.contracts.errors import (
    AdapterInUse,
    BodyTooLarge,
    Conflict,
    DataError,
    InvalidRequest,
    NotFound,
    RecipeChanged,
    UnknownAdapter,
    UnknownBaseModel,
    UnsafePath,
)
from loco.contracts.recipes import FILE_PATTERN, RecipePut, RecipeText, RecipeVersion
from loco.contracts.removals import AdapterRemoval
from loco.drafting import shelf
from loco.queue.data_sets import data_sets
from loco.running.adapter_removal import remove_adapter
from loco_api.auth import ADMIN, Caller, Who
from loco_api.context import Context, Here
from loco_api.errors import responses
from loco_api.pages import AdapterName, Page

router = APIRouter(tags=["adapters"])

_TAGGED = {
    "headers": {
        "ETag": {"description": "ETag of the recipe with its files.", "schema": {"type": "string"}}
    }
}
_BINARY = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
}


class RecipePage(Page[RecipeVersion]):
    """Uploaded recipes, newest first."""


@router.put(
    "/adapters/{name}",
    operation_id="putAdapter",
    summary="Put an adapter's recipe",
    dependencies=[ADMIN],
    response_description="The recipe as it is now. 201 if the adapter is new.",
    responses={
        200: _TAGGED,
        201: {"model": RecipeText, "description": "The adapter is new.", **_TAGGED},
        **responses(
            InvalidRequest,
            UnknownBaseModel,
            DataError,
            NotFound,
            Conflict,
            RecipeChanged,
            BodyTooLarge,
        ),
    },
)
def put_adapter(
    *,
    name: AdapterName,
    asked: RecipePut,
    response: Response,
    here: Here,
    who: Who,
    if_match: Annotated[
        str | None,
        Header(
            max_length=200,
            description="ETag of the server's recipe. Leave it out for a new adapter.",
        ),
    ] = None,
) -> RecipeText:
    """Creates an adapter, or changes its recipe and data files: all at once, or nothing.

    The server checks every profile and every eval set of the recipe. Jobs that it accepted before
    keep their copies.
    """
    found, is_new = shelf.put(
        here.settings, name, asked, _content_in(here, who), by=who.name, if_match=if_match
    )
    response.status_code = 201 if is_new else 200
    response.headers["ETag"] = f'"{found.etag}"'
    who.detail = f"recipe {found.version}"
    return found


@router.delete(
    "/adapters/{name}",
    operation_id="deleteAdapter",
    summary="Delete an adapter",
    dependencies=[ADMIN],
    responses=responses(UnknownAdapter, Conflict, AdapterInUse, InvalidRequest, UnsafePath),
)
def delete_adapter(name: AdapterName, here: Here) -> AdapterRemoval:
    """Deletes an adapter that was put here: its recipes, its data files, what its jobs published.

    While a version or a job of it is left, the answer is a 409 that lists them. Files that were
    not put with a recipe stay; `kept` names them.
    """
    return remove_adapter(here.ledger, here.settings.adapters_dir, name)


@router.get(
    "/adapters/{name}/recipe",
    operation_id="getRecipe",
    summary="An adapter's recipe, as it is written",
    responses={200: _TAGGED, **responses(UnknownAdapter, InvalidRequest)},
)
def get_recipe(name: AdapterName, response: Response, here: Here) -> RecipeText:
    """The text of adapter.yaml, and the data files that it names."""
    found = shelf.recipe_text(here.settings, name)
    response.headers["ETag"] = f'"{found.etag}"'
    return found


@router.get(
    "/adapters/{name}/recipes",
    operation_id="listRecipes",
    summary="Uploaded recipes",
    responses=responses(UnknownAdapter, InvalidRequest),
)
def list_recipes(
    name: AdapterName,
    here: Here,
    before: Annotated[
        int | None, Query(ge=1, le=10**9, description="Only recipes before this version.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=50, description="Recipes per page.")] = 10,
) -> RecipePage:
    """Every recipe uploaded for an adapter, newest first. The server keeps the newest 200."""
    found = shelf.versions(here.settings, name, before=before, limit=limit + 1)
    return RecipePage(data=tuple(found[:limit]), has_more=len(found) > limit)


@router.get(
    "/adapters/{name}/files/{file}",
    operation_id="getRecipeFile",
    summary="A data file of a recipe",
    response_class=FileResponse,
    responses={200: _BINARY, **responses(UnknownAdapter, NotFound, InvalidRequest)},
)
def get_recipe_file(
    name: AdapterName,
    file: Annotated[
        str, Path(pattern=FILE_PATTERN, description="Its name.", examples=["rows.jsonl"])
    ],
    here: Here,
) -> FileResponse:
    """A data file that the recipe names: training rows or an eval set."""
    path = shelf.data_file(here.settings, name, file)
    return FileResponse(path, media_type="application/octet-stream", filename=file)


def _content_in(here: Context, who: Caller) -> Callable[[str], FilePath]:
    """Finds the rows of a data set, which become a JSONL file beside a recipe."""
    store = data_sets(here.settings)

    def content(name: str) -> FilePath:
        record = store.get(name, who.owner, sees_all=True)
        if record.format not in (None, Format.JSONL) or record.mapping:
            raise InvalidRequest(
                f"Data set {record.name} ({record.id}) is {record.format}"
                f"{', with columns of its own' if record.mapping else ''}; files beside a recipe are JSONL.",
                param="files",
                hint="Upload JSONL rows of question and answer, or name the data set in the recipe: "
                "source: {kind: dataset, dataset: NAME}.",
            )
        return store.content(record)

    return content
