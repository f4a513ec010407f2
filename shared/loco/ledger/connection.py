"""The connection to Redis: patience, masked addresses, and its failures as ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from loco.contracts.errors import InvalidRequest, RedisUnavailable

#: Seconds. A frozen server is noticed after the socket timeout, an absent one after the connect
#: timeout; every command is safe to repeat, so the client does so twice before it gives up.
OPTIONS: dict[str, Any] = {
    "socket_timeout": 10,
    "socket_connect_timeout": 3,
    "health_check_interval": 10,
    "decode_responses": True,
    "encoding_errors": "backslashreplace",  # bytes that are no text are what no record here holds
}
#: A Unix socket, as the server of `loco up` has, notices by itself when the other end is gone.
_OVER_A_NETWORK = {"socket_keepalive": True}
_REPEATS = 2


class Connection:
    """A Redis client, opened when it is first used, safe to share between threads."""

    def __init__(self, url: str) -> None:
        """Takes the address without connecting.

        Raises:
            InvalidRequest: the URL is not one of Redis.
        """
        self.address = masked(url)
        backoff = ExponentialWithJitterBackoff(base=0.05, cap=0.5)
        options = OPTIONS if url.startswith("unix:") else OPTIONS | _OVER_A_NETWORK
        try:
            # Any: redis-py types every answer as perhaps awaitable
            self._client: Any = redis.Redis.from_url(url, retry=Retry(backoff, _REPEATS), **options)
        except ValueError as error:
            raise InvalidRequest(
                f"{self.address} is not a Redis URL: {error}.",
                param="LOCO_REDIS_URL",
                hint="Write it like redis://:PASSWORD@HOST:6379/0.",
            ) from error

    @contextmanager
    def client(self) -> Iterator[Any]:
        """The client; inside, a failure of the server is `RedisUnavailable` and says why."""
        try:
            yield self._client
        except redis.AuthenticationError as error:
            raise RedisUnavailable(
                f"Redis at {self.address} does not accept the password: {error}.",
                hint="Put user and password into LOCO_REDIS_URL: "
                "redis://USER:PASSWORD@HOST:6379/0.",
            ) from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise RedisUnavailable(
                f"Redis at {self.address} does not answer: {error}.",
                hint="Start it (`loco up` starts its own), or correct LOCO_REDIS_URL.",
            ) from error
        except redis.ResponseError as error:
            raise _refused(self.address, error) from error

    def close(self) -> None:
        """Closes every open socket; the next command opens a new one."""
        self._client.close()


def _refused(address: str, error: redis.ResponseError) -> Exception:
    """What an error answer of the server means; anything but a lack of means is a bug of ours."""
    text = str(error)
    if isinstance(error, redis.OutOfMemoryError) or "maxmemory" in text:
        return RedisUnavailable(
            f"Redis at {address} is full: {text}.",
            hint="Raise maxmemory or delete old data. Jobs then continue by themselves.",
        )
    if isinstance(error, redis.ReadOnlyError) or text.startswith(("MISCONF", "NOREPLICAS")):
        return RedisUnavailable(
            f"Redis at {address} does not accept writes: {text}.",
            hint="Check its disk and its role (a replica is read-only).",
        )
    return error


def unguarded(url: str) -> tuple[str, str] | None:
    """A warning and its fix where Redis asks no password of who reaches its port; else None."""
    parts = urlsplit(url)
    if parts.scheme == "unix" or parts.password or "password=" in parts.query:
        return None
    return (
        f"Redis at {masked(url)} has no password. Anybody who reaches that port, such as every "
        "user of its machine, can control all jobs and make keys.",
        "Set a password in Redis (requirepass) and in LOCO_REDIS_URL: "
        "redis://:PASSWORD@HOST:6379/0. Or unset that variable: then `loco up` starts its own "
        "Redis on a socket.",
    )


def masked(url: str) -> str:
    """The URL without its password, fit for messages and logs."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    _, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{place}"))
