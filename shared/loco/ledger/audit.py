"""The audit trail: who did what, in capped Redis streams apart from the jobs.

Refused requests have a stream of their own, so that no flood of them drives out what was done.
"""

import json
import re
from typing import Any

from loco.contracts.errors import InvalidRequest
from loco.contracts.keys import AuditEvent
from loco.ledger.connection import Connection
from loco.ledger.views import Fields, legible, moment

#: Entries kept; older ones go. An entry is under 1 kB.
KEPT = 10_000
REFUSALS_KEPT = 1000
#: ID of an entry of a stream.
ENTRY_ID = r"^[0-9]{1,19}-[0-9]{1,19}$"


class Audit:
    """The trail of one namespace. Every method raises `RedisUnavailable`, see `Connection`."""

    def __init__(self, connection: Connection, *, namespace: str) -> None:
        self._connection = connection
        self._changes = f"{namespace}:audit"
        self._refusals = f"{namespace}:audit:refused"

    def record(self, **fields: Any) -> None:
        """Appends an entry: the fields of `AuditEvent` but `id` and `at`, which the server gives."""
        AuditEvent.model_validate({**fields, "id": "0-0", "at": 0})
        refused = fields["outcome"] == "refused"
        stream, kept = (self._refusals, REFUSALS_KEPT) if refused else (self._changes, KEPT)
        with self._connection.client() as client:
            client.xadd(stream, {"event": json.dumps(fields)}, maxlen=kept, approximate=True)

    def page(
        self, *, refused: bool = False, after: str | None = None, limit: int = 100
    ) -> tuple[list[AuditEvent], bool]:
        """Entries, newest first, and whether there are more; one that cannot be read is left out.

        Args:
            refused: what was refused (4xx), instead of what was done or failed.
            after: ID of the last entry of the page before.
            limit: entries on a page, at least 1.

        Raises:
            InvalidRequest: `after` is no ID of an entry.
        """
        below = "+" if after is None else f"({_checked(after)}"
        if after is not None and not after.strip("0-"):
            return [], False  # nothing is older than 0-0, and Redis takes no such range
        stream = self._refusals if refused else self._changes
        events: list[AuditEvent] = []
        while len(events) <= limit:
            with self._connection.client() as client:
                entries = client.xrevrange(stream, max=below, count=limit + 1)
            events += legible("audit entry", entries, _event)
            if len(entries) <= limit:
                break
            below = f"({entries[-1][0]}"
        return events[:limit], len(events) > limit


def _event(entry_id: str, fields: Fields) -> AuditEvent:
    document = json.loads(fields["event"])
    given = {"id": entry_id, "at": moment(entry_id.partition("-")[0])}
    return AuditEvent.model_validate({**document, **given}, extra="ignore")


def _checked(entry_id: str) -> str:
    if re.fullmatch(ENTRY_ID, entry_id):
        return entry_id
    raise InvalidRequest(
        f"after: {entry_id!r:.80} is not the ID of an entry.",
        param="after",
        hint="Send the `id` of the last entry of the page before, or leave it out.",
    )
