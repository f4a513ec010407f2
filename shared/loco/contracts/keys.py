"""API keys, what each may do, and the audit trail of what was done with them."""

import re
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.errors import InvalidRequest

#: Owner of what is done where no key is needed.
LOCAL = "local"
#: What the audit trail calls a request without a valid key.
REFUSED = "refused"
LONGEST_NAME = 100
#: Ten years; what shall hold longer needs no end.
LONGEST_LIFETIME = timedelta(days=3650)

_LIFETIME = "([1-9][0-9]{0,6})([mhdw])"
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Scope(StrEnum):
    """What a key may do; each includes the ones before."""

    #: Look at everything.
    READ = "read"
    #: Submit jobs and change one's own; move `latest` as far as the gate lets it.
    SUBMIT = "submit"
    #: Everything: other owners' jobs, overruling the gate, keys, the audit trail.
    ADMIN = "admin"

    def includes(self, needed: "Scope") -> bool:
        """Whether this scope is enough where `needed` is asked for."""
        order = list(Scope)
        return order.index(self) >= order.index(needed)


class KeyInfo(Contract):
    """What is known about a key, never the key itself."""

    id: str = Field(description="ID of the key, for `revoke`.")
    name: str = Field(description="What the key is for, as its maker wrote.")
    owner: str = Field(
        description="Who owns the jobs of this key. Several keys may have the same owner."
    )
    scope: Scope = Field(description="What it may do.")
    created_at: datetime = Field(description="When it was made.")
    expires_at: datetime | None = Field(
        None, description="When it stops working. Null: when it is revoked."
    )
    last_used_at: datetime | None = Field(
        None, description="When it was last used, to the minute. Null: never."
    )


class KeyRequest(Contract):
    """The key to make."""

    name: str = Field(
        min_length=1, max_length=LONGEST_NAME, description="What it is for.", examples=["laptop"]
    )
    scope: Scope = Field(Scope.SUBMIT, description="What it may do.")
    owner: str | None = Field(
        None,
        min_length=1,
        max_length=LONGEST_NAME,
        description="Owner of the key. Null: the key's name, unless that is `local`.",
    )
    expires: str | None = Field(
        None,
        max_length=8,
        description="How long it works: a number and m, h, d or w. Null: until it is revoked.",
        examples=["90d"],
        json_schema_extra={
            "pattern": f"^{_LIFETIME}$"
        },  # for the document: `lifetime_of` says more
    )


class NewKey(KeyInfo):
    """A key that was just made, with its text, which is not shown again."""

    key: str = Field(description="The text to send as `Authorization: Bearer KEY`.")


class AuditEvent(Contract):
    """Who did what. The server keeps the newest 10,000 entries, and the newest 1,000 refused requests."""

    id: str = Field(description="Position in the audit trail.")
    at: datetime = Field(description="When it was recorded.")
    action: str = Field(description="The operation, as in /openapi.json, or `refused`.")
    target: str = Field(description="Path of what was changed.")
    detail: str = Field("", description="More about it, for people.")
    outcome: Literal["ok", "refused", "failed"] = Field(
        description="Whether it was done, refused (4xx), or failed (5xx)."
    )
    status: int | None = Field(None, description="HTTP status. Null: done on the server's machine.")
    key: str | None = Field(None, description="ID of the key. Null: no key, or no valid one.")
    by: str | None = Field(None, description="Name of the key. `local`: no key was needed.")
    owner: str | None = Field(None, description="Its owner.")
    address: str | None = Field(
        None, description="Address it came from. Null: the command line on the server's machine."
    )
    count: int = Field(1, description="How many refusals of that address this entry counts.")


def lifetime_of(text: str) -> timedelta:
    """How long `90d`, `12h`, `30m` or `2w` is.

    Raises:
        InvalidRequest: it says no such time, or one over ten years.
    """
    found = re.fullmatch(_LIFETIME, text)
    lifetime = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None
    if lifetime is None or lifetime > LONGEST_LIFETIME:
        raise InvalidRequest(
            f"expires: {text!r:.80} is not a time of up to ten years.",
            param="expires",
            hint="Write a number and m, h, d or w: 12h, 90d, 26w.",
        )
    return lifetime
