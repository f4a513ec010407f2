"""Jobs named in short: `last`, or a few characters of an ID."""

import re

from loco.client.http import Transport, understood
from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.jobs import JobLine

#: The newest job of one's own.
LAST = "last"

#: IDs as the ledger makes them.
_WHOLE = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
#: Jobs that an error names.
_NAMED = 5


def job_id_of(transport: Transport, reference: str) -> str:
    """The ID of the one job that a reference means.

    Raises:
        NotFound: no job is named so.
        InvalidRequest: several are.
    """
    if _WHOLE.fullmatch(reference):
        return reference
    if reference == LAST:
        own = lines(transport, mine="true", limit=1)
        if own:
            return own[0].id
        raise NotFound(
            "You have no job yet, so `last` means nothing.",
            param="job_id",
            hint="`loco jobs` lists everybody's jobs.",
        )
    found = lines(transport, like=reference, limit=_NAMED + 1) if reference else []
    exact = [line for line in found if line.id == reference]
    if len(exact or found) == 1:
        return (exact or found)[0].id
    if not found:
        raise NotFound(
            f"No job {reference!r:.100}.",
            param="job_id",
            hint="`loco jobs` lists them. `last` is your newest one.",
        )
    named = ", ".join(f"{j.id} ({j.adapter}, {j.status})" for j in found[:_NAMED])
    more = " and more" if len(found) > _NAMED else ""
    raise InvalidRequest(
        f"{reference!r} matches several jobs: {named}{more}.",
        param="job_id",
        hint="Write more of the ID, or its last six characters.",
    )


def lines(transport: Transport, **query: str | int) -> list[JobLine]:
    """Jobs in a line each, newest first, as `GET /jobs/ids` answers a query."""
    page = transport.get("/jobs/ids", **query)
    return [understood(JobLine, entry) for entry in page["data"]]
