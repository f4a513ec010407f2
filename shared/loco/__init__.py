"""Contracts, ledger, runner, client and command line of locollm.

    from loco import Client

Importing this package loads nothing else: the client comes in when it is named.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loco.client.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from loco.client.client import Client  # noqa: PLC0415 (workers need no HTTP client)

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
