"""API keys: bearer tokens, kept in Redis as hashes only."""

import hashlib
import json
import secrets
from datetime import datetime
from typing import Self

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.errors import InvalidRequest, NotFound
from loco.ledger.connection import Connection
from loco.ledger.views import moment

_PREFIX = "loco_"
_LONGEST_NAME = 100


class KeyInfo(Contract):
    """What is known about a key, never the key itself."""

    id: str = Field(description="Names the key for `revoke`.")
    name: str = Field(description="What the key is for, in the words of who made it.")
    created_at: datetime


class Keys:
    """The API keys of one namespace. Every method raises `RedisUnavailable`, see `Connection`."""

    def __init__(self, connection: Connection, *, namespace: str) -> None:
        self._connection = connection
        self._table = f"{namespace}:keys"  # sha256 of the key to its KeyInfo, JSON

    @classmethod
    def connect(cls, url: str, *, namespace: str = "loco") -> Self:
        """The keys at a Redis URL. The socket opens with the first call."""
        return cls(Connection(url), namespace=namespace)

    def close(self) -> None:
        """Closes the sockets; a later call opens them again."""
        self._connection.close()

    def create(self, name: str) -> tuple[KeyInfo, str]:
        """A new key and its text, which can't be read again.

        Raises:
            InvalidRequest: the name is empty or over 100 characters.
        """
        if not 0 < len(name) <= _LONGEST_NAME:
            raise InvalidRequest(
                f"The name of a key has 1 to {_LONGEST_NAME} characters.",
                param="name",
                hint="Say what the key is for, e.g. `laptop`.",
            )
        plaintext = _PREFIX + secrets.token_urlsafe(32)
        with self._connection.client() as client:
            seconds, microseconds = client.time()
            info = KeyInfo(
                id=secrets.token_hex(4),
                name=name,
                created_at=moment(str(int(seconds) * 1000 + int(microseconds) // 1000)),
            )
            client.hset(self._table, _digest(plaintext), info.model_dump_json())
        return info, plaintext

    def list(self) -> "list[KeyInfo]":
        """Every key, oldest first."""
        with self._connection.client() as client:
            values = client.hvals(self._table)
        keys = [KeyInfo.model_validate_json(value, extra="ignore") for value in values]
        return sorted(keys, key=lambda info: (info.created_at, info.id))

    def revoke(self, key_id: str) -> KeyInfo:
        """Makes a key worthless, at once.

        Raises:
            NotFound: no such key.
        """
        with self._connection.client() as client:
            for digest, value in client.hgetall(self._table).items():
                if json.loads(value)["id"] == key_id:
                    client.hdel(self._table, digest)
                    return KeyInfo.model_validate_json(value, extra="ignore")
        raise NotFound(f"No API key {key_id!r}.", param="id", hint="`loco keys list` shows them.")

    def verify(self, plaintext: str) -> KeyInfo | None:
        """The key of this text, or None.

        The look-up goes by hash, so its timing says nothing about any stored key.
        """
        with self._connection.client() as client:
            value = client.hget(self._table, _digest(plaintext))
        return KeyInfo.model_validate_json(value, extra="ignore") if value else None

    def any(self) -> bool:
        """Whether there is any key."""
        with self._connection.client() as client:
            return bool(client.hlen(self._table))


def _digest(plaintext: str) -> str:
    """SHA-256. The keys are 32 random bytes, so a slow hash would add nothing."""
    return hashlib.sha256(plaintext.encode()).hexdigest()
