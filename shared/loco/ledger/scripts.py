"""The ledger's Lua scripts: each one is one transition."""

from importlib import resources
from typing import Any

from loco.ledger.connection import Connection

#: Functions every script may use, in this order.
_COMMON = ("common", "versions", "jobs")


class Scripts:
    """The scripts of one Redis namespace, sent once and then called by their hash."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace
        self._scripts: dict[str, Any] = {}

    def run(self, name: str, *arguments: str | int) -> Any:
        """Runs lua/NAME.lua on the namespace and the arguments, as one transaction."""
        with self._connection.client() as client:
            if name not in self._scripts:
                self._scripts[name] = client.register_script(_source(name))
            return self._scripts[name](args=[self._namespace, *arguments])


def _source(name: str) -> str:
    folder = resources.files("loco.ledger") / "lua"
    return "".join((folder / f"{part}.lua").read_text() for part in (*_COMMON, name))
