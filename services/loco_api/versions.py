"""The versions of an adapter: list, promote, roll back, make again in Ollama."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.errors import (
    BodyTooLarge,
    Busy,
    CandidateMissing,
    Conflict,
    InvalidRequest,
    LocoError,
    NotFound,
    OllamaRefused,
    OllamaUnavailable,
    RegistrationFailed,
    UnknownAdapter,
    VersionRefused,
)
from loco.contracts.keys import Scope
from loco.contracts.removals import VersionRemoval
from loco.contracts.versions import Pointer, Restored, Version
from loco.recipes.resolve import adapter_names, load_recipe
from loco.running.registry_file import export
from loco.serving import promotion
from loco.serving.host import OllamaHost
from loco.serving.withdrawal import cleared, remove_version
from loco_api.auth import SUBMIT, Caller, Who
from loco_api.context import Context, Here
from loco_api.errors import responses
from loco_api.pages import AdapterName, Page

#: For Ollama to list its models: a list of versions is no place to wait.
_LOOK_SECONDS = 2.0

router = APIRouter(tags=["adapters"])

Model = Annotated[
    str | None, Query(description="Only versions of this model.", examples=["locollm-math"])
]


class VersionPage(Page[Version]):
    """Versions of an adapter, newest first."""


class PromotedPage(Page[Pointer]):
    """What every model's `latest` should be, by model."""


class PromoteRequest(Contract):
    """Which version should serve."""

    version: int = Field(ge=1, description="Its number.")
    force: bool = Field(False, description="Promote it even if the gate refused it.")
    reason: str = Field("", max_length=1000, description="The reason, for the audit trail.")


class RollbackRequest(Contract):
    """Which model to roll back."""

    model: str | None = Field(
        None,
        description="Name in Ollama, without tag. Null: the recipe's, or the only promoted one.",
    )
    reason: str = Field("", max_length=1000, description="The reason, for the audit trail.")


class RestoreRequest(Contract):
    """How to create a version again."""

    anew: bool = Field(False, description="Create it again even if Ollama has it unchanged.")


@router.get(
    "/adapters/{name}/versions",
    operation_id="listVersions",
    summary="List versions",
    responses=responses(UnknownAdapter, InvalidRequest),
)
def list_versions(
    name: AdapterName,
    here: Here,
    after: Annotated[
        int | None, Query(ge=1, description="Continue after this version, the last of a page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Versions per page.")] = 20,
    model: Model = None,
) -> VersionPage:
    """The registered versions, newest first, with lineage, scores, verdict and audit trail.

    `missing` marks those whose model Ollama no longer has.
    """
    _check_adapter(here, name)
    versions, more = here.ledger.registry.versions(name, after=after, limit=limit, model=model)
    return VersionPage(data=_marked(here, versions), has_more=more)


@router.get(
    "/promoted",
    operation_id="listPromoted",
    summary="List promoted versions",
    responses=responses(UnknownAdapter, InvalidRequest),
)
def list_promoted(
    here: Here,
    adapter: Annotated[
        str | None, Query(description="Only models of this adapter.", examples=["math"])
    ] = None,
) -> PromotedPage:
    """The promoted version of every model, also of adapters whose recipe is gone."""
    if adapter is not None:
        _check_adapter(here, adapter)
    return PromotedPage(data=tuple(here.ledger.registry.pointers(adapter)))


@router.post(
    "/adapters/{name}/promote",
    operation_id="promoteVersion",
    summary="Promote a version",
    dependencies=[SUBMIT],
    response_description="The version. `MODEL:latest` was seen to be it.",
    responses=responses(
        UnknownAdapter,
        NotFound,
        InvalidRequest,
        VersionRefused,
        CandidateMissing,
        Conflict,
        BodyTooLarge,
        OllamaUnavailable,
        OllamaRefused,
    ),
)
def promote_version(name: AdapterName, request: PromoteRequest, here: Here, who: Who) -> Version:
    """Makes a version serve as `MODEL:latest`. If the gate refused it, this needs `force` and an admin key."""
    who.detail = f"version {request.version}{', force' if request.force else ''}"
    if request.force:
        who.check_is_admin("force overrules the gate")
    _check_adapter(here, name)
    with _readable_copy(here):
        return promotion.promote(
            here.ledger,
            here.settings,
            name,
            request.version,
            by=who.name,
            reason=request.reason,
            force=request.force,
        )


@router.post(
    "/adapters/{name}/rollback",
    operation_id="rollbackVersion",
    summary="Roll back",
    dependencies=[SUBMIT],
    response_description="The version that serves again. `MODEL:latest` was seen to be it.",
    responses=responses(
        UnknownAdapter,
        InvalidRequest,
        CandidateMissing,
        Conflict,
        BodyTooLarge,
        OllamaUnavailable,
        OllamaRefused,
    ),
)
def rollback_version(
    name: AdapterName, here: Here, who: Who, request: RollbackRequest | None = None
) -> Version:
    """Makes the version that was promoted before the current one serve again."""
    _check_adapter(here, name)
    asked = request or RollbackRequest()
    model = promotion.model_of(here.ledger, name, asked.model, _usual_model(here, name))
    who.detail = model
    with _readable_copy(here):
        return promotion.rollback(
            here.ledger, here.settings, name, model, by=who.name, reason=asked.reason
        )


@router.post(
    "/adapters/{name}/versions/{version}/restore",
    operation_id="restoreVersion",
    summary="Create a version in Ollama again",
    dependencies=[SUBMIT],
    responses=responses(
        UnknownAdapter,
        NotFound,
        InvalidRequest,
        CandidateMissing,
        Conflict,
        BodyTooLarge,
        OllamaUnavailable,
        OllamaRefused,
        RegistrationFailed,
    ),
)
def restore_version(
    name: AdapterName,
    version: Annotated[int, Path(ge=1, description="Number of a version.")],
    here: Here,
    who: Who,
    request: RestoreRequest | None = None,
) -> Restored:
    """Creates the version's model in Ollama again from its GGUF, under the same name.

    It takes as long as the upload; a repeated request continues. `latest` follows once the checks
    show that the model is what was registered. `warnings` lists what could not be checked.
    """
    _check_adapter(here, name)
    anew = request.anew if request else False
    with _readable_copy(here):
        return promotion.restore(here.ledger, here.settings, name, version, by=who.name, anew=anew)


@router.delete(
    "/adapters/{name}/versions/{version}",
    operation_id="deleteVersion",
    summary="Delete a version",
    dependencies=[SUBMIT],
    responses=responses(UnknownAdapter, NotFound, Conflict, Busy, InvalidRequest),
)
def delete_version(
    name: AdapterName,
    version: Annotated[int, Path(ge=1, description="Number of a version.")],
    here: Here,
    who: Who,
    force: Annotated[
        bool,
        Query(description="Delete it even if it serves; then nothing serves. Needs an admin key."),
    ] = False,
) -> VersionRemoval:
    """Deletes a version and takes its model out of Ollama. Only for its job's owner and admins.

    The job that built it and its files stay; `DELETE /jobs/{id}` deletes them afterwards. Other
    versions keep their numbers, and no version gets this number again. Repeated within ten
    minutes, the request gets the same answer; later a 404.
    """
    who.detail = f"version {version}{', force' if force else ''}"
    if force:
        who.check_is_admin("force deletes what serves")
    _check_adapter(here, name)
    try:
        found = here.ledger.registry.version(name, version)
    except NotFound:
        told = here.ledger.withdrawals.removed(name, version)
        if told is None or not (told[0] == who.owner or who.scope.includes(Scope.ADMIN)):
            raise
        return cleared(here.ledger, here.settings.ollama_host, told[1])
    owner = _owner_of(here, who, found)
    with _readable_copy(here):
        return remove_version(
            here.ledger, here.settings.ollama_host, name, found, owner=owner, force=force
        )


def _owner_of(here: Context, who: Caller, version: Version) -> str | None:
    """The owner of the job that built a version, who may delete it.

    Raises:
        Forbidden: that is somebody else, and the key no admin's.
    """
    try:
        job = here.ledger.job(version.job)
    except NotFound:
        who.check_is_admin(f"the record of job {version.job} is gone, so nobody owns the version")
        return None
    who.check_may_change(job)
    return job.owner


def _check_adapter(here: Context, name: str) -> None:
    """Adapters with a recipe, right or wrong, and those that once registered something.

    Raises:
        UnknownAdapter: neither.
    """
    known = name in adapter_names(here.settings.adapters_dir)
    if not known and name not in here.ledger.registry.adapters():
        load_recipe(here.settings.adapters_dir, name)


def _marked(here: Context, versions: list[Version]) -> tuple[Version, ...]:
    """The versions, those marked whose model Ollama lacks; unmarked where it does not answer at once."""
    if not versions:
        return ()
    try:
        with OllamaHost(here.settings.ollama_host, seconds=_LOOK_SECONDS) as host:
            there = host.digests()
    except LocoError:
        return tuple(versions)
    return tuple(
        version.model_copy(update={"missing": version.candidate not in there})
        for version in versions
    )


@contextmanager
def _readable_copy(here: Context) -> Iterator[None]:
    """Writes registry.yaml after a change, recorded by half, too; where this process may not, a worker does."""
    try:
        yield
    finally:
        with suppress(OSError, LocoError):
            export(here.ledger, here.settings.adapters_dir)


def _usual_model(here: Context, name: str) -> str | None:
    """The recipe's model; None where there is no recipe that can be read."""
    try:
        return load_recipe(here.settings.adapters_dir, name).model_name
    except (InvalidRequest, UnknownAdapter):
        return None
