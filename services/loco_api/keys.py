"""Keys over HTTP, and the audit trail: for those with an admin key."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from loco.contracts.errors import BodyTooLarge, Forbidden, InvalidRequest, NotFound
from loco.contracts.keys import AuditEvent, KeyInfo, KeyRequest, NewKey, lifetime_of
from loco.ledger.audit import ENTRY_ID
from loco_api.auth import ADMIN, Who
from loco_api.context import Here
from loco_api.errors import responses
from loco_api.pages import Page
from loco_api.trail import Trail

router = APIRouter(tags=["keys"])


class KeyPage(Page[KeyInfo]):
    """API keys, oldest first."""


class AuditPage(Page[AuditEvent]):
    """The audit trail, newest first."""


@router.get(
    "/keys",
    operation_id="listKeys",
    summary="List keys",
    dependencies=[ADMIN],
    responses=responses(InvalidRequest),
)
def list_keys(here: Here) -> KeyPage:
    """Every key, without its text."""
    return KeyPage(data=tuple(here.keys.list()))


@router.post(
    "/keys",
    status_code=201,
    operation_id="createKey",
    summary="Make a key",
    response_description="The key with its text. It is not shown again.",
    dependencies=[ADMIN],
    responses=responses(InvalidRequest, BodyTooLarge),
)
def create_key(request: KeyRequest, response: Response, here: Here, who: Who) -> NewKey:
    """Makes a key. Make the first one on the server's machine: `loco keys create`."""
    if who.key_id is None:
        raise Forbidden(
            "The first key closes the server to everyone without a key. Only the person who "
            "runs it can make it.",
            param="Authorization",
            hint="Run `loco keys create NAME --scope admin` on the server's machine.",
        )
    lifetime = lifetime_of(request.expires) if request.expires is not None else None
    info, text = here.keys.create(
        request.name, scope=request.scope, owner=request.owner, lifetime=lifetime
    )
    response.headers["Location"] = f"/keys/{info.id}"
    response.headers["Cache-Control"] = "no-store"
    who.detail = f"{info.name}, {info.scope}, of {info.owner}"
    return NewKey(**info.model_dump(), key=text)


@router.delete(
    "/keys/{key_id}",
    operation_id="revokeKey",
    summary="Revoke a key",
    dependencies=[ADMIN],
    responses=responses(NotFound, InvalidRequest),
)
def revoke_key(
    key_id: Annotated[str, Path(description="ID of a key.", examples=["0a1b2c3d"])],
    here: Here,
    who: Who,
) -> KeyInfo:
    """Revokes a key at once. A server whose last key was revoked answers nobody."""
    info = here.keys.revoke(key_id)
    who.detail = f"{info.name}, {info.scope}, of {info.owner}"
    return info


@router.get(
    "/audit",
    operation_id="listAudit",
    summary="Who did what",
    dependencies=[ADMIN],
    responses=responses(InvalidRequest),
)
async def list_audit(
    request: Request,
    *,
    refused: Annotated[
        bool,
        Query(
            description="List refused requests (4xx) instead. Those without a valid key are counted by "
            "address."
        ),
    ] = False,
    after: Annotated[
        str | None,
        Query(pattern=ENTRY_ID, description="Continue after this entry, the last of a page."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Entries per page.")] = 100,
) -> AuditPage:
    """Every change that was made or failed, newest first. With `refused`: the refused requests."""
    trail: Trail = request.app.state.trail
    events, more = await trail.page(refused=refused, after=after, limit=limit)
    return AuditPage(data=tuple(events), has_more=more)
