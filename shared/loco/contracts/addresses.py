"""Whether an address is this machine's own."""

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine's loopback address, by number or as `localhost`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def hostname(url: str) -> str | None:
    """The host a URL names; None when it names none."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
