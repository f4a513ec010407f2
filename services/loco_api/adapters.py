"""GET /adapters: the recipes of this server, and what was built from them."""

from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.bounds import LONGEST_NAME
from loco.contracts.errors import (
    ErrorBody,
    InvalidRequest,
    LocoError,
    UnknownAdapter,
    UnknownProfile,
)
from loco.contracts.requests import DEFAULT_PROFILE, JobRequest
from loco.contracts.specs import JobSpec
from loco.contracts.versions import Version
from loco.recipes.resolve import Recipe, adapter_names, load_recipe, resolve
from loco_api.context import Here
from loco_api.errors import responses
from loco_api.pages import AdapterName, Page

router = APIRouter(tags=["adapters"])

#: Versions shown with an adapter.
_VERSIONS = 100


class AdapterSummary(Contract):
    """An adapter in a list."""

    name: str = Field(description="Name of the adapter.")
    object: str = Field("adapter", description="Always `adapter`.")
    description: str | None = Field(None, description="What it is good at.")
    base_model: str | None = Field(None, description="Base model of the default profile.")
    model_name: str | None = Field(None, description="Name of the built model in Ollama.")
    profiles: tuple[str, ...] = Field((), description="Profiles that a job may use.")
    error: ErrorBody | None = Field(
        None, description="Why its recipe cannot be used, if it cannot."
    )


class AdapterPage(Page[AdapterSummary]):
    """Adapters, by name."""


class AdapterDetail(AdapterSummary):
    """An adapter with its recipe."""

    recipe: Recipe = Field(description="The text of the recipe.")
    resolved: JobSpec | None = Field(
        description="What a job with this profile would do, with all defaults filled in. Null: see "
        "`error`."
    )
    versions: tuple[Version, ...] = Field(
        description="The newest 100 versions, newest first. `promoted` marks the one that "
        "serves. GET /adapters/{name}/versions pages through all."
    )


@router.get(
    "/adapters",
    operation_id="listAdapters",
    summary="List adapters",
    responses=responses(InvalidRequest),
)
def list_adapters(here: Here) -> AdapterPage:
    """Every adapter that has a recipe. If a recipe is wrong, its entry has the error."""
    folder = here.settings.adapters_dir
    return AdapterPage(data=tuple(_summary(folder, name) for name in adapter_names(folder)))


@router.get(
    "/adapters/{name}",
    operation_id="getAdapter",
    summary="One adapter",
    responses=responses(UnknownAdapter, InvalidRequest, UnknownProfile),
)
def get_adapter(
    name: AdapterName,
    here: Here,
    profile: Annotated[
        str, Query(max_length=LONGEST_NAME, description="Profile to resolve.", examples=["tiny"])
    ] = DEFAULT_PROFILE,
) -> AdapterDetail:
    """The recipe, what it resolves to, and the registered models."""
    folder = here.settings.adapters_dir
    recipe = load_recipe(folder, name)
    resolved, error = None, None
    try:
        resolved = resolve(folder, JobRequest(adapter=name, profile=profile))
    except UnknownProfile:
        raise
    except LocoError as fault:  # rows that each job brings, say
        error = fault.body
    return AdapterDetail(
        **_fields(recipe),
        error=error,
        recipe=recipe,
        resolved=resolved,
        versions=tuple(here.ledger.registry.versions(name, limit=_VERSIONS)[0]),
    )


def _summary(folder: FilePath, name: str) -> AdapterSummary:
    try:
        return AdapterSummary(**_fields(load_recipe(folder, name)))
    except LocoError as error:
        return AdapterSummary(name=name, error=error.body)


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "description": recipe.description,
        "base_model": recipe.profiles.get(DEFAULT_PROFILE, {}).get("base_model", recipe.base_model),
        "model_name": recipe.model_name,
        "profiles": recipe.profile_names,
    }
