"""Where `loco keys` finds the keys: in the Redis of a server of this machine, or over the API of any.

It never guesses: keys that no running server looks at would leave the one that was meant open.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Protocol

import httpx

from loco.cli.console import Target
from loco.client.client import Client
from loco.client.http import checked_server
from loco.client.running import Up, this_up, up_at
from loco.client.target import default_key
from loco.contracts.errors import InvalidRequest
from loco.contracts.keys import AuditEvent, KeyInfo, NewKey, Scope, lifetime_of
from loco.settings import Settings, variables_here

_PROBE_SECONDS = 2.0


class KeyPlace(Protocol):
    """The keys of one server."""

    @property
    def name(self) -> str:
        """Which server, in words."""

    def create(self, name: str, *, scope: Scope, owner: str | None, expires: str | None) -> NewKey:
        """Makes a key."""

    def known(self) -> tuple[list[KeyInfo], bool]:
        """The keys, and whether the server is closed to whoever has none."""

    def revoke(self, key_id: str) -> tuple[KeyInfo, bool]:
        """Makes a key worthless; also answers whether another is left."""

    def open(self) -> None:
        """Opens a server without keys to its own machine."""

    def audit(self, *, refused: bool, limit: int) -> list[AuditEvent]:
        """Who did what, newest first."""


class OnMachine:
    """Straight on the Redis of a server: whoever may read its data folder needs no key.

    Args:
        url: of that Redis.
        namespace: of the server in it.
        name: which server, in words.
    """

    def __init__(self, url: str, *, namespace: str, name: str) -> None:
        from loco.ledger.keys import Keys  # noqa: PLC0415 (a client elsewhere needs no Redis library)

        self.name = name
        self._keys = Keys.connect(url, namespace=namespace)

    def close(self) -> None:
        """Closes the sockets."""
        self._keys.close()

    def create(self, name: str, *, scope: Scope, owner: str | None, expires: str | None) -> NewKey:
        """Makes a key."""
        lifetime = lifetime_of(expires) if expires is not None else None
        info, text = self._keys.create(name, scope=scope, owner=owner, lifetime=lifetime)
        self._record("createKey", info)
        return NewKey(**info.model_dump(), key=text)

    def known(self) -> tuple[list[KeyInfo], bool]:
        """The keys, and whether the server is closed to whoever has none."""
        return self._keys.list(), self._keys.closed()

    def revoke(self, key_id: str) -> tuple[KeyInfo, bool]:
        """Makes a key worthless; also answers whether another is left."""
        info = self._keys.revoke(key_id)
        self._record("revokeKey", info)
        return info, self._keys.any()

    def open(self) -> None:
        """Opens a server without keys to its own machine."""
        self._keys.open()
        self._keys.audit.record(action="openServer", target="/keys", outcome="ok")

    def audit(self, *, refused: bool, limit: int) -> list[AuditEvent]:
        """Who did what, newest first."""
        return self._keys.audit.page(refused=refused, limit=limit)[0]

    def _record(self, action: str, info: KeyInfo) -> None:
        detail = f"{info.name}, {info.scope}, of {info.owner}"
        target = f"/keys/{info.id}"
        self._keys.audit.record(action=action, target=target, detail=detail, outcome="ok")


class OverApi:
    """Over the API of a server, with an admin key."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def name(self) -> str:
        """Which server, in words."""
        return self._client.server

    def create(self, name: str, *, scope: Scope, owner: str | None, expires: str | None) -> NewKey:
        """Makes a key."""
        return self._client.create_key(name, scope=scope, owner=owner, expires=expires)

    def known(self) -> tuple[list[KeyInfo], bool]:
        """The keys; a server that has none and still answers is open."""
        found = self._client.api_keys()
        return found, bool(found)

    def revoke(self, key_id: str) -> tuple[KeyInfo, bool]:
        """Makes a key worthless; also answers whether another is left, as far as one may still ask."""
        others = any(key.id != key_id for key in self._client.api_keys())
        return self._client.revoke_key(key_id), others

    def open(self) -> None:
        """Not over HTTP.

        Raises:
            InvalidRequest: always.
        """
        raise InvalidRequest(
            f"{self.name} can only be opened on its own machine.",
            hint="Run `loco keys open` there, in the folder of its `loco up` or with the same "
            "LOCO_DATA_DIR.",
        )

    def audit(self, *, refused: bool, limit: int) -> list[AuditEvent]:
        """Who did what, newest first."""
        pages = self._client.audit(refused=refused, page_size=min(limit, 1000))
        return list(islice(pages, limit))


@contextmanager
def key_place(target: Target, *, on_the_line: bool) -> Iterator[KeyPlace]:
    """The keys of the server that is meant.

    That of `--server`, else of LOCO_REDIS_URL, else of LOCO_SERVER; else the running `loco up` of this folder
    or user. Before the first `loco up` of a folder the Redis it will bring runs for the length of the
    command: a host beyond loopback needs a key before it starts.

    Args:
        target: the server that was named, and a key for it.
        on_the_line: whether it was named by `--server`.

    Raises:
        InvalidRequest: another server answers here, and nothing says whether it is meant.
    """
    variables = variables_here()
    settings = Settings.from_environment(variables)
    named = target.server
    with ExitStack() as cleanup:

        def on_machine(url: str, name: str) -> OnMachine:
            place = OnMachine(url, namespace=settings.namespace, name=name)
            cleanup.callback(place.close)
            return place

        def over_api(server: str) -> OverApi:
            return OverApi(cleanup.enter_context(Client(server, target.api_key)))

        up: Up | None = None
        if settings.redis_url and not on_the_line:
            yield on_machine(settings.redis_url, "the server of LOCO_REDIS_URL")
            return
        if named:
            up = up_at(checked_server(named))
            if up is None:
                yield over_api(named)
                return
        else:
            up = this_up()
        if up is not None and up.redis_url:
            yield on_machine(up.redis_url, f"{up.server} (data in {up.data_dir})")
            return
        default = f"http://127.0.0.1:{settings.port}"
        if not variables.get("LOCO_DATA_DIR") and _answers(default):
            if target.api_key or default_key():
                yield over_api(default)
                return
            raise _which(default, settings.data_dir)
        from loco.box import redis_server  # noqa: PLC0415

        server = redis_server.start(settings.data_dir / "redis")
        cleanup.callback(server.stop)
        where = f"the server that `loco up` will start on {settings.data_dir} (not running now)"
        yield on_machine(server.url, where)


def _answers(server: str) -> bool:
    """Whether a locollm answers there."""
    try:
        with httpx.Client(trust_env=False, timeout=_PROBE_SECONDS) as http:
            document = http.get(f"{server}/healthz").json()
    except (httpx.HTTPError, ValueError):
        return False
    return isinstance(document, dict) and "status" in document


def _which(server: str, data_dir: Path) -> InvalidRequest:
    return InvalidRequest(
        f"A server answers at {server}, but its data folder is not {data_dir}, nor that of "
        "another `loco up` of yours. A key made here would not work there.",
        param="server",
        hint=f"If you have an admin key: `loco keys create NAME --server {server}`. If you run "
        "that server: name its data folder with LOCO_DATA_DIR=DIR. For a server that you "
        f"will start later: LOCO_DATA_DIR={data_dir}.",
    )
