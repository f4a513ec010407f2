"""API keys: bearer tokens, kept in Redis as hashes only."""

import hashlib
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from pydantic import ValidationError
from pydantic_core import from_json

from loco.contracts.errors import Conflict, InvalidRequest, NotFound, RedisUnavailable
from loco.contracts.keys import LOCAL, LONGEST_NAME, KeyInfo, Scope
from loco.ledger.audit import Audit
from loco.ledger.connection import Connection
from loco.ledger.views import moment

_PREFIX = "loco_"
#: Between two notes that a key is used, seconds.
_USED_SECONDS = 60
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class Keys:
    """The API keys of one namespace. Every method raises `RedisUnavailable`, see `Connection`."""

    def __init__(self, connection: Connection, *, namespace: str) -> None:
        self._connection = connection
        self._table = f"{namespace}:keys"  # sha256 of the key to its KeyInfo, JSON
        self._used = f"{namespace}:keys:used"  # ID of the key to milliseconds
        self._marker = f"{namespace}:keys:closed"  # there once a key was made
        self._noted: dict[str, float] = {}  # ID of the key to when its use was last written down
        #: What was done with the keys, and to them.
        self.audit = Audit(connection, namespace=namespace)

    @classmethod
    def connect(cls, url: str, *, namespace: str = "loco") -> Self:
        """The keys at a Redis URL. The socket opens with the first call."""
        return cls(Connection(url), namespace=namespace)

    def close(self) -> None:
        """Closes the sockets; a later call opens them again."""
        self._connection.close()

    def create(
        self,
        name: str,
        *,
        scope: Scope = Scope.SUBMIT,
        owner: str | None = None,
        lifetime: timedelta | None = None,
    ) -> tuple[KeyInfo, str]:
        """A new key and its text, which can't be read again. From now on the server asks for one.

        Args:
            name: what it is for.
            scope: what it may do.
            owner: whose jobs its jobs are; none: the name. `local`, whose are the jobs made without a
                key, has to be said.
            lifetime: how long it works; none: until it is revoked.

        Raises:
            InvalidRequest: name or owner is empty, over 100 characters, or not printable; or a key
                called `local` names no owner.
        """
        _check("name", name)
        if owner is None and name == LOCAL:
            raise InvalidRequest(
                f"A key with the name {LOCAL} needs an owner (--owner), because jobs made "
                f"without a key belong to {LOCAL}.",
                param="owner",
                hint=f"Add `--owner {LOCAL}` to own those jobs, or name another owner.",
            )
        owner = name if owner is None else owner
        _check("owner", owner)
        plaintext = _PREFIX + secrets.token_urlsafe(32)
        with self._connection.client() as client:
            now = _now(client.time())
            info = KeyInfo(
                id=secrets.token_hex(4),
                name=name,
                owner=owner,
                scope=scope,
                created_at=now,
                expires_at=now + lifetime if lifetime else None,
            )
            pipeline = client.pipeline(transaction=True)
            pipeline.hset(self._table, _digest(plaintext), info.model_dump_json())
            pipeline.set(self._marker, "1")
            pipeline.execute()
        return info, plaintext

    def list(self) -> "list[KeyInfo]":
        """Every key, oldest first; a record that cannot be read is one that has expired."""
        with self._connection.client() as client:
            records, used = client.hgetall(self._table), client.hgetall(self._used)
        keys = [_key(digest, value, used) for digest, value in records.items()]
        return sorted(keys, key=lambda info: (info.created_at, info.id))

    def revoke(self, key_id: str) -> KeyInfo:
        """Makes a key worthless, at once. The server stays closed, also without the last one.

        Raises:
            NotFound: no such key.
        """
        with self._connection.client() as client:
            used = client.hgetall(self._used)
            for digest, value in client.hgetall(self._table).items():
                info = _key(digest, value, used)
                if info.id == key_id:
                    pipeline = client.pipeline(transaction=True)
                    pipeline.set(self._marker, "1")  # keys of earlier releases left none
                    pipeline.hdel(self._table, digest)
                    pipeline.hdel(self._used, key_id)
                    pipeline.execute()
                    return info
        raise NotFound(
            f"No API key {key_id!r:.80}.", param="id", hint="`loco keys list` shows them."
        )

    def verify(self, plaintext: str) -> KeyInfo | None:
        """The key of this text, or None when there is none, or it has expired.

        The look-up goes by hash, so its timing says nothing about any stored key.
        """
        digest = _digest(plaintext)
        with self._connection.client() as client:
            value = client.hget(self._table, digest)
            if value is None:
                return None
            info = _key(digest, value, {})
            noted = self._noted.get(info.id)
            due = noted is None or time.monotonic() - noted >= _USED_SECONDS
            if due or info.expires_at is not None:
                now = _now(client.time())
                if info.expires_at is not None and info.expires_at <= now:
                    return None
            if due:
                self._noted[info.id] = time.monotonic()
                # while Redis takes no writes, what only reads goes on
                with suppress(RedisUnavailable), self._connection.client() as writer:
                    writer.hset(self._used, info.id, round(now.timestamp() * 1000))
        return info

    def any(self) -> bool:
        """Whether there is any key."""
        with self._connection.client() as client:
            return bool(client.hlen(self._table))

    def closed(self) -> bool:
        """Whether the server asks for a key: there is one, or there once was."""
        with self._connection.client() as client:
            return bool(client.exists(self._marker, self._table))

    def open(self) -> None:
        """Has the server answer programs of its own machine without a key again.

        Raises:
            Conflict: there are keys.
        """
        if self.any():
            raise Conflict(
                "There are API keys, so the server stays closed.",
                hint="Revoke them first: `loco keys list`, `loco keys revoke ID`.",
            )
        with self._connection.client() as client:
            client.delete(self._marker)


def _check(field: str, text: str) -> None:
    if not 0 < len(text) <= LONGEST_NAME or not text.isprintable():
        raise InvalidRequest(
            f"The {field} of a key must have 1 to {LONGEST_NAME} printable characters.",
            param=field,
            hint="Write what the key is for (`laptop`) and who owns it (`anna`).",
        )


def _key(digest: str, value: str, used: dict[str, str]) -> KeyInfo:
    """A record as a key. Those of earlier releases may do everything, as they could then."""
    try:
        document: dict[str, Any] = {"scope": Scope.ADMIN, **from_json(value)}
        last = used.get(str(document.get("id")))
        document |= {"owner": document.get("owner", document.get("name"))}
        document |= {"last_used_at": moment(last) if last else None}
        return KeyInfo.model_validate(document, extra="ignore")
    except (ValidationError, ValueError, TypeError, OverflowError):
        return KeyInfo(
            id=digest[:8],
            name="(unreadable record)",
            owner="",
            scope=Scope.READ,
            created_at=_LONG_AGO,
            expires_at=_LONG_AGO,
        )


def _now(answered: tuple[int, int]) -> datetime:
    """The server's TIME, to the millisecond."""
    seconds, microseconds = answered
    return moment(str(int(seconds) * 1000 + int(microseconds) // 1000))


def _digest(plaintext: str) -> str:
    """SHA-256. The keys are 32 random bytes, so a slow hash would add nothing."""
    return hashlib.sha256(plaintext.encode()).hexdigest()
