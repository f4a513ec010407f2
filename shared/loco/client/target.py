"""Which server a client speaks to, and with which key, where nobody says so."""

import os
from collections.abc import Mapping
from pathlib import Path

from loco.client.running import this_up
from loco.contracts.addresses import hostname, is_loopback
from loco.contracts.errors import InvalidRequest
from loco.settings import DEFAULT_PORT


def default_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """The API key of LOCO_API_KEY, or of the file that LOCO_API_KEY_FILE names.

    Raises:
        InvalidRequest: that file cannot be read.
    """
    if key := environment.get("LOCO_API_KEY"):
        return key
    path = environment.get("LOCO_API_KEY_FILE")
    return key_of(Path(path)) if path else None


def key_of(path: Path) -> str:
    """The API key a file holds.

    Raises:
        InvalidRequest: it cannot be read, or holds no single line.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"The API key cannot be read: {error}.",
            param="LOCO_API_KEY_FILE",
            hint="Name a file that holds only the key and that only you can read.",
        ) from error
    if len(text.split()) != 1 or not text.isascii():
        raise InvalidRequest(
            f"{path} holds no API key.",
            param="LOCO_API_KEY_FILE",
            hint="Put the key in it as one line, as `loco keys create` printed it.",
        )
    return text


def default_server(environment: Mapping[str, str] = os.environ) -> str:
    """The server meant when none is named.

    LOCO_SERVER, else the running `loco up` of the data folder, else the user's only one, else the default
    port of this machine. A `.env` may name the data folder, but no server: keys of the environment
    would follow it there.

    Raises:
        InvalidRequest: the left address is not on this machine, a key must not follow it there; the user
            has several servers; or what says the address is not believed.
    """
    if server := environment.get("LOCO_SERVER"):
        return server
    up = this_up(environment)
    if up is None or not up.server:
        return f"http://127.0.0.1:{DEFAULT_PORT}"
    if not is_loopback(hostname(up.server)):
        raise InvalidRequest(
            f"The `loco up` of {up.data_dir} listens on {up.server}.",
            param="server",
            hint=f"If that is right: export LOCO_SERVER={up.server}",
        )
    return up.server
