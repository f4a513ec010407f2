"""Where a server is to listen, and how it is reached there."""

import socket

from loco.contracts.errors import Conflict

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104 (read, not bound)


def checked_port(host: str, port: int) -> int:
    """The port to listen at; 0 asks for a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Conflict(
                f"Cannot listen on {host} port {port}: {error.strerror}.",
                param="LOCO_PORT",
                hint="Another program may use that port. Choose one with --port (0: any free "
                "port).",
            ) from error
        chosen: int = probe.getsockname()[1]
        return chosen


def reachable(host: str) -> str:
    """How this machine reaches a server that listens at `host`."""
    if host in _ANY_ADDRESS:
        return _ANY_ADDRESS[host]
    return f"[{host}]" if ":" in host else host
