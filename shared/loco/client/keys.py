"""The client's calls about API keys and the audit trail: for admins."""

from collections.abc import Iterator

from loco.client.http import Transport, path_of, understood
from loco.contracts.keys import AuditEvent, KeyInfo, NewKey, Scope


class KeyMethods:
    """What an admin's client can do with keys."""

    _transport: Transport

    def api_keys(self) -> list[KeyInfo]:
        """The API keys of the server, oldest first, never their texts. Needs scope admin."""
        page = self._transport.get("/keys")
        return [understood(KeyInfo, entry) for entry in page["data"]]

    def create_key(
        self,
        name: str,
        *,
        scope: Scope | str = Scope.SUBMIT,
        owner: str | None = None,
        expires: str | None = None,
    ) -> NewKey:
        """Makes an API key; its `key` is not shown again. Needs scope admin.

        Args:
            name: what it is for.
            scope: `read`, `submit` or `admin`; each includes the ones before.
            owner: whose jobs its jobs are; none: the name.
            expires: how long it works, like `90d` or `12h`; none: until it is revoked.
        """
        body = {"name": name, "scope": str(scope), "owner": owner, "expires": expires}
        answer = self._transport.request("POST", "/keys", body=body, repeatable=False)
        return understood(NewKey, answer)

    def revoke_key(self, key_id: str) -> KeyInfo:
        """Makes an API key worthless, at once. Needs scope admin."""
        answer = self._transport.request("DELETE", path_of("keys", key_id), repeatable=False)
        return understood(KeyInfo, answer)

    def audit(self, *, refused: bool = False, page_size: int = 100) -> Iterator[AuditEvent]:
        """Who did what, newest first; pages are fetched as they are needed. Needs scope admin.

        Args:
            refused: what was refused (4xx), instead; without a valid key counted by address.
            page_size: entries a page, at most 1,000.
        """
        after: str | None = None
        while True:
            page = self._transport.get(
                "/audit", refused=str(refused).lower(), after=after, limit=page_size
            )
            events = [understood(AuditEvent, e) for e in page["data"]]
            yield from events
            if not page["has_more"] or not events:
                return
            after = events[-1].id
